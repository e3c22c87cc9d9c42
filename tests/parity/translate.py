"""From what was observed, in JavaScript, to what the same is in Python.

The rules
    `undefined` and `null` are None, a `Map` is a dict in order, `{"ok": x}` is x.
    A refusal is an exception: a `TypeError` is one here too, a `RangeError` is a
    `ValueError`, a `DataCloneError` is an `EncodeError`, which is a `TypeError`.
    Its text must be in ours, with method names in snake_case. Texts that the JavaScript
    engine makes of a wrong argument ("Failed to execute ...") are not compared.
    An error with `durableObjectReset` is an `ObjectResetError`, whose text holds the
    original's; one with `overloaded` says so here too.
    What is about the transport (`remote`, `durableObjectId`) is compared in its own
    cases.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from durable_actor import EncodeError, ObjectResetError

UNDEFINED = "<undefined>"
KINDS: Mapping[str, type[Exception]] = {
    "TypeError": TypeError,
    "RangeError": ValueError,
    "DataCloneError": EncodeError,
}
_ENGINE_TEXTS = (
    "Failed to execute",
    "Cannot convert",
    "put() may only be called",
    "put() called with undefined",
)
_CAMEL = re.compile(r"\b[a-z]+(?:[A-Z][a-z]*)+\b")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as it was observed."""

    name: str
    message: str
    own: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, error: object) -> bool:
        """Whether an exception of ours says the same."""
        if not isinstance(error, Exception):
            return False
        if self.own.get("durableObjectReset"):
            return (
                isinstance(error, ObjectResetError)
                and error.durable_object_reset
                and error.overloaded is bool(self.own.get("overloaded"))
                and self._is_told_by(error)
            )
        if not isinstance(error, KINDS.get(self.name, Exception)):
            return False
        return (
            self.name == "DataCloneError"
            or self.message.startswith(_ENGINE_TEXTS)
            or self._is_told_by(error)
        )

    def _is_told_by(self, error: Exception) -> bool:
        return self.message in str(error) or snake(self.message) in str(error)


def to_python(seen: Any) -> Any:
    """Return an observed value as Python has it."""
    if seen == UNDEFINED:
        return None
    if isinstance(seen, list):
        return [to_python(item) for item in seen]
    if not isinstance(seen, dict):
        return seen
    match seen:
        case {"ok": value, **rest} if not rest:
            return to_python(value)
        case {"err": error, **rest} if not rest:
            own = error.get("own", {})
            return Refusal(error.get("name", ""), error["message"], own)
        case {"<Map>": pairs, **rest} if not rest:
            return {key: to_python(value) for key, value in pairs}
    return {key: to_python(value) for key, value in seen.items()}


def agrees(ours: Any, seen: Any) -> bool:
    """Whether what ours did is what was observed (already in Python)."""
    if isinstance(seen, Refusal):
        return seen.matches(ours)
    if isinstance(seen, dict):
        return (
            isinstance(ours, dict)
            and list(ours) == list(seen)
            and all(agrees(ours[key], seen[key]) for key in seen)
        )
    if isinstance(seen, list):
        return (
            isinstance(ours, list)
            and len(ours) == len(seen)
            and all(map(agrees, ours, seen))
        )
    return bool(ours == seen) and isinstance(ours, bool) is isinstance(seen, bool)


def differences(ours: Mapping[str, Any], seen: Mapping[str, Any]) -> set[str]:
    """Return what ours does otherwise, of the things that were done to both.

    What only one of them has is a difference as well.
    """
    seen = to_python(dict(seen))
    return {
        key
        for key in {*ours, *seen}
        if key not in ours or key not in seen or not agrees(ours[key], seen[key])
    }


def snake(text: str) -> str:
    """Return a text with its method names written as ours are."""
    return _CAMEL.sub(
        lambda name: re.sub(r"[A-Z]", lambda big: "_" + big[0].lower(), name[0]), text
    )


async def outcome(doing: Callable[[], Awaitable[Any] | Any]) -> Any:
    """Do something, and return its answer, or the exception it raised."""
    try:
        answer = doing()
        return await answer if isinstance(answer, Awaitable) else answer
    except Exception as error:  # noqa: BLE001  # that it raised is what was asked
        return error


def reset_by(error: object) -> str:
    """Return why an object was reset, as its callers are told."""
    assert isinstance(error, ObjectResetError), repr(error)
    return error.detail
