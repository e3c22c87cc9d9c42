"""Alarms: when they fire, what their handler is told, and how they are retried.

The clock is moved by hand. A delay before a retry is the doubled base and up to a
quarter more, there and here, so both are looked for in the same range.
"""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest

from durable_actor import InvalidTimeError
from durable_actor.testing import open_test_host
from tests.parity.bells import Ringing, assert_retried, fail, once, ring
from tests.parity.cases import differs, not_applicable, noted, same
from tests.parity.objects import Probe
from tests.parity.translate import differences, outcome, to_python


def _like(runs: list[dict[str, Any]], seen: list[dict[str, Any]]) -> bool:
    return runs == [to_python(entry) for entry in seen]


async def _firesonce(observed: list[Any]) -> None:
    async with ring() as bell:
        await bell.set_in(100)
        await bell.test.advance(1_000)
        [run], [seen] = bell.runs, observed
        assert 0 <= run["at"] - run["due"] <= seen["late"]
        assert run["retryCount"] == seen["info"]["retryCount"]
        assert run["isRetry"] is seen["info"]["isRetry"]
        assert run["get"] is seen["getAlarm"] is None
        assert (run["at"] - 100 == bell.test.clock.now_ms() - 1_000) is seen[
            "schedEqDue"
        ]
        assert run["name"] == "bell"  # there, a name of its own making
        assert await bell.stub.due() is None


@same("alarm.fires")
async def test_an_alarm_fires_and_its_handler_is_told(observed: Any) -> None:
    await _firesonce(observed["log"])
    assert observed["getAfter"] is None


@same("alarm.kv")
async def test_an_alarm_fires_in_a_class_without_sql(observed: Any) -> None:
    await _firesonce(observed)


