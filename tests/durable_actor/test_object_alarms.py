"""Alarms of objects: at least once, never early, retried, and given up visibly."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from durable_actor import (
    AlarmInfo,
    DurableObject,
    DurableObjectState,
    Env,
    StorageFullError,
    interleave,
)
from durable_actor.storage.store import DriverKind
from durable_actor.testing import START_MS, TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
RUNS_MAX = 7  # the first and six retries


class Script(Scene):
    """A scene that also says what each run of an alarm handler does."""

    def __init__(self, *actions: str) -> None:
        super().__init__()
        self.actions = list(actions)
        self.runs: list[tuple[int, int]] = []  # (milliseconds since the start, retries)
        self.infos: list[AlarmInfo] = []

    @property
    def times(self) -> list[int]:
        return [at_ms for at_ms, _ in self.runs]


class Reminder(DurableObject):
    async def set(self, in_ms: int) -> None:
        self.ctx.storage.set_alarm(timedelta(milliseconds=in_ms))

    async def set_at(self, at_ms: int) -> None:
        self.ctx.storage.set_alarm(at_ms)

    async def delete(self) -> None:
        self.ctx.storage.delete_alarm()

    async def delete_everything(self) -> None:
        self.ctx.storage.delete_all()

    async def due_at(self) -> int | None:
        return await self.ctx.storage.get_alarm()

    @interleave
    async def due_at_now(self) -> int | None:
        return await self.ctx.storage.get_alarm()

    async def wait(self, scene: str) -> None:
        await self.env.scene.reach(scene)

    async def alarm(self, info: AlarmInfo) -> None:
        script: Script = self.env.scene
        script.infos.append(info)
        script.runs.append((self.ctx.clock.now_ms() - START_MS, info.retry_count))
        script.note(str(self.ctx.id.name))
        action = script.actions.pop(0) if script.actions else "ok"
        await getattr(self, f"_{action}")()

    async def _ok(self) -> None:
        self.ctx.storage.put("done", 1)

    async def _fail(self) -> None:
        self.ctx.storage.put("tried", 1)
        message = "the alarm's own failure"
        raise ValueError(message)

    async def _look(self) -> None:
        self.env.scene.note(f"alarm is {await self.ctx.storage.get_alarm()}")

    async def _again(self) -> None:
        self.ctx.storage.set_alarm(timedelta(seconds=10))

    async def _again_now(self) -> None:
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms())

    async def _again_and_wait(self) -> None:
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms())
        await self.env.scene.reach("alarm")

    async def _again_and_fail(self) -> None:
        self.ctx.storage.set_alarm(timedelta(seconds=10))
        await self._fail()

    async def _delete_and_fail(self) -> None:
        self.ctx.storage.delete_alarm()
        await self._fail()

    async def _delete_all_and_fail(self) -> None:
        self.ctx.storage.delete_all()
        await self._fail()

    async def _abort(self) -> None:
        self.ctx.abort("in the alarm")

    async def _fail_in_a_block(self) -> None:
        await self.ctx.block_concurrency_while(self._fail)

    async def _cancelled(self) -> None:
        raise asyncio.CancelledError

    async def _wait(self) -> None:
        await self.env.scene.reach("alarm")


class GatedReminder(Reminder, concurrency="gated"):
    pass


class Silent(DurableObject):
    async def set(self) -> None:
        self.ctx.storage.set_alarm(timedelta(seconds=1))


def reminder(test: TestHost, name: str = "a") -> Reminder:
    return test.host.namespace(Reminder).get_by_name(name)


async def tried(test: TestHost, script: Script, runs: int) -> list[int]:
    """Return the times of the first runs, moving the clock from retry to retry."""
    for _ in range(100):
        if len(script.runs) >= runs:
            break
        await test.advance("5 seconds")
    return script.times[:runs]


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_g7_an_alarm_fires_at_its_time_and_not_before(driver: DriverKind) -> None:
    script = Script()
    async with open_test_host(env={"scene": script}, driver=driver) as test:
        await reminder(test).set(30_000)
        await test.advance(29_999)
        assert script.times == []
        await test.advance(1)
        assert script.times == [30_000]
        info = script.infos[0]
        assert (info.retry_count, info.is_retry) == (0, False)
        assert info.scheduled_at_ms == START_MS + 30_000
        await test.advance("2 minutes")
        assert script.times == [30_000]
        assert await reminder(test).due_at() is None


async def test_an_alarm_far_beyond_the_window_fires_at_its_time() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(600_000)
        await test.advance("9 minutes")
        assert script.times == []
        await test.advance("1 minute")
        assert script.times == [600_000]


async def test_the_past_means_now() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set_at(1)
        await test.settle()
        assert script.times == [0]
        assert script.infos[0].scheduled_at_ms == START_MS


async def test_moving_an_alarm_earlier_or_later_fires_it_once() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        a = reminder(test)
        await a.set(30_000)
        await a.set(5_000)
        await test.advance("40 seconds")
        assert script.times == [5_000]
        await a.set(5_000)
        await a.set(300_000)
        await test.advance("4 minutes")
        assert script.times == [5_000]
        await test.advance("1 minute")
        assert script.times == [5_000, 340_000]


@pytest.mark.parametrize("method", ["delete", "delete_everything"])
async def test_a_deleted_alarm_does_not_fire(method: str) -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(5_000)
        await getattr(reminder(test), method)()
        assert await reminder(test).due_at() is None
        await test.advance("2 minutes")
        assert script.times == []


async def test_an_alarm_wakes_an_object_that_has_left_memory_and_knows_its_name() -> (
    None
):
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test, "Müller/7").set(50_000)
        await test.advance("40 seconds")
        assert test.host.stats().objects_resident == 0
        await test.advance("10 seconds")
        assert script.log == ["Müller/7"]


async def test_the_handler_sees_no_alarm_until_it_sets_one() -> None:
    script = Script("look", "again")
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.advance("1 second")
        assert script.log[-1] == "alarm is None"
        await reminder(test).set(1_000)
        await test.advance("1 second")
        assert await reminder(test).due_at() == START_MS + 12_000
        await test.advance("10 seconds")
        assert script.times == [1_000, 2_000, 12_000]


async def test_g8_an_alarm_set_for_now_in_the_handler_fires_again() -> None:
    script = Script("again_now", "again_now")
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.advance("1 second")
        assert script.runs == [(1_000, 0)] * 3


async def test_a_handler_without_a_parameter_is_called_too() -> None:
    script = Script()

    class Plain(DurableObject):
        async def set(self) -> None:
            self.ctx.storage.set_alarm(timedelta(seconds=1))

        async def alarm(self) -> None:
            script.note("called")

    async with open_test_host(env={"scene": script}) as test:
        await test.host.namespace(Plain).get_by_name("a").set()
        await test.advance("1 second")
        assert script.log == ["called"]


async def test_a_class_without_a_handler_cannot_set_an_alarm() -> None:
    async with open_test_host() as test:
        with pytest.raises(TypeError, match="async def alarm"):
            await test.host.namespace(Silent).get_by_name("a").set()


async def test_g7_a_failing_handler_is_retried_later_each_time_then_given_up() -> None:
    script = Script(*["fail"] * 10)
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        times = await tried(test, script, RUNS_MAX)
        assert [retries for _, retries in script.runs] == list(range(RUNS_MAX))
        delays = [later - earlier for earlier, later in pairwise(times)]
        for base_ms, delay_ms in zip(
            [2_000, 4_000, 8_000, 16_000, 32_000, 64_000], delays, strict=True
        ):
            assert base_ms <= delay_ms <= base_ms * 1.25
        assert all(info.scheduled_at_ms == START_MS + 1_000 for info in script.infos)
        await test.advance("10 minutes")
        assert len(script.runs) == RUNS_MAX
        stats = test.host.stats()
        assert stats.alarms_failed == RUNS_MAX
        assert stats.alarms_abandoned == 1
        assert await reminder(test).due_at() is None


async def test_between_retries_the_alarm_shows_its_own_time() -> None:
    script = Script("fail")
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.advance("1 second")
        assert await reminder(test).due_at() == START_MS + 1_000
        await reminder(test).delete()
        await test.advance("1 minute")
        assert script.times == [1_000]


@pytest.mark.parametrize("action", ["delete_and_fail", "delete_all_and_fail"])
async def test_a_handler_that_deletes_its_alarm_and_fails_is_not_retried(
    action: str,
) -> None:
    script = Script(action)
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.advance("1 minute")
        assert script.times == [1_000]


async def test_an_alarm_set_by_a_failing_handler_replaces_the_retry() -> None:
    script = Script("again_and_fail")
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.advance("1 minute")
        assert script.runs == [(1_000, 0), (11_000, 0)]


@pytest.mark.parametrize("action", ["abort", "fail_in_a_block"])
async def test_a_handler_that_breaks_its_object_is_retried_and_counted(
    action: str,
) -> None:
    script = Script(*[action] * 20)
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await tried(test, script, RUNS_MAX)
        assert [retries for _, retries in script.runs] == list(range(RUNS_MAX))
        await test.advance("10 minutes")
        assert len(script.runs) == RUNS_MAX
        assert test.host.stats().alarms_abandoned == 1
        assert await reminder(test).due_at() is None


async def test_a_cancellation_raised_in_the_handler_is_a_failure() -> None:
    script = Script("cancelled")
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.advance("1 second")
        assert script.runs == [(1_000, 0)]
        await test.advance("3 seconds")
        assert [retries for _, retries in script.runs] == [0, 1]


async def test_g7_a_crash_in_the_handler_does_not_count_and_it_fires_again() -> None:
    script = Script("wait")
    async with open_test_host(env={"scene": script}, classes=[Reminder]) as test:
        await reminder(test).set(1_000)
        await test.advance("1 second")
        assert script.log == ["a", "alarm"]
        await test.restart()
        await test.settle()
        assert script.runs == [(1_000, 0), (1_000, 0)]
        await test.advance("1 minute")
        assert len(script.runs) == 2


async def test_retries_are_remembered_over_a_restart() -> None:
    script = Script("fail", "fail")
    async with open_test_host(env={"scene": script}, classes=[Reminder]) as test:
        await reminder(test).set(1_000)
        await tried(test, script, 2)
        await test.restart()
        await tried(test, script, 3)
        assert [retries for _, retries in script.runs] == [0, 1, 2]


async def test_missed_alarms_fire_at_the_start_in_due_order() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}, classes=[Reminder]) as test:
        due = list(range(1, 21))
        random.Random(1).shuffle(due)
        for seconds in due:
            await reminder(test, str(seconds)).set(seconds * 1_000)
        await test.crash()
        test.clock.jump(START_MS + 3_600_000)
        await test.start()
        await test.settle()
        assert script.log == [str(seconds) for seconds in sorted(due)]


async def test_the_alarms_of_a_class_fire_once_it_is_registered() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        await test.crash()
        await test.start()
        await test.advance("1 minute")
        assert script.times == []
        test.host.register(Reminder)
        await test.settle()
        assert script.times == [60_000]


async def test_g8_the_alarm_of_a_gated_object_does_not_overlap_itself() -> None:
    script = Script("again_and_wait")
    async with open_test_host(env={"scene": script}) as test:
        gated = test.host.namespace(GatedReminder).get_by_name("a")
        await gated.set(1_000)
        await test.advance("5 seconds")
        assert len(script.runs) == 1
        await gated.due_at()  # other events are let in meanwhile
        script.open("alarm")
        await test.settle()
        assert len(script.runs) == 2


async def test_an_alarm_waits_for_its_turn_like_any_event() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        a = reminder(test)
        await a.set(1_000)
        waiting = asyncio.ensure_future(a.wait("event"))
        await test.advance("2 seconds")
        assert script.times == []
        script.open("event")
        await waiting
        await test.settle()
        assert script.times == [2_000]


async def test_an_event_may_look_while_the_handler_runs() -> None:
    script = Script("wait")
    async with open_test_host(env={"scene": script}) as test:
        a = reminder(test)
        await a.set(1_000)
        await test.advance("1 second")
        assert await a.due_at_now() is None
        script.open("alarm")


async def test_a_success_that_could_not_be_written_is_no_success() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await reminder(test).set(1_000)
        disk = take_over(test.host)
        disk.failures.append(StorageFullError("commit", "full"))
        await test.advance("1 second")
        assert script.times == [1_000]
        await test.advance("1 minute")
        assert len(script.times) == 2
        assert await reminder(test).due_at() is None


async def test_an_alarm_outlives_a_constructor_that_fails_for_a_while() -> None:
    script = Script()

    class Moody(Reminder):
        def __init__(self, ctx: DurableObjectState, env: Env) -> None:
            super().__init__(ctx, env)
            if script.actions:
                raise LookupError(script.actions.pop())

    async with open_test_host(env={"scene": script}) as test:
        moody = test.host.namespace(Moody).get_by_name("a")
        await moody.set(20_000)
        await test.advance("15 seconds")
        script.actions += ["first", "second"]
        await test.advance("5 seconds")
        assert script.times == []
        await test.advance("1 minute")
        assert len(script.times) == 1


async def test_g21_a_constructor_that_always_fails_is_tried_ever_more_rarely() -> None:
    script = Script()
    tries: list[int] = []

    class Moody(Reminder):
        def __init__(self, ctx: DurableObjectState, env: Env) -> None:
            super().__init__(ctx, env)
            if script.actions:
                tries.append(ctx.clock.now_ms() - START_MS)
                raise LookupError(script.actions[0])

    async with open_test_host(env={"scene": script}) as test:
        moody = test.host.namespace(Moody).get_by_name("a")
        await moody.set(20_000)
        await test.advance("15 seconds")
        script.actions.append("always")
        await test.advance("1 hour")
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        assert pauses[:4] == [2_000, 4_000, 8_000, 16_000]
        assert pauses == sorted(pauses)
        assert max(pauses) == 1_024_000
        assert test.host.stats().starts_failing == 1

        # It is still due, and fires once the constructor is mended.
        script.actions.clear()
        await test.advance("20 minutes")
        assert len(script.times) == 1
        assert test.host.stats().starts_failing == 0


async def test_many_alarms_of_one_instant_all_fire() -> None:
    script = Script()
    async with open_test_host(env={"scene": script}) as test:
        await asyncio.gather(*(reminder(test, str(i)).set(1_000) for i in range(600)))
        await test.advance("1 second")
        assert len(script.times) == 600
        assert set(script.times) == {1_000}


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_set_fires_at_its_last_time_only(seed: int) -> None:
    """Set, move and delete the alarms of five objects; a model says what fires."""
    rng = random.Random(seed)
    script = Script()
    due: dict[str, int] = {}
    expected: list[tuple[int, str]] = []
    async with open_test_host(env={"scene": script}, classes=[Reminder]) as test:
        for _ in range(40):
            name = rng.choice("abcde")
            now_ms = test.clock.now_ms()
            match rng.randrange(5):
                case 0 | 1:
                    due[name] = now_ms + rng.randrange(1, 150_000)
                    await reminder(test, name).set_at(due[name])
                case 2:
                    due.pop(name, None)
                    await reminder(test, name).delete()
                case 3:
                    await test.restart()
                case _:
                    until_ms = now_ms + rng.randrange(1, 60_000)
                    await test.advance(until_ms - now_ms)
                    over = [n for n in due if due[n] <= until_ms]
                    expected += [(due.pop(n) - START_MS, n) for n in over]
        await test.advance("3 minutes")
        expected += [(at_ms - START_MS, name) for name, at_ms in due.items()]
    fired: list[Any] = sorted(zip(script.times, script.log, strict=True))
    assert fired == sorted(expected)
