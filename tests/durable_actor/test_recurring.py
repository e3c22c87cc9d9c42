"""When something recurs, and the scheduler that says so."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor.clock import to_datetime
from durable_actor.config import Config, StorageConfig
from durable_actor.entrypoints import DurableObject
from durable_actor.errors import ConfigError, InvalidTimeError
from durable_actor.host import Host
from durable_actor.recurring import (
    Cron,
    Every,
    Recurring,
    Timetable,
    _Trigger,
    describe,
)
from durable_actor.rpc import CallOptions
from durable_actor.testing import open_test_host
from tests.support.leftovers import Leftovers

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

BERLIN = "Europe/Berlin"
DEADLINE_SECONDS = 20  # a busy machine is not a failing test


def ms(*parts: int, zone: str = "UTC", fold: int = 0) -> int:
    moment = datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold)  # type: ignore[arg-type, misc]  # the parts are up to the minute
    return int(moment.timestamp()) * 1_000


def firings(timetable: Timetable, after_ms: int, count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        at_ms = timetable.next_after(found[-1] if found else after_ms)
        if at_ms is None:
            break
        found.append(at_ms)
    return found


def berlin(times_ms: list[int]) -> list[str]:
    zone = ZoneInfo(BERLIN)
    return [f"{to_datetime(at_ms).astimezone(zone):%d %H:%M%z}" for at_ms in times_ms]


# Intervals.


def test_an_interval_is_counted_from_its_anchor() -> None:
    every = Every("10 minutes", anchor_ms=5)
    assert firings(every, 5, 3) == [600_005, 1_200_005, 1_800_005]
    assert every.next_after(600_004) == 600_005
    assert every.next_after(-1) == 5


@given(
    every_ms=st.integers(10, 10**9),
    anchor_ms=st.integers(0, 2**42),
    at_ms=st.integers(0, 2**42),
)
def test_the_next_time_of_an_interval_is_the_first_one_later(
    every_ms: int, anchor_ms: int, at_ms: int
) -> None:
    found = Every(every_ms, anchor_ms=anchor_ms).next_after(at_ms)
    assert at_ms < found <= at_ms + every_ms
    assert (found - anchor_ms) % every_ms == 0


@pytest.mark.parametrize("every", [0, 9, "5 ms", timedelta(0)])
def test_an_interval_that_is_a_loop_is_refused(every: object) -> None:
    with pytest.raises(ConfigError, match="less than 10 ms"):
        Every(every)  # type: ignore[arg-type]  # one of the spellings of a duration


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidTimeError, match="soon"):
        Every("soon")


# Cron expressions.


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/20 * * * *", ["14 12:20", "14 12:40", "14 13:00"]),
        ("30 4 * * *", ["15 04:30", "16 04:30", "17 04:30"]),
        ("0 9 * * MON-FRI", ["15 09:00", "18 09:00", "19 09:00"]),
        ("0 0 L * *", ["31 00:00", "28 00:00", "31 00:00"]),
        ("0 0 * * FRI#1", ["05 00:00", "05 00:00", "02 00:00"]),
        ("@hourly", ["14 13:00", "14 14:00", "14 15:00"]),
        ("@daily", ["15 00:00", "16 00:00", "17 00:00"]),
        ("@midnight", ["15 00:00", "16 00:00", "17 00:00"]),
        (" @Daily ", ["15 00:00", "16 00:00", "17 00:00"]),
        ("@weekly", ["17 00:00", "24 00:00", "31 00:00"]),
        ("@monthly", ["01 00:00", "01 00:00", "01 00:00"]),
        ("@yearly", ["01 00:00", "01 00:00", "01 00:00"]),
        ("@annually", ["01 00:00", "01 00:00", "01 00:00"]),
    ],
)
def test_a_cron_expression_means_what_cron_says(
    expression: str, expected: list[str]
) -> None:
    start_ms = ms(2027, 1, 14, 12, 0)  # a Thursday
    found = [to_datetime(at) for at in firings(Cron(expression), start_ms, 3)]
    assert [f"{at:%d %H:%M}" for at in found] == expected


def test_a_day_of_the_month_or_a_day_of_the_week_is_enough() -> None:
    cron = Cron("0 0 13 * FRI")
    found = [to_datetime(at) for at in firings(cron, ms(2027, 7, 31), 6)]
    assert [f"{at:%a %d}" for at in found] == [
        "Fri 06",
        "Fri 13",
        "Fri 20",
        "Fri 27",
        "Fri 03",
        "Fri 10",
    ]
    later = [to_datetime(at) for at in firings(cron, ms(2027, 9, 11), 2)]
    assert [f"{at:%a %d}" for at in later] == ["Mon 13", "Fri 17"]


def test_a_star_in_one_of_the_days_leaves_the_other_alone() -> None:
    only_13th = firings(Cron("0 0 13 * *"), ms(2027, 8, 1), 2)
    assert only_13th == [ms(2027, 8, 13), ms(2027, 9, 13)]
    only_fridays = firings(Cron("0 0 * * FRI"), ms(2027, 8, 1), 2)
    assert only_fridays == [ms(2027, 8, 6), ms(2027, 8, 13)]


def test_the_29th_of_february_comes_every_four_years() -> None:
    found = firings(Cron("0 0 29 2 *"), ms(2027, 1, 1), 2)
    assert found == [ms(2028, 2, 29), ms(2032, 2, 29)]


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 30 2 *",
        "0 0 31 2 *",
        "0 0 31 4,6,9,11 *",
        "61 * * * *",
        "0 25 * * *",
        "* * * *",
        "",
        "@sometimes",
        "every day",
        "\N{SUPERSCRIPT TWO} * * * *",
    ],
)
def test_an_expression_that_is_none_is_refused_by_name(expression: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cron(expression)
    assert repr(expression) in str(caught.value)


@pytest.mark.parametrize(
    "zone", ["Mars/Base", "", "Europe", "../../etc/passwd", "Europe/Berlin\0"]
)
def test_a_time_zone_that_is_none_is_refused_by_name(zone: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cron("* * * * *", zone)
    assert repr(zone) in str(caught.value)


# Summer time. In Berlin it begins on 29 March 2026 and 28 March 2027, when 02:00 is
# 03:00, and ends on 25 October 2026 and 31 October 2027, when 03:00 is 02:00 again.


@pytest.mark.parametrize(
    ("start_ms", "expected"),
    [
        (
            ms(2026, 3, 27, 12),
            ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"],
        ),
        (
            ms(2027, 3, 26, 12),
            ["27 02:30+0100", "28 03:00+0200", "29 02:30+0200"],
        ),
        (
            ms(2026, 10, 23, 12),
            ["24 02:30+0200", "25 02:30+0200", "26 02:30+0100"],
        ),
        (
            ms(2027, 10, 29, 12),
            ["30 02:30+0200", "31 02:30+0200", "01 02:30+0100"],
        ),
    ],
    ids=["begins 2026", "begins 2027", "ends 2026", "ends 2027"],
)
def test_a_daily_time_comes_once_a_day_when_the_clocks_change(
    start_ms: int, expected: list[str]
) -> None:
    """What falls into the missing hour follows it; the hour twice counts once."""
    assert berlin(firings(Cron("30 2 * * *", BERLIN), start_ms, 3)) == expected


@pytest.mark.parametrize(
    ("start_ms", "expected"),
    [
        (ms(2027, 3, 28, 0), ["28 01:30+0100", "28 03:30+0200", "28 04:30+0200"]),
        (
            ms(2027, 10, 30, 23, 45),
            ["31 02:30+0200", "31 02:30+0100", "31 03:30+0100"],
        ),
    ],
    ids=["begins", "ends"],
)
def test_an_hourly_time_comes_every_hour_that_passes(
    start_ms: int, expected: list[str]
) -> None:
    assert berlin(firings(Cron("30 * * * *", BERLIN), start_ms, 3)) == expected


@pytest.mark.parametrize(
    ("summer_ms", "winter_ms"),
    [
        (ms(2026, 3, 28), ms(2026, 10, 24)),
        (ms(2027, 3, 27), ms(2027, 10, 30)),
    ],
    ids=["2026", "2027"],
)
def test_midnight_stays_midnight(summer_ms: int, winter_ms: int) -> None:
    for start_ms in (summer_ms, winter_ms):
        found = berlin(firings(Cron("@daily", BERLIN), start_ms, 4))
        assert all(" 00:00" in at for at in found)


def test_in_the_hour_that_comes_again_the_next_time_is_still_later() -> None:
    """02:30 was in the first pass; in the second one it is the next day's turn."""
    cron = Cron("30 2 * * *", BERLIN)
    again_ms = ms(2027, 10, 31, 2, 10, zone=BERLIN, fold=1)
    assert berlin(firings(cron, again_ms, 1)) == ["01 02:30+0100"]