@same("alarm.mem")
async def test_an_alarm_is_a_number_until_it_is_deleted(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(60_000)
        due = await bell.stub.due()
        await bell.stub.delete()
        assert (isinstance(due, int), await bell.stub.due()) == (
            observed["get"] == "number",
            observed["afterDelete"],
        )


not_applicable("alarm.crash.mem", "a crash of the original's process, not a behaviour")


@same("alarm.delete")
async def test_a_deleted_alarm_does_not_fire(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(100)
        ret = await bell.stub.delete()
        await bell.test.advance("1 minute")
        get = await bell.stub.due()
        ours = {"ret": ret, "fired": len(bell.runs), "get": get}
    assert differences(ours, observed) == set()


@same("alarm.deleteAll")
async def test_delete_all_deletes_the_alarm(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(100)
        await bell.stub.delete_all()
        get = await bell.stub.due()
        await bell.test.advance("1 minute")
        assert {"get": get, "fired": len(bell.runs)} == observed


@same("alarm.deleteBetweenRetries")
async def test_an_alarm_deleted_between_retries_is_over(observed: Any) -> None:
    async with ring(fail) as bell:
        await bell.set_in(10)
        await bell.test.advance(500)
        await bell.stub.delete()
        await bell.test.advance("5 minutes")
        assert {"fires": len(bell.runs)} == observed


@same("alarm.deleteInHandlerThenThrow")
async def test_an_alarm_deleted_in_its_failing_handler_is_over(observed: Any) -> None:
    async def then(it: Any) -> None:
        it.ctx.storage.delete_alarm()
        await fail(it)

    async with ring(then) as bell:
        await bell.set_in(10)
        await bell.test.advance("5 minutes")
        assert {"fires": len(bell.runs), "get": await bell.stub.due()} == observed


@same("alarm.duringBcw")
async def test_an_alarm_waits_while_concurrency_is_blocked(observed: Any) -> None:
    async def then(it: Any) -> None:
        it.env.scene.note("fired")

    async with ring(then) as bell:
        await bell.set_in(50)
        blocking = asyncio.ensure_future(bell.stub.block(300))
        await bell.test.advance(1_000)
        await blocking
        assert bell.scene.log == observed


@same("alarm.duringRequest")
async def test_an_alarm_fires_beside_a_request_that_waits(observed: Any) -> None:
    async def then(it: Any) -> None:
        it.env.scene.note("fired")

    async with ring(then) as bell:
        await bell.set_in(50)
        slow = asyncio.ensure_future(bell.stub.slow(300))
        await bell.test.advance(1_000)
        await slow
        assert bell.scene.log == observed


class RingsFromItsStart(Ringing, concurrency="gated"):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ctx.block_concurrency_while(self._arm)

    async def _arm(self) -> None:
        due = await self.ctx.storage.get_alarm()
        self._note(f"ctor getAlarm={'null' if due is None else due}")
        if due is None:
            self.ctx.storage.set_alarm(timedelta(milliseconds=100))


@same("alarm.inCtor")
async def test_a_constructor_may_set_the_alarm(observed: Any) -> None:
    class Fresh(RingsFromItsStart):
        lives = 0

    async def then(it: Any) -> None:
        it.env.scene.note(f"alarm name={it.ctx.id.name}")

    async with ring(then, Fresh) as bell:
        await bell.stub.ping()
        await bell.test.advance(1_000)
    first, second = observed["log"]
    assert bell.scene.log == [first, second.partition("=")[0] + "=bell"]
    assert Fresh.lives == observed["ctor"]


@same("alarm.lateness")
async def test_twenty_alarms_fire_on_time(observed: Any) -> None:
    async with ring() as bell:
        objects = bell.test.host.namespace(Ringing)
        for index in range(observed["n"]):
            when = timedelta(milliseconds=50 * (index + 1))
            await objects.get_by_name(str(index)).set(when)
        await bell.test.advance(1_000)
        late = [run["at"] - run["due"] for run in bell.runs]
    assert len(late) == observed["n"]
    assert observed["min"] <= min(late) <= max(late) <= observed["max"]


@same("alarm.order")
async def test_alarms_fire_in_the_order_they_are_due(observed: Any) -> None:
    async with ring() as bell:
        objects = bell.test.host.namespace(Ringing)
        for index in range(10):
            when = timedelta(milliseconds=50 * (10 - index))
            await objects.get_by_name(str(index)).set(when)
        await bell.test.advance(1_000)
        assert [int(run["name"]) for run in bell.runs] == observed


@same("alarm.overwrite")
async def test_a_later_alarm_replaces_an_earlier_one(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(50)
        await bell.set_in(200)
        await bell.test.advance(100)
        at_50 = len(bell.runs)
        await bell.test.advance(200)
        assert {"firedAt50": at_50, "firedAt200": len(bell.runs)} == observed


@same("alarm.overwriteEarlier")
async def test_an_earlier_alarm_replaces_a_later_one(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(300)
        await bell.set_in(50)
        await bell.test.advance(150)
        by_150 = len(bell.runs)
        await bell.test.advance(1_000)
        assert {
            "by150": by_150,
            "late": bell.runs[0]["at"] - bell.runs[0]["due"],
            "getAlarm": await bell.stub.due(),
        } == observed
        assert len(bell.runs) == by_150


@differs("alarm.rearmSameMs", "an alarm set for its own millisecond is not lost")
async def test_an_alarm_set_for_now_in_its_handler_fires(observed: Any) -> None:
    @once
    async def then(it: Any) -> None:
        it.ctx.storage.set_alarm(it.ctx.clock.now_ms())

    async with ring(then) as bell:
        await bell.set_in(50)
        await bell.test.advance(300)
        first, second = bell.runs
        assert first["due"] == second["due"]
        ours = {"n": 1, "secondRun": 1, "getAlarmStillSet": await bell.stub.due() or 0}
    same, later = observed["same"], observed["later"]
    assert same["secondRun"] < same["n"]
    assert ours["secondRun"] / ours["n"] == later["secondRun"] / later["n"]
    assert ours["getAlarmStillSet"] == later["getAlarmStillSet"]


@same("alarm.reschedule")
async def test_a_handler_may_set_the_next_alarm(observed: Any) -> None:
    log: list[dict[str, Any]] = []

    async def then(it: Any) -> None:
        before = await it.ctx.storage.get_alarm()
        if len(log) < len(observed["log"]) - 1:
            it.ctx.storage.set_alarm(timedelta(milliseconds=50))
        log.append(
            {
                "n": len(log) + 1,
                "retryCount": it.env.runs[-1]["retryCount"],
                "before": before,
                "afterSet": await it.ctx.storage.get_alarm() is not None,
            }
        )

    async with ring(then) as bell:
        await bell.set_in(50)
        await bell.test.advance(1_000)
        assert {"log": log, "get": await bell.stub.due()} == observed


@same("alarm.retrySchedule")
async def test_a_failing_alarm_is_tried_seven_times(observed: Any) -> None:
    async with ring(fail) as bell:
        await bell.set_in(10)
        await bell.test.advance("5 minutes")
        assert len(bell.runs) == observed["attempts"]
        assert [run["retryCount"] for run in bell.runs] == observed["retryCounts"]
        assert [run["isRetry"] for run in bell.runs] == observed["isRetry"]
        assert len(bell.delays_ms) == len(observed["delaysMs"])
        assert_retried(bell.delays_ms)
        assert_retried(observed["delaysMs"])
        assert await bell.stub.due() is observed["getAlarmEnd"]


@differs("alarm.setBetweenRetries", "a new alarm takes the place of the pending retry")
async def test_an_alarm_set_between_retries_replaces_the_retry(observed: Any) -> None:
    async with ring(once(fail)) as bell:
        await bell.set_in(10)
        await bell.test.advance(500)
        await bell.set_in(100)
        new = bell.test.clock.now_ms() + 100
        is_new = await bell.stub.due() == new
        await bell.test.advance("5 minutes")
        entries = bell.seen("retryCount", "isRetry")
        assert is_new is observed["getAlarmIsNewTime"]
        # There the retry comes first, and the new alarm after it.
        first, retry, last = observed["entries"]
        assert retry["isRetry"]
        assert entries == [first, last]
        assert bell.runs[1]["at"] == new
        assert bell.delays_ms[0] < observed["delta"]


@same("alarm.setThenRequestFails")
async def test_an_alarm_is_kept_by_an_exception_and_lost_by_an_abort(
    observed: Any,
) -> None:
    ours = {}
    for key, abort in {"afterThrow": False, "afterAbort": True}.items():
        async with ring() as bell:
            await outcome(lambda: bell.stub.set_then_fail(abort=abort))
            await bell.test.advance(1_000)
            ours[key] = ["fired"] * len(bell.runs)
    assert ours == observed


@same("alarm.setThenThrow")
async def test_an_alarm_set_in_a_failing_handler_replaces_the_retry(
    observed: Any,
) -> None:
    @once
    async def then(it: Any) -> None:
        it.ctx.storage.put("count", 1)
        it.ctx.storage.set_alarm(timedelta(milliseconds=300))
        await fail(it)

    async with ring(then) as bell:
        await bell.set_in(50)
        await bell.test.advance(100)
        after = await bell.stub.due()
        count = await bell.stub.read("count")
        await bell.test.advance("5 minutes")
        assert (after is not None) is (observed["getAlarmAfterThrow"] == "set")
        assert count == observed["countPersistedDespiteThrow"]
        assert len(bell.runs) == observed["fires"]
        assert 300 <= bell.delays_ms[0] <= observed["deltaMs"]
        assert _like(bell.seen("n", "retryCount", "isRetry"), observed["entries"])


@same("alarm.throwOnce")
async def test_a_failed_alarm_is_tried_again_by_the_same_instance(
    observed: Any,
) -> None:
    async with ring(once(fail)) as bell:
        await bell.set_in(10)
        await bell.test.advance(500)
        between = await bell.stub.due()
        await bell.test.advance("5 minutes")
        assert observed["getAlarmBetween"] == "original time kept"
        assert between == bell.runs[0]["due"]
        assert len(bell.runs) == observed["fires"]
        assert_retried([*bell.delays_ms])
        assert_retried([observed["delayMs"]])
        mine = bell.seen("n", "mem", "retryCount", "isRetry", "get")
        assert _like(mine, observed["entries"])
        assert await bell.stub.due() is observed["getAfter"]


@same("alarm.abort")
async def test_an_abort_in_the_handler_is_retried_and_counted(observed: Any) -> None:
    @once
    async def then(it: Any) -> None:
        it.ctx.storage.put("w", 1)
        it.ctx.abort()

    async with ring(then) as bell:
        await bell.set_in(10)
        await bell.test.advance(500)
        between = await bell.stub.due()
        await bell.test.advance("5 minutes")
        assert len(bell.runs) == observed["attempts"]
        assert [run["retryCount"] for run in bell.runs] == observed["retryCounts"]
        assert_retried(bell.delays_ms)
        assert_retried(observed["delays"])
        assert isinstance(observed["get"], int)
        assert between == bell.runs[0]["due"]
        assert await bell.stub.read("w") is to_python(observed["w"])


@same("alarm.bcwThrow")
async def test_a_failed_block_in_the_handler_is_retried_and_counted(
    observed: Any,
) -> None:
    @once
    async def then(it: Any) -> None:
        await it.ctx.block_concurrency_while(lambda: fail(it))

    async with ring(then) as bell:
        await bell.set_in(10)
        await bell.test.advance(500)
        between = await bell.stub.due()
        await bell.test.advance("5 minutes")
        assert len(bell.runs) == observed["attempts"]
        assert [run["retryCount"] for run in bell.runs] == observed["retryCounts"]
        assert isinstance(observed["get"]["ok"], int)
        assert between == bell.runs[0]["due"]


@same("alarm.waitUntilReject")
async def test_a_background_failure_in_the_handler_is_not_retried(
    observed: Any,
) -> None:
    async def then(it: Any) -> None:
        async def background() -> None:
            it.env.scene.note("wu")
            await fail(it)

        it.env.scene.note("a")
        it.ctx.wait_until(background())

    async with ring(then) as bell:
        await bell.set_in(10)
        await bell.test.advance("5 minutes")
        assert bell.scene.log == observed
        assert len(bell.runs) == 1


@same("alarm.wakesEvicted")
async def test_an_alarm_wakes_an_object_that_was_evicted(observed: Any) -> None:
    class Fresh(Ringing):
        lives = 0

    async with ring(cls=Fresh) as bell:
        await bell.set_in(13_000)
        await bell.test.advance(13_000)
        assert [{"ctor": Fresh.lives, "name": run["name"]} for run in bell.runs] == [
            {"ctor": seen["ctor"], "name": "bell"} for seen in observed
        ]


@same("restart.alarmSurvives")
async def test_an_alarm_survives_a_restart(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(3_000)
        await bell.test.restart()
        bell.test.host.bind("runs", bell.runs)
        await bell.test.advance(10_000)
        [run] = bell.runs
        assert observed["fires"] == 1
        assert 0 <= run["at"] - run["due"] <= observed["lateMs"]
        for name in ("retryCount", "isRetry"):
            assert run[name] == observed["entry"][name]
        assert run["name"] == "bell"


@same("restart.alarmMissed")
async def test_a_missed_alarm_fires_at_start_unasked(observed: Any) -> None:
    async with ring() as bell:
        await bell.set_in(1_000)
        await bell.test.crash()
        bell.test.clock.jump(bell.test.clock.now_ms() + 1_000 + observed["lateMs"])
        await bell.test.start()
        bell.test.host.bind("runs", bell.runs)
        await bell.test.settle()
        [run] = bell.runs
        assert observed["fires"] == 1
        assert run["at"] - run["due"] == observed["lateMs"]
        for name in ("retryCount", "isRetry"):
            assert run[name] == observed["entry"][name]
        assert run["name"] == "bell"


@noted("retry counts survive a restart, which the original forgets")
async def test_retry_counts_survive_a_restart() -> None:
    async with ring(fail) as bell:
        await bell.set_in(10)
        await bell.test.advance(500)
        await bell.test.restart()
        bell.test.host.bind("runs", bell.runs)
        await bell.test.advance("10 seconds")
        assert [run["retryCount"] for run in bell.runs] == [0, 1, 2]
        assert_retried(bell.delays_ms)


@noted("a time of 0 or less, NaN or infinity is refused by set_alarm")
@pytest.mark.parametrize("when", [0, -1, math.nan, math.inf])
async def test_what_is_no_time_is_refused(when: float) -> None:
    async with ring() as bell:
        with pytest.raises(InvalidTimeError):
            await bell.stub.set(when)
        assert await bell.stub.due() is None


@noted("an alarm set for the past is set for now")
async def test_the_past_means_now() -> None:
    async with ring() as bell:
        now = bell.test.clock.now_ms()
        await bell.stub.set(now - 60_000)
        await bell.test.settle()
        assert [run["due"] for run in bell.runs] == [now]


class Deaf(Probe):
    async def set(self) -> None:
        self.ctx.storage.set_alarm(timedelta(hours=1))


@noted("set_alarm without a handler is a TypeError")
async def test_a_class_without_a_handler_sets_no_alarm() -> None:
    async with open_test_host() as test:
        with pytest.raises(TypeError):
            await test.host.namespace(Deaf).get_by_name("a").set()


@noted("runs of the alarm never overlap")
async def test_an_alarm_waits_for_the_one_before() -> None:
    async def then(it: Any) -> None:
        it.env.scene.note("begins")
        if len(it.env.runs) == 1:
            it.ctx.storage.set_alarm(timedelta(milliseconds=10))
            await it._wait(1_000)
        it.env.scene.note("ends")

    async with ring(then) as bell:
        await bell.set_in(10)
        await bell.test.advance(5_000)
        assert bell.scene.log == ["begins", "ends"] * 2
