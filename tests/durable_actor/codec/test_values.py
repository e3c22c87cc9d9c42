"""Values come back as they were, or are refused by name."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import msgpack

from durable_actor import codec
from durable_actor.codec.tags import DEPTH_MAX
from durable_actor.errors import (
    DecodeError,
    EncodeError,
)
from tests.durable_actor.codec import samples
from tests.durable_actor.codec.samples import (
    Box,
    Colour,
    Line,
    Loose,
    Pair,
    Point,
    Run,
    Wrapped,
    round_trip,
    same,
    texts,
    values,
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


def test_the_order_of_a_dict_is_kept() -> None:
    assert list(round_trip({"b": 1, "a": 2})) == ["b", "a"]
    assert list(round_trip({2: 0, "1": 0, None: 0})) == [2, "1", None]


def test_a_copy_shares_nothing_that_can_change() -> None:
    value = {"lines": [Line("a", 1)], "raw": bytearray(b"x")}

    copy = codec.clone(value)
    copy["lines"][0].quantity = 9
    copy["lines"].append(None)
    copy["raw"][0] = 0

    assert same(value, {"lines": [Line("a", 1)], "raw": bytearray(b"x")})


class Text(str):
    __slots__ = ()


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
    ids=lambda value: ascii(value) if isinstance(value, str) else type(value).__name__,
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
    deepest = nested(DEPTH_MAX, wrap)
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
        f"{samples.__name__}:Line",
        f"{samples.__name__}:Run",
        f"{samples.__name__}:Colour",
        f"{samples.__name__}:Right",
        f"{samples.__name__}:ShopError",
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


def test_the_package_neither_pickles_nor_imports_nor_evaluates() -> None:
    source = "".join(
        path.read_text() for path in Path(codec.__file__).parent.glob("*.py")
    )
    for word in ("import_module", "__import__", "eval(", "exec(", "pickle.", "marshal"):
        assert word not in source


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
