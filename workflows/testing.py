"""Tools for testing workflows: run one to its end in no time.

```
result = await run_to_end(process_order, Order("7"))
assert result.output == Receipt("7")
```

The run has a real host on a temporary directory and a clock that jumps from one thing
to do to the next, so a sleep of a year takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from durable_actor import DurableObject, Duration, duration_ms
from durable_actor.testing import TestHost, open_test_host
from workflows.answers import RunResult
from workflows.client import WorkflowHandle
from workflows.definition import WorkflowDefinition
from workflows.factory import create_durable_workflows
from workflows.machine import Paused, is_terminal
from workflows.tracker import Tracker

I = TypeVar("I")  # noqa: E741  # the input's type
O = TypeVar("O")  # noqa: E741  # the output's type


@overload
async def run_to_end(
    workflow: WorkflowDefinition[None, O],
    /,
    *,
    classes: Iterable[type[DurableObject]] = (),
    env: Mapping[str, object] | None = None,
    tracker: Tracker | None = None,
    within: Duration = "365 days",
    has_crashes: bool = False,
) -> RunResult[O]: ...


@overload
async def run_to_end(
    workflow: WorkflowDefinition[I, O],
    value: I,
    /,
    *,
    classes: Iterable[type[DurableObject]] = (),
    env: Mapping[str, object] | None = None,
    tracker: Tracker | None = None,
    within: Duration = "365 days",
    has_crashes: bool = False,
) -> RunResult[O]: ...


async def run_to_end(
    workflow: WorkflowDefinition[Any, Any],
    value: object = None,
    /,
    *,
    classes: Iterable[type[DurableObject]] = (),
    env: Mapping[str, object] | None = None,
    tracker: Tracker | None = None,
    within: Duration = "365 days",
    has_crashes: bool = False,
) -> RunResult[Any]:
    """Run a workflow on a host of its own until it has ended, however it ends.

    Args:
        workflow: The definition.
        value: Its input.
        classes: Objects that its steps talk to.
        env: What `step.env` has as attributes.
        tracker: Where its events go.
        within: How much of the run's own time it may take.
        has_crashes: Kill the host at every pause, so that the run is replayed there.

    Raises:
        AssertionError: It has not ended within that time, or was parked.
    """
    engine, client = create_durable_workflows(
        {workflow.name: workflow}, tracker=tracker, retention=None
    )
    async with open_test_host(classes=[engine, *classes], env=env) as test:
        until_ms = test.clock.now_ms() + duration_ms(within)

        def handle() -> WorkflowHandle[Any]:
            binding = test.host.namespace(engine)
            return client.from_binding(binding).get(workflow, "test")

        await client.from_binding(test.host.namespace(engine)).start(
            workflow.name, value, id="test"
        )
        while True:
            await test.settle()
            info = await handle().describe()
            if is_terminal(info.status):
                stub = test.host.namespace(engine).get_by_name(f"{workflow.name}:test")
                return await stub.result()
            next_ms = _next_ms(info.status, test)
            if next_ms is None or next_ms > until_ms:
                raise AssertionError(f"the run has not ended: {info}")
            if has_crashes and isinstance(info.status, Paused):
                await test.restart()
            test.clock.jump(max(next_ms, test.clock.now_ms()))


def _next_ms(status: object, test: TestHost) -> int | None:
    if isinstance(status, Paused):
        return status.resume_at_ms
    return test.clock.next_timer_at_ms
