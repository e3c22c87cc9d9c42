"""`WorkflowClient` and `WorkflowHandle`: start runs and ask after them, from outside.

Everything goes through stubs, so a client of a host in this process and one of a daemon
far away are the same class.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, ClassVar, Final, Generic, TypeVar, cast, overload
from uuid import UUID

from durable_actor import DurableObjectNamespace, ObjectResetError
from workflows.answers import CancelResult, RunInfo, RunResult, WorkflowCall
from workflows.definition import WorkflowDefinition
from workflows.engine import WorkflowEngine, check_run_id
from workflows.errors import (
    RunNotFoundError,
    WorkflowCancelledError,
    WorkflowFailedError,
)
from workflows.machine import Cancelled, Failed, Status
from workflows.registry import Registry

I = TypeVar("I")  # noqa: E741  # the input's type
O = TypeVar("O")  # noqa: E741  # the output's type

CLOUDFLARE_STATUS: Final = {
    "Pending": "queued",
    "Queued": "queued",
    "Running": "running",
    "Paused": "waiting",
    "Completed": "complete",
    "Failed": "errored",
    "Cancelled": "terminated",
}

# An object that was reset while we waited for its run is asked again: waiting changes
# nothing. One that is reset every time is not going to answer.
_ASKS_MAX: Final = 5


def cloudflare_status(status: Status) -> str:
    """Return the word Cloudflare's Workflows have for a status."""
    return CLOUDFLARE_STATUS[type(status).__name__]


class WorkflowHandle(Generic[O]):
    """One run, to be asked after. Only an address: it does no I/O until awaited."""

    def __init__(self, engine: WorkflowEngine, run_id: str, workflow: str) -> None:
        self.id = run_id
        self.workflow = workflow
        self._engine = engine  # a stub, typed as what it stands for

    async def result(self) -> O:
        """Return what the workflow returned, once it has.

        Raises:
            WorkflowFailedError: The run failed.
            WorkflowCancelledError: The run was cancelled.
            RunNotFoundError: There is no such run.
        """
        answer = await self._final()
        match answer.status:
            case Failed(error=error):
                raise WorkflowFailedError(self.id, self.workflow, error)
            case Cancelled(reason=reason):
                raise WorkflowCancelledError(self.id, self.workflow, reason)
            case _:
                return cast("O", answer.output)

    async def status(self) -> Status:
        """Return the status.

        Raises:
            RunNotFoundError: There is no such run.
        """
        status = await self._engine.status()
        if status is None:
            raise RunNotFoundError(self.id)
        return status

    async def describe(self) -> RunInfo:
        """Return everything about the run but its values.

        Raises:
            RunNotFoundError: There is no such run.
        """
        info = await self._engine.describe()
        if info is None:
            raise RunNotFoundError(self.id)
        return info

    async def completed_steps(self) -> list[str]:
        """Return the steps that have a result, in the order they ended."""
        return await self._engine.completed_steps()

    async def meta(self, key: str) -> Any:
        """Return one fact about the run, None if there is no such fact."""
        return await self._engine.meta(key)

    async def cancel(self, reason: str | None = None) -> CancelResult:
        """Let the run end before its next step."""
        return await self._engine.cancel(reason)

    async def resume(self) -> None:
        """Try a parked run again, with the code of today."""
        await self._engine.resume()

    def __repr__(self) -> str:
        return f"WorkflowHandle({self.workflow}:{self.id})"

    async def _final(self) -> RunResult[Any]:
        for asked in range(_ASKS_MAX):
            try:
                return await self._engine.result()
            except ObjectResetError:
                if asked == _ASKS_MAX - 1:
                    raise
        raise AssertionError  # the loop returns or raises

    getStatus = status
    getCompletedSteps = completed_steps
    getMeta = meta


