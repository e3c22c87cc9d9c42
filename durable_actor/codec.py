"""Codec: what a value may be, and the bytes that bring back exactly that value.

Storage, calls between objects, replies and journals all speak through this module, so
that "what you read equals what you wrote" is kept, or refused, in one place.

Theory of operation
    The bytes are one version byte and one MessagePack item. MessagePack knows None,
    bool, 64-bit int, float, str, bytes, list and dict; a value made of these alone (the
    common case, found by `_is_plain`) goes straight to msgspec. msgspec would quietly
    change everything else: a tuple would come back as a list, a UUID as a text. So
    anything else is first *lowered*: replaced by an extension item whose code names the
    type and whose payload is MessagePack again. Reading needs no walk: msgspec calls
    back for extension items only.

    An instance of a class is stored as the key of its class, "module:qualname", and its
    parts by name. A `_Form` knows how the instances of one class come apart and are put
    together again, without its `__init__`.

Promises
    A value comes back with the same types all the way down, or `encode` refuses it and
    says where in the value the trouble sits and what to do.
    Types are compared with `is`, never with `==`: 1, True and 1.0 are three values.
    Reading never imports, evaluates or unpickles. A class is found if it was
    registered, or if its module is already imported. Whatever the bytes, the only
    exception is `DecodeError`.

Not promised: that an object appearing twice in a value comes back as one object, or the
order of a set.

Does not know who stores or sends the bytes. It is long because a tag's two directions,
and the copy that avoids both, are easier to keep in step side by side.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import inspect
import json
import math
import sys
import traceback
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, EnumType, Flag
from functools import cached_property, partial
from pathlib import PurePath
from types import (
    BuiltinMethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any, ClassVar, Final, Literal, TypeVar, overload
from uuid import UUID
from weakref import WeakKeyDictionary, WeakValueDictionary
from zoneinfo import ZoneInfo

import msgspec
from msgspec import msgpack

from durable_actor.errors import (
    BadArgumentsError,
    ConfigError,
    DecodeError,
    EncodeError,
    RemoteError,
)

C = TypeVar("C", bound=type[Any])
M = TypeVar("M", datetime, time)

FORMAT_VERSION = 1
DEPTH_MAX = 64  # deeper than any honest value; also what ends a value inside itself
ERROR_TEXT_CHARS_MAX = 16_384  # of a message or traceback: enough to read, not to flood
ERROR_DEPTH_MAX = 8  # exceptions inside an exception; beyond, they are kept as text

# The tags, for ever: a number is never given a second meaning, nor reused.
_TUPLE: Final = 1
_SET: Final = 2
_FROZENSET: Final = 3
_DICT: Final = 4  # with a key that is not a str: key, value, key, value...
_INT: Final = 5  # beyond 64 bits: two's complement, big end first
_BYTEARRAY: Final = 6
_DATETIME: Final = 7  # ISO text if naive or UTC, else [naive ISO text, fold, zone]
_DATE: Final = 8
_TIME: Final = 9  # as _DATETIME
_TIMEDELTA: Final = 10  # [days, seconds, microseconds]
_DECIMAL: Final = 11
_UUID: Final = 12
_UNSET: Final = 13  # msgspec.UNSET, a common default of a Struct's field
_ENUM: Final = 16  # [class key, name], or [class key, number] for combined flags
_DATACLASS: Final = 17  # [class key, {field: value}]
_STRUCT: Final = 18  # [class key, {field: value}]
_EXCEPTION: Final = 19  # [class key, {args, state, fields, notes, and for errors more}]

_NAMESPACES = (ModuleType, type)  # what a class may be found in
_VERSION: Final = bytes([FORMAT_VERSION])
_VIEW_BYTES_MIN = 4_096  # below, copying the bytes is cheaper than a view of them
_ATOMS: Final = frozenset({NoneType, bool, float, bytes})
_SCALARS: Final = _ATOMS | {int, str}
_FIXED: Final = _SCALARS | {date, timedelta, Decimal, UUID, msgspec.UnsetType}
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # what MessagePack can hold
_TRACEBACK_NOTE = "Remote traceback:\n"

_to_bytes = msgpack.Encoder().encode


def encode(value: object) -> bytes:
    """Return the bytes of a value.

    Raises:
        EncodeError: Something in the value cannot be kept exactly; `path` says where.
    """
    if _is_plain(value, DEPTH_MAX):
        try:
            return _VERSION + _to_bytes(value)
        except (OverflowError, UnicodeEncodeError):
            pass  # a large int is tagged below; a lone surrogate is found and named
    return _VERSION + _to_bytes(_STORED.lower_all(value))


def decode(data: bytes) -> Any:
    """Return the value of some bytes.

    Raises:
        DecodeError: Damaged bytes, or a class that is missing here or has changed.
    """
    return _VALUES.read(data)


def clone(value: Any) -> Any:
    """Return what would arrive if the value were sent: a copy nobody else can change.

    Classes defined inside a function are accepted: the copy stays in this process.

    Raises:
        EncodeError: Something in the value could not be sent; `path` says where.
    """
    try:
        return _copy(value, DEPTH_MAX)
    except _RefusedError as refused:
        _PASSED.lower_all(value)  # the same refusal, but this walk knows the path
        raise EncodeError(refused.detail) from None


@overload
def register(cls: C, /) -> C: ...
@overload
def register(*, name: str) -> Callable[[C], C]: ...
def register(
    cls: type[Any] | None = None, /, *, name: str | None = None
) -> type[Any] | Callable[[type[Any]], type[Any]]:
    """Make a class known by its key, or by a name of its own; usable as a decorator.

    Needed for a class defined inside a function, and to read what a class that has
    since moved has written: `register(name="old.module:Old")(New)`. The name given last
    is the one written from then on.

    Raises:
        EncodeError: Not a dataclass, Struct, enum or exception.
        ConfigError: Another class has that name.
    """
    if cls is None:
        return lambda later: _register(later, name)
    return _register(cls, name)


def dumps_error(error: BaseException, *, include_traceback: bool = False) -> bytes:
    """Return the bytes of an exception on its way to whoever called. Never fails.

    What cannot be encoded is left out (attributes) or becomes text (arguments). The
    traceback travels only if asked for: it must not reach strangers.
    """
    writer = _TRACED if include_traceback else _BRIEF
    try:
        return _VERSION + _to_bytes(writer.lower_error(error, ERROR_DEPTH_MAX))
    except Exception:  # noqa: BLE001  # an error that cannot be told is told as its text
        parts = {"text": _message(error)}
        item = msgpack.Ext(_EXCEPTION, _to_bytes([_key(type(error)), parts]))
        return _VERSION + _to_bytes(item)


def loads_error(data: bytes) -> BaseException:
    """Return the exception of some bytes, marked `remote`.

    It has its own type if that is registered or imported here, else it is a
    `RemoteError`; so is a signal such as `CancelledError`, which must not unwind a
    caller that was not cancelled.

    Raises:
        DecodeError: The bytes are not those of an exception.
    """
    try:
        error = _ARRIVALS.read(data)
    except DecodeError:
        # An argument's class is missing here, say. The outline can always be told.
        error = _OUTLINES.read(data)
    if not isinstance(error, Exception):
        raise DecodeError(f"expected an exception, found {type(error).__name__}")
    return error


def to_json(value: object) -> Any:
    """Return a readable form of a value, for JSON. It does not lead back to the value.

    Raises:
        EncodeError: Not a value this module keeps.
    """
    return _to_json(value, DEPTH_MAX)


def convert_arguments(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return JSON arguments as the method's annotations want them.

    The first parameter (`self`) is not the caller's to give. A parameter without an
    annotation, or with one that cannot be resolved, takes the JSON value as it is.

    Raises:
        BadArgumentsError: They do not fit; names the parameter and what it expects.
    """
    call = _signature_of(function)
    try:
        bound = call.signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__name__", "the method")
        raise BadArgumentsError(f"{name}{call.signature}: {error}") from None
    for name, value in bound.arguments.items():
        kind = call.kinds.get(name, Any)
        if kind is Any:
            continue
        match call.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                fitted: Any = tuple(
                    _convert(item, kind, f"{name}[{index}]")
                    for index, item in enumerate(value)
                )
            case inspect.Parameter.VAR_KEYWORD:
                fitted = {key: _convert(item, kind, key) for key, item in value.items()}
            case _:
                fitted = _convert(value, kind, name)
        bound.arguments[name] = fitted
    return bound.args, bound.kwargs


