"""How many workflow steps a second do 256 concurrent runs of ten steps take together?

A step is durable before the next one starts. The steps do nothing, so what is measured
is the engine: its journal, and the commits that the runs share. The baseline makes one
row durable at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import time

from benchmarks.measuring import (
    Answer,
    Scale,
    commit_per_call,
    data_directory,
    take_turns,
)
from durable_actor import Host
from workflows import Step, create_durable_workflows, workflow

RUNS = 256
STEPS = 10
BASELINE_CALLS = 500


async def nothing(number: int) -> int:
    """What each step does."""
    return number


@workflow
async def ten_steps(step: Step) -> int:
    """Take ten steps, one after the other."""
    return sum([await step.run("nothing", nothing, n) for n in range(STEPS)])


Workflows, WorkflowClient = create_durable_workflows({"ten_steps": ten_steps})


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return steps a second, and the commits a second of the loop."""
    numbers = itertools.count()
    with data_directory() as folder:
        async with commit_per_call() as loop, Host(folder) as host:
            client = WorkflowClient.from_binding(host.namespace(Workflows))

            async def run() -> None:
                result = await client.run(ten_steps, id=f"run-{next(numbers)}")
                assert result.output == sum(range(STEPS))

            async def steps() -> float:
                started = time.perf_counter()
                await asyncio.gather(*(run() for _ in range(RUNS)))
                rate = RUNS * STEPS / (time.perf_counter() - started)
                # What is put off must not fall into the baseline's turn.
                await host.committer.fold()
                return rate

            await run()
            answer = await take_turns(
                scale, "steps/s", steps, lambda: loop.rate(BASELINE_CALLS)
            )
    return {"workflow_steps_256_vs_commit_per_call": answer}
