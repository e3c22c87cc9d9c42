"""The orchestrator: what each request and each alarm means for a run.

Theory of operation
    A run has a record, and while somebody works on it a *pass*: one task that runs the
    author's function from its beginning. Every change of status goes through `_change`,
    which writes the record, its alarm, its searchable attributes and its event in one
    turn, and is the only caller of `machine.apply`.

    An alarm brings every run to life: it starts what is queued, resumes what is paused
    and recovers what was interrupted. Its handler waits until the run *settles*: ends,
    or pauses. Until then the stored alarm stays where it is, so a crash in between
    makes it fire again: no run needs any other index to be found by.

    An alarm that comes early, or for a state that is already gone, is harmless: the
    handler looks at the record and sets the right one.

Promises
    `asleep-means-alarm`: a stored status of paused has an alarm no later than its
    resume time, written in the same turn; only a parked run has none.
    After `cancel` was answered no further step begins, also after a crash.
    An input, a status or an event that was answered or sent is on disk.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from msgspec.structs import replace

from durable_actor import (
    Clock,
    DecodeError,
    EncodeError,
    Env,
    HostClosedError,
    StorageLimitError,
    duration_ms,
    get_logger,
)
from workflows.announcer import Announcer, Telling, event_of
from workflows.answers import (
    CancelResult,
    RunInfo,
    RunResult,
    WorkflowCall,
    describe,
)
from workflows.context import RunContext, Wait
from workflows.errors import (
    ErrorInfo,
    RecoveryExhaustedError,
    RunExistsError,
    RunNotFoundError,
    UnknownWorkflowError,
)
from workflows.executor import Diverged, Outcome, Raised, Returned, Unwound, execute
from workflows.journal import Journal, RunRecord, completed
from workflows.machine import (
    Cancel,
    Cancelled,
    Complete,
    Completed,
    Fail,
    Failed,
    Pause,
    Paused,
    Pending,
    Queue,
    Queued,
    Recover,
    Resume,
    Running,
    Start,
    Status,
    Transition,
    apply,
    is_terminal,
    tag,
)
from workflows.recovery import (
    Finish,
    GiveUp,
    LeaveAlone,
    Recovery,
    TakeUp,
    Trials,
    decide,
)
from workflows.registry import Registry
from workflows.retention import ended_at_ms, purge_at_ms
from workflows.signals import Abandon, Suspend
from workflows.steps import Step

# After a start that needs no alarm to begin. Most runs settle sooner, and never pay for
# an alarm; it is there for those that take long, and for the crash.
_FIRST_LOOK_MS = 1_000

log = get_logger("workflows.orchestrator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What was decided when the engine class was made."""

    recovery: Recovery
    retention_ms: int | None  # None: for ever
    resident_sleep_ms: int