class WorkflowClient:
    """Starts runs of the workflows behind one namespace."""

    registry: ClassVar[Registry | None] = None
    engine: ClassVar[type[WorkflowEngine]] = WorkflowEngine

    def __init__(
        self,
        namespace: DurableObjectNamespace[WorkflowEngine],
        *,
        instance: str | None = None,
    ) -> None:
        self._namespace = namespace
        self._instance = instance

    @classmethod
    def from_binding(
        cls,
        namespace: DurableObjectNamespace[Any],
        *,
        id_from_name: str | None = None,
    ) -> WorkflowClient:
        """Return a client of a namespace.

        Args:
            namespace: Of the engine class.
            id_from_name: Use this one object for every call, as the original does,
                whose runs are found by the name of their object alone.
        """
        return cls(namespace, instance=id_from_name)

    @overload
    async def run(
        self, workflow: WorkflowDefinition[None, O], /, *, id: str | None = None
    ) -> RunResult[O]: ...

    @overload
    async def run(
        self, workflow: WorkflowDefinition[I, O], value: I, /, *, id: str | None = None
    ) -> RunResult[O]: ...

    @overload
    async def run(
        self, workflow: str, value: object = None, /, *, id: str | None = None
    ) -> RunResult[Any]: ...

    async def run(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        value: object = None,
        /,
        *,
        id: str | None = None,  # noqa: A002  # Cloudflare's name for it
    ) -> RunResult[Any]:
        """Start a run and return when it has ended or paused.

        The same id again finds the same run. Without an id a fresh one is made.

        Raises:
            UnknownWorkflowError: No such workflow.
            RunExistsError: The id is taken by another workflow or input.
        """
        name, run_id = self._name(workflow), _fresh_id(id, self._instance)
        call = WorkflowCall(workflow=name, input=value, id=run_id)
        return await self._engine(name, run_id).run(call)

    @overload
    async def run_async(
        self, workflow: WorkflowDefinition[None, O], /, *, id: str | None = None
    ) -> RunResult[O]: ...

    @overload
    async def run_async(
        self, workflow: WorkflowDefinition[I, O], value: I, /, *, id: str | None = None
    ) -> RunResult[O]: ...

    @overload
    async def run_async(
        self, workflow: str, value: object = None, /, *, id: str | None = None
    ) -> RunResult[Any]: ...

    async def run_async(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        value: object = None,
        /,
        *,
        id: str | None = None,  # noqa: A002  # Cloudflare's name for it
    ) -> RunResult[Any]:
        """Accept a run and return at once; it starts by itself. Otherwise as `run`.

        Raises:
            UnknownWorkflowError: No such workflow.
            RunExistsError: The id is taken by another workflow or input.
        """
        name, run_id = self._name(workflow), _fresh_id(id, self._instance)
        call = WorkflowCall(workflow=name, input=value, id=run_id)
        return await self._engine(name, run_id).run_async(call)

    @overload
    async def start(
        self, workflow: WorkflowDefinition[None, O], /, *, id: str | None = None
    ) -> WorkflowHandle[O]: ...

    @overload
    async def start(
        self, workflow: WorkflowDefinition[I, O], value: I, /, *, id: str | None = None
    ) -> WorkflowHandle[O]: ...

    @overload
    async def start(
        self, workflow: str, value: object = None, /, *, id: str | None = None
    ) -> WorkflowHandle[Any]: ...

    async def start(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        value: object = None,
        /,
        *,
        id: str | None = None,  # noqa: A002  # Cloudflare's name for it
    ) -> WorkflowHandle[Any]:
        """Accept a run and return a handle to it: `await handle.result()`.

        Raises:
            UnknownWorkflowError: No such workflow.
            RunExistsError: The id is taken by another workflow or input.
        """
        name, run_id = self._name(workflow), _fresh_id(id, self._instance)
        call = WorkflowCall(workflow=name, input=value, id=run_id)
        engine = self._engine(name, run_id)
        await engine.run_async(call)
        return WorkflowHandle(engine, run_id, name)

    @overload
    def get(
        self, workflow: WorkflowDefinition[Any, O], id: str
    ) -> WorkflowHandle[O]: ...

    @overload
    def get(self, workflow: str, id: str) -> WorkflowHandle[Any]: ...

    def get(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        id: str,  # noqa: A002  # Cloudflare's name for it
    ) -> WorkflowHandle[Any]:
        """Return a handle to a run that was started before, without asking for it."""
        name = self._name(workflow)
        check_run_id(id)
        return WorkflowHandle(self._engine(name, id), id, name)

    def _name(self, workflow: WorkflowDefinition[Any, Any] | str) -> str:
        if self.registry is not None:
            return self.registry.name_of(workflow)
        return workflow if isinstance(workflow, str) else workflow.name

    def _engine(self, workflow: str, run_id: str) -> WorkflowEngine:
        name = self._instance
        if name is None:
            name = f"{workflow}:{run_id}"
        return self._namespace.get_by_name(name)

    fromBinding = from_binding
    runAsync = run_async


def _fresh_id(run_id: str | None, instance: str | None) -> str:
    if run_id is None:
        run_id = instance
    if run_id is None:
        # Sorts by time. From the system, not from a host: a client may be anywhere.
        stamp = time.time_ns() // 1_000_000
        bits = stamp << 80 | 0x7 << 76 | secrets.randbits(12) << 64
        run_id = str(UUID(int=bits | 0x2 << 62 | secrets.randbits(62)))
    check_run_id(run_id)
    return run_id
