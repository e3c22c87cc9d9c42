"""An application whose steps ask the test before they go on.

Each step connects to the address in its input, says who it is, and waits for a line. So
a test knows exactly which step is under way, and nothing has to be timed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from durable_actor import DurableObject
from workflows import Step, create_durable_workflows, workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """Where to ask, and how many steps there are."""

    port: int
    steps: int


async def ask(port: int, words: str) -> str:
    """Say some words and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{words}\n".encode())
        answer = await reader.readline()
        if not answer:
            message = "nobody answered"
            raise ConnectionError(message)
        return answer.decode().strip()
    finally:
        writer.close()


@workflow
async def journey(step: Step, plan: Journey) -> list[str]:
    """Ask at each step, and return the answers."""

    async def go(number: int) -> str:
        return await ask(plan.port, f"{number} {step.attempt} {step.idempotency_key}")

    return [await step.run(f"step {n}", go, n) for n in range(1, plan.steps + 1)]


class Notebook(DurableObject):
    """Writes a line down, then asks, then answers."""

    async def note(self, line: str, port: int) -> int:
        """Add a line; return how many there are."""
        lines: list[str] = await self.ctx.storage.get("lines", [])
        self.ctx.storage.put("lines", [*lines, line])
        await ask(port, line)
        return len(lines) + 1

    async def lines(self) -> list[str]:
        """Return what was written."""
        found: list[str] = await self.ctx.storage.get("lines", [])
        return found


Workflows, WorkflowClient = create_durable_workflows({"journey": journey})