TIMETABLES: list[Timetable] = [
    Cron("30 2 * * *", BERLIN),
    Cron("15,45 2,3 * * *", BERLIN),
    Cron("0 0 1 * MON", BERLIN),
    Cron("*/7 * * * *", BERLIN),
    Cron("5 4 29 2 *"),
    Every("7 minutes", anchor_ms=13),
]
CHANGES_MS = [
    ms(2026, 3, 29, 1),
    ms(2026, 10, 25, 1),
    ms(2027, 3, 28, 1),
    ms(2027, 10, 31, 1),
]
around_changes = st.builds(
    lambda change_ms, offset_ms: change_ms + offset_ms,
    st.sampled_from(CHANGES_MS),
    st.integers(-4 * 3_600_000, 4 * 3_600_000),
)


@given(st.sampled_from(TIMETABLES), around_changes)
def test_the_next_time_is_always_later(timetable: Timetable, at_ms: int) -> None:
    """Else the scheduler would look for the time after it for ever."""
    found = timetable.next_after(at_ms)
    assert found is not None
    assert found > at_ms
    # No time in between is passed over.
    middle_ms = (at_ms + found) // 2
    assert timetable.next_after(middle_ms) == found


@given(
    st.sampled_from(TIMETABLES),
    around_changes
    # From 2038 on, milliseconds as floats are no longer exact.
    | st.integers(2**31 * 1_000, 2**31 * 1_000 + 10**10),
    st.integers(0, 999),
)
def test_the_trigger_looks_later_than_now(
    timetable: Timetable, now_ms: int, now_us: int
) -> None:
    now = to_datetime(now_ms) + timedelta(microseconds=now_us)
    trigger = _Trigger(timetable)
    for previous in (None, to_datetime(now_ms), now - timedelta(days=40)):
        found = trigger.get_next_fire_time(previous, now)
        assert found is not None
        assert found > now
        assert found == to_datetime(timetable.next_after(now_ms) or 0)


