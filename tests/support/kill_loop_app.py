"""What the kill loop serves: the counter of the fixture, and a workflow with a ledger.

A step of `note` posts one line to a file outside, with a word that is drawn anew each
time, and returns the word. So the file tells how often a step ran, and the run's output
which of its tries was recorded.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from dataclasses import dataclass

from durable_actor import DurableObject
from workflows import Recovery, Step, create_durable_workflows, workflow

LEDGER_VARIABLE = "KILL_LOOP_LEDGER"
STEPS = 4
_STEP_SECONDS_MAX = 0.015


class Counter(DurableObject):
    """Counts."""

    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("value", 0) + 1
        self.ctx.storage.put("value", value)
        return value

    async def value(self) -> int:
        value: int = await self.ctx.storage.get("value", 0)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """The input of `note`."""

    run: str


@workflow
async def note(step: Step, data: Note) -> list[str]:
    """Post a line to the ledger in each step; return what was posted."""
    return [await step.run("post", _post, data.run, n) for n in range(STEPS)]


async def _post(run: str, number: int) -> str:
    word = secrets.token_hex(8)
    ledger = os.open(os.environ[LEDGER_VARIABLE], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(ledger, f"{run} {number} {word}\n".encode())
    finally:
        os.close(ledger)
    await asyncio.sleep(random.random() * _STEP_SECONDS_MAX)
    return word


# A life of the process lasts 20 to 300 ms here, so a run that is not to blame may well
# be killed a few times in a row before its next step is recorded.
Workflows, WorkflowClient = create_durable_workflows(
    {"note": note},
    recovery=Recovery(max_attempts=20, stale_threshold="2 seconds"),
)
