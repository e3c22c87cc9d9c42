"""Schedules: every time fires once, through crashes, pauses and changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from durable_actor.clock import to_datetime
from durable_actor.config import Config, ObjectsConfig
from durable_actor.config import Schedule as ConfiguredSchedule
from durable_actor.entrypoints import DurableObject
from durable_actor.errors import (
    ConfigError,
    EncodeError,
    MethodNotFoundError,
    ObjectError,
    ObjectOverloadedError,
)
from durable_actor.host import Host
from durable_actor.ids import ObjectId
from durable_actor.rpc import CallOptions
from durable_actor.schedules import (
    RETRY_MS,
    Schedule,
    Schedules,
    StartRun,
    apply,
    schedules_from_config,
)
from durable_actor.testing import START_MS, TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.leftovers import Leftovers
from tests.support.scene import Scene
from workflows import Completed, Step, create_durable_workflows, workflow

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

HOUR_MS = 3_600_000
DEADLINE_SECONDS = 20  # a busy machine is not a failing test


class Counter(DurableObject):
    """Counts what it is asked to, durably."""

    async def tick(self, by: int = 1) -> int:
        count: int = await self.ctx.storage.get("count", 0) + by
        self.ctx.storage.put("count", count)
        return count

    async def count(self) -> int:
        count: int = await self.ctx.storage.get("count", 0)
        return count

    async def fail(self) -> None:
        await self.tick()
        raise ValueError("no luck")

    async def fail_as_if_overloaded(self) -> None:
        await self.tick()
        raise ObjectOverloadedError("another object, says the target")

    async def wait(self) -> None:
        await self.env.scene.reach("waiting")

    async def tick_and_tell(self) -> None:
        await self.tick()
        self.env.told.release()


class Diary(DurableObject):
    async def note(self, day: date) -> None: ...


class Bench:
    """A test host and its schedules, which can be crashed together."""

    def __init__(
        self, test: TestHost, start_run: Callable[[Host], StartRun] | None
    ) -> None:
        self.test = test
        self._start_run = start_run
        self.schedules = self._make()

    @property
    def host(self) -> Host:
        return self.test.host

    async def every_hour(self, method: str = "tick", *args: object) -> None:
        await self.schedules.call("s", Counter, "a", method, *args, every="1 hour")

    async def count(self) -> int:
        return await self.host.namespace(Counter).get_by_name("a").count()

    async def stored(self) -> Schedule:
        return (await self.schedules.all())["s"]

    async def restart(self, *, down_ms: int = 0) -> None:
        """Crash, be away for a while, and start again."""
        await self.test.crash()
        await self.schedules.stop()
        self.test.clock.jump(self.test.clock.now_ms() + down_ms)
        await self.test.start()
        self.schedules = self._make()
        await self.schedules.start()
        await self.test.settle()

    def _make(self) -> Schedules:
        self.host.register(Counter)
        start_run = None if self._start_run is None else self._start_run(self.host)
        return Schedules(self.host, start_run=start_run)


@asynccontextmanager
async def open_bench(
    *,
    start_run: Callable[[Host], StartRun] | None = None,
    config: Config | None = None,
    scene: Scene | None = None,
) -> AsyncIterator[Bench]:
    async with open_test_host(config=config, env={"scene": scene}) as test:
        bench = Bench(test, start_run)
        await bench.schedules.start()
        yield bench
        await bench.schedules.stop()


class Hold:
    """Holds up whoever calls a method, just before or just after the call."""

    def __init__(self, host: Host, method: str, when: str) -> None:
        self.reached, self._released = asyncio.Event(), asyncio.Event()
        real = host.call

        async def call(
            target: ObjectId,
            name: str,
            args: tuple[object, ...],
            kwargs: dict[str, object],
            options: CallOptions,
        ) -> object:
            if name != method:
                return await real(target, name, args, kwargs, options)
            if when == "before":
                await self._hold()
            answer = await real(target, name, args, kwargs, options)
            if when == "after":
                await self._hold()
            return answer

        vars(host)["call"] = call  # what stubs call, too

    def release(self) -> None:
        self._released.set()

    async def _hold(self) -> None:
        self.reached.set()
        await self._released.wait()


def fail_once(host: Host, method: str, error: Exception) -> None:
    """Let the next call of a method fail on its way."""
    real, errors = host.call, [error]

    async def call(target: ObjectId, name: str, *rest: Any) -> object:
        if name == method and errors:
            raise errors.pop()
        return await real(target, name, *rest)

    vars(host)["call"] = call  # what stubs call, too


# Firing.


async def test_a_time_that_has_come_fires_once() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("59 minutes")
        assert not await bench.schedules.look("s")

        await bench.test.advance("1 minute")
        assert await bench.schedules.look("s")
        assert not await bench.schedules.look("s")
        assert await bench.count() == 1
        assert (await bench.stored()).last_at_ms == START_MS + HOUR_MS


async def test_looks_at_the_same_time_fire_once() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        await asyncio.gather(*(bench.schedules.look("s") for _ in range(10)))
        assert await bench.count() == 1
        assert (await bench.stored()).owed_at_ms is None


async def test_each_time_has_its_own_arguments_and_identity() -> None:
    async with open_bench() as bench:
        await bench.every_hour("tick", 10)
        for _ in range(3):
            await bench.test.advance("1 hour")
            await bench.schedules.look("s")
        assert await bench.count() == 30


async def test_a_firing_is_on_disk_before_it_is_delivered() -> None:
    scene = Scene()
    async with open_bench(scene=scene) as bench:
        await bench.every_hour("wait")
        await bench.host.namespace(Counter).get_by_name("a").tick()
        await bench.test.advance("1 hour")
        disk = take_over(bench.host)
        disk.pause()
        looking = asyncio.ensure_future(bench.schedules.look("s"))
        await bench.test.settle()
        assert scene.log == []

        disk.resume()
        await bench.test.settle()
        assert scene.log == ["waiting"]
        assert (await bench.stored()).owed_at_ms == START_MS + HOUR_MS
        scene.open("waiting")
        assert await looking


async def test_what_was_not_on_disk_is_recorded_again_after_a_crash() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        take_over(bench.host).pause()
        looking = asyncio.ensure_future(bench.schedules.look("s"))
        await bench.test.settle()
        looking.cancel()
        await bench.restart()
        assert await bench.count() == 1


POINTS = [
    (method, when)
    for method in ("owe", "tick", "strike_off")
    for when in ("before", "after")
]


@pytest.mark.parametrize(("method", "when"), POINTS)
@pytest.mark.parametrize("down_hours", [0, 3])
async def test_a_crash_neither_loses_nor_doubles_a_firing(
    method: str, when: str, down_hours: int
) -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        hold = Hold(bench.host, method, when)
        looking = asyncio.ensure_future(bench.schedules.look("s"))
        await hold.reached.wait()
        looking.cancel()
        await bench.restart(down_ms=down_hours * HOUR_MS)

        # What was owed, and one for what was missed since; unless nothing was owed.
        was_owed = (method, when) != ("owe", "before")
        assert await bench.count() == 1 + (down_hours > 0 and was_owed)
        stored = await bench.stored()
        assert stored.owed_at_ms is None
        assert stored.last_at_ms == START_MS + (1 + down_hours) * HOUR_MS


async def test_a_crash_while_the_target_works_lets_it_work_again() -> None:
    scene = Scene()
    async with open_bench(scene=scene) as bench:
        await bench.every_hour("wait")
        await bench.test.advance("1 hour")
        looking = asyncio.ensure_future(bench.schedules.look("s"))
        await bench.test.settle()
        looking.cancel()
        await bench.restart()
        assert scene.log == ["waiting", "waiting"]
        scene.open("waiting")
        await bench.test.settle()
        assert (await bench.stored()).owed_at_ms is None


# Times that were missed.


async def test_times_missed_while_down_are_made_up_by_one_firing() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.restart(down_ms=5 * HOUR_MS + 1)
        assert await bench.count() == 1
        assert (await bench.stored()).last_at_ms == START_MS + 5 * HOUR_MS
        await bench.restart()
        assert await bench.count() == 1


async def test_the_latest_of_very_many_missed_times_is_found() -> None:
    """A year of minutes: counting them one by one would hold up the host."""
    async with open_bench() as bench:
        zone = "Europe/Berlin"
        await bench.schedules.call(
            "s", Counter, "a", "tick", cron="* * * * *", timezone=zone
        )
        year_ms = 365 * 24 * HOUR_MS
        await bench.restart(down_ms=year_ms + 59_999)
        assert await bench.count() == 1
        assert (await bench.stored()).last_at_ms == START_MS + year_ms


def due(schedule: Schedule, now: datetime) -> datetime | None:
    due_at_ms = schedule.latest_due_ms(int(now.timestamp()) * 1_000)
    return None if due_at_ms is None else to_datetime(due_at_ms)


def test_the_latest_time_is_found_through_a_change_of_summer_time() -> None:
    created_at_ms = int(datetime(2027, 3, 1, tzinfo=UTC).timestamp()) * 1_000
    schedule = Schedule(
        name="s",
        cron="30 2 * * *",
        timezone="Europe/Berlin",
        created_at_ms=created_at_ms,
    )
    # 02:30 does not exist on the 28th of March; 03:00 stands in, 01:00 in UTC.
    before, at = (
        datetime(2027, 3, 28, 0, 59, tzinfo=UTC),
        datetime(2027, 3, 28, 1, 0, tzinfo=UTC),
    )
    assert due(schedule, before) == datetime(2027, 3, 27, 1, 30, tzinfo=UTC)
    assert due(schedule, at) == at
    # 02:30 comes twice on the 31st of October; only the first one counts.
    first = datetime(2027, 10, 31, 0, 30, tzinfo=UTC)
    for minute in (30, 45):
        for hour in (0, 1):
            now = datetime(2027, 10, 31, hour, minute, tzinfo=UTC)
            assert due(schedule, now) == first
    # A schedule made in the second pass owes nothing for the first.
    late_ms = int(datetime(2027, 10, 31, 1, 10, tzinfo=UTC).timestamp()) * 1_000
    late = replace(schedule, created_at_ms=late_ms)
    assert due(late, datetime(2027, 10, 31, 3, tzinfo=UTC)) is None


def test_nothing_is_due_before_its_first_time() -> None:
    schedule = Schedule(name="s", every_ms=1_000, created_at_ms=START_MS)
    assert schedule.latest_due_ms(START_MS) is None
    assert schedule.latest_due_ms(START_MS + 999) is None
    assert schedule.latest_due_ms(START_MS + 1_000) == START_MS + 1_000
    assert schedule.latest_due_ms(START_MS + 9_999) == START_MS + 9_000


async def test_a_restart_does_not_shift_an_interval() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        for _ in range(3):
            await bench.restart(down_ms=25 * 60_000)
            await bench.every_hour()  # as an application does at each start
        assert await bench.count() == 1
        stored = await bench.stored()
        assert stored.last_at_ms == START_MS + HOUR_MS
        assert stored.next_at_ms() == START_MS + 2 * HOUR_MS


# Changes.


async def test_the_same_name_again_changes_what_is_called() -> None:
    async with open_bench() as bench:
        await bench.every_hour("tick", 1)
        await bench.test.advance("1 hour")
        await bench.schedules.look("s")
        await bench.every_hour("tick", 100)
        assert not await bench.schedules.look("s")

        await bench.test.advance("1 hour")
        assert await bench.schedules.look("s")
        assert await bench.count() == 101
        assert list(await bench.schedules.all()) == ["s"]


async def test_a_new_timetable_owes_nothing_for_earlier_times() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("150 minutes")
        await bench.schedules.call("s", Counter, "a", "tick", every="2 hours")
        assert not await bench.schedules.look("s")
        await bench.test.advance("90 minutes")
        assert await bench.schedules.look("s")
        assert await bench.count() == 1


async def test_a_paused_schedule_does_not_fire_and_makes_nothing_up() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        assert await bench.schedules.pause("s")
        await bench.restart(down_ms=3 * HOUR_MS)
        assert (await bench.stored()).is_paused
        assert not await bench.schedules.look("s")

        assert await bench.schedules.resume("s")
        assert not await bench.schedules.look("s")
        await bench.test.advance("1 hour")
        assert await bench.schedules.look("s")
        assert await bench.count() == 1


async def test_resuming_what_was_not_paused_loses_nothing() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        assert await bench.schedules.resume("s")
        assert await bench.schedules.look("s")
        assert await bench.count() == 1


async def test_what_is_removed_fires_no_more() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        assert await bench.schedules.remove("s")
        assert not await bench.schedules.look("s")
        await bench.restart(down_ms=HOUR_MS)
        assert await bench.count() == 0
        assert await bench.schedules.all() == {}
        assert jobs(bench.host) == []


async def test_a_schedule_that_is_not_there_is_told_by_false() -> None:
    async with open_bench() as bench:
        assert not await bench.schedules.pause("s")
        assert not await bench.schedules.resume("s")
        assert not await bench.schedules.remove("s")
        assert not await bench.schedules.look("s")


# What is refused.


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ({}, "cron or every"),
        ({"cron": "* * * * *", "every": "1 hour"}, "cron or every"),
        ({"cron": "61 * * * *"}, "61 * * * *"),
        ({"cron": "0 0 30 2 *"}, "0 0 30 2 *"),
        ({"cron": "* * * * *", "timezone": "Mars/Base"}, "Mars/Base"),
        ({"every": "1 ms"}, "10 ms"),
    ],
)
async def test_times_that_are_none_are_refused_by_name(
    when: dict[str, Any], told: str
) -> None:
    async with open_bench() as bench:
        with pytest.raises(ConfigError) as caught:
            await bench.schedules.call("nightly", Counter, "a", "tick", **when)
        assert "'nightly'" in str(caught.value)
        assert told in str(caught.value)
        assert await bench.schedules.all() == {}


async def test_a_target_that_is_none_is_refused() -> None:
    async with open_bench() as bench:
        call = bench.schedules.call
        with pytest.raises(MethodNotFoundError, match="tock"):
            await call("s", Counter, "a", "tock", every="1 hour")
        with pytest.raises(ObjectError, match="Nobody"):
            await call("s", "Nobody", "a", "tick", every="1 hour")
        with pytest.raises(EncodeError, match=r"args\[0\]"):
            await call("s", Counter, "a", "tick", object(), every="1 hour")
        assert await bench.schedules.all() == {}


async def test_a_run_is_refused_where_there_are_no_workflows() -> None:
    async with open_bench() as bench:
        with pytest.raises(ConfigError, match="no workflows"):
            await bench.schedules.run("s", "report", every="1 hour")


# Targets that fail, or cannot be reached.


@pytest.mark.parametrize("method", ["fail", "fail_as_if_overloaded"])
async def test_a_failure_of_the_target_is_told_and_struck_off(method: str) -> None:
    """Whatever it raises: it has run, and running it again would double it."""
    async with open_bench() as bench:
        await bench.every_hour(method)
        with capture_logs() as logs:
            await bench.test.advance("1 hour")
            await bench.schedules.look("s")
            for _ in range(3):
                await bench.test.advance(RETRY_MS)
        failed = [entry for entry in logs if entry["event"] == "schedule.failed"]
        assert [entry["name"] for entry in failed] == ["s"]
        assert await bench.count() == 1
        assert (await bench.stored()).owed_at_ms is None

        await bench.test.advance("1 hour")
        await bench.schedules.look("s")
        assert await bench.count() == 2


async def test_an_overloaded_target_gets_its_firing_later() -> None:
    scene = Scene()
    config = Config(objects=ObjectsConfig(mailbox_events_max=1))
    async with open_bench(scene=scene, config=config) as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        counter = bench.host.namespace(Counter).get_by_name("a")
        busy = []
        for _ in range(2):  # one at work, and one in a line that has room for one
            busy.append(asyncio.ensure_future(counter.wait()))
            await bench.test.settle()
        with capture_logs() as logs:
            assert not await bench.schedules.look("s")
            await bench.test.advance(RETRY_MS)
        postponed = [e for e in logs if e["event"] == "schedule.postponed"]
        assert len(postponed) == 2
        assert (await bench.stored()).owed_at_ms == START_MS + HOUR_MS

        scene.open("waiting")
        await asyncio.gather(*busy)
        await bench.test.advance(RETRY_MS - 1)
        assert await bench.count() == 0
        await bench.test.advance(1)
        assert await bench.count() == 1
        assert (await bench.stored()).owed_at_ms is None


@pytest.mark.parametrize("method", ["owe", "tick", "strike_off"])
async def test_a_call_that_fails_on_its_way_is_made_again(method: str) -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        fail_once(bench.host, method, ObjectOverloadedError("busy"))
        assert not await bench.schedules.look("s")
        await bench.test.advance(RETRY_MS)
        assert await bench.count() == 1
        assert (await bench.stored()).owed_at_ms is None


async def test_times_that_came_while_it_was_owed_follow_as_one_firing() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        hold = Hold(bench.host, "tick", "before")
        looking = asyncio.ensure_future(bench.schedules.look("s"))
        await hold.reached.wait()
        await bench.test.advance("3 hours")
        hold.release()
        assert await looking
        assert await bench.count() == 2
        assert (await bench.stored()).last_at_ms == START_MS + 4 * HOUR_MS


async def test_a_host_that_drains_leaves_the_firing_to_the_next_start() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        hold = Hold(bench.host, "tick", "before")
        looking = asyncio.ensure_future(bench.schedules.look("s"))
        await hold.reached.wait()
        await bench.host.drain()
        hold.release()
        assert not await looking
        assert not await bench.schedules.look("s")
        await bench.restart()
        assert await bench.count() == 1


# Starting and stopping.


def jobs(host: Host) -> list[str]:
    found = host.recurring._scheduler.get_jobs()
    return sorted(job.id for job in found if job.id.startswith("schedule:"))


async def test_start_takes_up_what_is_stored_and_stop_lets_it_be() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        assert jobs(bench.host) == ["schedule:s"]
        await bench.schedules.stop()
        assert jobs(bench.host) == []
        await bench.schedules.start()
        assert jobs(bench.host) == ["schedule:s"]


async def test_stop_ends_what_is_under_way_and_the_next_start_finishes_it() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.schedules.stop()
        await bench.test.advance("1 hour")
        hold = Hold(bench.host, "tick", "before")
        await bench.schedules.start()
        await hold.reached.wait()
        await bench.schedules.stop()
        hold.release()
        await bench.test.settle()
        assert await bench.count() == 0

        await bench.schedules.start()
        await bench.test.settle()
        assert await bench.count() == 1


async def test_stop_calls_off_what_was_to_be_tried_again() -> None:
    async with open_bench() as bench:
        await bench.every_hour()
        await bench.test.advance("1 hour")
        fail_once(bench.host, "tick", ObjectOverloadedError("busy"))
        await bench.schedules.look("s")
        await bench.schedules.stop()
        await bench.test.advance(2 * RETRY_MS)
        assert await bench.count() == 0


async def test_a_schedule_fires_in_real_time(tmp_path: Path) -> None:
    told = asyncio.Semaphore(0)
    async with Host(tmp_path, env={"told": told}) as host:
        schedules = Schedules(host)
        await schedules.start()
        await schedules.call("s", Counter, "a", "tick_and_tell", every="20 ms")
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(3):
                await told.acquire()
        await schedules.stop()
        assert await host.namespace(Counter).get_by_name("a").count() >= 3


async def test_hosts_with_schedules_leave_nothing_behind(tmp_path: Path) -> None:
    leftovers, told = Leftovers(), asyncio.Semaphore(0)
    for count in range(20):
        async with Host(tmp_path, classes=[Counter], env={"told": told}) as host:
            schedules = Schedules(host)
            await schedules.start()
            await schedules.call("s", Counter, "a", "tick_and_tell", every="10 ms")
            async with asyncio.timeout(DEADLINE_SECONDS):
                await told.acquire()
            if count % 2:
                await schedules.stop()
    await leftovers.check()


async def test_schedules_of_two_hosts_do_not_disturb_each_other() -> None:
    async with open_bench() as one, open_bench() as other:
        await one.every_hour("tick", 1)
        await other.every_hour("tick", 100)
        await one.test.advance("1 hour")
        assert await one.schedules.look("s")
        assert not await other.schedules.look("s")
        await one.schedules.remove("s")

        await other.test.advance("1 hour")
        assert await other.schedules.look("s")
        assert (await one.count(), await other.count()) == (1, 100)
        assert (jobs(one.host), jobs(other.host)) == ([], ["schedule:s"])


# Runs of workflows.


async def test_a_run_is_started_under_an_id_of_its_own() -> None:
    started: list[tuple[str, Any, str]] = []

    async def start_run(name: str, value: Any, run_id: str) -> None:
        started.append((name, value, run_id))

    async with open_bench(start_run=lambda _: start_run) as bench:
        await bench.schedules.run("s", "report", {"day": 1}, every="1 hour")
        await bench.test.advance("1 hour")
        assert await bench.schedules.look("s")
        assert not await bench.schedules.look("s")
    assert started == [("report", {"day": 1}, f"s-{START_MS + HOUR_MS}")]


@workflow
async def report(step: Step, name: str) -> int:
    counter = step.env.namespace(Counter).get_by_name(name)
    return await step.run("count", counter.tick)


Workflows, WorkflowClient = create_durable_workflows({"report": report})


def starter(host: Host) -> StartRun:
    client = WorkflowClient.from_binding(host.namespace(Workflows))

    async def start_run(name: str, value: Any, run_id: str) -> None:
        await client.run_async(name, value, id=run_id)

    return start_run


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("owe", "after"),
        ("run_async", "before"),
        ("run_async", "after"),
        ("strike_off", "before"),
    ],
)
async def test_a_run_of_a_workflow_is_started_once(method: str, when: str) -> None:
    async with open_bench(start_run=starter) as bench:
        await bench.schedules.run("nightly", "report", "a", every="1 hour")
        await bench.test.advance("1 hour")
        hold = Hold(bench.host, method, when)
        looking = asyncio.ensure_future(bench.schedules.look("nightly"))
        await hold.reached.wait()
        looking.cancel()
        await bench.restart()
        await bench.test.advance("1 minute")

        page = await bench.host.list_objects("Workflows")
        run_id = f"nightly-{START_MS + HOUR_MS}"
        assert [entry.attributes["run"] for entry in page.objects] == [run_id]
        client = WorkflowClient.from_binding(bench.host.namespace(Workflows))
        handle = client.get("report", run_id)
        assert isinstance(await handle.status(), Completed)
        assert await handle.result() == 1
        assert await bench.count() == 1


# The configuration.


SWEEP = ConfiguredSchedule(
    name="sweep", every="10 minutes", object="Counter/a", method="tick", args=(2,)
)
NIGHTLY = ConfiguredSchedule(
    name="nightly",
    cron="@daily",
    timezone="Europe/Berlin",
    workflow="report",
    input="a",
)


def test_the_configuration_names_objects_and_runs() -> None:
    found = schedules_from_config(Config(schedules=(SWEEP, NIGHTLY)))
    assert found == [
        Schedule(
            name="sweep",
            every_ms=600_000,
            object_class="Counter",
            object_name="a",
            method="tick",
            args=(2,),
            is_configured=True,
        ),
        Schedule(
            name="nightly",
            cron="@daily",
            timezone="Europe/Berlin",
            workflow="report",
            input="a",
            is_configured=True,
        ),
    ]


async def test_the_configuration_is_what_recurs() -> None:
    async with open_bench(start_run=starter) as bench:
        await bench.every_hour()
        config = Config(schedules=(SWEEP, NIGHTLY))
        await apply(bench.schedules, config, workflows=["report"])
        assert jobs(bench.host) == ["schedule:nightly", "schedule:s", "schedule:sweep"]
        await bench.test.advance("10 minutes")
        assert await bench.schedules.look("sweep")
        assert await bench.count() == 2

        await apply(bench.schedules, config, workflows=["report"])
        assert not await bench.schedules.look("sweep")
        await apply(bench.schedules, Config())
        assert list(await bench.schedules.all()) == ["s"]
        assert jobs(bench.host) == ["schedule:s"]


async def test_arguments_of_the_configuration_become_what_the_method_wants() -> None:
    async with open_bench() as bench:
        seen = replace_struct(
            SWEEP, object="Diary/a", method="note", args=("2027-01-02",)
        )
        bench.host.register(Diary)
        await apply(bench.schedules, Config(schedules=(seen,)))
        assert (await bench.schedules.all())["sweep"].args == (date(2027, 1, 2),)


def replace_struct(schedule: ConfiguredSchedule, **changes: Any) -> ConfiguredSchedule:
    fields = {name: getattr(schedule, name) for name in schedule.__struct_fields__}
    return ConfiguredSchedule(**{**fields, **changes})


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (replace_struct(SWEEP, object="Nobody/a"), "Nobody"),
        (replace_struct(SWEEP, method="tock"), "tock"),
        (replace_struct(SWEEP, args=("many",)), "by"),
        (replace_struct(SWEEP, args=(1, 2, 3)), "too many"),
        (replace_struct(SWEEP, every=5), "10 ms"),
        (replace_struct(NIGHTLY, name="sweep", workflow="reprot"), "report"),
    ],
)
async def test_a_configuration_that_could_never_fire_is_refused_whole(
    schedule: ConfiguredSchedule, told: str
) -> None:
    async with open_bench(start_run=starter) as bench:
        fine = replace_struct(SWEEP, name="fine")
        with pytest.raises(ConfigError) as caught:
            await apply(
                bench.schedules,
                Config(schedules=(fine, schedule)),
                workflows=["report"],
            )
        assert "'sweep'" in str(caught.value)
        assert told in str(caught.value)
        assert await bench.schedules.all() == {}