class Orchestrator:
    """Everything that can happen to one run."""

    def __init__(
        self,
        journal: Journal,
        registry: Registry,
        announcer: Announcer,
        *,
        clock: Clock,
        source: random.Random,
        env: Env,
        label: str,
        policies: Policies,
        trials: Trials,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Future[None]],
        publish: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._journal = journal
        self._registry = registry
        self._announcer = announcer
        self._clock = clock
        self._random = source
        self._env = env
        self._label = label  # what the run is called before it has a record
        self._policies = policies
        self._trials = trials
        self._trial_is_over: asyncio.Event | None = None  # while there is one
        self._spawn = spawn
        self._publish = publish
        self._pass: _Pass | None = None
        self._is_released = False  # the host wants the object out of memory
        self._is_draining = False  # because it is about to close
        self._completed: list[str] = []  # for events, while no pass knows better
        self._waiters: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        """Look at what the disk holds, before the first request."""
        record = await self._journal.load()
        if record is None:
            return
        if isinstance(record.status, Running):
            self._completed = completed(await self._journal.read_steps())
            self._decide(record)

    def _decide(self, record: RunRecord) -> None:
        """Write down what becomes of a run that nobody works on."""
        decision = decide(record, self._policies.recovery, now_ms=self._clock.now_ms())
        match decision:
            case LeaveAlone():
                pass
            case TakeUp(at_ms=at_ms):
                waiting = replace(record, recover_at_ms=at_ms)
                self._journal.save(waiting, wake_at_ms=at_ms)
            case Finish(reason=reason):
                self._change(Cancel(reason))
            case GiveUp(recoveries=recoveries):
                error = ErrorInfo.of(RecoveryExhaustedError(recoveries))
                self._change(Fail(error))
            case _:
                assert_never(decision)

    async def start(self, call: WorkflowCall, run_id: str, *, is_queued: bool) -> None:
        """Accept a run; the same call again finds it accepted already.

        Raises:
            UnknownWorkflowError: No such workflow.
            RunExistsError: The id is taken by another workflow or input.
            EncodeError: The input cannot be kept.
            StorageLimitError: The input is too large.
        """
        record = self._journal.record
        if record is not None:
            await self._check_same(record, call)
            return
        self._registry.find(call.workflow)
        now_ms = self._clock.now_ms()
        change: Transition = Queue() if is_queued else Start()
        record = RunRecord(
            run_id=run_id,
            workflow=call.workflow,
            status=apply(Pending(), change, now_ms=now_ms),
            created_at_ms=now_ms,
            started_at_ms=None if is_queued else now_ms,
        )
        wake_at_ms = now_ms if is_queued else now_ms + _FIRST_LOOK_MS
        self._journal.open(record, call.input, wake_at_ms=wake_at_ms)
        self._tell(change, None)
        if not is_queued:
            self._begin_pass()

    async def alarm(self) -> None:
        """Bring the run on, and return when it has settled."""
        record = self._journal.record
        if record is None:
            return
        now_ms = self._clock.now_ms()
        match record.status:
            case Queued():
                self._change(Start())
                self._begin_pass()
            case Paused(resume_at_ms=due_at_ms):
                if due_at_ms is None:
                    return
                if now_ms < due_at_ms:
                    self._journal.wake_at(due_at_ms)
                    return
                self._change(Resume())
                if self._pass is not None and self._pass.context is not None:
                    self._pass.context.wake()
                else:
                    self._begin_pass()
            case Running():
                if self._pass is None:
                    due_at_ms = record.recover_at_ms
                    if due_at_ms is None or now_ms < due_at_ms:
                        self._decide(record)
                        return
                    if record.recoveries and not await self._begin_trial():
                        return
                    self._change(Recover())
                    self._begin_pass()
            case _:
                await self._purge_if_due(record.status, now_ms)
                return
        # Returning removes the stored alarm, which a run at work must not lose.
        while isinstance(self.status, Running):
            await self._until_settled()

    async def _begin_trial(self) -> bool:
        """Wait until no other suspect is on trial; False if there is nothing to try."""
        turn = self._trials.enter()
        try:
            while not turn.done():
                news = self._await_news()
                await asyncio.wait((turn, news), return_when=asyncio.FIRST_COMPLETED)
                self._forget_waiter(news)
                if self._is_draining or not isinstance(self.status, Running):
                    break
        except asyncio.CancelledError:
            self._trials.leave(turn)
            raise
        if not isinstance(self.status, Running):  # it was cancelled meanwhile
            self._trials.leave(turn)
            return False
        if self._is_draining:
            self._trials.leave(turn)
            self._decide(self._require())  # its alarm is to find it again
            return False
        self._trial_is_over = asyncio.Event()
        self._spawn(self._watch_trial(turn, self._trial_is_over))
        return True

    async def _watch_trial(
        self, turn: asyncio.Future[None], is_over: asyncio.Event
    ) -> None:
        """Let the next one begin once this run is known not to kill its process."""
        limit_ms = duration_ms(self._policies.recovery.stale_threshold)
        timer = self._clock.call_later(limit_ms, is_over.set)
        try:
            await is_over.wait()
            if self._trial_is_over is is_over:  # neither progress nor an end
                self._trial_is_over = None
                record = self._require()
                self._journal.update(replace(record, recoveries=record.recoveries - 1))
            await self._journal.sync()
        finally:
            timer.cancel()
            self._trials.leave(turn)

    def on_progress(self) -> None:
        """End the trial: the run has recorded something."""
        is_over, self._trial_is_over = self._trial_is_over, None
        if is_over is not None:
            is_over.set()

    async def result(self, *, is_final: bool) -> RunResult[Any]:
        """Return how far the run has come, once it has settled or has ended.

        Args:
            is_final: Wait for the end; otherwise a pause is answer enough.

        Raises:
            RunNotFoundError: There is no run.
            HostClosedError: It sleeps, and the host is draining; ask again later.
        """
        while True:
            record = self._require()
            status = record.status
            if is_terminal(status) or (isinstance(status, Paused) and not is_final):
                break
            if self._is_draining and isinstance(status, Paused):
                message = f"{self._label} goes on after the host has restarted"
                raise HostClosedError(message)
            await self._until_settled()
        return await self.progress()

    async def progress(self) -> RunResult[Any]:
        """Return how far the run has come by now.

        Raises:
            RunNotFoundError: There is no run.
        """
        record = self._require()
        is_complete = isinstance(record.status, Completed)
        return RunResult(
            id=record.run_id,
            completed=is_complete,
            status=record.status,
            output=await self._journal.read_output() if is_complete else None,
        )

    async def cancel(self, reason: str | None) -> CancelResult:
        """Let the run end before its next step.

        Raises:
            TypeError: The reason is not text.
        """
        if not isinstance(reason, str | None):
            raise TypeError(f"the reason is a text or None, got {reason!r}")
        if self._journal.record is not None and self._pass is None:
            self._completed = completed(await self._journal.read_steps())
        record = self._journal.record
        if record is None:
            return CancelResult(cancelled=False, reason="there is no such run")
        match record.status:
            case Completed() | Failed() | Cancelled():
                detail = f"the run is already {tag(record.status)}"
                return CancelResult(cancelled=False, reason=detail)
            case Running() if self._pass is not None:
                if not record.cancel_requested:
                    self._journal.update(
                        replace(record, cancel_requested=True, cancel_reason=reason)
                    )
                if self._pass.context is not None:
                    self._pass.context.close(Abandon(reason))
            case _:
                context = self._pass.context if self._pass is not None else None
                self._change(Cancel(reason))
                if context is not None:
                    context.close(Abandon(reason))
        return CancelResult(cancelled=True, reason=reason)

    async def meta(self, key: str) -> Any:
        """Return one fact about the run, None if there is no such fact."""
        record = self._journal.record
        if record is None:
            return None
        if key == "input":
            return await self._journal.read_input()
        if key == "output":
            return await self._journal.read_output()
        facts = {
            "id": record.run_id,
            "workflow": record.workflow,
            "created_at_ms": record.created_at_ms,
            "started_at_ms": record.started_at_ms,
            "ended_at_ms": ended_at_ms(record.status),
            "recoveries": record.recoveries,
            "cancel_requested": record.cancel_requested,
        }
        return facts.get(key)

    async def completed_steps(self) -> list[str]:
        """Return the steps that have a result, in the order they ended."""
        return completed(await self._journal.read_steps())

    @property
    def status(self) -> Status | None:
        """The status, None if there is no run."""
        return None if self._journal.record is None else self._journal.record.status

    def resume(self) -> None:
        """Try a parked run again, with the code of today.

        Raises:
            RunNotFoundError: There is no run.
            IllegalTransitionError: The run is not paused.
        """
        record = self._require()
        if isinstance(record.status, Paused) and record.status.parked is None:
            return  # its alarm will do that
        self._change(Resume(), wake_at_ms=self._clock.now_ms())
        self._begin_pass()

    async def describe(self) -> RunInfo | None:
        """Return everything about the run but its values; None if there is none."""
        if self._journal.record is None:
            return None
        entries = await self._journal.read_steps()
        return describe(self._require(), entries)

    def on_idle(self, wait: Wait) -> None:
        """Pause until the first wait is over; let go of the pass if that is far off."""
        self._change(Pause(wait.due_at_ms), wait=wait)
        delay_ms = wait.due_at_ms - self._clock.now_ms()
        if self._is_released or delay_ms > self._policies.resident_sleep_ms:
            self._suspend(wait.due_at_ms)

    def release(self, *, is_draining: bool) -> None:
        """Let go of a pass that only waits, and of any that comes to wait later.

        If the host is draining, a pass at work ends before its next step, and goes on
        in the next process without that counting as an interruption. Whoever waits for
        the end of the run is sent away.
        """
        self._is_released = True
        self._is_draining = is_draining
        self._wake_waiters()
        match self.status:
            case Paused(resume_at_ms=int(resume_at_ms)):
                self._suspend(resume_at_ms)
            case Running() if is_draining and self._pass is not None:
                if self._pass.context is not None:
                    self._pass.context.close(Suspend(self._clock.now_ms()))
            case _:
                pass

    def _suspend(self, resume_at_ms: int) -> None:
        current, self._pass = self._pass, None
        if current is not None and current.context is not None:
            current.context.close(Suspend(resume_at_ms))

    def on_work(self) -> None:
        """Take the pause back: a branch went on without its alarm having woken it."""
        self._change(Resume(), wake_at_ms=self._clock.now_ms() + _FIRST_LOOK_MS)

    def _begin_pass(self) -> None:
        self._pass = current = _Pass()
        self._spawn(self._run_pass(current)).add_done_callback(self._note_failure)

    async def _run_pass(self, current: _Pass) -> None:
        record = self._require()
        try:
            definition = self._registry.find(record.workflow)
            entries = await self._journal.read_steps()
            value = await self._journal.read_input()
        except (UnknownWorkflowError, DecodeError) as error:
            self._park(str(error))
            return
        # The author's code may be what kills the process, so that it was begun must be
        # known first: otherwise nobody would ever count its recoveries.
        await self._journal.sync()
        if self._require().cancel_requested:
            self._end(Unwound(Abandon(record.cancel_reason), is_swallowed=False))
            return
        if self._is_draining:
            self._change(Pause(self._clock.now_ms()))
            return
        context = RunContext(
            self._journal, entries, self._announcer, self._clock, owner=self
        )
        current.context = context
        step = Step(context, self._env, self._random)
        outcome = await execute(definition, context, step, value)
        if isinstance(outcome, Unwound) and self._pass is not current:
            # The decision to end this pass was written before; perhaps the next one is
            # under way already.
            if outcome.is_swallowed:
                log.warning("workflow.signal_swallowed", workflow=record.workflow)
            return
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        """Write down how a pass has ended."""
        record = self._require()
        if isinstance(record.status, Paused):  # it ended while its branches slept
            self._change(Resume())
        match outcome:
            case Returned(output=output):
                try:
                    self._journal.write_output(output)
                except (EncodeError, StorageLimitError) as error:
                    self._fail(error)
                else:
                    self._change(Complete())
            case Raised(error=error):
                self._fail(error)
            case Unwound(signal=Suspend()):  # the host is draining
                self._change(Pause(self._clock.now_ms()))
                self._pass = None
            case Unwound():
                self._change(Cancel(record.cancel_reason))
            case Diverged(error=error):
                self._park(str(error))
            case _:
                assert_never(outcome)

    def _fail(self, error: Exception) -> None:
        record = self._require()
        info = ErrorInfo.of(error)
        log.info(
            "workflow.failed",
            workflow=record.workflow,
            run_id=record.run_id,
            error=info.type,
            step=info.step,
        )
        self._change(Fail(info))

    def _park(self, detail: str) -> None:
        record = self._require()
        log.error(
            "workflow.parked",
            workflow=record.workflow,
            run_id=record.run_id,
            detail=detail,
        )
        self._change(Pause(None, detail))

    def _change(
        self,
        change: Transition,
        *,
        wait: Wait | None = None,
        wake_at_ms: int | None = None,
    ) -> None:
        """Apply a change and write all that follows from it, in this turn."""
        record = self._require()
        now_ms = self._clock.now_ms()
        status = apply(record.status, change, now_ms=now_ms)
        record = replace(record, status=status)
        if isinstance(change, Start):
            record = replace(record, started_at_ms=now_ms)
        if isinstance(change, Recover):
            count = record.recoveries + 1
            record = replace(record, recoveries=count, recover_at_ms=None)
        if isinstance(status, Running):
            if wake_at_ms is None:
                # The alarm that woke us stays on disk while its handler runs.
                self._journal.update(record)
            else:
                self._journal.save(record, wake_at_ms=wake_at_ms)
        elif isinstance(status, Paused):
            self._journal.save(record, wake_at_ms=status.resume_at_ms)
        else:
            purge_ms = purge_at_ms(status, self._policies.retention_ms)
            self._journal.save(record, wake_at_ms=purge_ms)
        self._tell(change, wait)
        if not isinstance(status, Running):
            self._settle()

    def _tell(self, change: Transition, wait: Wait | None) -> None:
        """Publish the status, and announce the change."""
        record = self._require()
        attributes = {"workflow": record.workflow, "run": record.run_id}
        self._publish({**attributes, "status": tag(record.status)})
        telling = Telling(
            record=record,
            now_ms=self._clock.now_ms(),
            completed_steps=self._names(),
            waiting_step=None if wait is None else wait.step,
            waiting_reason=None if wait is None else wait.reason,
        )
        event = event_of(change, telling)
        self._announcer.announce(event, run_id=record.run_id, workflow=record.workflow)

    def _names(self) -> list[str]:
        context = self._pass.context if self._pass is not None else None
        return self._completed if context is None else context.completed

    def _settle(self) -> None:
        """Tell everybody who waits for the run to pause or end."""
        self.on_progress()
        if is_terminal(self._require().status) or self._is_parked():
            self._pass = None
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _is_parked(self) -> bool:
        status = self._require().status
        return isinstance(status, Paused) and status.parked is not None

    async def _until_settled(self) -> None:
        news = self._await_news()
        try:
            await news
        finally:
            self._forget_waiter(news)

    def _await_news(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def _forget_waiter(self, waiter: asyncio.Future[None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _note_failure(self, done: asyncio.Future[None]) -> None:
        """A pass that could not even write its end: let those who wait know."""
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            return
        self._pass = None
        self.on_progress()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    async def _purge_if_due(self, status: Status, now_ms: int) -> None:
        purge_ms = purge_at_ms(status, self._policies.retention_ms)
        if purge_ms is None:
            return
        if now_ms < purge_ms:
            self._journal.wake_at(purge_ms)
            return
        self._publish({})
        await self._journal.erase()

    async def _check_same(self, record: RunRecord, call: WorkflowCall) -> None:
        if record.workflow != call.workflow:
            detail = f"so it cannot become one of {call.workflow!r}"
            raise RunExistsError(record.run_id, record.workflow, detail)
        if await self._journal.read_input() != call.input:
            detail = "and was given another input"
            raise RunExistsError(record.run_id, record.workflow, detail)

    def _require(self) -> RunRecord:
        record = self._journal.record
        if record is None:
            raise RunNotFoundError(self._label)
        return record


class _Pass:
    """One task that runs the author's function; its context once that has begun."""

    def __init__(self) -> None:
        self.context: RunContext | None = None
