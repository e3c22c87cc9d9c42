"""What the daemon needs to serve workflows: the runs of one engine class, as JSON.

The daemon knows nothing of this package. It asks each class of the application for
`__durable_runs__(host)` and speaks to what that returns; routes and HTTP are its own.
Answers have the shapes of the original's worker: `id`, `completed`, `output`; `status`
with its `_tag`, `completed_steps`, `exists`; `cancelled`, `reason`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from durable_actor import DurableObjectNamespace, Host, to_json
from workflows.client import WorkflowClient
from workflows.engine import WorkflowEngine
from workflows.machine import Status


class WorkflowRuns:
    """The runs of one engine class on one host."""

    def __init__(self, host: Host, engine: type[WorkflowEngine]) -> None:
        self._host = host
        self._registry = engine.registry
        self._namespace: DurableObjectNamespace[WorkflowEngine] = host.namespace(engine)
        self._client = WorkflowClient(self._namespace)

    def names(self) -> list[str]:
        """Return the names of the workflows."""
        return list(self._registry)

    async def start(
        self, name: str, json_input: Any, *, run_id: str, is_async: bool
    ) -> Mapping[str, object]:
        """Start a run, or find the one with this id.

        Raises:
            UnknownWorkflowError: No such workflow.
            InvalidInputError: The input does not fit the workflow's type.
            RunExistsError: The id is taken by another workflow or input.
        """
        value = self._registry.find(name).convert_input(json_input)
        begin = self._client.run_async if is_async else self._client.run
        result = await begin(name, value, id=run_id)
        return {
            "id": result.id,
            "completed": result.completed,
            "output": to_json(result.output),
            "status": _status_json(result.status),
        }

    async def status(self, name: str, run_id: str) -> Mapping[str, object]:
        """Return the status and the completed steps; `exists` false: no such run.

        Raises:
            UnknownWorkflowError: No such workflow.
        """
        self._registry.find(name)
        engine = self._namespace.get_by_name(f"{name}:{run_id}")
        info = await engine.describe()
        if info is None:
            return {"status": None, "completed_steps": [], "exists": False}
        return {
            "status": _status_json(info.status),
            "completed_steps": await engine.completed_steps(),
            "exists": True,
            "recoveries": info.recoveries,
            "cancel_requested": info.cancel_requested,
            "steps": msgspec.to_builtins(info.steps),
        }

    async def cancel(
        self, name: str, run_id: str, reason: str | None
    ) -> Mapping[str, object]:
        """Let a run end before its next step; say whether it will.

        Raises:
            UnknownWorkflowError: No such workflow.
        """
        self._registry.find(name)
        engine = self._namespace.get_by_name(f"{name}:{run_id}")
        result = await engine.cancel(reason)
        return {"cancelled": result.cancelled, "reason": result.reason}

    async def list(
        self,
        *,
        status: str | None,
        workflow: str | None,
        limit: int,
        cursor: str | None,
    ) -> Mapping[str, object]:
        """Return one page of runs, and where the next begins."""
        where = {}
        if status is not None:
            where["status"] = status.lower()
        if workflow is not None:
            where["workflow"] = workflow
        page = await self._host.list_objects(
            self._namespace.name, where=where, limit=limit, cursor=cursor
        )
        runs = [
            {
                "id": entry.attributes["run"],
                "workflow": entry.attributes["workflow"],
                "status": entry.attributes["status"].capitalize(),
                "created_at_ms": entry.created_at_ms,
                "used_at_ms": entry.used_at_ms,
                "alarm_at_ms": entry.alarm_at_ms,
                "size_bytes": entry.size_bytes,
            }
            for entry in page.objects
            if "run" in entry.attributes  # else it is an object without a run
        ]
        return {"runs": runs, "cursor": page.cursor}


def _status_json(status: Status) -> Any:
    return msgspec.to_builtins(status)
