"""Values come back as they were, or are refused by name."""

from __future__ import annotations

import asyncio
import builtins
import collections
import contextlib
import dataclasses
import enum
import importlib
import math
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import msgpack

from durable_actor import codec, errors
from durable_actor.errors import (
    BadArgumentsError,
    ConfigError,
    DecodeError,
    DurableActorError,
    EncodeError,
    RemoteError,
)

HERE = __name__
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = ("b", 1)
    CRIMSON = "red"  # noqa: PIE796  # an alias


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mood(enum.StrEnum):
    GOOD = "good"


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@dataclasses.dataclass
class Line:
    sku: str
    quantity: int
    price: Decimal = Decimal(0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    lines: tuple[Line, ...]
    placed_at: datetime
    labels: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: object


@dataclasses.dataclass
class Doubled:
    """Would change, or refuse, what it is given once more."""

    given: int
    doubled: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.given < 0:
            raise ValueError(self.given)
        self.given *= 2
        self.doubled = self.given

    @cached_property
    def half(self) -> float:
        return self.given / 2


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Run(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    attempts: tuple[int, ...] = ()
    result: object = msgspec.UNSET


class Normal(msgspec.Struct):
    text: str

    def __post_init__(self) -> None:
        self.text = self.text.strip()


class Wrapped(msgspec.Struct, frozen=True):
    content: object


class Outer:
    @dataclasses.dataclass
    class Inner:
        value: int


class ShopError(Exception):
    def __init__(self, shop: str, *, code: int) -> None:
        super().__init__(f"{shop} is closed")
        self.shop = shop
        self.code = code


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int
    why: str


class DiskError(OSError, ValueError):
    def __init__(self, where: str) -> None:
        super().__init__(5, "no luck", where)
        self.where = where


class Pair(NamedTuple):
    a: int
    b: int


def round_trip(value: object) -> Any:
    return codec.decode(codec.encode(value))


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same all the way down; `==` is never enough."""
    if type(a) is not type(b):
        return False
    match a:
        case float():
            return (math.isnan(a) and math.isnan(b)) or (
                a == b and math.copysign(1, a) == math.copysign(1, b)
            )
        case Decimal():
            return str(a) == str(b)
        case enum.Enum():
            return a is b
        case datetime() | time():
            bare_a, bare_b = a.replace(tzinfo=None), b.replace(tzinfo=None)
            return (
                (bare_a, a.fold) == (bare_b, b.fold)
                and repr(a.tzinfo) == repr(b.tzinfo)
                and type(a.tzinfo) is type(b.tzinfo)
            )
        case list() | tuple():
            return len(a) == len(b) and all(map(same, a, b))
        case dict():
            return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
        case set() | frozenset():
            return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
        case BaseException():
            return same(a.args, b.args) and same(vars(a), vars(b))
        case msgspec.Struct():
            return same(msgspec.structs.astuple(a), msgspec.structs.astuple(b))
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    return bool(a == b)


ZONES = ("UTC", "Europe/London", "America/New_York", "Asia/Kathmandu")

offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones: st.SearchStrategy[tzinfo | None] = st.one_of(
    st.none(),
    st.just(UTC),
    offsets.map(timezone),
    st.builds(timezone, offsets, st.text(st.characters(codec="utf-8"))),
    st.sampled_from(ZONES).map(ZoneInfo),
)


def with_fold(value: Any, fold: int) -> Any:
    return value.replace(fold=fold)


texts = st.text(st.characters(codec="utf-8"))
moments = st.builds(
    with_fold,
    st.builds(lambda t, z: t.replace(tzinfo=z), st.datetimes(), zones)
    | st.builds(lambda t, z: t.replace(tzinfo=z), st.times(), zones),
    st.sampled_from([0, 1]),
)
hashable_scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    texts,
    st.binary(),
    moments,
    st.dates(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.sampled_from([*Colour, *Size, *Mood, *Right, Right.READ | Right.WRITE]),
    st.just(msgspec.UNSET),
)


def is_hashable(value: object) -> bool:
    # A signalling NaN is not, although its type is.
    try:
        return hash(value) is not None
    except TypeError:
        return False


hashables: st.SearchStrategy[Any] = st.recursive(
    hashable_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner.filter(is_hashable), max_size=3),
        st.builds(Point, st.integers(), inner),
    ),
    max_leaves=5,
)


keys = hashables.filter(is_hashable)
values: st.SearchStrategy[Any] = st.recursive(
    hashables | st.binary().map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(keys, max_size=4),
        st.builds(Line, texts, st.integers(), inner),
        st.builds(Run, name=texts, result=inner),
        st.builds(Box, inner),
        st.builds(ValueError, inner, inner),
    ),
    max_leaves=12,
)


@given(values)
@example([{1: "int"}, {True: "bool"}, {1.0: "float"}])
@example([1, True, 1.0, 0, False, 0.0, -0.0, math.nan, math.inf, -math.inf])
@example({(1, (2, None)): {b"k": {1.5}}, None: (), Colour.RED: []})
@example([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5_000])
def test_a_value_comes_back_with_every_type_in_it(value: Any) -> None:
    assert same(value, round_trip(value))


@given(values)
def test_a_copy_is_what_the_bytes_would_have_brought(value: Any) -> None:
    assert same(value, codec.clone(value))


@given(values)
def test_every_value_has_a_readable_form_in_json(value: Any) -> None:
    shown = codec.to_json(value)
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown


def test_the_order_of_a_dict_is_kept() -> None:
    assert list(round_trip({"b": 1, "a": 2})) == ["b", "a"]
    assert list(round_trip({2: 0, "1": 0, None: 0})) == [2, "1", None]


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 10, 27, 1, 30, fold=1, tzinfo=ZoneInfo("Europe/London")),
        datetime(2024, 10, 27, 1, 30, fold=0, tzinfo=ZoneInfo("Europe/London")),
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
        datetime.fromisoformat("0001-01-01T00:00:00.000001"),
        datetime(9999, 12, 31, tzinfo=timezone(timedelta(hours=-5), "EST")),
        datetime.fromisoformat("2024-10-27").replace(fold=1),
        time(1, 2, 3, 4, tzinfo=timezone(timedelta(seconds=1, microseconds=1))),
        time(1, fold=1, tzinfo=ZoneInfo("Asia/Kathmandu")),
        # Python reads its own ISO text of this one as UTC.
        time(1, tzinfo=timezone(timedelta(microseconds=1))),
    ],
    ids=str,
)
def test_a_time_keeps_its_zone_and_its_fold(value: datetime | time) -> None:
    assert same(value, round_trip(value))


def test_a_dataclass_is_restored_without_its_own_code() -> None:
    value = Doubled(2)

    assert same(round_trip(value), value)
    assert same(codec.clone(value), value)


def test_a_struct_is_restored_to_what_it_was_whatever_its_constructor_thinks() -> None:
    value = Normal("x")
    value.text = "  spaced  "

    assert round_trip(value).text == "  spaced  "


def test_what_a_cached_property_computed_is_left_out() -> None:
    value = Doubled(2)
    assert value.half == 2.0

    assert "half" not in vars(round_trip(value))


def test_a_generic_dataclass_and_a_nested_class_come_back() -> None:
    assert same(round_trip(Box[int](5)), Box(5))
    assert same(round_trip(Outer.Inner(5)), Outer.Inner(5))


def test_a_copy_shares_nothing_that_can_change() -> None:
    value = {"lines": [Line("a", 1)], "raw": bytearray(b"x")}

    copy = codec.clone(value)
    copy["lines"][0].quantity = 9
    copy["lines"].append(None)
    copy["raw"][0] = 0

    assert same(value, {"lines": [Line("a", 1)], "raw": bytearray(b"x")})


class Text(str):
    __slots__ = ()


class Loose:
    pass


class Plain(Line):
    """A subclass that is not a dataclass of its own."""


@dataclasses.dataclass
class Listing(list[int]):
    name: str


def nothing() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "value",
    [
        Text("x"),
        Pair(1, 2),
        collections.OrderedDict(),
        collections.defaultdict(list),
        collections.deque([1]),
        collections.Counter("a"),
        object(),
        Loose(),
        Loose,
        int,
        nothing,
        nothing(),
        lambda: None,
        memoryview(b"x"),
        range(3),
        1j,
        ...,
        NotImplemented,
        Path("x"),
        sys,
        types.SimpleNamespace(a=1),
        Listing("a"),
        datetime(2024, 1, 1, tzinfo=type("Zone", (tzinfo,), {})()),
        time(1, tzinfo=type("Zone", (tzinfo,), {})()),
        "\ud800",
        {"\udfff": 1},
        type("Made", (), {})(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_come_back_exactly_is_refused(value: object) -> None:
    for wrapped in (value, [value], {"a": value}, (value,), Box(value)):
        with pytest.raises(EncodeError):
            codec.encode(wrapped)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "value"),
        ({"items": [0, 1, 2, Box(object())]}, 'value["items"][3].content'),
        ((1, object()), "value[1]"),
        ({1: {None: object()}}, "value[1][None]"),
        ({object}, "value{...}"),
        ({object: 1}, "value[the key <class 'object'>]"),
        (Run(name="a", result=[object()]), "value.result[0]"),
        (ValueError(1, object()), "value.args[1]"),
        ({"a": ["ok", "\ud800"]}, 'value["a"][1]'),
        ([1, "\ud800"], "value[1]"),
        ([(Point(1, ["\ud800"]),)], "value[0][0].y[0]"),
    ],
    ids=str,
)
def test_a_refusal_says_where(value: object, path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec.encode(value)
    assert caught.value.path == path


def test_a_copy_is_refused_with_the_same_path() -> None:
    with pytest.raises(EncodeError) as caught:
        codec.clone({"items": [Box(object())]})
    assert caught.value.path == 'value["items"][0].content'


async def test_a_forgotten_await_is_named() -> None:
    coroutine = asyncio.sleep(0)
    with pytest.raises(EncodeError, match="Await it first"):
        codec.encode({"total": coroutine})
    await coroutine


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: {"a": inner},
        lambda inner: {1: inner},
        lambda inner: (inner,),
        lambda inner: frozenset({inner}),
        lambda inner: Point(1, inner),
        Wrapped,
    ],
    ids=["list", "dict", "tagged dict", "tuple", "frozenset", "dataclass", "struct"],
)
def test_a_value_may_be_as_deep_as_the_limit_and_no_deeper(
    wrap: Callable[[Any], Any],
) -> None:
    deepest = nested(codec.DEPTH_MAX, wrap)
    assert same(round_trip(deepest), deepest)
    assert same(codec.clone(deepest), deepest)
    for refuse in (codec.encode, codec.clone, codec.to_json):
        with pytest.raises(EncodeError):
            refuse(wrap(deepest))


def test_a_value_inside_itself_is_refused_with_a_short_path() -> None:
    value: list[Any] = [0]
    value.append({"again": value})
    for refuse in (codec.encode, codec.clone, codec.to_json):
        with pytest.raises(EncodeError, match="deeper") as caught:
            refuse(value)
        assert len(caught.value.path) < 100


def test_an_attribute_that_is_no_field_is_refused_rather_than_lost() -> None:
    value = Plain("a", 1)
    assert same(round_trip(value), value)

    value.colour = "red"  # type: ignore[attr-defined]  # the mistake under test
    with pytest.raises(EncodeError, match="colour"):
        codec.encode(value)


def test_a_field_that_was_never_set_is_refused() -> None:
    value = object.__new__(Line)
    with pytest.raises(EncodeError) as caught:
        codec.encode([value])
    assert caught.value.path == "value[0].sku"


# Classes that come and go.


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module on disk, imported; the tests write it anew."""
    (tmp_path / "codec_shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("codec_shop")
    sys.modules.pop("codec_shop", None)


SHOP = """
import dataclasses
@dataclasses.dataclass
class Cart:
    owner: str
"""


def test_reading_finds_an_imported_class_and_imports_none(
    shop: Any,
) -> None:
    data = codec.encode(shop.Cart("ann"))
    assert same(codec.decode(data), shop.Cart("ann"))

    del sys.modules["codec_shop"]
    with pytest.raises(DecodeError, match="codec_shop:Cart"):
        codec.decode(data)
    assert "codec_shop" not in sys.modules


def test_reading_uses_the_class_of_a_module_that_was_loaded_again(
    shop: Any,
) -> None:
    data = codec.encode(shop.Cart("ann"))
    before = shop.Cart
    importlib.reload(shop)

    found = codec.decode(data)

    assert type(found) is shop.Cart
    assert type(found) is not before


def test_a_field_gained_since_takes_its_default(shop: Any) -> None:
    data = codec.encode(shop.Cart("ann"))
    shop.Cart = dataclasses.make_dataclass(
        "Cart",
        [
            ("owner", str),
            ("lines", list, dataclasses.field(default_factory=list)),
            ("open", bool, True),
        ],
        namespace={"__module__": "codec_shop"},
    )

    found = codec.decode(data)

    assert (found.owner, found.lines, found.open) == ("ann", [], True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [([("owner", str), ("size", int)], "size"), ([], "owner")],
    ids=["gained without a default", "lost"],
)
def test_a_class_that_no_longer_fits_is_an_error_naming_the_field(
    shop: Any, fields: list[Any], named: str
) -> None:
    data = codec.encode(shop.Cart("ann"))
    shop.Cart = dataclasses.make_dataclass("Cart", fields)
    with pytest.raises(DecodeError, match=named):
        codec.decode(data)


def test_a_struct_gains_fields_like_a_dataclass(shop: Any) -> None:
    shop.Cart = msgspec.defstruct("Cart", [("owner", str)], module="codec_shop")
    data = codec.encode(shop.Cart("ann"))
    shop.Cart = msgspec.defstruct(
        "Cart", [("owner", str), ("lines", list, [])], module="codec_shop"
    )
    assert codec.decode(data).lines == []

    shop.Cart = msgspec.defstruct("Cart", [("size", int)], module="codec_shop")
    with pytest.raises(DecodeError, match="owner"):
        codec.decode(data)


def test_a_class_of_another_kind_is_an_error(shop: Any) -> None:
    data = codec.encode(shop.Cart("ann"))
    vars(shop)["Cart"] = enum.Enum("Cart", {"owner": 1}, module="codec_shop")
    with pytest.raises(DecodeError, match="kind"):
        codec.decode(data)

    shop.Cart = Loose
    with pytest.raises(DecodeError, match="Loose"):
        codec.decode(data)


def test_an_enum_member_is_kept_by_name(shop: Any) -> None:
    vars(shop)["State"] = enum.Enum(
        "State", {"OPEN": 1, "SHUT": 2}, module="codec_shop"
    )
    data = codec.encode([shop.State.OPEN, {shop.State.SHUT: 1}])
    vars(shop)["State"] = enum.Enum(
        "State", {"OPEN": "open", "SHUT": 1}, module="codec_shop"
    )
    assert codec.decode(data) == [shop.State.OPEN, {shop.State.SHUT: 1}]

    vars(shop)["State"] = enum.Enum("State", {"OPEN": 1}, module="codec_shop")
    with pytest.raises(DecodeError, match="SHUT"):
        codec.decode(data)


def test_a_class_inside_a_function_is_refused_until_it_is_registered() -> None:
    @dataclasses.dataclass
    class Local:
        value: int

    assert same(codec.clone([Local(1)]), [Local(1)])
    with pytest.raises(EncodeError) as caught:
        codec.encode([Local(1)])
    assert caught.value.path == "value[0]"

    codec.register(Local)
    assert same(round_trip([Local(1)]), [Local(1)])


def test_a_moved_class_reads_what_it_wrote_under_its_old_name() -> None:
    @codec.register(name="codec_gone:Cart")
    @dataclasses.dataclass
    class Cart:
        owner: str

    data = codec.encode(Cart("ann"))
    assert b"codec_gone:Cart" in data
    assert same(codec.decode(data), Cart("ann"))

    with pytest.raises(ConfigError, match="codec_gone:Cart"):
        codec.register(name="codec_gone:Cart")(Line)


def test_only_classes_that_can_be_kept_may_be_registered() -> None:
    with pytest.raises(EncodeError):
        codec.register(Loose)


# Bytes from elsewhere.


def test_the_first_byte_is_the_format_version() -> None:
    data = codec.encode([1])
    assert data[0] == codec.FORMAT_VERSION == 1
    assert data[1:] == msgpack.encode([1])
    for wrong in (b"", b"\x00" + data[1:], b"\x02" + data[1:]):
        with pytest.raises(DecodeError):
            codec.decode(wrong)


@codec.register(name="golden:Kept")
@dataclasses.dataclass(frozen=True)
class Kept:
    name: str
    count: int


@codec.register(name="golden:Light")
class Light(enum.Enum):
    GREEN = 1


@codec.register(name="golden:Note")
class Note(msgspec.Struct, frozen=True):
    text: str


@codec.register(name="golden:LostError")
class LostError(Exception):
    pass


GOLDEN: dict[str, object] = {
    "01c0": None,
    "0182a1619401cbbff8000000000000c3c0a162c40178": {
        "a": [1, -1.5, True, None],
        "b": b"x",
    },
    "01c706019201d5019102": (1, (2,)),
    "01d5029103": {3},
    "01c7030391a161": frozenset({"a"}),
    "01c70c049401a161c703019202c0a162": {1: "a", (2, None): "b"},
    "01c70905400000000000000000": 2**70,
    "01c70905ff0000000000000000": -(2**64),
    "01d40678": bytearray(b"x"),
    (
        "01c72207d920323032342d30312d30325430333a30343a30352e3030303030362b30303a3030"
    ): datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    (
        "01c7240793b3323032342d31302d32375430313a33303a303001ad4575726f70652f"
        "4c6f6e646f6e"
    ): datetime(2024, 10, 27, 1, 30, fold=1, tzinfo=ZoneInfo("Europe/London")),
    (
        "01c7240793b3323032342d30312d30325430303a30303a30300092d3fffffffbcf1d"
        "cc00a3455354"
    ): datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=-5), "EST")),
    "01c70a08323032342d30312d3032": date(2024, 1, 2),
    "01c7150993a830313a30323a30330091cf00000001ad274800": time(
        1, 2, 3, tzinfo=timezone(timedelta(hours=2))
    ),
    "01d60a93ff0203": timedelta(days=-1, seconds=2, microseconds=3),
    "01d70b2d312e3530452b33": Decimal("-1.50E+3"),
    "01d80c00000000000000000000000000000007": UUID(int=7),
    "01c7000d": msgspec.UNSET,
    "01c7141092ac676f6c64656e3a4c69676874a5475245454e": Light.GREEN,
    "01c71c1192ab676f6c64656e3a4b65707482a46e616d65a161a5636f756e7401": Kept("a", 1),
    "01c7151292ab676f6c64656e3a4e6f746581a474657874a161": Note("a"),
    (
        "01c7351392b0676f6c64656e3a4c6f73744572726f7284a46172677392a161d50191"
        "01a5737461746580a66669656c647380a56e6f74657390"
    ): LostError("a", (1,)),
    (
        "01c75e1392ba6275696c74696e733a46696c654e6f74466f756e644572726f7284a4"
        "617267739202a26e6fa5737461746580a66669656c647383a56572726e6f02a87374"
        "726572726f72a26e6fa866696c656e616d65a468657265a56e6f74657390"
    ): FileNotFoundError(2, "no", "here"),
}


