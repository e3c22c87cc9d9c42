"""Time: the only place that turns what people write into integer milliseconds.

Inside, an instant is milliseconds since the epoch and a duration is milliseconds, both
`int`. `datetime`, `timedelta` and texts such as `"10 seconds"` exist only at the public
face and are converted here, once.

Nothing else in the project asks the system for the time, so a test that hands in a
manual clock decides about all of it.

The wall clock may be put forwards or back while the process runs. So there are two
(RELIABILITY G14): instants follow the wall clock, which is looked at again at least
every second, and durations follow one that only ever goes on. A sleep ends when either
says so.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol, TypeAlias

from durable_actor.errors import InvalidTimeError

Duration: TypeAlias = timedelta | str | int
"""A `timedelta`, a text such as `"90 seconds"`, or an `int` of milliseconds."""

Instant: TypeAlias = datetime | timedelta | int
"""A `datetime`, a `timedelta` from now, or an `int` of epoch milliseconds."""

TIME_MS_MAX = 253_402_300_799_999  # the last millisecond of the year 9999
_RECHECK_SECONDS_MAX = 1.0  # the wall clock may jump; look again at least this often

_UNITS_MS = {
    "ms": 1,
    "millisecond": 1,
    "s": 1_000,
    "sec": 1_000,
    "second": 1_000,
    "m": 60_000,
    "min": 60_000,
    "minute": 60_000,
    "h": 3_600_000,
    "hour": 3_600_000,
    "d": 86_400_000,
    "day": 86_400_000,
    "w": 604_800_000,
    "week": 604_800_000,
}
_DURATION = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]+)\s*", re.IGNORECASE)


class Timer(Protocol):
    """Something that was scheduled and can be called off."""

    def cancel(self) -> None:
        """Call it off; does nothing once it has fired."""
        ...


class Clock(Protocol):
    """What the project needs to know about time."""

    def now_ms(self) -> int:
        """Return the wall-clock time in milliseconds since the epoch."""
        ...

    def elapsed_ms(self) -> int:
        """Return milliseconds since some moment, which nobody can put forwards or back.

        Only differences mean anything, and only within one process.
        """
        ...

    def call_at(self, due_at_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the running loop once the wall clock reaches the time."""
        ...

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the running loop after a while, whatever the wall says."""
        ...


class SystemClock:
    """The computer's clock."""

    def now_ms(self) -> int:
        """Return the wall-clock time in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def elapsed_ms(self) -> int:
        """Return the milliseconds of the running loop's own clock."""
        return int(asyncio.get_running_loop().time() * 1_000)

    def call_at(self, due_at_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` once the wall clock reaches the time, never before it."""
        return _SystemTimer(self, due_at_ms, callback)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` after a while of the loop's own clock."""
        return asyncio.get_running_loop().call_later(delay_ms / 1_000, callback)


class _SystemTimer:
    """Waits for a wall-clock time in stretches of at most a second.

    A loop timer follows the monotonic clock and may also wake a little early, so the
    wall clock is asked again before the callback runs.
    """

    __slots__ = ("_callback", "_clock", "_due_at_ms", "_handle")

    def __init__(
        self, clock: SystemClock, due_at_ms: int, callback: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._due_at_ms = due_at_ms
        self._callback = callback
        self._handle = self._arm()

    def cancel(self) -> None:
        self._handle.cancel()

    def _arm(self) -> asyncio.TimerHandle:
        missing_ms = self._due_at_ms - self._clock.now_ms()
        delay = min(max(missing_ms / 1_000, 0.0), _RECHECK_SECONDS_MAX)
        return asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        if self._clock.now_ms() >= self._due_at_ms:
            self._callback()
        else:
            self._handle = self._arm()


@asynccontextmanager
async def deadline(clock: Clock, delay_ms: int) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the block after `delay_ms` have passed; `TimeoutError` leaves it.

    Like `asyncio.timeout`, but obeys a manual clock.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as scope:

        def expire() -> None:
            if not scope.expired():
                scope.reschedule(loop.time())

        timer = clock.call_later(delay_ms, expire)
        try:
            yield scope
        finally:
            timer.cancel()


async def sleep_until(clock: Clock, due_at_ms: int) -> None:
    """Return once the clock reaches the time.

    If the clock is put back meanwhile, return after as long as there was to wait.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    timers = (
        clock.call_at(due_at_ms, wake),
        clock.call_later(max(due_at_ms - clock.now_ms(), 0), wake),
    )
    try:
        await done
    finally:
        for timer in timers:
            timer.cancel()


def duration_ms(value: Duration) -> int:
    """Return a duration in milliseconds.

    Raises:
        InvalidTimeError: Not a duration, negative, or beyond the year 9999.
    """
    if isinstance(value, timedelta):
        ms = _whole_ms(value)
    elif isinstance(value, str):
        ms = _parse_duration(value)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTimeError(_not_a("duration", value, '"10 seconds", timedelta'))
    else:
        ms = value
    if not 0 <= ms <= TIME_MS_MAX:
        message = f"the duration {value!r} is negative or beyond the year 9999"
        raise InvalidTimeError(message)
    return ms


def instant_ms(value: Instant, *, now_ms: int) -> int:
    """Return an instant in epoch milliseconds. A naive `datetime` is local time.

    Raises:
        InvalidTimeError: Not an instant, not positive, or beyond the year 9999.
    """
    if isinstance(value, timedelta):
        ms = now_ms + _whole_ms(value)
    elif isinstance(value, datetime):
        try:
            since_epoch = value.astimezone(UTC) - _EPOCH
        except (OverflowError, ValueError) as error:  # at the ends of the calendar
            message = f"the time {value!r} is not between 1970 and the year 9999"
            raise InvalidTimeError(message) from error
        ms = _whole_ms(since_epoch)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTimeError(_not_a("time", value, "datetime, timedelta"))
    else:
        ms = value
    if not 0 < ms <= TIME_MS_MAX:
        message = f"the time {value!r} is not between 1970 and the year 9999"
        raise InvalidTimeError(message)
    return ms


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(at_ms: int) -> datetime:
    """Return an instant as an aware `datetime` in UTC."""
    return _EPOCH + timedelta(milliseconds=at_ms)


def _whole_ms(value: timedelta) -> int:
    """Round up: nothing is earlier, and no wait shorter, than what was asked for."""
    ms, rest = divmod(value, timedelta(milliseconds=1))
    return ms + bool(rest)


def _parse_duration(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match:
        amount, unit = match[1], match[2].lower()
        scale = _UNITS_MS.get(unit) or _UNITS_MS.get(unit.removesuffix("s"))
        if scale:
            return math.ceil(Decimal(amount) * scale)
    raise InvalidTimeError(_not_a("duration", text, '"10 seconds", "1 hour"'))


def _not_a(what: str, value: object, examples: str) -> str:
    return (
        f"{value!r} is not a {what}; write for example {examples},"
        " or an int of milliseconds"
    )
