"""An awaitable that already has its result."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


class Ready(Struct, Generic[T], eq=False):
    """An awaitable that already has its result; awaiting it does not suspend."""

    value: T

    def __await__(self) -> Generator[Any, None, T]:
        return self.value
        yield  # unreachable; makes this a generator, as __await__ must be
