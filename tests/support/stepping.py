"""A shard driver that a test stops and lets go at each edge of each call."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Any, Literal, TypeVar

from durable_actor.storage.ports import Group, Opened, Query, ShardDriver

A = TypeVar("A")
Edge = Literal[
    "commit.before",
    "commit.after",
    "fold.before",
    "fold.after",
    "read.before",
    "read.after",
]


class SteppingDriver:
    """Stands before a driver. An edge that is held stops the calls that come to it."""

    def __init__(self, driver: ShardDriver) -> None:
        self.driver = driver
        self.groups: list[Group] = []  # as they were asked for, committed or not
        self.reads: list[Query[Any]] = []
        # The next commits or folds end like this, without reaching the disk; None:
        # well.
        self.commit_errors: deque[BaseException | None] = deque()
        self.fold_errors: deque[BaseException | None] = deque()
        self._held: dict[Edge, asyncio.Event] = {}
        self._arrived: Counter[Edge] = Counter()
        self._news = asyncio.Condition()
        self.ended = ""

    @property
    def opened(self) -> Opened:
        return self.driver.opened

    def hold(self, edge: Edge) -> None:
        """Stop whoever comes to this edge from now on."""
        self._held.setdefault(edge, asyncio.Event())

    def release(self, edge: Edge) -> None:
        """Let everyone go on who was stopped here, and who comes later."""
        self._held.pop(edge).set()

    async def arrived(self, edge: Edge, count: int = 1) -> None:
        """Return when so many calls, counted from the start, came to this edge."""
        async with self._news:
            await self._news.wait_for(lambda: self._arrived[edge] >= count)

    async def commit(self, group: Group) -> None:
        self.groups.append(group)
        await self._pass("commit.before")
        error = self.commit_errors.popleft() if self.commit_errors else None
        if error is not None:
            raise error
        await self.driver.commit(group)
        await self._pass("commit.after")

    async def fold(self) -> None:
        await self._pass("fold.before")
        error = self.fold_errors.popleft() if self.fold_errors else None
        if error is not None:
            raise error
        await self.driver.fold()
        await self._pass("fold.after")

    async def read(self, query: Query[A]) -> A:
        self.reads.append(query)
        await self._pass("read.before")
        answer = await self.driver.read(query)
        await self._pass("read.after")
        return answer

    async def close(self) -> None:
        self.ended = "closed"
        await self.driver.close()

    async def drop(self) -> None:
        self.ended = "dropped"
        for edge in list(self._held):
            self.release(edge)
        await self.driver.drop()

    async def _pass(self, edge: Edge) -> None:
        async with self._news:
            self._arrived[edge] += 1
            self._news.notify_all()
        held = self._held.get(edge)
        if held is not None:
            await held.wait()
