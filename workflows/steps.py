"""`Step`: what a workflow function is given to do durable things with.

Theory of operation
    Every method meets its step in the context, answers from the record if it has ended,
    and otherwise does it: waits until everything before it is durable
    (`result-before-progress`), acts, and writes one journal entry in the turn in which
    the action ended. The attempt loop lives here and only here.

    An attempt is not written down before it runs. A process that dies in the middle of
    one runs it again, with the same number and the same idempotency key.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, NoReturn, TypeVar, TypeVarTuple, cast, overload
from uuid import UUID

from msgspec.structs import replace

from durable_actor import (
    Duration,
    EncodeError,
    Env,
    Instant,
    RemoteError,
    StorageLimitError,
    deadline,
    duration_ms,
    instant_ms,
    to_datetime,
)
from workflows.backoff import NO_RETRY, Retry
from workflows.context import Attempt, Call, RunContext
from workflows.errors import (
    ErrorInfo,
    NotInStepError,
    StepFailedError,
    StepTimeoutError,
)
from workflows.events import (
    RetryExhausted,
    RetryScheduled,
    SleepCompleted,
    SleepStarted,
    StepCompleted,
    StepFailed,
    StepStarted,
    TimeoutExceeded,
    TimeoutSet,
    iso,
    uuid7,
)
from workflows.journal import Entry

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Step:
    """The durable verbs of one run, handed to its function for one pass."""

    def __init__(self, context: RunContext, env: Env, source: random.Random) -> None:
        self._context = context
        self._env = env
        self._random = source

    @property
    def run_id(self) -> str:
        """The id of this run."""
        return self._context.run_id

    @property
    def workflow(self) -> str:
        """The name of this run's workflow."""
        return self._context.workflow

    @property
    def env(self) -> Env:
        """The bindings of the host: namespaces and variables."""
        return self._env

    @property
    def attempt(self) -> int:
        """Inside a step's function: which attempt this is, from 1."""
        return self._attempt_now("attempt").number

    @property
    def idempotency_key(self) -> str:
        """Inside a step's function: the same text for every attempt of this step.

        Send it with an effect, so that the other side can drop repeats.
        """
        return self._attempt_now("idempotency_key").idempotency_key

    @overload
    async def run(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> T: ...

    @overload
    async def run(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> T: ...

    async def run(
        self,
        name: str,
        fn: Callable[[*Ts], Any],
        /,
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """Run a function once and remember its result; a replay returns the result.

        It runs at least once, and its result is recorded exactly once. A plain function
        runs on the event loop: give `asyncio.to_thread` the slow ones.

        Args:
            name: With its occurrence (`name`, `name#2`, ...) the identity of the step.
            fn: What to do. Steps are not available inside it.
            args: Passed to `fn`.
            retry: What to do when it raises; None: fail at once.
            timeout: How long each attempt may take.

        Raises:
            StepFailedError: It raised for the last time, or its result cannot be kept.
            StepNestingError: Called inside another step.
            InvalidNameError: The name cannot be used.
        """
        policy = NO_RETRY if retry is None else retry
        timeout_ms = None if timeout is None else duration_ms(timeout)
        call = self._context.meet(name, "run")
        answer = await self._context.answered(call)
        if answer is None:
            await self._context.ready(call)
            return await self._attempts(call, lambda: fn(*args), policy, timeout_ms)
        if answer.state == "failed":
            _raise_failed(call.step, answer.attempts, answer.value)
        return answer.value

    @overload
    async def sleep(self, name: str, duration: Duration, /) -> None: ...

    @overload
    async def sleep(self, duration: Duration, /) -> None: ...

    async def sleep(
        self, name: str | Duration, duration: Duration | None = None, /
    ) -> None:
        """Sleep, through restarts too. The name may be left out.

        Raises:
            InvalidTimeError: Not a duration.
            InvalidNameError: The name cannot be used.
        """
        label: Any = name
        if duration is None:
            label, duration = "sleep", name
        now_ms = self._context.clock.now_ms()
        await self._sleep(label, now_ms + duration_ms(duration))

    @overload
    async def sleep_until(self, name: str, when: Instant, /) -> None: ...

    @overload
    async def sleep_until(self, when: Instant, /) -> None: ...

    async def sleep_until(
        self, name: str | Instant, when: Instant | None = None, /
    ) -> None:
        """Sleep until a time; the past means not at all. The name may be left out.

        Raises:
            InvalidTimeError: Not a time.
            InvalidNameError: The name cannot be used.
        """
        label: Any = name
        if when is None:
            label, when = "sleep", cast("Instant", name)
        due_at_ms = instant_ms(when, now_ms=self._context.clock.now_ms())
        await self._sleep(label, due_at_ms)

    async def now(self, name: str = "now") -> datetime:
        """Return the time in UTC; a replay returns the same."""
        return await self._value(
            name, lambda: to_datetime(self._context.clock.now_ms())
        )

    async def random(self, name: str = "random") -> float:
        """Return a number between 0 and 1; a replay returns the same."""
        return await self._value(name, self._random.random)

    async def uuid(self, name: str = "uuid") -> UUID:
        """Return a fresh UUIDv7; a replay returns the same."""
        return await self._value(
            name, lambda: uuid7(self._context.clock.now_ms(), self._random)
        )

    sleepUntil = sleep_until

    async def _attempts(
        self,
        call: Call,
        action: Callable[[], Any],
        policy: Retry,
        timeout_ms: int | None,
    ) -> Any:
        context = self._context
        began_at_ms = context.clock.now_ms()
        failures = 0
        if call.entry is not None:  # an earlier pass ended while this waited to retry
            assert call.entry.state == "retrying"
            began_at_ms, failures = call.entry.began_at_ms, call.entry.attempts
            assert call.entry.due_at_ms is not None
            await context.wait(call.step, call.entry.due_at_ms, "retry")
        while True:
            entry = Entry(
                step=call.step,
                kind=call.kind,
                state="done",
                called=call.called,
                ended=None,
                is_forked=call.is_forked,
                began_at_ms=began_at_ms,
                attempts=failures + 1,
            )
            working = context.begin_work()
            try:
                return await self._attempt(entry, action, timeout_ms)
            except _AttemptFailedError as failed:
                due_at_ms = self._failed(entry, failed, policy)
            finally:
                context.end_work(working)
            failures += 1
            await context.wait(call.step, due_at_ms, "retry")

    async def _attempt(
        self, entry: Entry, action: Callable[[], Any], timeout_ms: int | None
    ) -> Any:
        context, number = self._context, entry.attempts
        if context.is_heard:
            context.announce(StepStarted(step_name=entry.step, attempt=number))
        if timeout_ms is not None:
            ends_at = iso(context.clock.now_ms() + timeout_ms)
            context.announce(
                TimeoutSet(
                    step_name=entry.step,
                    attempt=number,
                    deadline=ends_at,
                    timeout_ms=timeout_ms,
                )
            )
        await context.sync()
        context.check()
        began_at_ms = context.clock.now_ms()
        token = context.begin_attempt(entry.step, number)
        try:
            value = await self._act(entry, action, timeout_ms)
        finally:
            context.end_attempt(token)
        context.check_alive()
        try:
            done = replace(entry, ended=context.next_end(), value=value)
            context.write(done, is_progress=True)
        except (EncodeError, StorageLimitError) as error:
            raise _AttemptFailedError(error, is_final=True) from error
        if context.is_heard:
            context.announce(
                StepCompleted(
                    step_name=entry.step,
                    attempt=number,
                    duration_ms=context.clock.now_ms() - began_at_ms,
                )
            )
        return value

    async def _act(
        self, entry: Entry, action: Callable[[], Any], timeout_ms: int | None
    ) -> Any:
        """Run the step's own code, once, within its deadline."""
        if timeout_ms is None:
            return await _call(action)
        scope: asyncio.Timeout | None = None
        try:
            async with deadline(self._context.clock, timeout_ms) as scope:
                return await _call(action)
        except TimeoutError as error:
            if scope is None or not scope.expired():
                raise
            self._context.check_alive()
            self._context.announce(
                TimeoutExceeded(
                    step_name=entry.step,
                    attempt=entry.attempts,
                    timeout_ms=timeout_ms,
                )
            )
            late = StepTimeoutError(entry.step, timeout_ms)
            raise _AttemptFailedError(late) from error

    def _failed(self, entry: Entry, failed: _AttemptFailedError, policy: Retry) -> int:
        """Record a failed attempt; return when to try again, or raise for good.

        Raises:
            StepFailedError: There is no further attempt.
        """
        context, error, number = self._context, failed.error, entry.attempts
        context.check_alive()
        now_ms = context.clock.now_ms()
        delay_ms = None
        if not failed.is_final:
            elapsed_ms = now_ms - entry.began_at_ms
            try:
                delay_ms = policy.next_delay_ms(number, error, elapsed_ms, self._random)
            except Exception as broken:  # noqa: BLE001  # the author's is_retryable
                error = broken
        context.announce(
            StepFailed(
                step_name=entry.step,
                attempt=number,
                error=ErrorInfo.of(error),
                will_retry=delay_ms is not None,
            )
        )
        if delay_ms is None:
            if policy.max_attempts > 1:
                context.announce(RetryExhausted(step_name=entry.step, attempts=number))
            ended = context.next_end()
            entry = replace(entry, state="failed", ended=ended, value=error)
            _raise_failed(entry.step, number, self._write_error(entry).value)
        due_at_ms = now_ms + delay_ms
        self._write_error(
            replace(entry, state="retrying", due_at_ms=due_at_ms, value=error)
        )
        context.announce(
            RetryScheduled(
                step_name=entry.step,
                attempt=number,
                next_attempt_at=iso(due_at_ms),
                delay_ms=delay_ms,
            )
        )
        return due_at_ms

    def _write_error(self, entry: Entry) -> Entry:
        """Record an entry whose value is an error, as itself or else as its text."""
        is_progress = entry.state == "failed"
        try:
            self._context.write(entry, is_progress=is_progress)
        except (EncodeError, StorageLimitError):
            # The caller gets what a replay will get, so both decide alike.
            info = ErrorInfo.of(entry.value)
            entry = replace(entry, value=RemoteError(info.type, info.message))
            self._context.write(entry, is_progress=is_progress)
        return entry

    async def _sleep(self, name: str, due_at_ms: int) -> None:
        context = self._context
        call = context.meet(name, "sleep")
        if await context.answered(call) is not None:
            return
        await context.ready(call)
        entry = call.entry
        if entry is None:
            now_ms = context.clock.now_ms()
            entry = Entry(
                step=call.step,
                kind="sleep",
                state="sleeping",
                called=call.called,
                ended=None,
                is_forked=call.is_forked,
                began_at_ms=now_ms,
                due_at_ms=max(now_ms, due_at_ms),
            )
            context.write(entry, is_progress=True)
            context.announce(
                SleepStarted(
                    step_name=call.step,
                    duration_ms=_sleep_ms(entry),
                    resume_at=iso(now_ms + _sleep_ms(entry)),
                )
            )
        assert entry.due_at_ms is not None
        await context.wait(call.step, entry.due_at_ms, "sleep")
        done = replace(entry, state="done", ended=context.next_end())
        context.write(done, is_progress=False)
        context.announce(
            SleepCompleted(step_name=call.step, duration_ms=_sleep_ms(entry))
        )

    async def _value(self, name: str, make: Callable[[], T]) -> T:
        """Record a value that is at hand."""
        context = self._context
        call = context.meet(name, "value")
        answer = await context.answered(call)
        if answer is not None:
            return cast("T", answer.value)
        await context.ready(call)
        value = make()
        context.write(
            Entry(
                step=call.step,
                kind="value",
                state="done",
                called=call.called,
                ended=context.next_end(),
                is_forked=call.is_forked,
                began_at_ms=context.clock.now_ms(),
                value=value,
            ),
            is_progress=True,
        )
        return value

    def _attempt_now(self, attribute: str) -> Attempt:
        attempt = self._context.current_attempt()
        if attempt is None:
            raise NotInStepError(attribute)
        return attempt


class _AttemptFailedError(Exception):
    """Carries what an attempt's code raised from there to the attempt loop."""

    def __init__(self, error: Exception, *, is_final: bool = False) -> None:
        self.error = error
        self.is_final = is_final
        super().__init__(error)


async def _call(action: Callable[[], Any]) -> Any:
    """Run the author's code; an error of its own is told from one of ours by type."""
    try:
        value = action()
        if inspect.isawaitable(value):
            value = await value
        return value
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # from outside: a deadline, a sibling that failed, the host
        inside = RuntimeError("the step's own code was cancelled from inside")
        raise _AttemptFailedError(inside) from error
    except Exception as error:
        raise _AttemptFailedError(error) from error


def _raise_failed(step: str, attempts: int, error: Exception) -> NoReturn:
    info = dataclasses.replace(ErrorInfo.of(error), step=step)
    raise StepFailedError(step, attempts, info) from error


def _sleep_ms(entry: Entry) -> int:
    assert entry.due_at_ms is not None
    return entry.due_at_ms - entry.began_at_ms
