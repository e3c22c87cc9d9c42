"""Bytes of the first release are read for ever."""

from __future__ import annotations

import dataclasses
import enum
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from msgspec import msgpack

from durable_actor import codec
from durable_actor.codec import tags
from durable_actor.codec.tags import FORMAT_VERSION
from durable_actor.errors import (
    DecodeError,
)
from tests.durable_actor.codec.samples import (
    same,
)


def test_the_first_byte_is_the_format_version() -> None:
    data = codec.encode([1])
    assert data[0] == FORMAT_VERSION == 1
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


@codec.register(name="golden:Access")
class Access(enum.Flag):
    READ = 1
    WRITE = 2


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
    "0195cb7ff8000000000000cb7ff0000000000000cbfff0000000000000cb8000000000000000c2": [
        math.nan,
        math.inf,
        -math.inf,
        -0.0,
        False,
    ],
    "0192d38000000000000000cfffffffffffffffff": [-(2**63), 2**64 - 1],
    "0197d40190d40290d403908090c400a0": [(), set(), frozenset(), {}, [], b"", ""],
    "01d40678": bytearray(b"x"),
    ("01c71b07ba323032342d30312d30325430333a30343a30352e303030303036"): datetime(
        2024, 1, 2, 3, 4, 5, 6
    ),
    ("01c7170793b3323032342d31302d32375430313a33303a303001c0"): datetime(
        2024, 10, 27, 1, 30, fold=1
    ),
    "01c70909a830313a30323a3033": time(1, 2, 3),
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
    "01d81092ad676f6c64656e3a41636365737303": Access.READ | Access.WRITE,
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
    (
        "01c76f1392b76275696c74696e733a457863657074696f6e47726f757084a461726773"
        "92a46d616e7991c7301392b0676f6c64656e3a4c6f73744572726f7284a461726773"
        "9101a5737461746580a66669656c647380a56e6f74657390a5737461746580a6666965"
        "6c647380a56e6f74657390"
    ): ExceptionGroup("many", [LostError(1)]),
}


@pytest.mark.parametrize(("data", "value"), GOLDEN.items(), ids=str)
def test_bytes_of_the_first_release_are_read_for_ever(data: str, value: object) -> None:
    assert same(codec.decode(bytes.fromhex(data)), value)
    assert codec.encode(value) == bytes.fromhex(data)


def test_every_tag_has_stored_bytes() -> None:
    """A tag without them could change its meaning unnoticed."""
    others = ("FORMAT_VERSION", "DEPTH_MAX", "INT_MIN", "INT_MAX")
    codes = {
        value
        for name, value in vars(tags).items()
        if name.isupper() and type(value) is int and name not in others
    }
    stored: set[int] = set()
    for data in GOLDEN:
        msgpack.decode(
            bytes.fromhex(data)[1:], ext_hook=lambda code, _: stored.add(code)
        )
    assert stored == codes