def test_a_timetable_can_be_told() -> None:
    assert describe(Every("90 seconds")) == "Every 0:01:30"
    assert describe(Cron("30 4 * * *")) == "At 04:30 every day"


# The scheduler.


async def test_work_runs_at_its_times() -> None:
    recurring, ran = Recurring(), asyncio.Semaphore(0)

    async def work() -> None:
        ran.release()

    recurring.add("work", Every("10 ms"), work)
    recurring.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        for _ in range(3):
            await ran.acquire()
    recurring.stop()
    await asyncio.sleep(0)


async def test_work_that_fails_runs_again() -> None:
    recurring, ran = Recurring(), asyncio.Semaphore(0)

    async def work() -> None:
        ran.release()
        raise ValueError

    recurring.start()
    recurring.add("work", Every("10 ms"), work)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await ran.acquire()
        await ran.acquire()
    recurring.stop()
    await asyncio.sleep(0)


async def test_work_of_the_same_name_takes_its_place_and_can_be_removed() -> None:
    recurring, ran = Recurring(), asyncio.Semaphore(0)

    async def wrong() -> None:
        pytest.fail("it was replaced")

    async def right() -> None:
        ran.release()

    recurring.start()
    recurring.add("work", Every("1 hour"), wrong)
    recurring.add("work", Every("10 ms"), right)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await ran.acquire()
    recurring.remove("work")
    recurring.remove("work")
    recurring.remove("never there")
    assert recurring._scheduler.get_jobs() == []
    recurring.stop()
    await asyncio.sleep(0)


async def test_stopping_cancels_what_runs_and_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recurring, begun = Recurring(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    recurring.add("work", Every("10 ms"), work)
    recurring.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await begun.wait()
    with caplog.at_level(logging.ERROR):
        recurring.stop()
        recurring.stop()  # as a host does that is drained and then closed
        for _ in range(5):
            await asyncio.sleep(0)
    assert caplog.records == []


async def test_stopping_what_was_never_started_does_nothing() -> None:
    Recurring().stop()


# The host's own housekeeping.


class Counter(DurableObject):
    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("n", 0) + 1
        self.ctx.storage.put("n", value)
        return value


async def increment_once(host: Host, request_id: str) -> object:
    target = host.namespace(Counter).id_from_name("a")
    options = CallOptions(request_id=request_id)
    return await host.call(target, "increment", (), {}, options)


async def test_kept_replies_expire(tmp_path: Path) -> None:
    config = Config(storage=StorageConfig(reply_ttl_ms=60_000))
    async with open_test_host(tmp_path, config=config) as test:
        assert await increment_once(test.host, "r") == 1
        await test.advance("59 seconds")
        assert await test.host.expire_replies() == 0
        assert await increment_once(test.host, "r") == 1

        await test.advance("1 second")
        assert await test.host.expire_replies() == 1
        assert await test.host.expire_replies() == 0
        assert await increment_once(test.host, "r") == 2


async def test_the_host_does_it_by_itself() -> None:
    async with open_test_host() as test:
        job = test.host.recurring._scheduler.get_job("expire replies")
        assert job.next_run_time - datetime.now(UTC) <= timedelta(hours=1)
        await job.func()


async def test_a_host_can_be_opened_and_closed_again_and_again(tmp_path: Path) -> None:
    leftovers = Leftovers()
    for count in range(1, 21):
        async with Host(tmp_path, classes=[Counter]) as host:
            host.recurring.add("busy", Every("10 ms"), host.expire_replies)
            assert await increment_once(host, str(count)) == count
            if count % 2:
                await host.drain()
    await leftovers.check()


async def test_two_hosts_do_not_disturb_each_other(tmp_path: Path) -> None:
    ran = {"a": asyncio.Semaphore(0), "b": asyncio.Semaphore(0)}

    async def work(name: str) -> None:
        ran[name].release()

    async with asyncio.timeout(DEADLINE_SECONDS), Host(tmp_path / "a") as one:
        one.recurring.add("work", Every("10 ms"), lambda: work("a"))
        async with Host(tmp_path / "b") as other:
            other.recurring.add("work", Every("10 ms"), lambda: work("b"))
            await ran["a"].acquire()
            await ran["b"].acquire()
            other.recurring.remove("work")
            await ran["a"].acquire()
        while not ran["a"].locked():
            await ran["a"].acquire()
        await ran["a"].acquire()
