"""What a host finds at its edges in the simulation: disk, threads, clock, directory.

Only these are replaced. The shard with its SQL and its schema, the fold, the committer
and everything above are the product's own.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from durable_actor.clock import SystemClock
from durable_actor.storage import shard as shard_module
from durable_actor.storage import store as store_module
from durable_actor.storage.mark import Mark, MarkWriter
from durable_actor.storage.shard import Shard
from tests.simulation.loop import Elsewhere, SimulatedLoop
from tests.support.simulated_disk import SimulatedDisk, Survival

START_MS = 1_800_000_000_000


class SimulatedClock(SystemClock):
    """The system's clock on virtual time; it may jump."""

    def __init__(self) -> None:
        self.loop: SimulatedLoop
        self.offset_ms = 0

    def now_ms(self) -> int:
        return START_MS + self.offset_ms + int(self.loop.time() * 1_000)


class SimulatedConnection:
    """What the shard uses of aiosqlite, with the thread that is not there."""

    def __init__(
        self, loop: SimulatedLoop, disk: SimulatedDisk, thread: Elsewhere
    ) -> None:
        self._loop = loop
        self._disk = disk
        self._thread = thread
        self._db: sqlite3.Connection | None = None
        self.statement = ""  # the one that was begun last

    def __await__(self) -> Generator[Any, None, SimulatedConnection]:
        return self._connect().__await__()

    async def execute_fetchall(self, sql: str, parameters: Any = ()) -> list[Any]:
        return await self._thread.run(lambda: self._execute(sql, parameters))

    async def create_function(self, name: str, count: int, function: Any) -> None:
        await self._thread.run(
            lambda: self._opened.create_function(name, count, function)
        )

    async def close(self) -> None:
        await self._thread.run(self._close)

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            message = "Connection closed"
            raise ValueError(message)
        return self._db

    async def _connect(self) -> SimulatedConnection:
        await self._thread.run(self._open)
        return self

    def _open(self) -> None:
        self._db = sqlite3.connect(
            self._disk.uri("/simulated/shard.db"),
            uri=True,
            isolation_level=None,
            timeout=0,
            cached_statements=64,
        )

    def _execute(self, sql: str, parameters: Any) -> list[Any]:
        self.statement = sql
        try:
            return self._opened.execute(sql, parameters).fetchall()
        finally:
            self._look()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
            self.statement = "close"
            self._look()

    def _look(self) -> None:
        if self._disk.is_dead:
            self._loop.crash("on the disk")

    def abandon(self) -> None:
        """Give the memory back after a crash; the disk takes nothing any more."""
        if self._db is not None:
            self._db.close()
            self._db = None


class SimulatedLock:
    """The lock of the one data directory there is."""

    holder: SimulatedLock | None = None

    def __init__(self, directory: Path) -> None:
        assert SimulatedLock.holder is None, "two owners of one directory"
        SimulatedLock.holder = self
        self.fd = -1

    def release(self) -> None:
        SimulatedLock.holder = None


class SimulatedMarks:
    """The file of the high-water mark: written and never synced."""

    def __init__(self) -> None:
        self._seen: dict[int, Mark] = {}  # by slot
        self._unsynced: dict[int, list[Mark]] = {}

    def write(self, mark: Mark) -> None:
        slot = mark.seq & 1
        self._seen[slot] = mark
        self._unsynced.setdefault(slot, []).append(mark)

    def close(self) -> None:
        """Nothing is synced by that."""

    def read(self, path: object) -> Mark | None:
        return max(self._seen.values(), default=None)

    def crash(self, survival: Survival, rng: random.Random) -> None:
        """Keep any of what was written to each slot since the last crash, or none."""
        if survival == "kill":
            return
        for slot, marks in self._unsynced.items():
            # Which of them was on disk before is forgotten here: at worst, none was.
            kept = rng.choice((None, *marks))
            if kept is not None:
                self._seen[slot] = kept
            else:
                self._seen.pop(slot, None)
        self._unsynced = {slot: [mark] for slot, mark in self._seen.items()}


class NoTimetable:
    """The host's own timetable: APScheduler asks the computer for the time."""

    def start(self) -> None:
        """Do nothing: hourly chores are no part of this."""

    def stop(self) -> None:
        """Do nothing, too."""

    def add(
        self, name: str, timetable: object, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Forget it."""


@contextmanager
def simulated_edges(
    connect: Callable[..., Awaitable[Any]], marks: SimulatedMarks
) -> Iterator[None]:
    """Replace the edges of every host that is made in this context."""

    class Library:
        """Stands where the shard looks for aiosqlite."""

        Connection = SimulatedConnection

        @staticmethod
        def connect(*_: object, **__: object) -> Awaitable[Any]:
            return connect()

    begin = Shard.__init__

    def begin_with_marks(shard: Shard, *rest: Any) -> None:
        begin(shard, *rest)
        shard._mark = cast("MarkWriter", marks)

    with ExitStack() as stack:
        for where, name, other in (
            (shard_module, "aiosqlite", Library),
            (shard_module, "read_mark", marks.read),
            (Shard, "__init__", begin_with_marks),
            (store_module, "DirectoryLock", SimulatedLock),
            (store_module, "prepare_directory", lambda _: None),
        ):
            stack.enter_context(patch.object(where, name, other))
        stack.enter_context(patch("durable_actor.host.Recurring", NoTimetable))
        yield
