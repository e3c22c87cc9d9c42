"""The last resort: two timers of the system that end a process nobody in it can end.

They count the processor time of the process, so a stopped process or a sleeping
machine does not run them out, and they need no Python: while a C function keeps the
interpreter to itself, no thread and no signal handler of Python runs. The first makes
`faulthandler` write the stacks of all threads, which it does in C; the second calls
`_exit`.

Where the C library has no such timers (macOS), there is none.
"""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
import time
from typing import ClassVar, Self

_EXIT_STATUS = 70
_SECONDS_BETWEEN = 1  # the stacks, then the end
_PUT_OFF_SECONDS = 0.5  # not with every round of the loop: it is a system call
_SIGNAL = signal.SIGXCPU  # which means just that: too much processor time
_SIGEV_SIGNAL, _SIGEV_THREAD = 0, 2


class _Event(ctypes.Structure):
    """`struct sigevent`, which is 64 bytes."""

    _fields_: ClassVar = [
        ("value", ctypes.c_long),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    ]


class _Times(ctypes.Structure):
    """`struct itimerspec`: the interval, and the time until the first end."""

    _fields_: ClassVar = [
        ("interval", ctypes.c_long * 2),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    ]


class LastResort:
    """Ends the process unless it is put off in time."""

    def __init__(self, library: ctypes.CDLL, limit_ms: int) -> None:
        self._library = library
        self._limit_ms = limit_ms
        self._put_off_at = 0.0
        dump = _Event(signal=_SIGNAL, notify=_SIGEV_SIGNAL)
        # The C library begins a thread with this function, and this is its argument.
        leave = ctypes.cast(library._exit, ctypes.c_void_p)  # noqa: SLF001  # its name
        end = _Event(value=_EXIT_STATUS, notify=_SIGEV_THREAD, function=leave)
        self._timers = [self._create(dump), self._create(end)]

    @classmethod
    def start(cls, limit_ms: int) -> Self | None:
        """Start the timers; None where there are none."""
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "timer_create") or sys.stderr is None:
            return None
        try:
            faulthandler.register(_SIGNAL, all_threads=True)
            found = cls(library, limit_ms)
        except (OSError, ValueError):  # no descriptor behind stderr, or no timer left
            faulthandler.unregister(_SIGNAL)
            return None
        found.put_off()
        return found

    def put_off(self) -> None:
        """Begin to count again."""
        now = time.monotonic()
        if now - self._put_off_at >= _PUT_OFF_SECONDS:
            self._put_off_at = now
            self._set(self._timers[0], self._limit_ms)
            self._set(self._timers[1], self._limit_ms + _SECONDS_BETWEEN * 1_000)

    def stop(self) -> None:
        """End nothing any more."""
        for timer in self._timers:
            self._library.timer_delete(timer)
        faulthandler.unregister(_SIGNAL)

    def _create(self, event: _Event) -> ctypes.c_void_p:
        timer = ctypes.c_void_p()
        clock = time.CLOCK_PROCESS_CPUTIME_ID
        if self._library.timer_create(clock, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        return timer

    def _set(self, timer: ctypes.c_void_p, delay_ms: int) -> None:
        seconds, ms = divmod(delay_ms, 1_000)
        times = _Times(seconds=seconds, nanoseconds=ms * 1_000_000)
        self._library.timer_settime(timer, 0, ctypes.byref(times), None)
