"""An event loop without threads, sockets or waiting: a seed decides what comes first.

Time is virtual. It jumps to the next timer when nothing is ready, and each callback
costs a little of it, so what happens elsewhere (the disk is done, a timer is due) falls
between any two callbacks. What asyncio promises stays true: callbacks run in the order
in which they were registered; only timers of the same instant come in any order.

A loop is one life of a process. At a crash it is stopped where it stands, and `bury`
does away with what was left, none of which runs any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import threading
from asyncio import events
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple["asyncio.Future[Any]", Callable[[], Any]]

_SECONDS_MAX = 3_600  # of one life, in virtual time
_STEPS_MAX = 400_000  # of one life; a loop that goes round and round is found out


class StuckError(Exception):
    """Somebody waits, and nothing will ever happen; or too much happens."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """One life of a process, in virtual time."""

    def __init__(self, rng: random.Random, now: float) -> None:
        super().__init__()
        self._rng = rng
        self._now = now
        self._ends_at = now + _SECONDS_MAX
        self._clock_resolution = 0.0
        self._step_seconds = rng.choice((1e-6, 1e-5, 1e-4))
        self.steps = 0
        self.crash_at_step = 0  # 0: not at a step
        self.crashed: str | None = None  # where, once it has
        self.is_buried = False
        self.complaints: list[str] = []  # exceptions that nobody saw

    # -- what asyncio asks of its loop -----------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon_threadsafe(  # type: ignore[override]  # takes what `call_soon` takes
        self, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]  # there is only one
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        return self.elsewhere(lambda: func(*args))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.is_buried:
            return
        error = context.get("exception")
        self.complaints.append(f"{context.get('message')}: {error!r}")

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # -- what the simulation asks ----------------------------------------------

    def elsewhere(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run something in a thread that is not there: later, and all at once."""
        thread = Elsewhere(self, self._rng, slow=0.0)
        return thread.run(work)

    def crash(self, where: str) -> None:
        """Run nothing any more once this callback is over."""
        self.crashed = self.crashed or where

    def run_life(self, main: asyncio.Future[Any]) -> None:
        """Run until `main` is done, or until the crash.

        Raises:
            StuckError: Nothing is left that could happen.
        """
        inner: Any = self  # asyncio's own attributes have no types
        ready: deque[Any] = inner._ready
        inner._thread_id = threading.get_ident()
        events._set_running_loop(self)
        try:
            while self.crashed is None and not main.done():
                self._fetch_due(ready)
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                self._now += self._step_seconds
                self.steps += 1
                handle._run()
                if self.steps == self.crash_at_step:
                    self.crash("between two callbacks")
                elif self.steps > _STEPS_MAX:
                    message = f"more than {_STEPS_MAX} steps"
                    raise StuckError(message)
                elif self._now > self._ends_at:
                    message = f"not at its end after {_SECONDS_MAX} seconds"
                    raise StuckError(message)
        finally:
            events._set_running_loop(None)
            inner._thread_id = None

    def bury(self) -> None:
        """Do away with what is left after a crash, and run none of it."""
        self.is_buried = True
        buried: set[asyncio.Task[Any]] = set()
        # What they do on their way out is planned, and never happens.
        events._set_running_loop(self)
        try:
            while left := asyncio.all_tasks(self) - buried:
                for task in left:
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coroutine: Any = task.get_coro()
                    with contextlib.suppress(BaseException):
                        coroutine.close()
                buried |= left
        finally:
            events._set_running_loop(None)
        self.close()

    def _check_closed(self) -> None:
        pass  # the last words of the dead are nobody's concern

    def _fetch_due(self, ready: deque[Any]) -> None:
        inner: Any = self
        scheduled: list[Any] = inner._scheduled
        while scheduled and scheduled[0]._cancelled:
            inner._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                message = "nothing is left to happen, and somebody waits"
                raise StuckError(message)
            self._now = max(self._now, scheduled[0]._when)
        if not scheduled or scheduled[0]._when > self._now:
            return
        due: list[Any] = []
        same = 0  # where those of the same instant begin
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                inner._timer_cancelled_count -= 1
                continue
            if not due or due[same]._when != handle._when:
                same = len(due)
                due.append(handle)
            else:
                due.insert(self._rng.randint(same, len(due)), handle)
        ready.extend(due)


class Elsewhere:
    """A thread of its own, as the loop sees it: in order, and answering later."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random, *, slow: float) -> None:
        self._loop = loop
        self._rng = rng
        self._slow = slow  # how often it takes long
        self._line: deque[Work] = deque()
        self._answers_at = 0.0
        self._is_at_work = False
        self.under_way = 0  # asked for and not answered
        self.is_answering = 0  # done, and not told yet

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have it done after everything that was asked for before."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._line.append((future, work))
        self.under_way += 1
        if not self._is_at_work:
            self._begin()
        return future

    def _begin(self) -> None:
        self._is_at_work = True
        self._loop.call_later(self._seconds(), self._work)

    def _work(self) -> None:
        future, work = self._line.popleft()
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001  # told to whoever asked
            error = raised
        if self._loop.crashed is not None:
            return
        self.is_answering += 1
        self._answers_at = max(
            self._answers_at + 1e-9, self._loop.time() + self._seconds()
        )
        self._loop.call_at(self._answers_at, self._answer, future, result, error)
        if self._line:
            self._begin()
        else:
            self._is_at_work = False

    def _answer(
        self, future: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        self.under_way -= 1
        self.is_answering -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _seconds(self) -> float:
        rng = self._rng
        if rng.random() < self._slow:
            return rng.choice((0.0005, 0.001, 0.002, 0.02))
        return rng.choice((0.0, 0.00002, 0.0001))
