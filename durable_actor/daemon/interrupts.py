"""Interrupts: end object code that holds the event loop, and nothing else (G20, F9).

Theory of operation
    An exception can be raised from outside at any instruction of a thread, and most
    instructions are not made for that: half of a seal, or of the loop's own queues,
    would be left behind. So it is raised by a signal handler. Python runs one in the
    main thread, between two instructions, and hands it the frame that it came upon; an
    exception leaves from exactly there. No time passes between looking and raising.

    It is raised only if that frame is object code:

    - The context belongs to a delivery of an object.
    - Between the frame and the first of ours beneath it there is nothing of ours, of
      asyncio or of the logs, whose changes must not be left half done.
    - That first frame of ours is a coroutine. It stands at an `await`, and behind one
      of those anything may be raised. A plain function of ours that has called object
      code in the middle of something is let finish.

    Otherwise the next probe looks again. Whatever was raised and whoever caught it, the
    object is reset: what its code left in memory is thrown away, and what it had not
    committed is not written.

    A signal comes from the watchdog once per probe, and from a timer that counts the
    processor time of the process: a C function that keeps the interpreter to itself,
    such as the search of a regular expression, lets no thread tell anyone anything, but
    many of them look for signals. The delivery is interrupted once as many probes have
    met it as make up its limit. A delivery that merely comes after others, in a long
    round, is met once.

Only the main thread has signal handlers. A loop in another thread cannot be
interrupted; the watchdog still tells of it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import structlog

import durable_actor
from durable_actor.delivery import Delivery, current_delivery
from durable_actor.signals import Interrupted

_SIGNAL = signal.SIGPROF
# Where a change may be half done: our own code, the loop, logs, locks and imports.
_CAREFUL = (
    *(
        str(Path(str(module.__file__)).parent) + "/"
        for module in (durable_actor, asyncio, logging, structlog)
    ),
    str(threading.__file__),
    "<frozen importlib",
)
_HANDLE_RUN = asyncio.Handle._run.__code__  # noqa: SLF001  # beneath every task
_EARLY = 0.9  # a probe may come so early and still count
_FOREVER_SECONDS = 1e9


class Interrupts:
    """The signal handler of one loop, which runs in the main thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit_ms: int,
        probe_ms: int,
        reset: Callable[[Delivery, str], None],
    ) -> None:
        """Interrupt nothing before `start`.

        Args:
            loop: Whose callbacks are watched.
            limit_ms: For how long a delivery may hold the loop.
            probe_ms: How often to look at what holds it.
            reset: Throws the object of a delivery away; runs on the loop, soon.
        """
        self._loop = loop
        self._limit_ms = limit_ms
        self._probe_seconds = probe_ms / 1_000
        self._probes_max = max(limit_ms // probe_ms, 1)
        self._reset = reset
        self._thread_id = threading.get_ident()
        self._before: object = None
        self._beat_at = _FOREVER_SECONDS  # when the loop last came round
        self._probed_at = 0.0
        self._met = 0  # the number of the delivery that was met
        self._probes = 0  # that met it one after the other
        self.interrupted = 0

    @staticmethod
    def is_possible() -> bool:
        """Whether this thread can be interrupted."""
        return threading.current_thread() is threading.main_thread()

    def start(self) -> None:
        """Install the handler; call it on the loop, in the main thread."""
        self._before = signal.signal(_SIGNAL, self._probe)
        self.beat()

    def stop(self) -> None:
        """Put back what was there; call it on the loop."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._beat_at = _FOREVER_SECONDS
        signal.signal(_SIGNAL, self._before or signal.SIG_DFL)  # type: ignore[arg-type]  # came from there

    def beat(self) -> None:
        """Take note that the loop came round; call it there."""
        self._beat_at = time.monotonic()
        self._probes = 0
        signal.setitimer(signal.ITIMER_PROF, self._probe_seconds, self._probe_seconds)

    def probe(self) -> None:
        """Look at what holds the loop; call it from another thread."""
        signal.pthread_kill(self._thread_id, _SIGNAL)

    def _probe(self, number: int, frame: FrameType | None) -> None:
        del number
        now = time.monotonic()
        since = max(self._beat_at, self._probed_at)
        is_due = self._probes >= self._probes_max  # it only was not in its own code
        if not is_due and now - since < _EARLY * self._probe_seconds:
            return  # two senders, or a signal that comes late: the loop went on
        self._probed_at = now
        delivery = current_delivery.get()
        if delivery is None:
            self._probes = 0
            return
        if delivery.number != self._met:
            self._met, self._probes = delivery.number, 0
        self._probes += 1
        if self._probes < self._probes_max or not _is_object_code(frame):
            return
        self._probes = 0
        self.interrupted += 1
        reason = (
            f"{delivery.label} held the event loop for over {self._limit_ms} ms and was"
            " interrupted; let it await now and then, or work in asyncio.to_thread"
        )
        # Not at once: it may catch what is raised, and go on for a moment.
        self._loop.call_soon_threadsafe(self._reset, delivery, reason)
        raise Interrupted(reason)


def _is_object_code(frame: FrameType | None) -> bool:
    """Tell whether an exception may be raised in this frame."""
    is_innermost = True
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_CAREFUL):
            # It stands at an await, or is the loop itself, which expects anything.
            is_ready = code.co_flags & inspect.CO_COROUTINE or code is _HANDLE_RUN
            return bool(is_ready) and not is_innermost
        is_innermost = False
        frame = frame.f_back
    return False
