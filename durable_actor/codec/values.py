"""Values: to bytes and back, and the copy that needs no bytes.

A value made of what MessagePack knows alone (the common case, found by `_is_plain`)
goes straight to msgspec. Anything else is first *lowered*: replaced by an extension
item whose code names the type and whose payload is MessagePack again. Reading needs no
walk: msgspec calls back for extension items only.

`_copy` walks as `Writer` does, and refuses what it refuses. The two, and the reader,
are easier to keep in step side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import msgpack

from durable_actor.codec import tags
from durable_actor.codec.forms import FORM_CODES
from durable_actor.codec.leaves import leaf_reader, leaf_writer, zone_parts
from durable_actor.codec.refusals import RefusedError, too_deep
from durable_actor.codec.registry import find_form, form_of
from durable_actor.codec.tags import DEPTH_MAX, FORMAT_VERSION, VERSION, to_bytes
from durable_actor.codec.wording import one_line
from durable_actor.errors import DecodeError, EncodeError

_VIEW_BYTES_MIN = 4_096  # below, copying the bytes is cheaper than a view of them
_ATOMS: Final = frozenset({NoneType, bool, float, bytes})
_SCALARS: Final = _ATOMS | {int, str}
_FIXED: Final = _SCALARS | {date, timedelta, Decimal, UUID, msgspec.UnsetType}
_COLLECTIONS: Final = frozenset({list, tuple, set, frozenset})


def encode(value: object) -> bytes:
    """Return the bytes of a value.

    Raises:
        EncodeError: Something in the value cannot be kept exactly; `path` says where.
    """
    if _is_plain(value, DEPTH_MAX):
        try:
            return VERSION + to_bytes(value)
        except (OverflowError, UnicodeEncodeError):
            pass  # a large int is tagged below; a lone surrogate is found and named
    return VERSION + to_bytes(_STORED.lower_all(value))


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
    except RefusedError as refused:
        _PASSED.lower_all(value)  # the same refusal, but this walk knows the path
        raise EncodeError(refused.detail) from None


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


class Writer:
    """Lowers values: what msgspec would change becomes extension items."""

    def __init__(self, *, takes_local_classes: bool) -> None:
        self._takes_local_classes = takes_local_classes

    def lower_all(self, value: object) -> Any:
        """Lower a whole value.

        Raises:
            EncodeError: Something in it is refused.
        """
        try:
            return self.lower(value, DEPTH_MAX)
        except RefusedError as refused:
            raise EncodeError(refused.detail, path=refused.path()) from None

    def lower(self, value: Any, room: int) -> Any:
        """Lower a part that may have `room` levels below it."""
        kind = type(value)
        write = leaf_writer(kind)
        if write is not None:
            return write(value)
        if room <= 0:
            raise too_deep()
        if kind is list or kind is dict:
            # Most parts of a value that is not plain are plain.
            if _is_plain(value, room):
                try:
                    return msgspec.Raw(to_bytes(value))
                except (OverflowError, UnicodeEncodeError):
                    pass  # as in `encode`
            if kind is list:
                return self._lower_items(value, room)
            return self._lower_dict(value, room)
        if kind is tuple:
            return msgpack.Ext(tags.TUPLE, to_bytes(self._lower_items(value, room)))
        if kind is set:
            return msgpack.Ext(tags.SET, to_bytes(self._lower_set(value, room)))
        if kind is frozenset:
            return msgpack.Ext(tags.FROZENSET, to_bytes(self._lower_set(value, room)))
        return self.lower_instance(value, room)

    def lower_instance(self, value: Any, room: int) -> msgpack.Ext:
        """Lower an instance of a class."""
        form = form_of(type(value), takes_local_classes=self._takes_local_classes)
        parts = form.take_apart(value)
        if type(parts) is dict:
            lowered: dict[str, Any] = {}
            for name, part in parts.items():
                try:
                    lowered[name] = self.lower(part, room - 1)
                except RefusedError as refused:
                    refused.steps.append(f".{name}")
                    raise
            parts = lowered
        return msgpack.Ext(form.code, to_bytes([form.key, parts]))

    def _lower_items(self, items: Iterable[Any], room: int) -> list[Any]:
        lowered = []
        for index, item in enumerate(items):
            try:
                lowered.append(
                    item if type(item) in _ATOMS else self.lower(item, room - 1)
                )
            except RefusedError as refused:
                refused.steps.append(f"[{index}]")
                raise
        return lowered

    def _lower_set(self, items: Iterable[Any], room: int) -> list[Any]:
        try:
            return [self.lower(item, room - 1) for item in items]
        except RefusedError as refused:
            refused.steps.append("{...}")
            raise

    def _lower_dict(self, items: dict[Any, Any], room: int) -> Any:
        lowered: list[Any] = []
        is_tagged = False
        for key, item in items.items():
            is_tagged = is_tagged or type(key) is not str
            try:
                lowered.append(self.lower(key, room - 1))
            except RefusedError as refused:
                refused.steps.append(f"[the key {one_line(key)}]")
                raise
            try:
                lowered.append(
                    item if type(item) in _ATOMS else self.lower(item, room - 1)
                )
            except RefusedError as refused:
                refused.steps.append(f"[{one_line(key)}]")
                raise
        if is_tagged:
            return msgpack.Ext(tags.DICT, to_bytes(lowered))
        return dict(zip(lowered[::2], lowered[1::2], strict=True))


class Reader:
    """Reads values: turns extension items back into what they were made from."""

    def __init__(self) -> None:
        self._decode = msgpack.Decoder(ext_hook=self.read_tagged).decode

    def read(self, data: bytes) -> Any:
        """Read a whole value.

        Raises:
            DecodeError: It cannot be read, for whatever reason.
        """
        if data[:1] != VERSION:
            raise DecodeError(_wrong_version(data))
        try:
            if len(data) < _VIEW_BYTES_MIN:
                return self._decode(data[1:])
            return self._decode(memoryview(data)[1:])
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(f"the bytes are damaged: {error}") from error

    def read_tagged(self, code: int, data: memoryview) -> Any:
        """Return what an extension item was made from."""
        if code == tags.TUPLE:
            return tuple(self._decode(data))
        read = leaf_reader(code)
        if read is not None:
            return read(data)
        parts = self._decode(data)
        if code == tags.DICT:
            return dict(zip(parts[::2], parts[1::2], strict=True))
        if code == tags.SET:
            return set(parts)
        if code == tags.FROZENSET:
            return frozenset(parts)
        if code in FORM_CODES:
            key, parts = parts
            return self.read_instance(code, key, parts)
        raise DecodeError(f"tag {code} is unknown: written by a later release?")

    def read_instance(self, code: int, key: str, parts: Any) -> Any:
        """Return an instance of a class from its parts."""
        return find_form(code, key).put_together(parts)


def _copy(value: Any, room: int) -> Any:
    """Copy a value without bytes in between; refuses what a writer would refuse."""
    kind = type(value)
    if kind in _FIXED:
        return value
    if kind is datetime or kind is time:
        zone_parts(value.tzinfo)
        return value
    if kind is bytearray:
        return bytearray(value)
    if room <= 0:
        raise too_deep()
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
    form = form_of(kind, takes_local_classes=True)
    return form.put_together(_copy(form.take_apart(value), room + 1))


def _wrong_version(data: bytes) -> str:
    if not data:
        return "there are no bytes"
    return (
        f"format version {data[0]} is not known here (this release reads"
        f" {FORMAT_VERSION}): damaged, or written by a later release"
    )


_STORED: Final = Writer(takes_local_classes=False)
_PASSED: Final = Writer(takes_local_classes=True)
_VALUES: Final = Reader()
