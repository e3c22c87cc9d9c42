"""Tools for testing durable objects: a clock that moves by hand, and a host on it.

```
async with open_test_host(tmp_path) as test:
    reminder = test.host.namespace(Reminder).get_by_name("a")
    await reminder.remind_in("1 hour")
    await test.advance("1 hour")
    assert await reminder.was_reminded()
```

Public, and what this project's own tests use.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from durable_actor.clock import Duration, Timer, duration_ms
from durable_actor.config import Config, StorageConfig
from durable_actor.entrypoints import DurableObject
from durable_actor.host import Host
from durable_actor.storage.ports import Group, Opened, Query, ShardDriver
from durable_actor.storage.store import DriverKind

A = TypeVar("A")

START_MS = 1_800_000_000_000  # a Friday in January 2027; any fixed time would do
_QUIET_LOOKS = 3
_LOOK_SECONDS = 0.001
# A host that lives for a moment has no use for room that was taken in advance.
_CONFIG = Config(storage=StorageConfig(wal_grow_bytes=64 * 1024, ballast_bytes=0))


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self._now_ms = start_ms
        self._elapsed_ms = 0
        self._instants: list[tuple[int, int, _ManualTimer]] = []  # due on the wall
        self._durations: list[tuple[int, int, _ManualTimer]] = []  # due by elapsed time
        self._order = itertools.count()
        self._is_busy: Callable[[], bool] = lambda: False

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return self._now_ms

    def elapsed_ms(self) -> int:
        """Return how far the clock was moved forwards, jumps of `put` left out."""
        return self._elapsed_ms

    def call_at(self, due_at_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` once the clock is moved to the time; at once if it is past."""
        return self._plan(self._instants, due_at_ms, self._now_ms, callback)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` once the clock was moved so far; at once if it is no way."""
        due_ms = self._elapsed_ms + delay_ms
        return self._plan(self._durations, due_ms, self._elapsed_ms, callback)

    @property
    def next_timer_at_ms(self) -> int | None:
        """When the next timer is due, if there is one."""
        found = [at_ms for at_ms, _ in self._next()]
        return min(found, default=None)

    def jump(self, to_ms: int) -> None:
        """Move to a time and fire what is due. Forwards, so much time has passed."""
        self._elapsed_ms += max(to_ms - self._now_ms, 0)
        self.put(to_ms)

    def put(self, to_ms: int) -> None:
        """Put the clock forwards or back, as an operator does: no time has passed."""
        self._now_ms = to_ms
        while due := min(self._next(), key=lambda found: found[0], default=None):
            at_ms, timers = due
            if at_ms > to_ms:
                return
            _, _, timer = heapq.heappop(timers)
            timer.fire()

    async def advance(self, by: Duration) -> None:
        """Move forwards, stopping at each timer until its consequences have settled."""
        until_ms = self._now_ms + duration_ms(by)
        await self.settle()
        while (
            due_at_ms := self.next_timer_at_ms
        ) is not None and due_at_ms <= until_ms:
            self.jump(max(due_at_ms, self._now_ms))
            await self.settle()
        self.jump(until_ms)
        await self.settle()

    async def settle(self) -> None:
        """Return when the loop has nothing left to do, storage included.

        Storage works in a thread or a process; `watch` tells when it is at work.
        """
        loop = asyncio.get_running_loop()
        quiet = 0
        while quiet < _QUIET_LOOKS:
            if self._is_busy():
                await asyncio.sleep(_LOOK_SECONDS)
                quiet = 0
                continue
            await asyncio.sleep(0)
            # The loop's own list of what is ready; there is no public way to ask.
            quiet = 0 if loop._ready else quiet + 1  # type: ignore[attr-defined]  # noqa: SLF001

    def watch(self, is_busy: Callable[[], bool]) -> None:
        """Let `settle` wait for something beside the loop."""
        self._is_busy = is_busy

    def _plan(
        self,
        timers: list[tuple[int, int, _ManualTimer]],
        due_ms: int,
        now_ms: int,
        callback: Callable[[], None],
    ) -> Timer:
        timer = _ManualTimer(callback)
        if due_ms <= now_ms:
            asyncio.get_running_loop().call_soon(timer.fire)
        else:
            heapq.heappush(timers, (due_ms, next(self._order), timer))
        return timer

    def _next(self) -> Iterator[tuple[int, list[tuple[int, int, _ManualTimer]]]]:
        """Yield when the next timer of each kind is due, by the wall as it is now."""
        behind_ms = self._now_ms - self._elapsed_ms
        for timers, offset_ms in ((self._instants, 0), (self._durations, behind_ms)):
            while timers and timers[0][2].is_over:
                heapq.heappop(timers)
            if timers:
                yield timers[0][0] + offset_ms, timers


class _ManualTimer:
    """One timer of a manual clock."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True

    def fire(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._callback()


class _WatchedDriver:
    """Counts what a driver has been asked and has not answered."""

    def __init__(self, driver: ShardDriver) -> None:
        self._driver = driver
        self.asked = 0

    @property
    def opened(self) -> Opened:
        return self._driver.opened

    async def commit(self, group: Group) -> None:
        with self._asking():
            await self._driver.commit(group)

    async def fold(self) -> None:
        with self._asking():
            await self._driver.fold()

    async def read(self, query: Query[A]) -> A:
        with self._asking():
            return await self._driver.read(query)

    async def close(self) -> None:
        await self._driver.close()

    async def drop(self) -> None:
        await self._driver.drop()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self.asked += 1
        try:
            yield
        finally:
            self.asked -= 1


class _WatchedHost(Host):
    """A host that knows whether its storage is at work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watched: _WatchedDriver | None = None

    @property
    def is_storage_busy(self) -> bool:
        return self._watched is not None and self._watched.asked > 0

    def _connect(self, driver: ShardDriver) -> ShardDriver:
        self._watched = _WatchedDriver(driver)
        return self._watched


class TestHost:
    """A host on a manual clock, that can be crashed and started again."""

    __test__ = False  # not a test, whatever its name says to pytest

    def __init__(
        self,
        directory: Path,
        *,
        classes: Iterable[type[DurableObject]],
        env: Mapping[str, object] | None,
        config: Config | None,
        seed: int,
        driver: DriverKind,
    ) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.host: Host
        self._classes = tuple(classes)
        self._env = env
        self._config = config or _CONFIG
        self._seed = seed
        self._driver: DriverKind = driver

    async def start(self) -> None:
        """Open a host on the directory."""
        host = self.host = _WatchedHost(
            self.directory,
            classes=self._classes,
            env=self._env,
            config=self._config,
            clock=self.clock,
            rng=random.Random(self._seed),  # noqa: S311  # repeatable, not secret
            driver=self._driver,
        )
        self.clock.watch(lambda: host.is_storage_busy)
        await host.open()

    async def advance(self, by: Duration) -> None:
        """Move the clock and let everything that follows happen."""
        await self.clock.advance(by)

    async def settle(self) -> None:
        """Let everything happen that can happen now."""
        await self.clock.settle()

    async def crash(self) -> None:
        """Drop the host as a killed process would: nothing is flushed or said."""
        await self.host.drop()

    async def restart(self) -> None:
        """Crash, and start again on what is on disk."""
        await self.crash()
        await self.start()


@asynccontextmanager
async def open_test_host(
    directory: str | os.PathLike[str] | None = None,
    *,
    classes: Iterable[type[DurableObject]] = (),
    env: Mapping[str, object] | None = None,
    config: Config | None = None,
    seed: int = 0,
    driver: DriverKind = "thread",
) -> AsyncIterator[TestHost]:
    """Open a host on a manual clock; without a directory, on a temporary one."""
    with tempfile.TemporaryDirectory(prefix="durable-actor-") as temporary:
        test = TestHost(
            Path(directory or temporary),
            classes=tuple(classes),
            env=env,
            config=config,
            seed=seed,
            driver=driver,
        )
        await test.start()
        try:
            yield test
        finally:
            await test.host.close(grace_ms=0)
