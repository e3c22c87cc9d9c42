"""Failures: exceptions on their way from one side of a call to the other.

Inside a stored value an exception is a value like another. On its way to a caller it
must arrive whatever it holds: what cannot be kept is left out or becomes text, and a
type that the other side does not know arrives as a `RemoteError`.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import Any, Final

from msgspec import msgpack

from durable_actor.codec import tags
from durable_actor.codec.forms import add_notes
from durable_actor.codec.leaves import lower_str
from durable_actor.codec.refusals import RefusedError
from durable_actor.codec.registry import class_key, find_form, form_of
from durable_actor.codec.tags import VERSION, to_bytes
from durable_actor.codec.values import Reader, Writer
from durable_actor.codec.wording import message_of, repr_of, sound
from durable_actor.errors import DecodeError, RemoteError

ERROR_DEPTH_MAX = 8  # exceptions inside an exception; beyond, they are kept as text
_TRACEBACK_NOTE = "Remote traceback:\n"


def dumps_error(error: BaseException, *, include_traceback: bool = False) -> bytes:
    """Return the bytes of an exception on its way to whoever called. Never fails.

    What cannot be encoded is left out (attributes) or becomes text (arguments). The
    traceback travels only if asked for: it must not reach strangers.
    """
    writer = _TRACED if include_traceback else _BRIEF
    try:
        return VERSION + to_bytes(writer.lower_error(error, ERROR_DEPTH_MAX))
    except Exception:  # noqa: BLE001  # an error that cannot be told is told as its text
        parts = {"text": message_of(error)}
        item = msgpack.Ext(tags.EXCEPTION, to_bytes([class_key(type(error)), parts]))
        return VERSION + to_bytes(item)


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


class _ErrorWriter(Writer):
    """Lowers exceptions so that they are fit to travel, also those inside a value."""

    def __init__(self, *, takes_tracebacks: bool) -> None:
        super().__init__(takes_local_classes=True)
        self._takes_tracebacks = takes_tracebacks

    def lower_error(self, error: BaseException, room: int) -> msgpack.Ext:
        """Lower an exception, leaving out what cannot be kept."""
        try:
            form = form_of(type(error), takes_local_classes=True)
            key, parts = form.key, form.take_apart(error)
        except RefusedError:
            key, parts = class_key(type(error)), {}
        told: dict[str, Any] = {"text": message_of(error), "causes": _causes(error)}
        told["args"] = [
            self._lower_or_text(item, room) for item in parts.get("args", ())
        ]
        for group in ("state", "fields"):
            told[group] = {}
            for name, item in parts.get(group, {}).items():
                with contextlib.suppress(RefusedError):
                    told[group][lower_str(name)] = self.lower(item, room)
        told["notes"] = [sound(note) for note in parts.get("notes", ())]
        if self._takes_tracebacks:
            told["traceback"] = _traceback(error)
        else:
            # What an earlier hop was allowed to add must not leave with this one.
            told["notes"] = [
                note for note in told["notes"] if not note.startswith(_TRACEBACK_NOTE)
            ]
            if "remote_traceback" in told["state"]:
                told["state"]["remote_traceback"] = ""
        return msgpack.Ext(tags.EXCEPTION, to_bytes([key, told]))

    def lower_instance(self, value: Any, room: int) -> msgpack.Ext:
        if issubclass(type(value), BaseException):
            return self.lower_error(value, min(room - 1, ERROR_DEPTH_MAX))
        return super().lower_instance(value, room)

    def _lower_or_text(self, item: object, room: int) -> Any:
        try:
            return self.lower(item, room)
        except RefusedError:
            return sound(repr_of(item))


class _ArrivalReader(Reader):
    """Reads exceptions that come from the other side of a call."""

    def read_instance(self, code: int, key: str, parts: Any) -> Any:
        if code != tags.EXCEPTION:
            return super().read_instance(code, key, parts)
        try:
            error = find_form(code, key).put_together(parts)
        except Exception:  # noqa: BLE001  # missing or changed here: it is told as text
            return _outline(key, parts)
        if not isinstance(error, Exception):
            return _outline(key, parts)
        vars(error)["remote"] = True
        if parts.get("traceback"):
            add_notes(error, [_TRACEBACK_NOTE + parts["traceback"]])
        _attach_causes(error, parts)
        return error


class _OutlineReader(Reader):
    """Reads the text of exceptions, and None for whatever is not readable here."""

    def read_tagged(self, code: int, data: memoryview) -> Any:
        try:
            return super().read_tagged(code, data)
        except Exception:  # noqa: BLE001  # what cannot be read is left out
            return None

    def read_instance(self, code: int, key: str, parts: Any) -> Any:
        return _outline(key, parts) if code == tags.EXCEPTION else None


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
        causes.append([class_key(type(cause)), message_of(cause)])
        cause = cause.__cause__
    return causes


def _traceback(error: BaseException) -> str:
    try:
        return sound("".join(traceback.format_exception(error)), keep_end=True)
    except Exception:  # noqa: BLE001  # it formats every user's `__str__` on the way
        return "(its traceback could not be made)"


_BRIEF: Final = _ErrorWriter(takes_tracebacks=False)
_TRACED: Final = _ErrorWriter(takes_tracebacks=True)
_ARRIVALS: Final = _ArrivalReader()
_OUTLINES: Final = _OutlineReader()