@pytest.mark.parametrize(("data", "value"), GOLDEN.items(), ids=str)
def test_bytes_of_the_first_release_are_read_for_ever(data: str, value: object) -> None:
    assert same(codec.decode(bytes.fromhex(data)), value)
    assert codec.encode(value) == bytes.fromhex(data)


def read_or_refuse(read: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        read(data)


@given(st.binary())
@example(b"")
@example(b"\x91" * 100_000)
@example(b"\x81\x80\x01")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xa1\xff")
def test_arbitrary_bytes_are_a_value_or_a_decode_error(data: bytes) -> None:
    for read in (codec.decode, codec.loads_error):
        read_or_refuse(read, data)
        read_or_refuse(read, b"\x01" + data)


plain_payloads = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | texts | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)
class_keys = st.sampled_from(
    [
        f"{HERE}:Line",
        f"{HERE}:Run",
        f"{HERE}:Colour",
        f"{HERE}:Right",
        f"{HERE}:ShopError",
        "builtins:ValueError",
        "builtins:OSError",
        "builtins:UnicodeDecodeError",
        "builtins:ExceptionGroup",
        "builtins:int",
        "builtins:print",
        "sys:modules",
        "nowhere:At.all",
        ":",
        "",
    ]
)


@given(st.integers(-128, 127), plain_payloads | st.tuples(class_keys, plain_payloads))
def test_arbitrary_tags_are_a_value_or_a_decode_error(code: int, payload: Any) -> None:
    data = b"\x01" + msgpack.encode(msgpack.Ext(code, msgpack.encode(payload)))
    for read in (codec.decode, codec.loads_error):
        read_or_refuse(read, data)


