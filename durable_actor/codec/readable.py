"""Readable: a value for people, as JSON. The way back is not kept.

Where JSON has no word for something it is shown as text: bytes as base64, a date in ISO
form, a NaN as null. `stored_to_json` shows what is on disk, also where the classes are
not: by the name of each class, and its fields.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

import msgspec

from durable_actor.codec.refusals import RefusedError
from durable_actor.codec.registry import form_of
from durable_actor.codec.tags import DEPTH_MAX, INT_MAX, INT_MIN
from durable_actor.codec.values import Reader
from durable_actor.codec.wording import class_name, message_of
from durable_actor.errors import DecodeError, EncodeError


def to_json(value: object) -> Any:
    """Return a readable form of a value, for JSON. It does not lead back to the value.

    Raises:
        EncodeError: Not a value this module keeps.
    """
    return _to_json(value, DEPTH_MAX)


def stored_to_json(data: bytes) -> Any:
    """Return a readable form of stored bytes; their classes need not be here.

    Raises:
        DecodeError: Damaged bytes, or written by a later release.
    """
    try:
        return to_json(_SHOWN.read(data))
    except EncodeError as error:
        raise DecodeError(f"the bytes are damaged: {error}") from error


class _Shown:
    """An instance of a class that need not be here."""

    __slots__ = ("key", "parts")

    def __init__(self, key: str, parts: Any) -> None:
        self.key = key
        self.parts = parts


class _ShowingReader(Reader):
    """Reads values with no code of their classes, not even to find them."""

    def read_instance(self, code: int, key: str, parts: Any) -> Any:
        del code
        return _Shown(key, parts)


def _to_json(value: Any, room: int) -> Any:
    kind = type(value)
    if kind in _JSON_SAME:
        return value
    text = _JSON_TEXT.get(kind)
    if text is not None:
        return text(value)
    if room <= 0:
        raise EncodeError(f"nested deeper than {DEPTH_MAX} levels")
    room -= 1
    if kind in _COLLECTIONS:
        return [_to_json(item, room) for item in value]
    if kind is dict:
        pairs = [(_json_key(key, room), item) for key, item in value.items()]
        members = {key: _to_json(item, room) for key, item in pairs}
        if len(members) == len(pairs):
            return members
        # 1 and "1" are two keys here and one in JSON.
        return [[_to_json(key, room), _to_json(value[key], room)] for key in value]
    if kind is _Shown:
        parts = value.parts if type(value.parts) is dict else {"value": value.parts}
        return {"type": str(value.key), **_to_json(parts, room + 1)}
    if isinstance(value, Enum):
        return _to_json(value._value_, room)
    if isinstance(value, BaseException):
        return {"type": class_name(kind), "message": message_of(value)}
    try:
        form = form_of(kind, takes_local_classes=True)
        parts = form.take_apart(value)
    except RefusedError as refused:
        raise EncodeError(refused.detail) from None
    return {name: _to_json(part, room) for name, part in parts.items()}


def _json_key(key: Any, room: int) -> str:
    if type(key) is str:
        return key
    shown = _to_json(key, room)
    return shown if type(shown) is str else json.dumps(shown)


def _json_int(value: int) -> int | str:
    if INT_MIN <= value <= INT_MAX:
        return value
    # Decimal text of a huge int takes quadratic time, and Python refuses to make it.
    return str(value) if value.bit_length() <= 4_096 else hex(value)  # noqa: PLR2004


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


_COLLECTIONS: Final = frozenset({list, tuple, set, frozenset})
_JSON_SAME: Final = frozenset({NoneType, bool, str})
_JSON_TEXT: Final[dict[type, Callable[[Any], Any]]] = {
    int: _json_int,
    float: lambda value: value if math.isfinite(value) else None,
    bytes: _base64,
    bytearray: _base64,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: msgspec.to_builtins,  # ISO 8601, such as "PT90S"
    Decimal: str,
    UUID: str,
    msgspec.UnsetType: lambda _: None,
}
_SHOWN: Final = _ShowingReader()