def _is_plain(value: object, room: int) -> bool:
    """Whether msgspec keeps the value as it is. False if it may not, or is too deep."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if room <= 0:
        return False
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]  # it is a dict
            if type(key) is not str:
                return False
            if type(item) not in _SCALARS and not _is_plain(item, room - 1):
                return False
        return True
    if kind is list:
        for item in value:  # type: ignore[attr-defined]  # it is a list
            if type(item) not in _SCALARS and not _is_plain(item, room - 1):
                return False
        return True
    return False


class _RefusedError(Exception):
    """Something in a value cannot be kept. Gathers the way to it while unwinding."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.steps: list[str] = []  # innermost first

    def path(self) -> str:
        steps = self.steps[::-1]
        if len(steps) > 12:  # noqa: PLR2004  # a value inside itself; a dozen show it
            steps = [*steps[:6], " ... ", *steps[-2:]]
        return "value" + "".join(steps)


class _Writer:
    """Lowers values: what msgspec would change becomes extension items.

    `errors` says how exceptions are treated: kept whole like any other value, or made
    fit to travel, with the text of their traceback or without.
    """

    def __init__(
        self,
        *,
        errors: Literal["whole", "brief", "traced"],
        takes_local_classes: bool = False,
    ) -> None:
        self._errors = errors
        self._takes_local_classes = takes_local_classes

    def lower_all(self, value: object) -> Any:
        """Lower a whole value.

        Raises:
            EncodeError: Something in it is refused.
        """
        try:
            return self._lower(value, DEPTH_MAX)
        except _RefusedError as refused:
            raise EncodeError(refused.detail, path=refused.path()) from None

    def lower_error(self, error: BaseException, room: int) -> msgpack.Ext:
        """Lower an exception, leaving out what cannot be kept."""
        try:
            form = _form_of(type(error), takes_local_classes=True)
            key, parts = form.key, form.take_apart(error)
        except _RefusedError:
            key, parts = _key(type(error)), {}
        told: dict[str, Any] = {"text": _message(error), "causes": _causes(error)}
        told["args"] = [
            self._lower_or_text(item, room) for item in parts.get("args", ())
        ]
        for group in ("state", "fields"):
            told[group] = {}
            for name, item in parts.get(group, {}).items():
                with contextlib.suppress(_RefusedError):
                    told[group][_lower_str(name)] = self._lower(item, room)
        told["notes"] = [_sound(note) for note in parts.get("notes", ())]
        if self._errors == "traced":
            told["traceback"] = _traceback(error)
        else:
            # What an earlier hop was allowed to add must not leave with this one.
            told["notes"] = [
                note for note in told["notes"] if not note.startswith(_TRACEBACK_NOTE)
            ]
            if "remote_traceback" in told["state"]:
                told["state"]["remote_traceback"] = ""
        return msgpack.Ext(_EXCEPTION, _to_bytes([key, told]))

    def _lower(self, value: Any, room: int) -> Any:
        kind = type(value)
        lower_leaf = _LOWER_LEAF.get(kind)
        if lower_leaf is not None:
            return lower_leaf(value)
        if room <= 0:
            raise _too_deep()
        if kind is list or kind is dict:
            # Most parts of a value that is not plain are plain.
            if _is_plain(value, room):
                try:
                    return msgspec.Raw(_to_bytes(value))
                except (OverflowError, UnicodeEncodeError):
                    pass  # as in `encode`
            if kind is list:
                return self._lower_items(value, room)
            return self._lower_dict(value, room)
        if kind is tuple:
            return msgpack.Ext(_TUPLE, _to_bytes(self._lower_items(value, room)))
        if kind is set:
            return msgpack.Ext(_SET, _to_bytes(self._lower_set(value, room)))
        if kind is frozenset:
            return msgpack.Ext(_FROZENSET, _to_bytes(self._lower_set(value, room)))
        return self._lower_instance(value, room)

    def _lower_items(self, items: Iterable[Any], room: int) -> list[Any]:
        lowered = []
        for index, item in enumerate(items):
            try:
                lowered.append(
                    item if type(item) in _ATOMS else self._lower(item, room - 1)
                )
            except _RefusedError as refused:
                refused.steps.append(f"[{index}]")
                raise
        return lowered

    def _lower_set(self, items: Iterable[Any], room: int) -> list[Any]:
        try:
            return [self._lower(item, room - 1) for item in items]
        except _RefusedError as refused:
            refused.steps.append("{...}")
            raise

    def _lower_dict(self, items: dict[Any, Any], room: int) -> Any:
        lowered: list[Any] = []
        is_tagged = False
        for key, item in items.items():
            is_tagged = is_tagged or type(key) is not str
            try:
                lowered.append(self._lower(key, room - 1))
            except _RefusedError as refused:
                refused.steps.append(f"[the key {_short(key)}]")
                raise
            try:
                lowered.append(
                    item if type(item) in _ATOMS else self._lower(item, room - 1)
                )
            except _RefusedError as refused:
                refused.steps.append(f"[{_short(key)}]")
                raise
        if is_tagged:
            return msgpack.Ext(_DICT, _to_bytes(lowered))
        return dict(zip(lowered[::2], lowered[1::2], strict=True))

    def _lower_instance(self, value: Any, room: int) -> msgpack.Ext:
        form = _form_of(type(value), takes_local_classes=self._takes_local_classes)
        if form.code == _EXCEPTION and self._errors != "whole":
            return self.lower_error(value, min(room - 1, ERROR_DEPTH_MAX))
        parts = form.take_apart(value)
        if type(parts) is dict:
            lowered: dict[str, Any] = {}
            for name, part in parts.items():
                try:
                    lowered[name] = self._lower(part, room - 1)
                except _RefusedError as refused:
                    refused.steps.append(f".{name}")
                    raise
            parts = lowered
        return msgpack.Ext(form.code, _to_bytes([form.key, parts]))

    def _lower_or_text(self, item: object, room: int) -> Any:
        try:
            return self._lower(item, room)
        except _RefusedError:
            return _sound(_repr(item))


