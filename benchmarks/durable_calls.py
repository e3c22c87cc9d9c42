"""How many durable calls a second do a thousand objects take together?

Each object has one caller with one call at a time. The baseline makes every call
durable by itself; here a thousand callers share a commit.
"""

from __future__ import annotations

from benchmarks.measuring import (
    Answer,
    Counter,
    Scale,
    commit_per_call,
    data_directory,
    rate_of_callers,
    take_turns,
)
from durable_actor import Host

OBJECTS = 1_000
CALLS_EACH = 10
BASELINE_CALLS = 500


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return calls a second, and those of the commit loop."""
    with data_directory() as folder:
        async with commit_per_call() as loop, Host(folder) as host:
            namespace = host.namespace(Counter)
            stubs = [namespace.get_by_name(f"c{n}") for n in range(OBJECTS)]
            await rate_of_callers(lambda n: stubs[n].increment(), OBJECTS, 1)

            async def calls() -> float:
                rate = await rate_of_callers(
                    lambda n: stubs[n].increment(), OBJECTS, CALLS_EACH
                )
                # What is put off must not fall into the baseline's turn.
                await host.committer.fold()
                return rate

            answer = await take_turns(
                scale, "calls/s", calls, lambda: loop.rate(BASELINE_CALLS)
            )
    return {"durable_calls_1000_vs_commit_per_call": answer}
