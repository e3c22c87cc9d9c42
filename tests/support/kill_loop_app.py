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
from typing import Any

from durable_actor import DurableObject
from workflows import Recovery, Step, create_durable_workflows, workflow

LEDGER_VARIABLE = "KILL_LOOP_LEDGER"
STEPS = 4
_STEP_SECONDS_MAX = 0.015
_FAR_MS = 10_000_000_000_000  # long after the last kill


class Counter(DurableObject):
    """Counts."""

    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("value", 0) + 1
        self.ctx.storage.put("value", value)
        return value

    async def value(self) -> int:
        value: int = await self.ctx.storage.get("value", 0)
        return value


class SqlCounter(DurableObject, storage="sqlite"):
    """Counts rows; a key, a second table and the alarm have to agree with them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS entry (n INTEGER PRIMARY KEY, data BLOB)")
        sql.exec("CREATE TABLE IF NOT EXISTS total (n INTEGER)")

    async def increment(self) -> int:
        """Insert a row and return how many there are.

        Raises:
            ValueError: What the object holds is not of one turn.
        """
        before = await self.value()
        sql = self.ctx.storage.sql
        sql.exec("INSERT INTO entry VALUES (?, randomblob(200))", before + 1)
        sql.exec("DELETE FROM total")
        sql.exec("INSERT INTO total VALUES (?)", before + 1)
        self.ctx.storage.put("value", before + 1)
        self.ctx.storage.set_alarm(_FAR_MS + before + 1)
        return before + 1

    async def value(self) -> int:
        """Return how many rows there are.

        Raises:
            ValueError: What the object holds is not of one turn.
        """
        sql = self.ctx.storage.sql
        rows = sql.exec(
            "SELECT count(*) AS count, ifnull(max(n), 0) AS last,"
            " (SELECT ifnull(sum(n), 0) FROM total) AS total FROM entry"
        ).one()
        alarm = await self.ctx.storage.get_alarm()
        told = {
            *rows.values(),
            await self.ctx.storage.get("value", 0),
            0 if alarm is None else alarm - _FAR_MS,
        }
        if len(told) > 1:
            message = f"{self.ctx.id!r} is torn: {rows}, {told}"
            raise ValueError(message)
        return int(rows["count"] or 0)

    async def alarm(self) -> None:
        """Never due."""


COUNTERS: dict[str, type[Counter | SqlCounter]] = {
    "Counter": Counter,
    "SqlCounter": SqlCounter,
}


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