@given(values, st.randoms(use_true_random=False))
def test_damaged_bytes_are_a_value_or_a_decode_error(
    value: Any, source: random.Random
) -> None:
    data = bytearray(codec.encode(value))
    for _ in range(3):
        data[source.randrange(len(data))] = source.randrange(256)
        read_or_refuse(codec.decode, bytes(data))
        read_or_refuse(codec.decode, bytes(data[: source.randrange(len(data) + 1)]))


def test_tags_nested_without_end_are_a_decode_error() -> None:
    data = b"\xc0"
    for _ in range(20_000):
        data = b"\xc9" + len(data).to_bytes(4, "big") + b"\x01" + data[:200_000]
    with pytest.raises(DecodeError):
        codec.decode(b"\x01" + data)


def test_a_class_of_a_lazy_module_is_not_fetched() -> None:
    module = types.ModuleType("codec_lazy")
    module.__getattr__ = pytest.fail  # type: ignore[method-assign]  # the trap
    sys.modules["codec_lazy"] = module
    try:
        payload = msgpack.encode(["codec_lazy:Cart", {}])
        with pytest.raises(DecodeError, match="codec_lazy:Cart"):
            codec.decode(b"\x01" + msgpack.encode(msgpack.Ext(17, payload)))
    finally:
        del sys.modules["codec_lazy"]


