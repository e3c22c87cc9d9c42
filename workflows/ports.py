"""The slices of the world the engine needs. Satisfied structurally, by `ctx.storage`.

Writes act at once and return an awaitable that need not be awaited; writes made without
an await between them commit together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol


class State(Protocol):
    """Keys and values that survive, and the point where they are known to."""

    def get(self, key: str, default: Any = None, /) -> Awaitable[Any]: ...

    def put(self, key: str, value: Any, /) -> Awaitable[None]: ...

    def list(self, *, prefix: str) -> Awaitable[Mapping[str, Any]]: ...

    def delete_all(self) -> Awaitable[None]: ...

    def sync(self) -> Awaitable[None]: ...


class Alarm(Protocol):
    """One wake-up call, kept with the state and in the same commit."""

    def set_alarm(self, when: int, /) -> Awaitable[None]: ...

    def delete_alarm(self) -> Awaitable[None]: ...


class Storage(State, Alarm, Protocol):
    """Both of them, which is what an object has."""
