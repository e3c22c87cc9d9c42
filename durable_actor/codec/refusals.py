"""Refusals: why a value cannot be kept, where in it that is, and what to do instead.

A refusal is raised at the part that is refused and gathers the way to it as it unwinds;
at the face of the package it becomes an `EncodeError` with that path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final

from durable_actor.codec.tags import DEPTH_MAX


class RefusedError(Exception):
    """Something in a value cannot be kept. Gathers the way to it while unwinding."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.steps: list[str] = []  # innermost first

    def path(self) -> str:
        """Return where it is, such as `value["lines"][3].price`."""
        steps = self.steps[::-1]
        if len(steps) > 12:  # noqa: PLR2004  # a value inside itself; a dozen show it
            steps = [*steps[:6], " ... ", *steps[-2:]]
        return "value" + "".join(steps)


def too_deep() -> RefusedError:
    """Return the refusal of a value with too many levels."""
    message = f"nested deeper than {DEPTH_MAX} levels. Does the value contain itself?"
    return RefusedError(message)


def remedy(cls: type[Any]) -> str:
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