def test_the_module_neither_pickles_nor_imports_nor_evaluates() -> None:
    source = Path(codec.__file__).read_text()
    for word in ("import_module", "__import__", "eval(", "exec(", "pickle.", "marshal"):
        assert word not in source


# Exceptions.


def made_errors() -> list[DurableActorError]:
    """One of each class in the tree, with every field set."""
    fields = {"object_class": "Cart", "object_name": "a", "object_id": "ab" * 32}
    made: list[DurableActorError] = []
    for cls in sorted(tree(DurableActorError), key=lambda cls: cls.__name__):
        if issubclass(cls, errors.ObjectResetError):
            made.append(cls("reset", outcome="not_executed", **fields))
        elif issubclass(cls, errors.ObjectError):
            made.append(cls("detail", **fields))
        elif issubclass(cls, errors.StorageError):
            made.append(cls("put", "too large", key="k"))
        elif issubclass(cls, EncodeError):
            made.append(cls("detail", path="value[0]"))
        elif issubclass(cls, errors.DataDirectoryInUseError):
            made.append(cls("data", "pid 1"))
        elif issubclass(cls, errors.TransportError):
            made.append(cls("gone", outcome="not_executed"))
        elif issubclass(cls, RemoteError):
            made.append(cls("a.B", "text", remote_notes=("n",), remote_traceback=""))
        else:
            made.append(cls("detail"))
    return made