class _Reader:
    """Reads values: turns extension items back into what they were made from."""

    def __init__(self) -> None:
        self._decode = msgpack.Decoder(ext_hook=self._read_tagged).decode

    def read(self, data: bytes) -> Any:
        """Read a whole value.

        Raises:
            DecodeError: It cannot be read, for whatever reason.
        """
        if data[:1] != _VERSION:
            raise DecodeError(_wrong_version(data))
        try:
            if len(data) < _VIEW_BYTES_MIN:
                return self._decode(data[1:])
            return self._decode(memoryview(data)[1:])
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(f"the bytes are damaged: {error}") from error

    def _read_tagged(self, code: int, data: memoryview) -> Any:
        if code == _TUPLE:
            return tuple(self._decode(data))
        read_leaf = _READ_LEAF.get(code)
        if read_leaf is not None:
            return read_leaf(data)
        parts = self._decode(data)
        if code == _DICT:
            return dict(zip(parts[::2], parts[1::2], strict=True))
        if code == _SET:
            return set(parts)
        if code == _FROZENSET:
            return frozenset(parts)
        if code in _FORMS:
            key, parts = parts
            return self._read_instance(code, key, parts)
        raise DecodeError(f"tag {code} is unknown: written by a later release?")

    def _read_instance(self, code: int, key: str, parts: Any) -> Any:
        return _find_form(code, key).put_together(parts)


