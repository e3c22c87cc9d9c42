"""What the measurement of recovery kills: many objects, alarms and runs at work."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from durable_actor import DurableObject
from workflows import Step, create_durable_workflows, workflow

GATE_VARIABLE = "RECOVERY_GATE"  # names a file: while it is absent, runs do not end
_AT_ONCE = 500


class Counter(DurableObject):
    """Holds a number and some text, as an ordinary object does."""

    async def increment(self) -> int:
        value: int = (await self.ctx.storage.get("value") or 0) + 1
        self.ctx.storage.put({"value": value, "text": "x" * 200})
        return value


class Bell(DurableObject):
    """Has an alarm."""

    async def set_at(self, at_ms: int) -> None:
        self.ctx.storage.set_alarm(at_ms)

    async def alarm(self) -> None:
        self.ctx.storage.put("rung", True)


class Populace(DurableObject):
    """Makes all the others, without a request for each."""

    async def counters(self, count: int) -> None:
        await self._each(count, lambda stub: stub.increment(), self.env.COUNTERS)

    async def bells(self, count: int, at_ms: int) -> None:
        await self._each(count, lambda stub: stub.set_at(at_ms), self.env.BELLS)

    async def _each(self, count: int, ask: Any, namespace: Any) -> None:
        for first in range(0, count, _AT_ONCE):
            names = range(first, min(first + _AT_ONCE, count))
            await asyncio.gather(
                *(ask(namespace.get_by_name(f"{number}")) for number in names)
            )


@workflow
async def at_work(step: Step) -> str:
    """Record a step, and be in the middle of the next one when the process dies."""
    await step.run("first", _nothing)
    return await step.run("second", _held)


async def _nothing() -> None:
    return None


async def _held() -> str:
    if not Path(os.environ[GATE_VARIABLE]).exists():
        await asyncio.Event().wait()
    return "done"


Workflows, WorkflowClient = create_durable_workflows({"at_work": at_work})
