"""Time is converted once, never shortens a wait, and is asked for in one place."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor.clock import (
    TIME_MS_MAX,
    Clock,
    SystemClock,
    deadline,
    duration_ms,
    instant_ms,
    sleep_until,
    to_datetime,
)
from durable_actor.errors import InvalidTimeError
from durable_actor.testing import START_MS, ManualClock

# -- durations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0 s", 0),
        ("1 ms", 1),
        ("10 seconds", 10_000),
        ("1 second", 1_000),
        ("90 sec", 90_000),
        ("1.5 minutes", 90_000),
        ("2 min", 120_000),
        ("1 hour", 3_600_000),
        ("  3H  ", 10_800_000),
        ("7 days", 604_800_000),
        ("2 weeks", 1_209_600_000),
        ("250 milliseconds", 250),
        ("0.0001 ms", 1),
        ("1.0005 seconds", 1_001),
    ],
)
def test_a_text_is_a_duration(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@given(amount=st.decimals(0, 10**6, places=4), unit=st.sampled_from(["s", "min", "h"]))
def test_a_text_means_exactly_its_amount_rounded_up(amount: Decimal, unit: str) -> None:
    """As a float, 4.35 minutes would be a thousandth of a second too long."""
    scale = {"s": 1_000, "min": 60_000, "h": 3_600_000}[unit]
    assert duration_ms(f"{amount} {unit}") == math.ceil(amount * scale)


@pytest.mark.parametrize(
    "wrong",
    ["", "10", "s", "-1 s", "1e3 s", "1 fortnight", "1 s 2", "nan s", "inf s", "1,5 s"],
)
def test_a_text_that_is_no_duration_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidTimeError):
        duration_ms(wrong)


@pytest.mark.parametrize("wrong", [1.5, None, True, b"1 s", [1], math.nan])
def test_what_is_no_duration_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidTimeError):
        duration_ms(wrong)


@pytest.mark.parametrize(
    "wrong", [-1, timedelta(-1), TIME_MS_MAX + 1, timedelta.max, "999999999 weeks"]
)
def test_a_duration_is_not_negative_and_ends_before_the_year_10000(wrong: Any) -> None:
    with pytest.raises(InvalidTimeError):
        duration_ms(wrong)


@given(us=st.integers(0, 10**15))
def test_a_timedelta_is_never_shortened(us: int) -> None:
    ms = duration_ms(timedelta(microseconds=us))
    assert us <= ms * 1_000 < us + 1_000


# -- instants -------------------------------------------------------------------


@given(
    moment=st.datetimes(
        datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)
    )
)
def test_an_instant_is_the_first_whole_millisecond_not_before_it(
    moment: datetime,
) -> None:
    ms = instant_ms(moment, now_ms=0)

    assert timedelta(0) <= to_datetime(ms) - moment < timedelta(milliseconds=1)


def test_an_instant_is_a_datetime_a_timedelta_from_now_or_milliseconds() -> None:
    zone = timezone(timedelta(hours=2))

    assert instant_ms(datetime(2027, 1, 1, 2, tzinfo=zone), now_ms=0) == (
        instant_ms(datetime(2027, 1, 1, tzinfo=UTC), now_ms=0)
    )
    assert instant_ms(timedelta(microseconds=1), now_ms=5) == 6
    assert instant_ms(timedelta(seconds=-1), now_ms=5_000) == 4_000
    assert instant_ms(7, now_ms=5) == 7
    assert instant_ms(TIME_MS_MAX, now_ms=5) == TIME_MS_MAX


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        -1,
        TIME_MS_MAX + 1,
        True,
        1.5,
        "tomorrow",
        None,
        timedelta.max,
        timedelta.min,
        datetime.min,
        datetime.max,
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime(1969, 12, 31, tzinfo=UTC),
    ],
)
def test_what_is_no_instant_is_refused(wrong: Any) -> None:
    if wrong is datetime.max:  # local time, so it may lie within
        try:
            assert instant_ms(wrong, now_ms=0) <= TIME_MS_MAX
        except InvalidTimeError:
            pass
        return
    with pytest.raises(InvalidTimeError):
        instant_ms(wrong, now_ms=START_MS)


# -- the system's clock -----------------------------------------------------------


class Wall:
    """A wall clock beside a loop that the test drives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = START_MS
        self.timers: list[tuple[float, Any]] = []
        monkeypatch.setattr(
            "durable_actor.clock.time.time_ns", lambda: self.ms * 1_000_000
        )
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(
            loop, "call_later", lambda delay, look: self._add(delay, look)
        )

    def _add(self, delay: float, look: Any) -> asyncio.Handle:
        handle = asyncio.Handle(look, (), asyncio.get_running_loop())
        self.timers.append((delay, handle))
        return handle

    def wake(self) -> float:
        """Let the loop's timer fire; return how long it was to wait."""
        delay, handle = self.timers.pop(0)
        if not handle.cancelled():
            handle._run()
        return delay


