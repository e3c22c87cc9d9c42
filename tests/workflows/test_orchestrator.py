"""What requests, alarms and crashes mean for a run."""

import asyncio
from typing import Any

import pytest

from durable_actor import decode
from durable_actor.testing import START_MS
from tests.workflows.support import Bench
from workflows import (
    Cancelled,
    Completed,
    Failed,
    IllegalTransitionError,
    Paused,
    Queued,
    Recovery,
    Retry,
    RunExistsError,
    Running,
    RunNotFoundError,
    Step,
    StepFailedError,
    UnknownWorkflowError,
    workflow,
)

HOUR_MS = 3_600_000


@workflow
async def double(step: Step, value: int) -> int:
    return await step.run("double", lambda x: 2 * x, value)


@workflow
async def nap(step: Step) -> str:
    await step.sleep("1 hour")
    return "rested"


class Outside:
    """Steps whose ends the test decides."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, name: str) -> str:
        self.begun.append(name)
        await asyncio.shield(self.gate)
        return name

    def make(self) -> Any:
        @workflow
        async def work(step: Step) -> str:
            await step.run("one", self.wait, "one")
            await step.run("two", self.wait, "two")
            return "worked"

        return work

    async def at_work(self, **options: Any) -> Bench:
        """Start a run, and return when its first step is under way."""
        bench = await opened(self.make(), **options)
        await bench.start("work")
        await bench.settle()
        return bench


async def opened(*workflows: Any, **options: Any) -> Bench:
    bench = Bench(*workflows, **options)
    await bench.activate()
    return bench


async def test_run_answers_when_the_run_has_ended() -> None:
    bench = await opened(double)
    result = await bench.run("double", 21)
    assert (result.id, result.completed, result.output) == ("r1", True, 42)
    assert bench.events == [
        "workflow.started",
        "step.started",
        "step.completed",
        "workflow.completed",
    ]


async def test_run_answers_when_the_run_sleeps() -> None:
    bench = await opened(nap)
    result = await bench.run("nap")
    assert not result.completed
    assert result.status == Paused(START_MS + HOUR_MS)


async def test_a_queued_run_is_started_by_its_alarm() -> None:
    bench = await opened(double)
    await bench.start("double", 21)
    assert bench.status == Queued(START_MS)
    await bench.settle()
    assert bench.status == Completed(START_MS)
    assert bench.events[:2] == ["workflow.queued", "workflow.started"]


async def test_a_pause_has_its_alarm_in_the_same_commit() -> None:
    """The name of the invariant is asleep-means-alarm."""
    seen: list[int | None] = []
    bench = await opened(nap, resident_sleep="0 seconds")
    commit = bench.storage._commit

    def look() -> None:
        commit()
        record = bench.journal.record
        if record is not None and isinstance(record.status, Paused):
            seen.append(bench.disk.alarm)

    bench.storage._commit = look  # type: ignore[method-assign]  # a look at each commit
    await bench.run("nap")
    assert seen
    assert set(seen) == {START_MS + HOUR_MS}


async def test_the_same_run_started_again_is_the_same_run() -> None:
    bench = await opened(double)
    first = await bench.run("double", 21)
    again = await bench.run("double", 21)
    assert again == first
    assert bench.events.count("workflow.started") == 1


async def test_an_id_is_not_given_to_another_input() -> None:
    bench = await opened(double)
    await bench.run("double", 21)
    with pytest.raises(RunExistsError) as caught:
        await bench.run("double", 22)
    assert caught.value.run_id == "r1"


async def test_an_id_is_not_given_to_another_workflow() -> None:
    bench = await opened(double, nap)
    await bench.run("double", 21)
    with pytest.raises(RunExistsError) as caught:
        await bench.run("nap")
    assert caught.value.workflow == "double"


async def test_an_unknown_workflow_is_refused_and_the_nearest_named() -> None:
    bench = await opened(double)
    with pytest.raises(UnknownWorkflowError) as caught:
        await bench.run("duoble", 1)
    assert caught.value.nearest == "double"
    assert bench.disk.keys == {}


async def test_an_input_that_cannot_be_kept_starts_nothing() -> None:
    bench = await opened(double)
    with pytest.raises(TypeError, match="value"):
        await bench.run("double", object())
    await bench.settle()
    assert bench.disk.keys == {}
    assert bench.status is None


async def test_an_output_that_cannot_be_kept_fails_the_run() -> None:
    @workflow
    async def bad(step: Step) -> object:
        return object()

    bench = await opened(bad)
    result = await bench.run("bad")
    assert isinstance(result.status, Failed)
    assert result.status.error.type == "EncodeError"


async def test_what_the_function_raises_fails_the_run() -> None:
    @workflow
    async def broken(step: Step) -> None:
        await step.run("fine", len, "x")
        raise ValueError("no such order")

    bench = await opened(broken)
    result = await bench.run("broken")
    assert isinstance(result.status, Failed)
    assert (result.status.error.type, result.status.error.message) == (
        "ValueError",
        "no such order",
    )
    assert bench.disk.events[-1]["completedSteps"] == ["fine"]


async def test_the_result_waits_for_the_end() -> None:
    bench = await opened(nap)
    await bench.run("nap")
    asking = asyncio.ensure_future(bench.orchestrator.result(is_final=True))
    await bench.advance("59 minutes")
    assert not asking.done()
    await bench.advance("1 minute")
    assert (await asking).output == "rested"


async def test_there_is_no_result_of_a_run_that_is_not_there() -> None:
    bench = await opened(nap)
    with pytest.raises(RunNotFoundError):
        await bench.orchestrator.result(is_final=True)
    assert bench.status is None
    assert await bench.orchestrator.describe() is None
    assert not (await bench.cancel()).cancelled
    with pytest.raises(RunNotFoundError):
        bench.orchestrator.resume()


async def test_an_alarm_that_comes_early_is_set_again() -> None:
    bench = await opened(nap)
    await bench.run("nap")
    bench.storage.set_alarm(START_MS)
    await bench.settle()
    assert isinstance(bench.status, Paused)
    assert bench.disk.alarm == START_MS + HOUR_MS
    await bench.advance("1 hour")
    assert isinstance(bench.status, Completed)


async def test_a_queued_run_is_cancelled_at_once() -> None:
    bench = await opened(double)
    await bench.start("double", 1)
    result = await bench.cancel("changed my mind")
    assert (result.cancelled, result.reason) == (True, "changed my mind")
    await bench.settle()
    assert bench.status == Cancelled(START_MS, "changed my mind")
    assert "step.started" not in bench.events


async def test_g29_a_running_run_is_cancelled_before_its_next_step() -> None:
    outside = Outside()
    bench = await outside.at_work()
    assert (await bench.cancel("stop")).cancelled
    assert bench.status == Running(START_MS)
    outside.gate.set_result(None)
    await bench.settle()
    assert bench.status == Cancelled(START_MS, "stop")
    assert outside.begun == ["one"]
    assert await bench.orchestrator.completed_steps() == ["one"]


async def test_g29_a_cancel_that_was_answered_holds_after_a_crash() -> None:
    outside = Outside()
    bench = await outside.at_work()
    assert (await bench.cancel("stop")).cancelled
    await bench.crash()
    assert bench.status == Cancelled(START_MS, "stop")
    outside.gate.set_result(None)
    await bench.advance("1 hour")
    assert outside.begun == ["one"]


async def test_a_run_that_ends_by_itself_after_a_cancel_has_been_cancelled() -> None:
    outside = Outside()

    @workflow
    async def last(step: Step) -> str:
        return await step.run("one", outside.wait, "one")

    bench = await opened(last)
    await bench.start("last")
    await bench.settle()
    assert (await bench.cancel()).cancelled
    outside.gate.set_result(None)
    await bench.settle()
    assert isinstance(bench.status, Cancelled)


async def test_a_function_stuck_between_steps_is_unwound_by_a_cancel() -> None:
    @workflow
    async def stuck(step: Step) -> None:
        await asyncio.get_running_loop().create_future()

    bench = await opened(stuck)
    await bench.start("stuck")
    await bench.settle()
    assert (await bench.cancel()).cancelled
    await bench.settle()
    assert isinstance(bench.status, Cancelled)


async def test_a_run_that_waits_to_retry_is_cancelled_at_once() -> None:
    @workflow
    async def failing(step: Step) -> None:
        await step.run("it", int, "x", retry=Retry(delay="1 minute"))

    bench = await opened(failing)
    await bench.run("failing")
    assert isinstance(bench.status, Paused)
    assert (await bench.cancel()).cancelled
    await bench.advance("1 hour")
    assert isinstance(bench.status, Cancelled)
    assert bench.events.count("step.started") == 1


async def test_a_run_that_is_over_cannot_be_cancelled() -> None:
    bench = await opened(double)
    await bench.run("double", 1)
    result = await bench.cancel()
    assert not result.cancelled
    assert result.reason == "the run is already completed"


async def test_an_interrupted_run_goes_on_after_a_delay() -> None:
    outside = Outside()
    bench = await outside.at_work(recovery=Recovery(delay="2 seconds"))
    outside.gate.set_result(None)
    await bench.crash()
    await bench.settle()
    assert isinstance(bench.status, Running)
    assert outside.begun == ["one"]
    await bench.advance("2 seconds")
    assert await bench.output() == "worked"
    assert outside.begun == ["one", "one", "two"]
    assert "workflow.recovered" in bench.events


async def test_a_run_that_is_interrupted_again_and_again_is_given_up() -> None:
    outside = Outside()
    recovery = Recovery(max_attempts=3, delay="1 second")
    bench = await outside.at_work(recovery=recovery)
    for _ in range(4):
        await bench.crash()
        await bench.advance("1 minute")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == "RecoveryExhaustedError"
    assert outside.begun == ["one"] * 4, "once, and three recoveries"
    assert bench.disk.alarm is None


async def test_a_restart_before_the_recovery_is_due_is_no_attempt() -> None:
    """Only a recovery that began can have failed, and no restart puts it off."""
    outside = Outside()
    recovery = Recovery(max_attempts=1, delay="10 seconds")
    bench = await outside.at_work(recovery=recovery)
    outside.gate.set_result(None)
    for _ in range(5):
        await bench.crash()
        await bench.advance("1 second")
    assert isinstance(bench.status, Running)
    assert outside.begun == ["one"]
    await bench.advance("5 seconds")
    assert await bench.output() == "worked"


async def test_a_recovery_is_counted_before_its_code_runs() -> None:
    outside = Outside()
    bench = await outside.at_work(recovery=Recovery(max_attempts=2))
    for _ in range(3):
        await bench.crash()
        begun = len(outside.begun)
        while len(outside.begun) == begun and isinstance(bench.status, Running):
            await bench.advance("1 second")
    assert outside.begun == ["one"] * 3
    assert isinstance(bench.status, Failed)


async def test_a_clock_that_was_put_back_delays_no_recovery_beyond_its_delay() -> None:
    outside = Outside()
    bench = await outside.at_work(recovery=Recovery(delay="2 seconds"))
    outside.gate.set_result(None)
    await bench.crash()
    bench.clock.jump(START_MS - HOUR_MS)
    await bench.crash()
    await bench.advance("2 seconds")
    assert await bench.output() == "worked"


async def test_only_durable_progress_sets_the_recovery_counter_back() -> None:
    """The name of the invariant is progress-resets-recovery."""
    outside = Outside()
    bench = await outside.at_work(recovery=Recovery(max_attempts=2))
    counters = []
    for _ in range(2):
        await bench.crash()
        await bench.advance("1 minute")
        assert bench.journal.record is not None
        counters.append(bench.journal.record.recoveries)
    assert counters == [1, 2], "starting to recover is no progress"
    outside.gate.set_result(None)
    await bench.settle()
    assert bench.journal.record is not None
    assert bench.journal.record.recoveries == 0
    assert await bench.output() == "worked"


async def test_each_recovery_in_a_row_waits_longer_up_to_a_bound() -> None:
    recovery = Recovery(delay="1 second", stale_threshold="3 seconds")
    assert [recovery.delay_ms(n) for n in (1, 2, 3, 99)] == [1_000, 2_000, 3_000, 3_000]


async def test_a_sleeping_run_is_left_alone_by_a_restart() -> None:
    bench = await opened(nap)
    await bench.run("nap")
    commits = bench.disk.commits
    await bench.crash()
    await bench.settle()
    assert bench.disk.commits == commits
    assert "workflow.recovered" not in bench.events


async def test_a_finished_run_is_deleted_after_its_retention() -> None:
    bench = await opened(double, retention="7 days")
    await bench.run("double", 1)
    await bench.advance("6 days")
    assert isinstance(bench.status, Completed)
    await bench.crash()
    await bench.advance("1 day")
    assert bench.status is None
    assert bench.disk.keys == {}
    assert bench.disk.alarm is None
    assert bench.disk.attributes == {}


async def test_a_deleted_run_may_be_started_afresh() -> None:
    bench = await opened(double, retention="1 day")
    await bench.run("double", 1)
    await bench.advance("1 day")
    assert (await bench.run("double", 2)).output == 4


async def test_without_a_retention_a_run_is_kept() -> None:
    bench = await opened(double)
    await bench.run("double", 1)
    assert bench.disk.alarm is None
    await bench.advance("2 days")
    assert isinstance(bench.status, Completed)


async def test_the_status_is_published_with_each_change() -> None:
    bench = await opened(nap)
    await bench.start("nap")
    await bench.storage.sync()
    published = {"workflow": "nap", "run": "r1"}
    assert bench.disk.attributes == {**published, "status": "queued"}
    await bench.settle()
    assert bench.disk.attributes == {**published, "status": "paused"}
    await bench.advance("1 hour")
    assert bench.disk.attributes == {**published, "status": "completed"}


async def test_a_run_describes_itself() -> None:
    @workflow
    async def failing(step: Step, value: str) -> None:
        await step.run("fine", len, "x")
        try:
            await step.run("bad", int, value)
        except StepFailedError:
            await step.sleep("nap", "1 hour")

    bench = await opened(failing)
    await bench.run("failing", "x")
    info = await bench.orchestrator.describe()
    assert info is not None
    assert [(s.name, s.kind, s.state, s.attempts) for s in info.steps] == [
        ("fine", "run", "done", 1),
        ("bad", "run", "failed", 1),
        ("nap", "sleep", "sleeping", 0),
    ]
    assert info.steps[1].error is not None
    assert info.steps[1].error.type == "ValueError"
    assert info.steps[2].due_at_ms == START_MS + HOUR_MS
    assert await bench.orchestrator.meta("input") == "x"
    assert await bench.orchestrator.meta("workflow") == "failing"
    assert await bench.orchestrator.meta("nothing") is None


async def test_only_a_parked_run_is_resumed_by_hand() -> None:
    bench = await opened(nap, double)
    await bench.run("nap")
    bench.orchestrator.resume()
    assert isinstance(bench.status, Paused), "its alarm will do that"
    await bench.advance("1 hour")
    with pytest.raises(IllegalTransitionError):
        bench.orchestrator.resume()


@workflow
async def story(step: Step, outside: str) -> list[str]:
    """Everything a run can do, in one: steps, a retry, sleeps, branches, a failure."""
    journal = LEDGERS[outside]
    names = [await step.run("first", journal.post, "first")]

    async def flaky() -> str:
        journal.tries += 1
        if journal.tries < 3:
            raise OSError
        return await journal.post("flaky")

    names.append(await step.run("flaky", flaky, retry=Retry(delay="1 second")))
    await step.sleep("short", "10 seconds")
    names += await asyncio.gather(
        step.run("left", journal.post, "left"), step.run("right", journal.post, "right")
    )
    await step.sleep("long", "1 hour")
    try:
        await step.run("bad", int, "x")
    except StepFailedError:
        names.append(await step.run("mend", journal.post, "mend"))
    return names


class Ledger:
    """What the steps have done outside."""

    def __init__(self) -> None:
        self.posts: list[str] = []
        self.tries = 0

    async def post(self, name: str) -> str:
        self.posts.append(name)
        return name


LEDGERS: dict[str, Ledger] = {}
NAMES = ["first", "flaky", "left", "right", "mend"]


async def test_g5_a_crash_after_any_commit_changes_nothing_but_the_time() -> None:
    """Stop after the n-th commit, for every n; then let it run to its end.

    Recorded steps never run again, no event is lost or out of order, and what the
    function returns is the same.
    """
    ledger = LEDGERS["quiet"] = Ledger()
    bench = await opened(story)
    await bench.start("story", "quiet")
    await bench.finish()
    assert await bench.output() == NAMES
    commits = bench.disk.commits
    assert commits > 10
    for crash_at in range(1, commits + 1):
        name = f"crash {crash_at}"
        ledger = LEDGERS[name] = Ledger()
        bench = Bench(story)
        await bench.activate(commits_max=crash_at)
        await bench.start("story", name)
        await bench.finish()
        recorded = {
            step.step for step in await durable_steps(bench) if step.state == "done"
        }
        before = len(ledger.posts)
        await bench.crash()
        status = await bench.finish()
        assert isinstance(status, Completed), (crash_at, status)
        assert await bench.output() == NAMES
        again = ledger.posts[before:]
        assert not recorded.intersection(again), (crash_at, recorded, again)
        assert sorted(set(ledger.posts)) == sorted(NAMES)
        assert [event["seq"] for event in bench.disk.events] == list(
            range(1, len(bench.disk.events) + 1)
        )
        for kind in ("workflow.queued", "workflow.completed"):
            assert bench.events.count(kind) == 1


async def durable_steps(bench: Bench) -> Any:
    other = Bench(story)
    other.disk = bench.disk.copy()
    other.clock = bench.clock
    await other.activate(commits_max=0)
    return await other.journal.read_steps()


async def test_a_run_at_work_keeps_its_alarm_while_the_host_drains() -> None:
    outside = Outside()
    bench = await outside.at_work()
    bench.orchestrator.release(is_draining=True)
    await bench.settle()
    assert isinstance(bench.status, Running)
    assert bench.disk.alarm is not None


async def test_a_run_stops_between_two_steps_when_the_host_drains() -> None:
    outside = Outside()
    bench = await outside.at_work()
    bench.storage.commits_max = None
    bench.orchestrator.release(is_draining=True)
    outside.gate.set_result(None)
    await bench.clock.settle()
    assert bench.status == Paused(START_MS)
    assert bench.disk.alarm == START_MS
    assert outside.begun == ["one"]
    await bench.crash()
    await bench.settle()
    assert await bench.output() == "worked"
    assert outside.begun == ["one", "two"], "the finished step was recorded"
    assert "workflow.recovered" not in bench.events


async def test_a_sleeping_run_is_let_go_when_memory_is_short() -> None:
    bench = await opened(nap, resident_sleep="3 hours")
    await bench.run("nap")
    assert bench._tasks
    bench.orchestrator.release(is_draining=False)
    await bench.settle()
    assert not bench._tasks
    await bench.advance("1 hour")
    assert await bench.output() == "rested"


async def test_a_restart_is_not_counted_as_an_interruption() -> None:
    outside = Outside()
    bench = await outside.at_work(recovery=Recovery(max_attempts=0))
    bench.orchestrator.release(is_draining=True)
    outside.gate.set_result(None)
    await bench.clock.settle()
    await bench.crash()
    await bench.settle()
    assert isinstance(bench.status, Completed)


async def test_a_cancel_that_comes_while_a_step_waits_for_the_disk_stops_it() -> None:
    bench = await opened(double)
    disk_is_slow = asyncio.get_running_loop().create_future()
    syncs: list[int] = []

    async def sync() -> None:
        syncs.append(1)
        if len(syncs) > 1:  # not the first, which is that of the pass
            await disk_is_slow

    bench.storage.sync = sync  # type: ignore[method-assign]  # a disk that waits for us
    await bench.start("double", 1)
    await bench.settle()
    assert (await bench.orchestrator.cancel(None)).cancelled
    disk_is_slow.set_result(None)
    await bench.settle()
    assert isinstance(bench.status, Cancelled)
    assert "step.completed" not in bench.events


async def test_no_code_of_the_author_runs_before_its_pass_is_on_disk() -> None:
    """Else a run that kills its process there would never be counted."""
    seen: list[str] = []

    @workflow
    async def curious(step: Step) -> None:
        seen.append(decode(bench.disk.keys["run"])["status"]["_tag"])
        await step.sleep("1 hour")

    bench = await opened(curious, resident_sleep="0 seconds")
    await bench.start("curious")
    await bench.advance("1 hour")
    assert seen == ["Running", "Running"]


async def test_a_failed_attempt_is_no_progress() -> None:
    outside = Outside()

    @workflow
    async def failing(step: Step) -> None:
        await step.run("one", outside.wait, "one")

    @workflow(name="failing")
    async def worse(step: Step) -> None:
        await step.run("one", int, "x", retry=Retry(delay="1 hour"))

    bench = await opened(failing)
    await bench.start("failing")
    await bench.settle()
    bench.workflows["failing"] = worse
    await bench.crash()
    await bench.advance("10 seconds")
    assert isinstance(bench.status, Paused)
    assert bench.journal.record is not None
    assert bench.journal.record.recoveries == 1


async def test_a_sleep_that_is_over_stays_over_when_the_clock_jumps_back() -> None:
    outside = Outside()

    @workflow
    async def naps(step: Step) -> str:
        await step.sleep("1 hour")
        return await step.run("after", outside.wait, "after")

    bench = await opened(naps)
    await bench.run("naps")
    await bench.advance("1 hour")
    assert outside.begun == ["after"]
    outside.gate.set_result(None)
    await bench.kill()
    bench.clock.jump(START_MS)
    bench.disk.alarm = START_MS
    await bench.activate()
    await bench.advance("1 minute")
    assert await bench.output() == "after"
