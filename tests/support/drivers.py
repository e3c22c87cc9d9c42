"""A shard driver whose commits a test holds back or makes fail."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeVar

from durable_actor import Host, StorageError, StorageFailedError
from durable_actor.storage.ports import Group, Opened, Query, ShardDriver

A = TypeVar("A")


class PausableDriver:
    """Stands between a committer and its driver."""

    def __init__(self, driver: ShardDriver) -> None:
        self._driver = driver
        self._resumed = asyncio.Event()
        self._resumed.set()
        # The next commits fail with these, without reaching the disk.
        self.failures: deque[StorageError] = deque()
        self.groups = 0
        self._groups_max: int | None = None
        self._is_dropped = False

    @property
    def opened(self) -> Opened:
        return self._driver.opened

    def pause(self) -> None:
        """Let no commit through from now on."""
        self._resumed.clear()

    def pause_after(self, groups: int) -> None:
        """Let so many commits through, and no more."""
        self._groups_max = self.groups + groups
        if not groups:
            self.pause()

    def resume(self) -> None:
        """Let through what was held back, and all that follows."""
        self._groups_max = None
        self._resumed.set()

    async def commit(self, group: Group) -> None:
        await self._resumed.wait()
        if self._is_dropped:
            raise StorageFailedError("commit", "the driver was dropped")
        if self.failures:
            raise self.failures.popleft()
        self.groups += 1
        if self.groups == self._groups_max:
            self.pause()
        await self._driver.commit(group)

    async def fold(self) -> None:
        await self._driver.fold()

    async def read(self, query: Query[A]) -> A:
        return await self._driver.read(query)

    async def close(self) -> None:
        self.resume()
        await self._driver.close()

    async def drop(self) -> None:
        self._is_dropped = True
        self.resume()
        await self._driver.drop()


def take_over(host: Host) -> PausableDriver:
    """Put a `PausableDriver` between an open host and its disk."""
    driver = PausableDriver(host.driver)
    host.driver = driver
    host.committer._driver = driver
    return driver