@pytest.fixture
async def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


async def test_a_timer_looks_again_every_second_and_never_fires_early(
    wall: Wall,
) -> None:
    fired: list[int] = []
    SystemClock().call_at(START_MS + 2_500, lambda: fired.append(wall.ms))
    waits = []
    while not fired:
        wait = wall.timers[0][0]
        waits.append(wait)
        # The loop wakes a millisecond early, unless it was to wait for only one.
        wall.ms += max(1, round(wait * 1_000) - 1)
        wall.wake()

    assert waits == [1.0, 1.0, 0.502, 0.001]
    assert fired == [START_MS + 2_500]
    assert wall.timers == []


async def test_a_timer_notices_a_clock_that_jumps_forward_within_a_second(
    wall: Wall,
) -> None:
    fired: list[bool] = []
    SystemClock().call_at(START_MS + 3_600_000, lambda: fired.append(True))
    wall.ms += 7_200_000

    assert wall.wake() <= 1.0
    assert fired == [True]


async def test_a_timer_waits_again_after_a_clock_that_jumps_back(wall: Wall) -> None:
    fired: list[bool] = []
    SystemClock().call_at(START_MS + 500, lambda: fired.append(True))
    wall.ms -= 10_000
    wall.wake()
    assert fired == []

    wall.ms += 10_500
    wall.wake()
    assert fired == [True]


async def test_a_cancelled_timer_does_not_fire(wall: Wall) -> None:
    fired: list[bool] = []
    timer = SystemClock().call_at(START_MS + 2_000, lambda: fired.append(True))
    wall.ms += 1_000
    wall.wake()
    timer.cancel()
    wall.ms += 2_000
    wall.wake()

    assert fired == []


# -- deadlines and sleep ------------------------------------------------------------


async def test_a_deadline_ends_what_takes_too_long(manual: ManualClock) -> None:
    async def work() -> None:
        async with deadline(manual, 100):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await manual.advance(99)
    assert not task.done()
    await manual.advance(1)

    with pytest.raises(TimeoutError):
        await task


async def test_what_ends_in_time_leaves_no_timer(manual: ManualClock) -> None:
    async with deadline(manual, 100):
        pass
    assert manual.next_timer_at_ms is None


async def test_a_deadline_of_nothing_ends_the_first_wait(manual: ManualClock) -> None:
    with pytest.raises(TimeoutError):
        async with deadline(manual, 0):
            await asyncio.Event().wait()


async def test_a_cancellation_is_not_a_timeout(manual: ManualClock) -> None:
    async def work() -> None:
        async with deadline(manual, 100):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert manual.next_timer_at_ms is None


async def test_sleep_until_returns_at_the_time(manual: ManualClock) -> None:
    task = asyncio.ensure_future(sleep_until(manual, START_MS + 100))
    await manual.advance(99)
    assert not task.done()
    await manual.advance(1)
    await task
    await sleep_until(manual, START_MS - 1)  # the past needs no waiting


async def test_a_sleep_that_is_cancelled_leaves_no_timer(manual: ManualClock) -> None:
    task = asyncio.ensure_future(sleep_until(manual, START_MS + 100))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert manual.next_timer_at_ms is None


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock()


def test_both_clocks_are_clocks() -> None:
    clocks: list[Clock] = [SystemClock(), ManualClock()]
    assert all(clock.now_ms() > 0 for clock in clocks)
