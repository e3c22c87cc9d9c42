"""Leaves: values without parts, and how each is written and read.

Each pair of functions writes and reads the payload of one tag. A time zone is kept by
its name or by its offset; one that has neither is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import NoneType
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec import msgpack

from durable_actor.codec import tags
from durable_actor.codec.refusals import RefusedError
from durable_actor.codec.tags import INT_MAX, INT_MIN, to_bytes
from durable_actor.codec.wording import class_name
from durable_actor.errors import DecodeError

M = TypeVar("M", datetime, time)


def _lower_int(value: int) -> Any:
    if INT_MIN <= value <= INT_MAX:
        return value
    size = value.bit_length() // 8 + 1  # always with room for the sign
    return msgpack.Ext(tags.INT, value.to_bytes(size, "big", signed=True))


def _read_int(data: memoryview) -> int:
    return int.from_bytes(data, "big", signed=True)


def lower_str(value: str) -> str:
    """Return the text, or refuse one that is not Unicode."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            message = (
                f"the text has a lone surrogate at index {error.start}, which is not"
                ' Unicode. Keep the bytes, or decode them with errors="replace".'
            )
            raise RefusedError(message) from None
    return value


def _lower_moment(code: int, value: datetime | time) -> msgpack.Ext:
    zone = value.tzinfo
    if (zone is None or zone is UTC) and not value.fold:
        return msgpack.Ext(code, to_bytes(value.isoformat()))
    bare = value.replace(tzinfo=None, fold=0).isoformat()
    return msgpack.Ext(code, to_bytes([bare, value.fold, zone_parts(zone)]))


def _read_moment(kind: type[M], data: memoryview) -> M:
    parts = msgpack.decode(data)
    if type(parts) is str:
        return kind.fromisoformat(parts)
    bare, fold, zone = parts
    return kind.fromisoformat(bare).replace(tzinfo=_read_zone(zone), fold=fold)


def zone_parts(zone: tzinfo | None) -> str | list[Any] | None:
    """Return the key of a ZoneInfo, or the offset of a timezone in us and its name."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        is_named = name != timezone(offset).tzname(None)
        offset_us = offset // timedelta(microseconds=1)
        return [offset_us, lower_str(name)] if is_named else [offset_us]
    if type(zone) is ZoneInfo and zone.key is not None:
        return lower_str(zone.key)
    message = (
        f"its time zone is a {class_name(type(zone))}, which has no name to be kept by."
        " Use datetime.UTC, a timezone, or a ZoneInfo made from its key."
    )
    raise RefusedError(message)


def _read_zone(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if type(zone) is str:
        try:
            return ZoneInfo(zone)
        except Exception as error:
            message = f"the time zone {zone!r} is not known here; install tzdata"
            raise DecodeError(message) from error
    offset_us, *name = zone
    return timezone(timedelta(microseconds=offset_us), *name)


def _timedelta_parts(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _same(value: Any) -> Any:
    return value


_WRITERS: Final[dict[type, Callable[[Any], Any]]] = {
    NoneType: _same,
    bool: _same,
    float: _same,
    bytes: _same,
    int: _lower_int,
    str: lower_str,
    bytearray: lambda value: msgpack.Ext(tags.BYTEARRAY, bytes(value)),
    datetime: lambda value: _lower_moment(tags.DATETIME, value),
    date: lambda value: msgpack.Ext(tags.DATE, value.isoformat().encode()),
    time: lambda value: _lower_moment(tags.TIME, value),
    timedelta: lambda value: msgpack.Ext(
        tags.TIMEDELTA, to_bytes(_timedelta_parts(value))
    ),
    Decimal: lambda value: msgpack.Ext(tags.DECIMAL, str(value).encode()),
    UUID: lambda value: msgpack.Ext(tags.UUID, value.bytes),
    msgspec.UnsetType: lambda _: msgpack.Ext(tags.UNSET, b""),
}
_READERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    tags.INT: _read_int,
    tags.BYTEARRAY: bytearray,
    tags.DATETIME: lambda data: _read_moment(datetime, data),
    tags.DATE: lambda data: date.fromisoformat(str(data, "ascii")),
    tags.TIME: lambda data: _read_moment(time, data),
    tags.TIMEDELTA: lambda data: timedelta(*msgpack.decode(data)),
    tags.DECIMAL: lambda data: Decimal(str(data, "ascii")),
    tags.UUID: lambda data: UUID(bytes=bytes(data)),
    tags.UNSET: lambda _: msgspec.UNSET,
}

# What writes a value of a type, and what reads the payload of a tag; None if it has
# parts. As functions, because a method of an imported name is slower to call.
leaf_writer = _WRITERS.get
leaf_reader = _READERS.get
