"""A clock that is put forwards or back moves alarms, and nothing that lasts."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest

from durable_actor import (
    CallTimeoutError,
    DurableObject,
    InvalidTimeError,
    duration_ms,
    sleep_until,
)
from durable_actor.clock import TIME_MS_MAX, deadline, instant_ms
from durable_actor.testing import START_MS, ManualClock, open_test_host
from workflows import Step, create_durable_workflows, workflow

HOUR_MS = 3_600_000
JUMPS_MS = [HOUR_MS, -HOUR_MS, 87_600 * HOUR_MS, -87_600 * HOUR_MS]  # ten years


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
async def test_g14_a_deadline_lasts_as_long_as_it_was_given(jump_ms: int) -> None:
    clock = ManualClock()
    ended: list[str] = []

    async def wait() -> None:
        try:
            async with deadline(clock, 10_000):
                await asyncio.sleep(3_600)
        except TimeoutError:
            ended.append("late")

    task = asyncio.create_task(wait())
    await clock.advance("9 seconds")
    clock.put(clock.now_ms() + jump_ms)
    await clock.advance("999 milliseconds")
    assert ended == []
    await clock.advance("1 millisecond")
    await task
    assert ended == ["late"]


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
async def test_g14_a_sleep_ends_when_either_clock_says_so(jump_ms: int) -> None:
    clock = ManualClock()
    task = asyncio.create_task(sleep_until(clock, START_MS + 10_000))
    await clock.advance("4 seconds")
    clock.put(clock.now_ms() + jump_ms)
    await clock.settle()
    assert task.done() == (jump_ms > 0)
    await clock.advance("5999 milliseconds")
    assert task.done() == (jump_ms > 0)
    await clock.advance("1 millisecond")
    assert task.done()


class Bell(DurableObject):
    rung: ClassVar[list[tuple[str, int]]] = []

    async def set_at(self, at_ms: int) -> None:
        self.ctx.storage.set_alarm(at_ms)

    async def alarm(self) -> None:
        at_ms = self.ctx.clock.now_ms() - START_MS
        self.rung.append((str(self.ctx.id.name), at_ms))

    async def nap(self) -> None:
        await asyncio.sleep(3_600)


@pytest.fixture(autouse=True)
def quiet() -> None:
    Bell.rung.clear()


async def test_g14_a_jump_forwards_fires_what_is_due_once_and_a_jump_back_nothing() -> (
    None
):
    async with open_test_host(classes=[Bell]) as test:
        bells = test.host.namespace(Bell)
        for number in range(700):  # more than are fired in one go
            await bells.get_by_name(f"{number}").set_at(START_MS + 2 * HOUR_MS)
        late = bells.get_by_name("late")
        await late.set_at(START_MS + 9 * HOUR_MS)

        test.clock.put(START_MS + 3 * HOUR_MS)
        await test.advance("2 seconds")
        assert len(Bell.rung) == len({name for name, _ in Bell.rung}) == 700
        assert min(at_ms for _, at_ms in Bell.rung) >= 2 * HOUR_MS

        test.clock.put(START_MS - 5 * HOUR_MS)
        await bells.get_by_name("0").set_at(START_MS - 5 * HOUR_MS + 1_000)
        await test.advance("2 seconds")
        assert Bell.rung[700:] == [("0", -5 * HOUR_MS + 1_000)]
        await test.advance("13 hours")
        assert len(Bell.rung) == 701
        await test.advance("2 hours")
        assert Bell.rung[701:] == [("late", 9 * HOUR_MS)]


async def test_g14_the_time_limit_of_a_call_ignores_the_wall_clock() -> None:
    async with open_test_host(classes=[Bell]) as test:
        bell = test.host.namespace(Bell).get_by_name("a", timeout="5 seconds")
        call = asyncio.ensure_future(bell.nap())
        await test.advance("4 seconds")
        test.clock.put(START_MS + HOUR_MS)
        await test.settle()
        assert not call.done()
        test.clock.put(START_MS - HOUR_MS)
        await test.advance("1 second")
        with pytest.raises(CallTimeoutError):
            await call


async def test_g14_idle_objects_leave_memory_although_the_clock_was_put_back() -> None:
    async with open_test_host(classes=[Bell]) as test:
        await test.host.namespace(Bell).get_by_name("a").set_at(START_MS + 9 * HOUR_MS)
        test.clock.put(START_MS - HOUR_MS)
        await test.advance("15 seconds")
        assert test.host.stats().objects_resident == 0


@workflow
async def naps(step: Step) -> str:
    await step.sleep("nap", "10 seconds")
    return "rested"


@workflow
async def two_branches(step: Step) -> str:
    async def busy() -> None:
        await asyncio.sleep(3_600)

    working = asyncio.create_task(step.run("busy", busy))
    await step.sleep("nap", "10 seconds")
    working.cancel()
    return "rested"


Runs, RunsClient = create_durable_workflows({"naps": naps, "two": two_branches})


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
@pytest.mark.parametrize("name", ["naps", "two"])
async def test_g14_a_run_that_sleeps_in_memory_is_woken_by_either_clock(
    name: str, jump_ms: int
) -> None:
    async with open_test_host(classes=[Runs]) as test:
        definition = {"naps": naps, "two": two_branches}[name]
        runs = RunsClient(test.host.namespace(Runs))
        await runs.run_async(definition, id="r")
        run = runs.get(definition, "r")
        await test.advance("4 seconds")
        test.clock.put(test.clock.now_ms() + jump_ms)
        await test.advance("5 seconds")
        await test.advance("2 seconds")
        assert await run.result() == "rested"


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        1.5,
        True,
        -1,
        TIME_MS_MAX + 1,
        10**400,
        "nan seconds",
        "inf s",
        "1e999 s",
        "999999999999999 weeks",
        timedelta(milliseconds=-1),
        timedelta.max,
        None,
    ],
)
def test_g14_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(InvalidTimeError):
        duration_ms(value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        1e12,
        True,
        0,
        -1,
        TIME_MS_MAX + 1,
        10**400,
        datetime.min,
        datetime(1969, 12, 31),  # local time, and too early anywhere
        timedelta.max,
        "tomorrow",
        None,
    ],
)
async def test_g14_what_is_no_time_is_refused_and_no_alarm_is_set(value: Any) -> None:
    with pytest.raises(InvalidTimeError):
        instant_ms(value, now_ms=START_MS)
    async with open_test_host(classes=[Bell]) as test:
        if value is not None:
            with pytest.raises(InvalidTimeError):
                await test.host.namespace(Bell).get_by_name("a").set_at(value)
        assert (await test.host.alarms()).alarms == []
