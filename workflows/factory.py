"""`create_durable_workflows`: where the parts of this package meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from durable_actor import Duration, Host, duration_ms
from workflows.client import WorkflowClient
from workflows.definition import WorkflowDefinition
from workflows.engine import WorkflowEngine
from workflows.extension import WorkflowRuns
from workflows.orchestrator import Policies
from workflows.recovery import Recovery
from workflows.registry import Registry
from workflows.tracker import Tracker


class DurableWorkflows(NamedTuple):
    """An engine class and the client that goes with it."""

    Workflows: type[WorkflowEngine]
    WorkflowClient: type[WorkflowClient]


def create_durable_workflows(
    workflows: Mapping[str, WorkflowDefinition[Any, Any]],
    *,
    tracker: Tracker | None = None,
    recovery: Recovery | None = None,
    retention: Duration | None = "7 days",
    resident_sleep: Duration = "60 seconds",
    name: str = "Workflows",
) -> DurableWorkflows:
    """Make an engine class for some workflows.

    ```
    Workflows, WorkflowClient = create_durable_workflows({"checkout": checkout})

    client = WorkflowClient.from_binding(host.namespace(Workflows))
    handle = await client.start(checkout, Order(...), id="order-17")
    print(await handle.result())
    ```

    Args:
        workflows: Definitions by the name their runs are known under.
        tracker: Where events go; None: none are written.
        recovery: How patiently interrupted runs are taken up again.
        retention: How long a finished run can be asked after; None: for ever.
        resident_sleep: A sleep up to this long keeps the run in memory; a longer one
            lets it go, and replays it on waking.
        name: The class's name. It is part of every run's id: keep it.

    Raises:
        InvalidNameError: A name cannot be used.
        InvalidTimeError: A duration cannot be understood.
    """
    registry = Registry(workflows)
    policies = Policies(
        recovery=Recovery() if recovery is None else recovery,
        retention_ms=None if retention is None else duration_ms(retention),
        resident_sleep_ms=duration_ms(resident_sleep),
    )

    def runs_of(cls: type[WorkflowEngine], host: Host) -> WorkflowRuns:
        return WorkflowRuns(host, cls)

    engine = type(
        name,
        (WorkflowEngine,),
        {
            "__doc__": f"Runs of: {', '.join(registry)}.",
            "__durable_runs__": classmethod(runs_of),
            "registry": registry,
            "policies": policies,
            "event_sink": tracker,
        },
    )
    bound = {"registry": registry, "engine": engine}
    client = type("WorkflowClient", (WorkflowClient,), bound)
    return DurableWorkflows(engine, client)
