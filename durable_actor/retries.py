"""Retries: which calls a client sends again, when, and how often.

Promises
    A call is sent again only if that cannot make it run twice: the last try did not
    run (`not_executed`), or it may have run and the call has an identity, so that the
    daemon tells its kept reply instead of running it (G6).
    What is not known stays not known: once a try may have run, only the object's own
    answer makes the outcome something else than `unknown` (G4).
    Whoever is overloaded is not asked again before the time it named.
    A call with a timeout ends in time, tries, waits and all.

Theory of operation
    The first try costs nothing but itself. Only when it has failed, and may be sent
    again, does stamina's loop begin, with that failure as its first attempt: it waits
    (0.1 s, doubling, at most 5 s, with jitter) and counts. Where the daemon has said
    how long to wait, that is waited instead.

    stamina's instrumentation sees each retry. With nothing configured, its way to log
    would print: structlog came with us, not with the program. So it logs as we do.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import stamina
import structlog
from stamina.instrumentation import (
    RetryDetails,
    get_on_retry_hooks,
    set_on_retry_hooks,
)

from durable_actor.errors import (
    CallTimeoutError,
    CorruptionError,
    DurableActorError,
    RemoteError,
    ReplyExpiredError,
)
from durable_actor.log import get_logger

RETRIES: Final = 3  # a second in all: a daemon that restarts is back by then
WAIT_SECONDS: Final = 0.1
WAIT_SECONDS_MAX = 5.0
WAIT_JITTER_SECONDS: Final = 0.1
OVERLOADED_WAIT_MS: Final = 1_000  # if whoever is overloaded has not said how long
_SPREAD: Final = 0.25  # so that those sent away together do not come back together

T = TypeVar("T")
log = get_logger("durable_actor.client")


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a call. Times in milliseconds."""

    timeout_ms: int | None  # what is left; None: as long as it takes
    sent_ms_ago: int  # since the first try; 0: this is the first


async def send_until_known(
    send: Callable[[Try], Awaitable[T]],
    *,
    retries: int,
    timeout_ms: int | None = None,
    runs_once: bool,
) -> T:
    """Return what `send` returns, trying again as often as that is safe.

    Args:
        send: Makes one try.
        retries: How many more tries after the first.
        timeout_ms: For all of them together; `send` keeps to what is left.
        runs_once: It does no harm to send it when it has run already.

    Raises:
        CallTimeoutError: The time was over, in a try or between two.
        DurableActorError: Of the last try; `outcome` speaks for all of them.
    """
    began = asyncio.get_running_loop().time()
    try:
        return await send(Try(timeout_ms, 0))
    except DurableActorError as error:
        if retries <= 0 or not may_repeat(error, runs_once=runs_once):
            raise
        first = error
    tries = _Tries(began, timeout_ms, runs_once=runs_once)
    try:
        async with asyncio.timeout_at(tries.deadline) as limit:
            async for attempt in stamina.retry_context(
                on=tries.judge,
                attempts=retries + 1,
                timeout=None,
                wait_initial=WAIT_SECONDS,
                wait_max=WAIT_SECONDS_MAX,
                wait_jitter=WAIT_JITTER_SECONDS,
            ):
                with attempt:
                    if attempt.num == 1:
                        raise first
                    return await tries.make(send)
        raise AssertionError("the last attempt returns or raises")
    except DurableActorError as error:
        tries.settle(error)
        raise
    except TimeoutError:
        if not limit.expired():
            raise  # the object's own
        raise tries.out_of_time() from tries.last


def may_repeat(error: BaseException, *, runs_once: bool) -> bool:
    """Whether the same call may be sent again after this."""
    if not isinstance(error, DurableActorError):
        return False  # the object's answer
    if isinstance(error, (CallTimeoutError, RemoteError, ReplyExpiredError)):
        return False  # no time is left; the object's answer; the same again
    if error.outcome == "not_executed":
        return error.retryable or error.overloaded
    return error.outcome == "unknown" and runs_once


class _Tries:
    """What is known of the tries of one call, from the first failure on."""

    def __init__(
        self, began: float, timeout_ms: int | None, *, runs_once: bool
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = began  # of the first try, in the loop's time
        self._timeout_ms = timeout_ms
        self.deadline = None if timeout_ms is None else began + timeout_ms / 1_000
        self._runs_once = runs_once
        self._is_under_way = False
        self._may_have_run = False
        self.last: BaseException | None = None

    async def make(self, send: Callable[[Try], Awaitable[T]]) -> T:
        """Make one more try."""
        now = self._loop.time()
        left_ms = None
        if self.deadline is not None:
            left_ms = max(1, math.ceil((self.deadline - now) * 1_000))
        sent_ms_ago = max(1, math.ceil((now - self._began) * 1_000))
        self._is_under_way = True
        answer = await send(Try(left_ms, sent_ms_ago))
        self._is_under_way = False
        return answer

    def judge(self, error: Exception) -> bool | float:
        """Tell stamina whether to try again, or in how many seconds."""
        if not isinstance(error, DurableActorError):
            return False  # the object's answer; or this is cancelled
        self._is_under_way = False
        self.last = error
        if not may_repeat(error, runs_once=self._runs_once):
            return False
        self._may_have_run |= error.outcome == "unknown"
        wait_ms = error.retry_after_ms
        if wait_ms is None and error.overloaded:
            wait_ms = OVERLOADED_WAIT_MS
        if wait_ms is None:
            return True
        wait = wait_ms / 1_000 * random.uniform(1, 1 + _SPREAD)  # noqa: S311  # jitter
        if self.deadline is not None and self._loop.time() + wait >= self.deadline:
            return False  # better to hear it now than after a wait for nothing
        return wait

    def settle(self, error: DurableActorError) -> None:
        """Let the last error speak for all tries."""
        is_answer = error.outcome == "failed" and not (
            error.retryable or isinstance(error, CorruptionError)
        )
        if self._may_have_run and not is_answer:
            error.outcome = "unknown"
            error.add_note("an earlier try of the same call may have run")

    def out_of_time(self) -> CallTimeoutError:
        """Return the error that ends a call whose time is over."""
        message = f"no answer within {self._timeout_ms} ms; the last try: {self.last}"
        error = CallTimeoutError(message)
        is_unknown = self._may_have_run or self._is_under_way
        error.outcome = "unknown" if is_unknown else "not_executed"
        return error


def log_retries_as_we_do() -> None:
    """Keep stamina from printing each retry in a program that configured no logs."""
    if structlog.is_configured():
        return
    hooks = get_on_retry_hooks()
    if any(_prints(hook) for hook in hooks):
        set_on_retry_hooks([*(hook for hook in hooks if not _prints(hook)), _log_retry])


def _prints(hook: object) -> bool:
    return getattr(hook, "__module__", "") == "stamina.instrumentation._structlog"


def _log_retry(details: RetryDetails) -> None:
    log.info(
        "call.retried",
        retry=details.retry_num,
        wait_seconds=round(details.wait_for, 2),
        cause=type(details.caused_by).__qualname__,
    )
