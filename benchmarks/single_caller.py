"""How long does one caller wait for a durable call, next to a bare commit?

The call is a read, a write and a reply; the commit is one row through aiosqlite.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable

from benchmarks.measuring import (
    Answer,
    Counter,
    Scale,
    commit_per_call,
    data_directory,
)
from durable_actor import Host

ROUNDS_TIMES = 4  # short rounds, so that both meet the same moods of the disk
CALLS = 40


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return the median latency of a call and of a bare commit, in microseconds."""
    with data_directory() as folder:
        async with commit_per_call() as loop, Host(folder) as host:
            stub = host.namespace(Counter).get_by_name("c")
            calls_us, commits_us = [], []
            await _latencies_us(stub.increment, CALLS)
            for _ in range(scale.rounds * ROUNDS_TIMES):
                commits_us += await _latencies_us(loop.call, CALLS)
                calls_us += await _latencies_us(stub.increment, CALLS)
                await host.committer.fold()
    answer = Answer(
        value=statistics.median(calls_us),
        baseline=statistics.median(commits_us),
        unit="us",
    )
    return {"single_caller_latency_vs_bare_commit": answer}


async def _latencies_us(
    call: Callable[[], Awaitable[object]], count: int
) -> list[float]:
    latencies_us = []
    for _ in range(count):
        started = time.perf_counter()
        await call()
        latencies_us.append((time.perf_counter() - started) * 1e6)
    return latencies_us