def tree(cls: type[DurableActorError]) -> set[type[DurableActorError]]:
    found = {cls}
    for child in cls.__subclasses__():
        if child.__module__ == "durable_actor.errors":
            found |= tree(child)
    return found


@pytest.mark.parametrize("error", made_errors(), ids=lambda e: type(e).__name__)
def test_every_error_of_the_tree_crosses_with_all_its_fields(
    error: DurableActorError,
) -> None:
    found = codec.loads_error(codec.dumps_error(error))

    assert type(found) is type(error)
    assert isinstance(found, DurableActorError)
    assert found.remote
    assert same(
        {**vars(found), "remote": True, "str": str(found), "args": found.args},
        {**vars(error), "remote": True, "str": str(error), "args": error.args},
    )
    for name in ("code", "retryable", "overloaded", "outcome"):
        assert getattr(found, name) == getattr(error, name)


BUILTIN_ERRORS: list[BaseException] = [
    ValueError("x", 3),
    KeyError(("a", 1)),
    FileNotFoundError(2, "No such file", "here"),
    OSError(5, "no", "from", None, "to"),
    OSError("only text"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    SyntaxError("bad", ("file.py", 1, 2, "text")),
    ImportError("no", name="module", path="path"),
    AttributeError("no", name="x"),
    NameError("no", name="x"),
    StopIteration(5),
    ExceptionGroup("many", [ValueError(1), ExceptionGroup("more", [KeyError("k")])]),
    ShopError("corner", code=7),
    FrozenError(5, "because"),
    DiskError("sda"),
    TimeoutError(),
    msgspec.ValidationError("bad"),
]


@pytest.mark.parametrize("error", BUILTIN_ERRORS, ids=lambda e: type(e).__name__)
def test_an_exception_is_a_value_like_another(error: BaseException) -> None:
    vars(error)["__notes__"] = ["while testing"]
    for found in (round_trip(error), codec.clone(error)):
        assert same(found, error)
        assert str(found) == str(error)
        for name in ("errno", "strerror", "filename", "filename2", "name", "path"):
            assert getattr(found, name, None) == getattr(error, name, None)
        assert not getattr(found, "remote", False)


@pytest.mark.parametrize("error", BUILTIN_ERRORS, ids=lambda e: type(e).__name__)
def test_an_exception_arrives_with_its_type_and_marked_remote(
    error: BaseException,
) -> None:
    found = codec.loads_error(codec.dumps_error(error))

    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.remote is True  # type: ignore[attr-defined]  # set on arrival
    assert getattr(found, "__notes__", []) == getattr(error, "__notes__", [])


def every_builtin_exception() -> list[type[Exception]]:
    kinds = [kind for kind in vars(builtins).values() if isinstance(kind, type)]
    return sorted(
        {kind for kind in kinds if issubclass(kind, Exception)},
        key=lambda kind: kind.__name__,
    )


@pytest.mark.parametrize("kind", every_builtin_exception())
def test_every_exception_of_python_arrives(kind: type[Exception]) -> None:
    special: dict[type[Exception], tuple[Any, ...]] = {
        UnicodeDecodeError: ("utf-8", b"", 0, 1, "bad"),
        UnicodeEncodeError: ("utf-8", "", 0, 1, "bad"),
        UnicodeTranslateError: ("", 0, 1, "bad"),
        ExceptionGroup: ("many", [ValueError()]),
    }
    error = kind(*special.get(kind, ("text",)))
    found = codec.loads_error(codec.dumps_error(error))
    assert (type(found), str(found)) == (kind, str(error))


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001  # the exception is the result
        return caught


def test_a_traceback_travels_only_if_asked_for_and_never_twice() -> None:
    error = raised(ShopError("corner", code=7), cause=KeyError("secret place"))
    traced = codec.loads_error(codec.dumps_error(error, include_traceback=True))
    assert "test_codec.py" in "".join(traced.__notes__)

    # The next hop is the edge of the process, say.
    for data in (codec.dumps_error(error), codec.dumps_error(traced)):
        assert b"test_codec.py" not in data
        assert not hasattr(codec.loads_error(data), "__notes__")


def test_the_causes_arrive_as_text() -> None:
    inner = raised(ZeroDivisionError("by zero"))
    error = raised(ValueError("outer"), cause=raised(KeyError("middle"), cause=inner))

    found = codec.loads_error(codec.dumps_error(error))

    assert isinstance(found.__cause__, RemoteError)
    assert found.__cause__.type_name == "KeyError"
    assert isinstance(found.__cause__.__cause__, RemoteError)
    assert found.__cause__.__cause__.message == "by zero"


def test_what_cannot_travel_with_an_error_is_left_out_or_becomes_text() -> None:
    error = ValueError("x", lambda: 1, "\ud800", Pair(1, 2))
    error.request = object()  # type: ignore[attr-defined]  # as HTTP clients do
    error.status = 500  # type: ignore[attr-defined]  # as HTTP clients do
    error.add_note("\ud800")

    found = codec.loads_error(codec.dumps_error(error))

    assert found.args[0] == "x"
    assert all(type(arg) is str for arg in found.args)
    assert found.args[3] == "Pair(a=1, b=2)"
    assert "request" not in vars(found)
    assert vars(found)["status"] == 500


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_dumping_an_error_never_fails() -> None:
    alone: Any = ValueError()
    alone.args = (alone, alone)
    alone.again = [alone]
    for error in (MuteError(MuteError()), alone, ValueError("x" * 100_000)):
        for traced in (True, False):
            data = codec.dumps_error(error, include_traceback=traced)
            assert isinstance(codec.loads_error(data), type(error))


def test_a_long_message_is_cut() -> None:
    error = RemoteError("a.B", "x" * 1_000_000)
    error.args = ()
    vars(error).clear()
    data = codec.dumps_error(raised(ValueError(Loose()), cause=error))
    assert len(data) < 3 * codec.ERROR_TEXT_CHARS_MAX


def test_an_error_of_a_class_inside_a_function_arrives_in_the_same_process() -> None:
    class LocalError(Exception):
        pass

    assert isinstance(codec.loads_error(codec.dumps_error(LocalError(1))), LocalError)


def test_an_error_of_an_unknown_class_arrives_as_text(shop: Any) -> None:
    shop.ClosedError = type("ClosedError", (Exception,), {"__module__": "codec_shop"})
    error = raised(shop.ClosedError("no", "bread"))
    error.add_note("at noon")
    data = codec.dumps_error(error, include_traceback=True)
    del sys.modules["codec_shop"]

    found = codec.loads_error(data)

    assert isinstance(found, RemoteError)
    assert found.type_name == "codec_shop.ClosedError"
    assert found.message == "('no', 'bread')"
    assert found.remote_notes == ("at noon",)
    assert "ClosedError" in found.remote_traceback


def test_an_error_with_an_unknown_class_inside_arrives_as_text(
    shop: Any,
) -> None:
    data = codec.dumps_error(ValueError("closed", shop.Cart("ann")))
    del sys.modules["codec_shop"]

    found = codec.loads_error(data)

    assert isinstance(found, RemoteError)
    assert found.type_name == "ValueError"
    assert "ann" in found.message


def test_a_value_with_an_unknown_exception_inside_is_a_decode_error(
    shop: Any,
) -> None:
    shop.ClosedError = type("ClosedError", (Exception,), {"__module__": "codec_shop"})
    data = codec.encode([shop.ClosedError("no")])
    del sys.modules["codec_shop"]
    with pytest.raises(DecodeError, match="codec_shop:ClosedError"):
        codec.decode(data)


@pytest.mark.parametrize(
    "signal", [asyncio.CancelledError("x"), KeyboardInterrupt(), SystemExit(1)]
)
def test_a_signal_arrives_as_an_error_and_not_as_a_signal(
    signal: BaseException,
) -> None:
    found = codec.loads_error(codec.dumps_error(signal))

    assert isinstance(found, RemoteError)
    assert found.type_name.endswith(type(signal).__name__)


def test_only_an_exception_is_loaded_as_one() -> None:
    for value in (1, [ValueError()], None, KeyboardInterrupt):
        data = codec.encode(value) if value is not KeyboardInterrupt else b"\x01\xc1"
        with pytest.raises(DecodeError):
            codec.loads_error(data)


# JSON.


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (-(10**5_000), hex(-(10**5_000))),
        (math.nan, None),
        (math.inf, None),
        (b"hi", "aGk="),
        (bytearray(b"hi"), "aGk="),
        (datetime(2024, 1, 2, tzinfo=UTC), "2024-01-02T00:00:00+00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        (timedelta(seconds=90), "PT90S"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, frozenset({2})), [1, [2]]),
        (Colour.RED, "red"),
        (Size.LARGE, 2),
        (Line("a", 1), {"sku": "a", "quantity": 1, "price": "0"}),
        (Run(name="a"), {"name": "a", "attempts": [], "result": None}),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "null": "b", "[1, 2]": "c"}),
        ({1: "a", "1": "b"}, [[1, "a"], ["1", "b"]]),
        (ValueError("x"), {"type": "ValueError", "message": "x"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_readable_form_of_a_value(value: object, shown: object) -> None:
    assert same(codec.to_json(value), shown)


class Shop:
    async def order(
        self,
        line: Line,
        when: datetime,
        /,
        labels: set[str],
        ids: tuple[UUID, ...] = (),
        *,
        price: Decimal | None = None,
        by_day: dict[date, int] | None = None,
        size: Annotated[int, msgspec.Meta(ge=1)] = 1,
    ) -> None: ...

    async def loose(self, a, b: Any, c: NoSuchType) -> None: ...  # type: ignore[no-untyped-def, name-defined]  # noqa: F821, ANN001  # what is under test

    async def many(self, *lines: Line, **counts: float) -> None: ...

    async def odd(self, thing: Loose) -> None: ...


def test_json_arguments_become_what_the_annotations_say() -> None:
    args, kwargs = codec.convert_arguments(
        Shop.order,
        [{"sku": "a", "quantity": 1, "price": "1.10"}, "2024-01-02T03:04:05Z"],
        {
            "labels": ["x"],
            "ids": [str(UUID(int=1))],
            "price": "2.5",
            "by_day": {"2024-01-02": 1},
        },
    )

    assert same(
        args,
        (
            Line("a", 1, Decimal("1.10")),
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
            {"x"},
            (UUID(int=1),),
        ),
    )
    assert same(kwargs, {"price": Decimal("2.5"), "by_day": {date(2024, 1, 2): 1}})


def test_an_argument_without_a_known_type_passes_as_it_is() -> None:
    odd = {"a": [1]}
    assert codec.convert_arguments(Shop.loose, [odd, odd], {"c": odd}) == (
        (odd, odd, odd),
        {},
    )


def test_collected_arguments_are_converted_one_by_one() -> None:
    args, kwargs = codec.convert_arguments(
        Shop().many, [{"sku": "a", "quantity": 1}], {"a": 1}
    )
    assert same((args, kwargs), ((Line("a", 1),), {"a": 1.0}))


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "told"),
    [
        (Shop.order, [], {}, ["line"]),
        (Shop.order, [1, 2, 3, 4, 5], {}, ["too many"]),
        (Shop.order, [{"sku": "a", "quantity": 1}, "soon"], {"labels": []}, ["when"]),
        (
            Shop.order,
            [{"sku": "a", "quantity": "x"}, "2024-01-02T03:04:05Z", []],
            {},
            ["line.quantity", "int", "str", "Line"],
        ),
        (
            Shop.order,
            [{"sku": "a", "quantity": 1}, "2024-01-02T03:04:05Z", []],
            {"size": 0},
            ["size", ">= 1"],
        ),
        (Shop.many, [{"sku": "a", "quantity": 1}, {}], {}, ["lines[1]", "sku"]),
        (Shop.many, [], {"apples": "x"}, ["apples", "float"]),
        (Shop.odd, [{}], {}, ["thing", "Loose"]),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    method: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(BadArgumentsError) as caught:
        codec.convert_arguments(method, args, kwargs)
    for word in told:
        assert word in str(caught.value)


def test_stored_bytes_are_read_by_another_process(tmp_path: Path) -> None:
    """Nothing of what is needed to read lives only in the process that wrote."""
    data = codec.encode({"when": datetime(2024, 1, 2, tzinfo=UTC), "n": (1, {2})})
    script = (
        "import sys; from durable_actor import codec;"
        "print(codec.decode(bytes.fromhex(sys.argv[1])))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, data.hex()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "(1, {2})" in shown.stdout
