"""Values and classes that the codec is tried on, and what it means to be the same."""

from __future__ import annotations

import dataclasses
import enum
import math
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import strategies as st

from durable_actor import codec

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


class Loose:
    pass


class Plain(Line):
    """A subclass that is not a dataclass of its own."""


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001  # the exception is the result
        return caught


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
