"""What the benchmarks share: their object, their baseline, and how a ratio is taken.

The machine is shared and its disk has moods, so a figure alone says little. Baseline
and subject take turns, in short rounds, and the medians of their rounds are compared:
what slows the one slows the other.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite

from durable_actor import DurableObject

# As many commits as fill the write-ahead log once: from then on it is reused, and a
# commit costs about half. The subject's log is grown at its start, too.
_WARM_UP_COMMITS = 1_100

Rate = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long to measure."""

    rounds: int
    is_quick: bool


QUICK = Scale(rounds=4, is_quick=True)
FULL = Scale(rounds=25, is_quick=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a benchmark found: its value, what it is measured against, and the unit."""

    value: float
    baseline: float
    unit: str

    @property
    def ratio(self) -> float:
        """How many times the baseline."""
        return self.value / self.baseline


class Counter(DurableObject):
    """The object under test: one read, one write, one reply."""

    async def increment(self, by: int = 1) -> int:
        """Add to the value and return it."""
        value: int = await self.ctx.storage.get("value", 0) + by
        self.ctx.storage.put("value", value)
        return value


class CommitPerCall:
    """The baseline: one connection, WAL and `synchronous=FULL`, a commit a call."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._db = connection
        self._calls = 0

    async def call(self) -> None:
        """Write one row and make it durable."""
        self._calls += 1
        await self._db.execute(
            "INSERT INTO counter VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET value = excluded.value",
            (self._calls % 1_000, self._calls),
        )

    async def rate(self, calls: int) -> float:
        """Return calls a second, one after the other."""
        started = time.perf_counter()
        for _ in range(calls):
            await self.call()
        return calls / (time.perf_counter() - started)


@asynccontextmanager
async def commit_per_call() -> AsyncIterator[CommitPerCall]:
    """Open the baseline on a file of its own."""
    with data_directory() as folder:
        path = folder / "baseline.db"
        async with aiosqlite.connect(path, isolation_level=None) as connection:
            await connection.execute("PRAGMA journal_mode=WAL")
            await connection.execute("PRAGMA synchronous=FULL")
            await connection.execute(
                "CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER) STRICT"
            )
            baseline = CommitPerCall(connection)
            await baseline.rate(_WARM_UP_COMMITS)
            yield baseline


@contextmanager
def data_directory() -> Iterator[Path]:
    """Make a directory for one measurement, on the disk that holds temporary files."""
    with tempfile.TemporaryDirectory(prefix="durable-actor-bench-") as folder:
        yield Path(folder)


async def take_turns(scale: Scale, unit: str, value: Rate, baseline: Rate) -> Answer:
    """Measure both in turns and return the medians of their rounds."""
    values, baselines = [], []
    for _ in range(scale.rounds):
        baselines.append(await baseline())
        values.append(await value())
    return Answer(
        value=statistics.median(values),
        baseline=statistics.median(baselines),
        unit=unit,
    )


async def rate_of_callers(
    calls: Callable[[int], Awaitable[object]], callers: int, calls_each: int
) -> float:
    """Return calls a second of so many callers, each with one call at a time."""

    async def caller(number: int) -> None:
        for _ in range(calls_each):
            await calls(number)

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return callers * calls_each / (time.perf_counter() - started)
