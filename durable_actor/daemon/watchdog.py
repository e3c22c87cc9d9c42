"""The watchdog: a thread that sees when the event loop does not come round (G20).

Theory of operation
    The thread sends the loop a ping and looks, several times within the shortest limit,
    whether it was answered. What has passed without an answer is how long the loop is
    blocked:

    - over `log_ms`: the stack of the loop's thread is logged, at most once in a while;
    - over `degraded_ms`: `is_alive` says no, and so does `/livez` (`livez.py`);
    - over `interrupt_ms`: object code that holds the loop is interrupted
      (`interrupts.py`), again and again until the loop comes round;
    - over `exit_ms`: the stacks of all threads are dumped and the process ends with 70.
      Everything that was acknowledged is on disk.

    The time is added up look by look, and a look that comes late adds no more than it
    should have, unless the process has worked meanwhile: a process that was stopped, or
    whose machine slept, was not blocked.

    A C function that keeps the interpreter to itself stops this thread, too. So the end
    is also left to a timer of the system that counts processor time and needs nobody
    here: at `exit_ms` of work without a round of the loop it dumps the stacks, and a
    second later the process has ended with the same status.

The thread never logs by itself: what blocks the loop may be the stream of the log, and
whoever watches must not wait for it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from durable_actor.config import WatchdogConfig
from durable_actor.daemon.interrupts import Interrupts
from durable_actor.daemon.last_resort import LastResort
from durable_actor.daemon.metrics import LoopStats
from durable_actor.delivery import Delivery
from durable_actor.log import get_logger

LOG_PAUSE_SECONDS = 5.0  # between two stacks in the log
_LOOKS = 4  # within the shortest limit
_LOOK_SECONDS_MAX = 0.05
_PROBES = 10  # until an interrupt, see `interrupts`
_STACK_FRAMES_MAX = 20
_DUMP_SECONDS = 1.0  # for the last words, which may find nobody who reads

log = get_logger("durable_actor.watchdog")


class Watchdog:
    """Watches one event loop from a thread of its own."""

    def __init__(
        self,
        config: WatchdogConfig,
        *,
        reset: Callable[[Delivery, str], None],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """Watch nothing before `start`.

        Args:
            config: The limits; 0 switches one off.
            reset: Throws the object of a delivery away; runs on the loop.
            end: Ends the process at once, with a status.
        """
        self._config = config
        self._reset = reset
        self._end = end
        limits = (config.log_ms, config.degraded_ms, config.interrupt_ms)
        shortest_ms = min(filter(None, (*limits, config.exit_ms)), default=1_000)
        self._look_seconds = min(shortest_ms / 1_000 / _LOOKS, _LOOK_SECONDS_MAX)
        self._loop: asyncio.AbstractEventLoop
        self._loop_thread_id = 0
        self._interrupts: Interrupts | None = None
        self._last_resort: LastResort | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        # Invariant: pinged - answered is 0 or 1. The loop writes one, we the other.
        self._pinged = 0
        self._answered = 0
        self._pinged_at = 0.0
        self._blocked_ms = 0.0
        self._logged_at = -LOG_PAUSE_SECONDS
        self._logs_dropped = 0
        self._log_writer: threading.Thread | None = None
        self.lag_ms = 0.0  # how long the last ping took
        self.blocked = 0  # how often the loop was blocked for over `log_ms`
        self.degraded = 0  # for over `degraded_ms`

    @property
    def age_ms(self) -> int:
        """For how long the loop has not come round."""
        return int(self._blocked_ms)

    @property
    def is_alive(self) -> bool:
        """Whether the loop has come round within `degraded_ms`."""
        limit_ms = self._config.degraded_ms
        return not limit_ms or self._blocked_ms <= limit_ms

    @property
    def interrupted(self) -> int:
        """How often object code was interrupted."""
        return 0 if self._interrupts is None else self._interrupts.interrupted

    def stats(self) -> LoopStats:
        """Return what `/metrics` tells of the loop."""
        return LoopStats(
            lag_seconds=self.lag_ms / 1_000,
            blocked=self.blocked,
            degraded=self.degraded,
            interrupted=self.interrupted,
        )

    def start(self) -> None:
        """Watch the running loop; call it there."""
        config = self._config
        self._loop = asyncio.get_running_loop()
        self._loop_thread_id = threading.get_ident()
        if config.interrupt_ms and Interrupts.is_possible():
            self._interrupts = Interrupts(
                self._loop,
                limit_ms=config.interrupt_ms,
                probe_ms=max(config.interrupt_ms // _PROBES, 1),
                reset=self._reset,
            )
            self._interrupts.start()
        if config.exit_ms:
            self._last_resort = LastResort.start(config.exit_ms)
        self._thread = threading.Thread(
            target=self._watch, name="watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; call it on the loop. Does nothing if it was not started."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        if self._interrupts is not None:
            self._interrupts.stop()
        if self._last_resort is not None:
            self._last_resort.stop()

    # -- on the loop ----------------------------------------------------------------

    def _beat(self, number: int) -> None:
        if self._thread is None:
            return  # stopped; the timers must stay off
        self.lag_ms = (time.monotonic() - self._pinged_at) * 1_000
        if self._interrupts is not None:
            self._interrupts.beat()
        if self._last_resort is not None:
            self._last_resort.put_off()
        self._answered = number

    # -- in the thread --------------------------------------------------------------

    def _watch(self) -> None:
        looked_at, worked = time.monotonic(), time.process_time()
        while not self._stopped.wait(self._look_seconds):
            now, work = time.monotonic(), time.process_time()
            # What is more than that was a pause of the whole process, or work in C.
            longest = max(2 * self._look_seconds, work - worked)
            passed_ms = min(now - looked_at, longest) * 1_000
            looked_at, worked = now, work
            if self._answered == self._pinged:
                self._blocked_ms = 0.0
                self._ping(now)
            else:
                before_ms = self._blocked_ms
                self._blocked_ms = before_ms + passed_ms
                self._judge(before_ms, self._blocked_ms)

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        self._pinged += 1
        try:
            self._loop.call_soon_threadsafe(self._beat, self._pinged)
        except RuntimeError:  # the loop is closed, and whoever had it forgot us
            self._stopped.set()

    def _judge(self, before_ms: float, blocked_ms: float) -> None:
        config = self._config

        def passed(limit_ms: int) -> bool:
            return bool(limit_ms) and before_ms <= limit_ms < blocked_ms

        if passed(config.log_ms):
            self.blocked += 1
            self._log_stack()
        if passed(config.degraded_ms):
            self.degraded += 1
        if self._interrupts is not None:
            probe_ms = config.interrupt_ms / _PROBES
            is_due = blocked_ms >= config.interrupt_ms
            if is_due or before_ms // probe_ms != blocked_ms // probe_ms:
                self._interrupts.probe()
        if passed(config.exit_ms):
            self._give_up()

    def _log_stack(self) -> None:
        now = time.monotonic()
        writer = self._log_writer
        is_busy = writer is not None and writer.is_alive()
        if is_busy or now - self._logged_at < LOG_PAUSE_SECONDS:
            self._logs_dropped += 1
            return
        self._logged_at = now
        dropped, self._logs_dropped = self._logs_dropped, 0
        stack, blocked_ms = self._stack(), self.age_ms

        def write() -> None:
            log.warning(
                "loop.blocked", blocked_ms=blocked_ms, unlogged=dropped, stack=stack
            )

        self._log_writer = threading.Thread(
            target=write, name="watchdog-log", daemon=True
        )
        self._log_writer.start()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread_id)  # noqa: SLF001  # as faulthandler does
        frames = traceback.extract_stack(frame, limit=_STACK_FRAMES_MAX)
        return "".join(traceback.format_list(frames))

    def _give_up(self) -> None:
        detail = (
            f"the event loop has not come round for {self.age_ms} ms; the stacks of all"
            " threads are above"
        )
        line = {"event": "exit", "status": 70, "code": "watchdog", "detail": detail}

        def tell() -> None:
            if sys.stderr is not None:
                faulthandler.dump_traceback(sys.stderr.fileno(), all_threads=True)
                os.write(sys.stderr.fileno(), (json.dumps(line) + "\n").encode())

        telling = threading.Thread(target=tell, name="watchdog-dump", daemon=True)
        telling.start()
        telling.join(_DUMP_SECONDS)
        self._end(70)
