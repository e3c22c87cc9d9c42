"""Wording: text about values, classes and exceptions. It never fails and never floods.

The user's `__repr__` and `__str__` may raise, may return a megabyte, or text that is
not Unicode; a report about a value must arrive all the same.
"""

from __future__ import annotations

import json
from typing import Any

from durable_actor.errors import RemoteError

ERROR_TEXT_CHARS_MAX = 16_384  # of a message or traceback: enough to read, not to flood


def message_of(error: BaseException) -> str:
    """Return the text of an exception."""
    if isinstance(error, RemoteError):
        return sound(error.message)
    try:
        return sound(str(error))
    except Exception:  # noqa: BLE001  # the user's `__str__` may do anything
        return "(its text could not be made)"


def sound(text: str, *, keep_end: bool = False) -> str:
    """Return text that can be encoded, and is not too long."""
    if len(text) > ERROR_TEXT_CHARS_MAX:
        kept = ERROR_TEXT_CHARS_MAX
        text = "..." + text[-kept:] if keep_end else text[:kept] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def repr_of(value: object) -> str:
    """Return the `repr` of a value, or at least what it is."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  # the user's `__repr__` may do anything
        return f"<{class_name(type(value))}>"


def one_line(value: object) -> str:
    """Return a value as text short enough for a path."""
    text = json.dumps(value) if type(value) is str else sound(repr_of(value))
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004  # one line


def class_name(cls: type[Any]) -> str:
    """Return the name of a class as a reader knows it."""
    return (
        cls.__qualname__
        if cls.__module__ == "builtins"
        else f"{cls.__module__}.{cls.__qualname__}"
    )
