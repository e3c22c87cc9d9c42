"""An application with a workflow that takes its process down."""

from __future__ import annotations

import os
import signal

from workflows import Recovery, Step, create_durable_workflows, workflow

RECOVERY = Recovery(max_attempts=2, delay="50 milliseconds")


async def kill() -> None:
    """End the process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def lethal(step: Step) -> None:
    """Kill whoever runs this."""
    await step.run("kill", kill)


Workflows, WorkflowClient = create_durable_workflows(
    {"lethal": lethal}, recovery=RECOVERY
)
