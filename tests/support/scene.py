"""What objects under test and their test share: a log, and gates that the test opens.

An object finds it as `self.env.scene`, because a test hands it in with
`open_test_host(env={"scene": scene})`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Scene:
    """A log of what happened, and named gates."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.tasks: list[asyncio.Future[Any]] = []  # started by an object, and detached
        self._gates: dict[str, asyncio.Event] = {}

    def note(self, text: str) -> None:
        """Write down that something happened."""
        self.log.append(text)

    def open(self, *names: str) -> None:
        """Let through whoever waits at these gates, and whoever will."""
        for name in names:
            self._gate(name).set()

    async def reach(self, name: str) -> None:
        """Note that a gate was reached, and wait until it is open."""
        self.note(name)
        await self._gate(name).wait()

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())


async def results(calls: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """Return what each call answered or raised, in their order."""
    return await asyncio.gather(*calls, return_exceptions=True)
