"""`RunContext`: one pass through a run, as its steps see it.

Theory of operation
    A step that is called is *met*: it gets its identity (name and occurrence) and its
    record, if there is one. Then it is in one of four places:

        busy      its code is running, or about to
        waiting   for a time: a sleep, or the delay before a retry
        early     it is recorded, but other answers come first (see `replay`)
        new       not recorded, and the replay is not over yet

    Whoever is not busy waits on a future of this class. Nobody can ask asyncio whether
    user code between two steps still has something to do, so decisions that need the
    answer are taken when nothing has happened for a few rounds of the event loop: early
    answers are handed out, the replay is declared over, and, when all that is left are
    waits, the owner is told that the pass is idle.

    A pass that is to end before its function does is *closed* with a signal. From then
    on every step raises that signal. A function that waits in a step itself is unwound
    by it; one that waits for its branches is cancelled, which asyncio hands on to them.

Promises
    No step's code begins after `close`, and nothing is written after `end`.
    A step is refused inside a step of the same run, in its child tasks too.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, Protocol, TypeAlias

import msgspec

from durable_actor import Clock, Timer
from workflows.announcer import Announcer
from workflows.errors import (
    InvalidNameError,
    NondeterminismError,
    StepLimitError,
    StepNestingError,
)
from workflows.events import Event
from workflows.journal import Entry, Journal, Kind, RunRecord, completed
from workflows.replay import Replay
from workflows.signals import Abandon, Signal, Suspend

STEPS_MAX: Final = 50_000  # a journal is read at once when its run wakes
STEP_NAME_BYTES_MAX: Final = 512  # it is part of a key, and keys end at 2,048

# Rounds of the loop without any sign of life. The end of a child task reaches whoever
# gathers it after two rounds, and after two more for each level above.
_CALM_ROUNDS: Final = 5
_REST_ROUNDS: Final = 12
_OVERSLEPT_MS = 500  # after the end of a sleep that no alarm has ended

WaitReason: TypeAlias = Literal["sleep", "retry"]


class PassOwner(Protocol):
    """What a pass tells the orchestrator."""

    def on_idle(self, wait: Wait, /) -> None:
        """All that is left to do waits; this wait is over first."""
        ...

    def on_work(self) -> None:
        """A step is about to begin, although the pass was idle."""
        ...

    def on_progress(self) -> None:
        """The first thing since the run was recovered was recorded."""
        ...


@dataclass(frozen=True, slots=True)
class Wait:
    """A step that waits for a time."""

    step: str
    due_at_ms: int
    reason: WaitReason
    over: asyncio.Future[None]
    due_ms: int = 0  # the same by elapsed time, in case the clock is put back


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a step, with what earlier passes know of it."""

    step: str
    kind: Kind
    called: int
    is_forked: bool
    entry: Entry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a step, as its own code may ask about it."""

    context: RunContext
    step: str
    number: int

    @property
    def idempotency_key(self) -> str:
        """What stays the same however often the step runs; made when asked for."""
        return self.context.idempotency_key(self.step)


_ATTEMPT: ContextVar[Attempt | None] = ContextVar("workflows.attempt", default=None)


class RunContext:
    """One pass: identity, replay, waits, and the guard against steps inside steps."""

    def __init__(
        self,
        journal: Journal,
        entries: list[Entry],
        announcer: Announcer,
        clock: Clock,
        owner: PassOwner,
    ) -> None:
        assert journal.record is not None
        self.clock = clock
        self.run_id = journal.record.run_id
        self.workflow = journal.record.workflow
        self.signal: Signal | None = None
        self.diverged: NondeterminismError | None = None
        self.completed = completed(entries)
        self._created_at_ms = journal.record.created_at_ms
        self._journal = journal
        self._announcer = announcer
        self._owner = owner
        self._replay = Replay(entries)
        self._calls = 0
        self._ends = self._replay.ends_recorded
        self._occurrences: dict[str, int] = {}
        self._steps: set[str] = set()

        self._function: asyncio.Task[Any] | None = None  # runs the author's function
        self._busy: set[asyncio.Task[Any]] = set()
        self._blocked: dict[asyncio.Future[None], asyncio.Task[Any]] = {}
        self._waiting: dict[str, Wait] = {}
        self._early: dict[str, asyncio.Future[None]] = {}
        self._new: list[asyncio.Future[None]] = []
        self._timers: list[Timer] = []
        self._is_idle = False  # the owner was told, and nothing has happened since
        self._is_ended = False
        self._calm_rounds = 0
        self._is_watching = False

    def begin(self) -> None:
        """Note that the current task runs the author's function."""
        self._function = asyncio.current_task()

    def end(self, *, is_checked: bool) -> None:
        """End the pass: cancel what the function left behind. No write after this.

        Args:
            is_checked: The function ended by itself, so it must have met every
                recorded step. If it has not, `diverged` says so.
        """
        if is_checked and self.signal is None:
            try:
                self._replay.check_all_met("the end of the function")
            except NondeterminismError as error:
                self.diverged = error
        if self.signal is None:
            self.signal = Abandon("the run's function has ended")
        self._is_ended = True
        self._disarm()
        for task in {*self._busy, *self._blocked.values()} - {self._function}:
            task.cancel()

    def close(self, signal: Signal) -> None:
        """Let no further step begin, and unwind the function.

        A step whose code is running may finish first, and is recorded.
        """
        if self.signal is None:
            self.signal = signal
        if not self._busy:
            self._unwind()

    def wake(self) -> None:
        """End the waits that are due, in their order."""
        self._is_idle = False
        now_ms, elapsed_ms = self.clock.now_ms(), self.clock.elapsed_ms()
        for wait in sorted(self._waiting.values(), key=lambda wait: wait.due_at_ms):
            is_over = wait.due_at_ms <= now_ms or wait.due_ms <= elapsed_ms
            if is_over and not wait.over.done():
                wait.over.set_result(None)
        self._arm()
        self._stir()

    def check(self) -> None:
        """Raise the signal this pass was closed with, if it was."""
        if self.signal is not None:
            raise self.signal.with_traceback(None)

    def check_alive(self) -> None:
        """Raise if the pass has ended: nothing may be written any more."""
        if self._is_ended:
            raise Abandon("the run's function has ended")

    def meet(self, name: str, kind: Kind) -> Call:
        """Give a step that is called its identity and its record.

        Raises:
            InvalidNameError: The name is empty, too long or not text.
            StepNestingError: Called inside another step of this run.
            StepLimitError: The run has too many steps.
        """
        self.check()
        _check_name(name)
        attempt = _ATTEMPT.get()
        if attempt is not None and attempt.context is self:
            raise StepNestingError(attempt.step, name)
        if self._calls >= STEPS_MAX:
            raise StepLimitError(STEPS_MAX)
        is_forked = asyncio.current_task() is not self._function
        step, called = self._identify(name), self._calls
        self._calls += 1
        try:
            entry = self._replay.meet(step, kind, is_forked=is_forked)
        except NondeterminismError as error:
            self._diverge(error)
        self._stir()
        return Call(
            step=step, kind=kind, called=called, is_forked=is_forked, entry=entry
        )

    async def answered(self, call: Call) -> Entry | None:
        """Return the record of a step that has ended, when it is its turn."""
        entry = call.entry
        if entry is None or entry.ended is None:
            return None
        if not self._replay.is_next(call.step):
            over = asyncio.get_running_loop().create_future()
            self._early[call.step] = over
            self._stir()
            try:
                await self._block(over)
            finally:
                del self._early[call.step]
        self._replay.hand_out(call.step)
        if self._replay.is_over:
            self._release_new()
        self._stir()
        return entry

    async def ready(self, call: Call) -> None:
        """Return once a step that has no answer may go on: the replay is over."""
        if not self._replay.is_over:
            over = asyncio.get_running_loop().create_future()
            self._new.append(over)
            self._stir()
            try:
                await self._block(over)
            finally:
                if over in self._new:
                    self._new.remove(over)
        self.check()
        if not self._replay.is_over and call.entry is None:
            try:
                self._replay.check_all_met(f"{call.kind} {call.step!r}")
            except NondeterminismError as error:
                self._diverge(error)

    def begin_work(self) -> asyncio.Task[Any]:
        """Mark the current task as working, until `end_work` with what this returns."""
        self.check()
        self._rouse()
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        return task

    def end_work(self, task: asyncio.Task[Any]) -> None:
        """Undo `begin_work`."""
        self._busy.discard(task)
        self._stir()

    def begin_attempt(self, step: str, number: int) -> Token[Attempt | None]:
        """Mark the code that follows as that of one attempt of a step."""
        return _ATTEMPT.set(Attempt(context=self, step=step, number=number))

    def end_attempt(self, token: Token[Attempt | None]) -> None:
        """Undo `begin_attempt`."""
        _ATTEMPT.reset(token)

    def current_attempt(self) -> Attempt | None:
        """Return the attempt whose code is asking, if it is one of this run."""
        attempt = _ATTEMPT.get()
        return attempt if attempt is not None and attempt.context is self else None

    async def wait(self, step: str, due_at_ms: int, reason: WaitReason) -> None:
        """Return once the clock has reached the time."""
        self.check()
        if due_at_ms <= self.clock.now_ms():
            return
        self._rouse()
        over = asyncio.get_running_loop().create_future()
        delay_ms = due_at_ms - self.clock.now_ms()
        due_ms = self.clock.elapsed_ms() + delay_ms
        self._waiting[step] = Wait(step, due_at_ms, reason, over, due_ms)
        self._arm()
        self._stir()
        try:
            await self._block(over)
        finally:
            del self._waiting[step]
            self._stir()
        self.check()

    async def sync(self) -> None:
        """Return once everything recorded so far is durable."""
        await self._journal.sync()

    def write(self, entry: Entry, *, is_progress: bool) -> None:
        """Record a step. Durable progress sets the recovery counter back.

        Raises:
            EncodeError: The value cannot be kept; nothing was written.
            StorageLimitError: The value is too large; nothing was written.
        """
        self.check_alive()
        self._journal.write(entry)
        if entry.kind == "run" and entry.state == "done":
            self.completed.append(entry.step)
        record = self._record
        if is_progress and record.recoveries:
            self._journal.update(msgspec.structs.replace(record, recoveries=0))
            self._owner.on_progress()

    def next_end(self) -> int:
        """Return the place of a step that ends now."""
        self._ends += 1
        return self._ends - 1

    @property
    def is_heard(self) -> bool:
        """Whether anybody takes events; if not, they need not even be made."""
        return self._announcer.is_heard

    def announce(self, event: Event) -> None:
        """Emit an event in this turn."""
        self._announcer.announce(event, run_id=self.run_id, workflow=self.workflow)

    @property
    def _record(self) -> RunRecord:
        assert self._journal.record is not None
        return self._journal.record

    def _identify(self, name: str) -> str:
        count = self._occurrences.get(name, 0) + 1
        step = name if count == 1 else f"{name}#{count}"
        while step in self._steps:  # a step may itself be called "x#2"
            count += 1
            step = f"{name}#{count}"
        self._occurrences[name] = count
        self._steps.add(step)
        return step

    def idempotency_key(self, step: str) -> str:
        """Return the key of a step of this run."""
        # The time of creation is part of it, so that an id that is used again after its
        # run was deleted does not look like the old run to the outside.
        identity = (self.workflow, self.run_id, str(self._created_at_ms), step)
        return hashlib.sha256("\x00".join(identity).encode()).hexdigest()[:32]

    def _diverge(self, error: NondeterminismError) -> NoReturn:
        # Not raised as the error it is: an `except Exception` must not see it.
        self.diverged = error
        self.close(Suspend(None))
        raise Suspend(None)

    async def _block(self, over: asyncio.Future[None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._blocked[over] = task
        try:
            await over
        finally:
            del self._blocked[over]

    def _unwind(self) -> None:
        if self._is_ended or self._function is None:
            return
        for over, task in self._blocked.items():
            if task is self._function:
                if not over.done():
                    over.set_exception(self.signal or Suspend(None))
                return
        # A task that is running gets the signal from the step it calls next.
        if asyncio.current_task() is not self._function:
            self._function.cancel()

    def _rouse(self) -> None:
        """Take back that the pass is idle: something else had kept a branch going."""
        if self._is_idle:
            self._is_idle = False
            self._owner.on_work()
            self._arm()

    def _arm(self) -> None:
        """Keep one timer for the wait that is over first, unless an alarm does it."""
        self._disarm()
        pending = [w.due_at_ms for w in self._waiting.values() if not w.over.done()]
        if pending and not self._is_idle and not self._is_ended:
            delay_ms = min(
                w.due_ms for w in self._waiting.values() if not w.over.done()
            )
            delay_ms = max(delay_ms - self.clock.elapsed_ms(), 0)
            self._timers = [
                self.clock.call_at(min(pending), self._on_timer),
                self.clock.call_later(delay_ms, self._on_timer),
            ]

    def _disarm(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            timer.cancel()

    def _on_timer(self) -> None:
        self._disarm()
        if not self._is_ended:
            self.wake()

    def _overslept(self) -> None:
        """The wall clock has not come to where it would be had it gone on (G14)."""
        self._disarm()
        if self._is_idle and not self._is_ended and self.signal is None:
            self._rouse()
            self.wake()

    def _stir(self) -> None:
        """Something happened: count the calm rounds from the beginning."""
        self._calm_rounds = 0
        if self._is_watching or self._is_ended:
            return
        # A plain step after the other leaves nothing to decide.
        if self._early or self._new or self._waiting or self.signal is not None:
            self._is_watching = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._is_watching = False
        if self._is_ended:
            return
        self._calm_rounds += 1
        if self._decide():
            self._is_watching = True
            asyncio.get_running_loop().call_soon(self._look)

    def _decide(self) -> bool:
        """Take a decision if it is calm enough; return whether to look again."""
        is_calm = self._calm_rounds >= _CALM_ROUNDS
        is_resting = self._calm_rounds >= _REST_ROUNDS
        if self._busy and not self._early and not self._new:
            return False
        if self._early:
            step = self._replay.first_of(self._early)
            if (is_calm and self._replay.is_next(step)) or is_resting:
                over = self._early[step]
                if not over.done():
                    over.set_result(None)
                self._calm_rounds = 0
            return True
        if self._new:
            if is_resting:
                self._release_new()
            return True
        if self.signal is not None:
            if is_calm:
                self._unwind()
            return not is_calm
        if self._waiting and not self._is_idle:
            if is_calm:
                self._rest()
            return not is_calm
        return False

    def _release_new(self) -> None:
        for over in self._new:
            if not over.done():
                over.set_result(None)
        self._new.clear()

    def _rest(self) -> None:
        pending = [wait for wait in self._waiting.values() if not wait.over.done()]
        if pending:
            self._is_idle = True
            self._disarm()
            self._owner.on_idle(min(pending, key=lambda wait: wait.due_at_ms))
            if self._is_idle and self.signal is None and not self._is_ended:
                # Its alarm comes first, unless the clock was put back meanwhile.
                late_ms = min(wait.due_ms for wait in pending) + _OVERSLEPT_MS
                delay_ms = late_ms - self.clock.elapsed_ms()
                self._timers = [self.clock.call_later(delay_ms, self._overslept)]


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidNameError("step name", name, "is not a text of at least a letter")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidNameError("step name", name, f"is no Unicode: {error}") from None
    if size > STEP_NAME_BYTES_MAX:
        detail = f"has {size} bytes of UTF-8; at most {STEP_NAME_BYTES_MAX} are allowed"
        raise InvalidNameError("step name", name[:48] + "...", detail)