class _ArrivalReader(_Reader):
    """Reads exceptions that come from the other side of a call."""

    def _read_instance(self, code: int, key: str, parts: Any) -> Any:
        if code != _EXCEPTION:
            return super()._read_instance(code, key, parts)
        try:
            error = _find_form(code, key).put_together(parts)
        except Exception:  # noqa: BLE001  # missing or changed here: it is told as text
            return _outline(key, parts)
        if not isinstance(error, Exception):
            return _outline(key, parts)
        vars(error)["remote"] = True
        if parts.get("traceback"):
            _add_notes(error, [_TRACEBACK_NOTE + parts["traceback"]])
        _attach_causes(error, parts)
        return error


class _OutlineReader(_Reader):
    """Reads the text of exceptions, and None for whatever is not readable here."""

    def _read_tagged(self, code: int, data: memoryview) -> Any:
        try:
            return super()._read_tagged(code, data)
        except Exception:  # noqa: BLE001  # what cannot be read is left out
            return None

    def _read_instance(self, code: int, key: str, parts: Any) -> Any:
        return _outline(key, parts) if code == _EXCEPTION else None


_STORED: Final = _Writer(errors="whole")
_PASSED: Final = _Writer(errors="whole", takes_local_classes=True)
_BRIEF: Final = _Writer(errors="brief", takes_local_classes=True)
_TRACED: Final = _Writer(errors="traced", takes_local_classes=True)
_VALUES: Final = _Reader()
_ARRIVALS: Final = _ArrivalReader()
_OUTLINES: Final = _OutlineReader()


def _copy(value: Any, room: int) -> Any:
    """Copy a value without bytes in between; refuses what a writer would refuse."""
    kind = type(value)
    if kind in _FIXED:
        return value
    if kind is datetime or kind is time:
        _zone(value.tzinfo)
        return value
    if kind is bytearray:
        return bytearray(value)
    if room <= 0:
        raise _too_deep()
    room -= 1
    if kind is dict:
        return {
            key if type(key) in _FIXED else _copy(key, room): (
                item if type(item) in _FIXED else _copy(item, room)
            )
            for key, item in value.items()
        }
    if kind in _COLLECTIONS:
        return kind(
            [item if type(item) in _FIXED else _copy(item, room) for item in value]
        )
    form = _form_of(kind, takes_local_classes=True)
    return form.put_together(_copy(form.take_apart(value), room + 1))


# Values without parts. Each pair writes and reads the payload of one tag.


def _lower_int(value: int) -> Any:
    if _INT_MIN <= value <= _INT_MAX:
        return value
    size = value.bit_length() // 8 + 1  # always with room for the sign
    return msgpack.Ext(_INT, value.to_bytes(size, "big", signed=True))


def _read_int(data: memoryview) -> int:
    return int.from_bytes(data, "big", signed=True)


