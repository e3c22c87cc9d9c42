"""`WorkflowEngine`: the durable object that hosts one run. Wiring only.

`create_durable_workflows` makes a subclass for a set of workflows. Each object of that
class is one run; its name is `workflow:run-id`. All methods interleave: the alarm
handler is busy for as long as the run works, and nobody should wait for that to ask how
it is, or to cancel it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from durable_actor import (
    AlarmInfo,
    DurableObject,
    DurableObjectState,
    Env,
    interleave,
)
from workflows.announcer import Announcer
from workflows.answers import CancelResult, RunInfo, RunResult, WorkflowCall
from workflows.errors import InvalidNameError
from workflows.journal import Journal
from workflows.machine import Status
from workflows.orchestrator import Orchestrator, Policies
from workflows.recovery import Recovery, trials_of
from workflows.registry import Registry

RUN_ID_CHARACTERS_MAX = 256  # it is published in the directory, as an attribute


class WorkflowEngine(DurableObject):
    """One run of one of the workflows in `registry`."""

    registry: ClassVar[Registry] = Registry({})
    policies: ClassVar[Policies] = Policies(
        recovery=Recovery(), retention_ms=None, resident_sleep_ms=0
    )

    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        super().__init__(ctx, env)
        journal = Journal(ctx.storage)
        announcer = Announcer(
            None if self.event_sink is None else ctx.emit,
            ctx.clock,
            ctx.random,
            next_seq=journal.next_event_seq,
        )
        self._orchestrator = Orchestrator(
            journal,
            self.registry,
            announcer,
            clock=ctx.clock,
            source=ctx.random,
            env=env,
            label=ctx.id.name or str(ctx.id),
            policies=self.policies,
            trials=trials_of(env),
            spawn=ctx.wait_until,
            publish=ctx.set_attributes,
        )
        # Before the first request: what was interrupted is decided about now.
        ctx.block_concurrency_while(self._orchestrator.open)

    @interleave
    async def run(self, call: WorkflowCall) -> RunResult[Any]:
        """Start the run and answer when it has ended or paused; idempotent by id."""
        await self._orchestrator.start(call, self._run_id(call), is_queued=False)
        return await self._orchestrator.result(is_final=False)

    @interleave
    async def run_async(self, call: WorkflowCall) -> RunResult[Any]:
        """Accept the run and answer at once; the next alarm starts it."""
        await self._orchestrator.start(call, self._run_id(call), is_queued=True)
        return await self._orchestrator.progress()

    @interleave
    async def cancel(self, reason: str | None = None) -> CancelResult:
        """Let the run end before its next step."""
        return await self._orchestrator.cancel(reason)

    @interleave
    async def status(self) -> Status | None:
        """Return the run's status, None if there is no run."""
        return self._orchestrator.status

    @interleave
    async def result(self) -> RunResult[Any]:
        """Answer once the run has ended, however long that takes."""
        return await self._orchestrator.result(is_final=True)

    @interleave
    async def completed_steps(self) -> list[str]:
        """Return the steps that have a result, in the order they ended."""
        return await self._orchestrator.completed_steps()

    @interleave
    async def describe(self) -> RunInfo | None:
        """Return everything about the run but its values."""
        return await self._orchestrator.describe()

    @interleave
    async def meta(self, key: str) -> Any:
        """Return one fact: input, output, workflow, created_at_ms, recoveries..."""
        return await self._orchestrator.meta(key)

    @interleave
    async def resume(self) -> None:
        """Try a parked run again, with the code of today."""
        self._orchestrator.resume()

    def _on_release(self, *, is_draining: bool) -> None:
        """Unwind a pass that only waits; its alarm takes it up again."""
        self._orchestrator.release(is_draining=is_draining)

    async def alarm(self, info: AlarmInfo) -> None:
        """Bring the run on; see `Orchestrator.alarm`."""
        del info
        await self._orchestrator.alarm()

    runAsync = run_async
    getStatus = status
    getResult = result
    getCompletedSteps = completed_steps
    getMeta = meta

    def _run_id(self, call: WorkflowCall) -> str:
        """Return the run's id, which the object's name knows as well.

        Raises:
            InvalidNameError: Empty, too long, or not the one in the object's name.
        """
        name = self.ctx.id.name or str(self.ctx.id)
        run_id = name.removeprefix(f"{call.workflow}:")
        if call.id is not None and call.id != run_id:
            detail = f"is not that of this object, {name!r}"
            raise InvalidNameError("run id", call.id, detail)
        check_run_id(run_id)
        return run_id


def check_run_id(run_id: object) -> None:
    """Refuse an id that cannot name a run.

    Raises:
        InvalidNameError: Not text, empty or too long.
    """
    if not isinstance(run_id, str) or not run_id:
        raise InvalidNameError("run id", run_id, "is not a text of some length")
    if len(run_id) > RUN_ID_CHARACTERS_MAX:
        detail = f"has more than {RUN_ID_CHARACTERS_MAX} characters"
        raise InvalidNameError("run id", run_id[:48] + "...", detail)