def _lower_str(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            message = (
                f"the text has a lone surrogate at index {error.start}, which is not"
                ' Unicode. Keep the bytes, or decode them with errors="replace".'
            )
            raise _RefusedError(message) from None
    return value


def _lower_moment(code: int, value: datetime | time) -> msgpack.Ext:
    zone = value.tzinfo
    if (zone is None or zone is UTC) and not value.fold:
        return msgpack.Ext(code, _to_bytes(value.isoformat()))
    bare = value.replace(tzinfo=None, fold=0).isoformat()
    return msgpack.Ext(code, _to_bytes([bare, value.fold, _zone(zone)]))


def _read_moment(kind: type[M], data: memoryview) -> M:
    parts = msgpack.decode(data)
    if type(parts) is str:
        return kind.fromisoformat(parts)
    bare, fold, zone = parts
    return kind.fromisoformat(bare).replace(tzinfo=_read_zone(zone), fold=fold)


def _zone(zone: tzinfo | None) -> str | list[Any] | None:
    """Return the key of a ZoneInfo, or the offset of a timezone in us and its name."""
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        is_named = name != timezone(offset).tzname(None)
        offset_us = offset // timedelta(microseconds=1)
        return [offset_us, _lower_str(name)] if is_named else [offset_us]
    if type(zone) is ZoneInfo and zone.key is not None:
        return _lower_str(zone.key)
    message = (
        f"its time zone is a {_name(type(zone))}, which has no name to be kept by. Use"
        " datetime.UTC, a timezone, or a ZoneInfo made from its key."
    )
    raise _RefusedError(message)


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


_LOWER_LEAF: Final[dict[type, Callable[[Any], Any]]] = {
    NoneType: _same,
    bool: _same,
    float: _same,
    bytes: _same,
    int: _lower_int,
    str: _lower_str,
    bytearray: lambda value: msgpack.Ext(_BYTEARRAY, bytes(value)),
    datetime: lambda value: _lower_moment(_DATETIME, value),
    date: lambda value: msgpack.Ext(_DATE, value.isoformat().encode()),
    time: lambda value: _lower_moment(_TIME, value),
    timedelta: lambda value: msgpack.Ext(
        _TIMEDELTA, _to_bytes(_timedelta_parts(value))
    ),
    Decimal: lambda value: msgpack.Ext(_DECIMAL, str(value).encode()),
    UUID: lambda value: msgpack.Ext(_UUID, value.bytes),
    msgspec.UnsetType: lambda _: msgpack.Ext(_UNSET, b""),
}
_READ_LEAF: Final[dict[int, Callable[[memoryview], Any]]] = {
    _INT: _read_int,
    _BYTEARRAY: bytearray,
    _DATETIME: lambda data: _read_moment(datetime, data),
    _DATE: lambda data: date.fromisoformat(str(data, "ascii")),
    _TIME: lambda data: _read_moment(time, data),
    _TIMEDELTA: lambda data: timedelta(*msgpack.decode(data)),
    _DECIMAL: lambda data: Decimal(str(data, "ascii")),
    _UUID: lambda data: UUID(bytes=bytes(data)),
    _UNSET: lambda _: msgspec.UNSET,
}


class _Form:
    """How the instances of one class come apart, and are put together again."""

    code: ClassVar[int]

    def __init__(self, cls: type[Any], key: str) -> None:
        self.cls = cls
        self.key = key

    def take_apart(self, value: Any) -> Any:
        """Return the parts of an instance: a dict by name, or a scalar."""
        raise NotImplementedError

    def put_together(self, parts: Any) -> Any:
        """Return an instance that has these parts."""
        raise NotImplementedError


class _EnumForm(_Form):
    """Enum members by name, so that they survive a change of their values."""

    code = _ENUM

    def take_apart(self, value: Any) -> str | int:
        name = value._name_
        if self.cls._member_map_.get(name) is value:
            return str(name)
        return int(value._value_)  # flags combined with `|` have no name of their own

    def put_together(self, parts: Any) -> Any:
        if type(parts) is int and issubclass(self.cls, Flag):
            return self.cls(parts)
        member = self.cls._member_map_.get(parts)
        if member is None:
            raise DecodeError(f"{_name(self.cls)} has no member {parts!r} any more")
        return member


class _FieldsForm(_Form):
    """What dataclasses and Structs have in common: fields with names."""

    def __init__(self, cls: type[Any], key: str) -> None:
        super().__init__(cls, key)
        self._defaults: dict[str, Callable[[], Any]] = {}
        self._fields = self._find_fields()
        self._names = frozenset(self._fields)
        self._has_dict = cls.__dictoffset__ != 0

    def take_apart(self, value: Any) -> dict[str, Any]:
        if self._has_dict:
            state: dict[str, Any] = vars(value)
            if state.keys() == self._names:
                return state
            self._refuse_extras(state)
        parts = {}
        for name in self._fields:
            try:
                parts[name] = getattr(value, name)
            except AttributeError:
                message = "the field was never set. Set it, or give it a default."
                refused = _RefusedError(message)
                refused.steps.append(f".{name}")
                raise refused from None
        return parts

    def _find_fields(self) -> tuple[str, ...]:
        """Return the names of the fields, and note what the missing ones default to."""
        raise NotImplementedError

    def _complete(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Return the parts with defaults for fields the class has gained since."""
        for name in parts.keys() - self._names:
            message = (
                f"{_name(self.cls)} has no field {name!r} any more, but a stored value"
                " has. Put the field back, or read and rewrite the old values first."
            )
            raise DecodeError(message)
        completed = {}
        for name in self._fields:
            if name in parts:
                completed[name] = parts[name]
            elif name in self._defaults:
                completed[name] = self._defaults[name]()
            else:
                message = (
                    f"a stored value has no field {name!r}, which {_name(self.cls)}"
                    " now has. Give the field a default."
                )
                raise DecodeError(message)
        return completed

    def _refuse_extras(self, state: Mapping[str, Any]) -> None:
        for name in state.keys() - self._names:
            is_derived = name.startswith("__") or isinstance(
                inspect.getattr_static(self.cls, name, None), cached_property
            )
            if not is_derived:
                message = (
                    f"{_name(self.cls)} has no field {name!r}, so the attribute would"
                    " be lost. Declare it as a field."
                )
                raise _RefusedError(message)


class _DataclassForm(_FieldsForm):
    """Dataclasses, made without `__init__` and `__post_init__`."""

    code = _DATACLASS

    def __init__(self, cls: type[Any], key: str) -> None:
        super().__init__(cls, key)
        # No field lives in a slot, or behind a descriptor.
        self._is_all_dict = self._has_dict and not any(
            hasattr(inspect.getattr_static(cls, name, None), "__set__")
            for name in self._fields
        )

    def put_together(self, parts: Any) -> Any:
        if parts.keys() != self._names:
            parts = self._complete(parts)
        instance = object.__new__(self.cls)
        if self._is_all_dict:
            vars(instance).update(parts)
        else:
            for name, part in parts.items():
                object.__setattr__(instance, name, part)
        return instance

    def _find_fields(self) -> tuple[str, ...]:
        fields = dataclasses.fields(self.cls)
        for field in fields:
            if field.default_factory is not dataclasses.MISSING:
                self._defaults[field.name] = field.default_factory
            elif field.default is not dataclasses.MISSING:
                self._defaults[field.name] = partial(_same, field.default)
        return tuple(field.name for field in fields)


class _StructForm(_FieldsForm):
    """Structs. Only calling the class makes one; that checks and converts nothing."""

    code = _STRUCT

    def put_together(self, parts: Any) -> Any:
        if parts.keys() != self._names:
            parts = self._complete(parts)
        instance = self.cls(**parts)
        if hasattr(self.cls, "__post_init__"):
            # It has run, as it cannot be avoided, and may have changed what was kept.
            for name, part in parts.items():
                msgspec.structs.force_setattr(instance, name, part)
        return instance

    def _find_fields(self) -> tuple[str, ...]:
        fields = msgspec.structs.fields(self.cls)
        for field in fields:
            if field.default_factory is not msgspec.NODEFAULT:
                self._defaults[field.name] = field.default_factory
            elif field.default is not msgspec.NODEFAULT:
                self._defaults[field.name] = partial(_same, field.default)
        return tuple(field.name for field in fields)


class _ExceptionForm(_Form):
    """Exceptions: arguments, attributes and notes; not the traceback."""

    code = _EXCEPTION

    def __init__(self, cls: type[BaseException], key: str) -> None:
        super().__init__(cls, key)
        # Made by Python's own constructors: one that the user wrote may want other
        # arguments than those in `args`.
        self._new = _first_builtin(cls, "__new__", BuiltinMethodType)
        self._init = _first_builtin(cls, "__init__", WrapperDescriptorType)
        self._fields = tuple(
            name
            for builtin, names in _BUILTIN_FIELDS.items()
            if issubclass(cls, builtin)
            for name in names
        )

    def take_apart(self, value: Any) -> dict[str, Any]:
        state = dict(vars(value))
        notes = state.pop("__notes__", None) or ()
        parts: dict[str, Any] = {"args": list(value.args), "state": state}
        fields = {name: getattr(value, name, None) for name in self._fields}
        parts["fields"] = {k: v for k, v in fields.items() if v is not None}
        parts["notes"] = [str(note) for note in notes]
        return parts

    def put_together(self, parts: Any) -> BaseException:
        args = tuple(parts.get("args", ()))
        error: BaseException = self._new(self.cls, *args)
        self._init(error, *args)
        object.__setattr__(error, "args", args)
        for name, part in parts.get("fields", {}).items():
            if name in self._fields:
                object.__setattr__(error, name, part)
        vars(error).update(parts.get("state", {}))
        _add_notes(error, parts.get("notes", ()))
        return error


def _first_builtin(cls: type[Any], name: str, kind: type[Any]) -> Callable[..., Any]:
    """Return the constructor that Python itself has for the memory of a class."""
    found: type[Any] | None = cls
    while found is not None:
        member = vars(found).get(name)
        if type(member) is kind:
            return getattr(found, name)  # type: ignore[no-any-return]  # callable
        found = found.__base__
    raise AssertionError(f"object itself has {name}")


def _add_notes(error: BaseException, notes: Iterable[str]) -> None:
    """Add notes even to a frozen exception, which `add_note` cannot."""
    if notes:
        vars(error).setdefault("__notes__", []).extend(notes)


# What Python keeps beside `args` and `__dict__`, and `args` does not lead to.
_BUILTIN_FIELDS: Final[Mapping[type[BaseException], tuple[str, ...]]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}

_FORMS: Final = {
    form.code: form for form in (_EnumForm, _DataclassForm, _StructForm, _ExceptionForm)
}
_COLLECTIONS: Final = frozenset({list, tuple, set, frozenset})

_form_by_class: dict[type[Any], _Form] = {}
_form_by_key: dict[str, _Form] = {}
_registered: dict[str, _Form] = {}
# Not findable by name. An exception of such a class still reaches its caller in this
# process with its type.
_local_classes: WeakValueDictionary[str, type[Any]] = WeakValueDictionary()


def _register(cls: type[Any], name: str | None) -> type[Any]:
    key = _key(cls) if name is None else name
    try:
        form = _make_form(cls, key)
    except _RefusedError as refused:
        raise EncodeError(refused.detail, path=_name(cls)) from None
    known = _registered.get(key)
    if known is not None and _key(known.cls) != _key(cls):
        raise ConfigError(f"{key!r} is already registered, for {_name(known.cls)}")
    _registered[key] = _form_by_class[cls] = form
    return cls


def _form_of(cls: type[Any], *, takes_local_classes: bool) -> _Form:
    """Return the form of an instance's class, found once per class."""
    form = _form_by_class.get(cls)
    if form is not None:
        return form
    key = _key(cls)
    form = _make_form(cls, key)
    if _locate(key) is cls:
        _form_by_class[cls] = _form_by_key[key] = form
        return form
    if takes_local_classes:
        _local_classes[key] = cls
        return form
    message = (
        f"the class {_name(cls)} could not be found again by its name after a restart."
        " Move it to the top level of a module, or hand it to durable_actor.register"
        " where it is made."
    )
    raise _RefusedError(message)


def _find_form(code: int, key: str) -> _Form:
    """Return the form of a stored class. Imports nothing."""
    form = _registered.get(key)
    if form is None:
        cls = _locate(key)
        form = _form_by_key.get(key)
        if form is None or form.cls is not cls:  # else its module was loaded again
            form = _make_found_form(key, cls)
    if form.code != code:
        raise DecodeError(f"{key} is another kind of class than when it was stored")
    return form


def _make_found_form(key: str, cls: type[Any] | None) -> _Form:
    found = cls or _local_classes.get(key)
    if found is None:
        message = (
            f"the class {key} is not here. Import its module before reading; if it has"
            f" moved, durable_actor.register(name={key!r}) its successor."
        )
        raise DecodeError(message)
    try:
        form = _make_form(found, key)
    except _RefusedError as refused:
        raise DecodeError(refused.detail) from None
    if cls is not None:
        _form_by_key[key] = form
    return form


def _make_form(cls: type[Any], key: str) -> _Form:
    if issubclass(cls, BaseException):
        return _ExceptionForm(cls, key)
    if isinstance(cls, EnumType):
        return _EnumForm(cls, key)
    if issubclass(cls, msgspec.Struct):
        return _StructForm(cls, key)
    if dataclasses.is_dataclass(cls):
        try:
            object.__new__(cls)
        except TypeError:
            message = f"{_name(cls)} is a dataclass and more. Make it only a dataclass."
            raise _RefusedError(message) from None
        return _DataclassForm(cls, key)
    raise _RefusedError(
        f"{_name(cls)} is not a type that can be kept exactly. {_remedy(cls)}"
    )


def _key(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _locate(key: str) -> type[Any] | None:
    """Return the class a key names, from what is already imported."""
    module, _, path = key.partition(":")
    found: object = sys.modules.get(module)
    for name in path.split("."):
        # Looked up as data: a module's or a class's `__getattr__` could import.
        if not isinstance(found, _NAMESPACES):
            return None
        found = vars(found).get(name)
    return found if isinstance(found, type) else None


def _outline(key: str, parts: Any) -> RemoteError:
    """Return what can be told about an exception whose type is not here."""
    module, _, name = str(key).partition(":")
    error = RemoteError(
        name if module == "builtins" else f"{module}.{name}",
        str(parts.get("text", "")),
        remote_notes=tuple(str(note) for note in parts.get("notes") or ()),
        remote_traceback=str(parts.get("traceback") or ""),
    )
    _attach_causes(error, parts)
    return error


def _attach_causes(error: BaseException, parts: dict[str, Any]) -> None:
    for key, text in parts.get("causes") or ():
        error.__cause__ = error = _outline(key, {"text": text})


def _causes(error: BaseException) -> list[list[str]]:
    """Return type and text of the exceptions behind this one, nearest first."""
    causes: list[list[str]] = []
    cause = error.__cause__
    while cause is not None and len(causes) < ERROR_DEPTH_MAX:
        causes.append([_key(type(cause)), _message(cause)])
        cause = cause.__cause__
    return causes


def _message(error: BaseException) -> str:
    if isinstance(error, RemoteError):
        return _sound(error.message)
    try:
        return _sound(str(error))
    except Exception:  # noqa: BLE001  # the user's `__str__` may do anything
        return "(its text could not be made)"


def _traceback(error: BaseException) -> str:
    try:
        return _sound("".join(traceback.format_exception(error)), keep_end=True)
    except Exception:  # noqa: BLE001  # it formats every user's `__str__` on the way
        return "(its traceback could not be made)"


def _sound(text: str, *, keep_end: bool = False) -> str:
    """Return text that can be encoded, and is not too long."""
    if len(text) > ERROR_TEXT_CHARS_MAX:
        kept = ERROR_TEXT_CHARS_MAX
        text = "..." + text[-kept:] if keep_end else text[:kept] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  # the user's `__repr__` may do anything
        return f"<{_name(type(value))}>"


def _short(value: object) -> str:
    text = json.dumps(value) if type(value) is str else _sound(_repr(value))
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004  # one line


def _name(cls: type[Any]) -> str:
    return (
        cls.__qualname__
        if cls.__module__ == "builtins"
        else f"{cls.__module__}.{cls.__qualname__}"
    )


def _too_deep() -> _RefusedError:
    message = f"nested deeper than {DEPTH_MAX} levels. Does the value contain itself?"
    return _RefusedError(message)


def _remedy(cls: type[Any]) -> str:
    """Return what to do about a value of a class that is not kept."""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return "Make the named tuple a frozen dataclass."
    for builtin, call in _CONVERSIONS:
        if issubclass(cls, builtin):
            return f"Convert it with {call}."
    if issubclass(cls, Awaitable):
        return "Await it first."
    if issubclass(cls, type) or "__call__" in dir(cls):
        return "Code is not data: keep a name, and look it up."
    if issubclass(cls, Iterable):
        return "Make it a list, or its class a dataclass."
    return "Make its class a dataclass, or keep its parts."


_CONVERSIONS: Final[tuple[tuple[type[Any], str], ...]] = (
    (str, "str(...)"),
    (int, "int(...)"),
    (float, "float(...)"),
    (bytes, "bytes(...)"),
    (bytearray, "bytearray(...)"),
    (memoryview, "bytes(...)"),
    (dict, "dict(...)"),
    (list, "list(...)"),
    (tuple, "tuple(...)"),
    (set, "set(...)"),
    (frozenset, "frozenset(...)"),
    (datetime, "datetime.fromisoformat(value.isoformat())"),
    (Decimal, "Decimal(...)"),
    (PurePath, "str(...)"),
    (Iterator, "list(...)"),
)


def _wrong_version(data: bytes) -> str:
    if not data:
        return "there are no bytes"
    return (
        f"format version {data[0]} is not known here (this release reads"
        f" {FORMAT_VERSION}): damaged, or written by a later release"
    )


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
    if isinstance(value, Enum):
        return _to_json(value._value_, room)
    if isinstance(value, BaseException):
        return {"type": _name(kind), "message": _message(value)}
    try:
        form = _form_of(kind, takes_local_classes=True)
        parts = form.take_apart(value)
    except _RefusedError as refused:
        raise EncodeError(refused.detail) from None
    return {name: _to_json(part, room) for name, part in parts.items()}


def _json_key(key: Any, room: int) -> str:
    if type(key) is str:
        return key
    shown = _to_json(key, room)
    return shown if type(shown) is str else json.dumps(shown)


def _json_int(value: int) -> int | str:
    if _INT_MIN <= value <= _INT_MAX:
        return value
    # Decimal text of a huge int takes quadratic time, and Python refuses to make it.
    return str(value) if value.bit_length() <= 4_096 else hex(value)  # noqa: PLR2004


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


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


@dataclasses.dataclass(frozen=True, slots=True)
class _Signature:
    """What a method takes: its signature without `self`, and a type per parameter."""

    signature: inspect.Signature
    kinds: Mapping[str, Any]


_signatures: WeakKeyDictionary[Callable[..., Any], _Signature] = WeakKeyDictionary()


def _signature_of(function: Callable[..., Any]) -> _Signature:
    function = getattr(function, "__func__", function)
    known = _signatures.get(function)
    if known is None:
        signature = inspect.signature(function)
        taken = list(signature.parameters.values())[1:]
        known = _signatures[function] = _Signature(
            signature.replace(
                parameters=taken, return_annotation=inspect.Signature.empty
            ),
            {parameter.name: _kind(function, parameter) for parameter in taken},
        )
    return known


def _kind(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return a parameter's type; Any if it has none, or one that is not to be found."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        hints = typing.get_type_hints(holder, globalns=names, include_extras=True)
    except Exception:  # noqa: BLE001  # evaluating someone's annotation
        return Any
    return hints[parameter.name]


def _convert(value: Any, kind: Any, label: str) -> Any:
    expected = kind.__name__ if type(kind) is type else str(kind)
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        at = label + place.removesuffix("`")
        message = f"argument {at}: {problem} ({label} is annotated {expected})"
    except Exception as error:  # noqa: BLE001  # or the annotated class's own code
        message = f"argument {label}: cannot become {expected}: {error}"
    raise BadArgumentsError(message)
