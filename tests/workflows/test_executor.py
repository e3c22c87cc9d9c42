"""One pass through a function, and how it ends."""

import asyncio
import random
from typing import Any

import pytest

from durable_actor import Env
from durable_actor.testing import ManualClock
from tests.workflows.support import Disk, FakeStorage
from workflows import Step, workflow
from workflows.announcer import Announcer
from workflows.context import RunContext, Wait
from workflows.definition import WorkflowDefinition
from workflows.executor import Diverged, Outcome, Raised, Returned, Unwound, execute
from workflows.journal import Entry, Journal, RunRecord
from workflows.machine import Running
from workflows.signals import Abandon, Suspend


class Owner:
    """Notes what the pass tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_idle(self, wait: Wait, /) -> None:
        self.told.append(f"idle until {wait.due_at_ms}")

    def on_progress(self) -> None:
        pass

    def on_work(self) -> None:
        self.told.append("work")


class Pass:
    """A context and what surrounds it."""

    def __init__(self, *entries: Entry) -> None:
        self.clock = ManualClock(1_000)
        self.owner = Owner()
        journal = Journal(FakeStorage(Disk()))
        record = RunRecord(
            run_id="r1", workflow="w", status=Running(1), created_at_ms=1
        )
        journal.open(record, None, wake_at_ms=1)
        source = random.Random(1)
        announcer = Announcer(None, self.clock, source, next_seq=lambda: 1)
        self.context = RunContext(
            journal, list(entries), announcer, self.clock, self.owner
        )
        self.journal = journal
        self.step = Step(self.context, Env(find), source)

    def begin(
        self, definition: WorkflowDefinition[None, Any]
    ) -> asyncio.Future[Outcome]:
        return asyncio.ensure_future(execute(definition, self.context, self.step, None))


def find(cls: Any) -> Any:
    raise AssertionError(cls)


def done(step: str, called: int) -> Entry:
    return Entry(
        step=step,
        kind="run",
        state="done",
        called=called,
        ended=called,
        is_forked=False,
        began_at_ms=1,
    )


@workflow
async def quick(step: Step) -> int:
    return await step.run("one", len, "x")


@workflow
async def broken(step: Step) -> None:
    raise ValueError


@workflow
async def sleepy(step: Step) -> str:
    await step.sleep("1 hour")
    return "awake"


@workflow
async def cancelling(step: Step) -> None:
    raise asyncio.CancelledError


@workflow
async def stuck(step: Step) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_function_that_returns() -> None:
    assert await Pass().begin(quick) == Returned(1)


async def test_a_function_that_raises() -> None:
    outcome = await Pass().begin(broken)
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, ValueError)


async def test_a_function_that_cancels_itself_has_raised() -> None:
    outcome = await Pass().begin(cancelling)
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, RuntimeError)


async def test_a_function_that_sleeps_is_idle_and_may_go_on() -> None:
    one = Pass()
    running = one.begin(sleepy)
    await one.clock.settle()
    assert one.owner.told == ["idle until 3601000"]
    one.clock.jump(3_601_000)
    one.context.wake()
    assert await running == Returned("awake")


async def test_a_function_that_sleeps_can_be_unwound() -> None:
    one = Pass()
    running = one.begin(sleepy)
    await one.clock.settle()
    signal = Suspend(3_601_000)
    one.context.close(signal)
    assert await running == Unwound(signal, is_swallowed=False)


async def test_a_function_between_two_steps_can_be_unwound() -> None:
    one = Pass()
    running = one.begin(stuck)
    await one.clock.settle()
    signal = Abandon("why")
    one.context.close(signal)
    assert await running == Unwound(signal, is_swallowed=False)


async def test_a_function_that_misses_a_recorded_step_has_diverged() -> None:
    outcome = await Pass(done("gone", 0)).begin(broken)
    assert isinstance(outcome, Diverged)
    assert outcome.error.expected == "step 'gone'"


async def test_a_cancel_from_the_host_is_not_an_outcome() -> None:
    one = Pass()
    running = one.begin(sleepy)
    await one.clock.settle()
    before = await one.journal.read_steps()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await one.journal.read_steps() == before


async def test_nothing_is_written_after_the_end() -> None:
    one = Pass()
    gate = asyncio.get_running_loop().create_future()

    async def stubborn() -> str:
        try:
            await asyncio.shield(gate)
        except asyncio.CancelledError:
            return "too late"
        return "in time"

    @workflow
    async def forgetful(step: Step) -> str:
        task = asyncio.create_task(step.run("forgotten", stubborn))
        await asyncio.sleep(0)
        del task
        return "over"

    assert await one.begin(forgetful) == Returned("over")
    await one.clock.settle()
    assert await one.journal.read_steps() == []


async def test_what_the_function_leaves_behind_is_cancelled() -> None:
    one = Pass()
    ends: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ends.append("the step")

    async def sleeping(step: Step) -> None:
        try:
            await step.sleep("1 hour")
        finally:
            ends.append("the sleep")

    @workflow
    async def forgetful(step: Step) -> str:
        left = {
            asyncio.create_task(step.run("forgotten", endless)),
            asyncio.create_task(sleeping(step)),
        }
        await asyncio.sleep(0)
        await step.run("other", len, "x")
        del left
        return "over"

    assert await one.begin(forgetful) == Returned("over")
    await one.clock.settle()
    assert sorted(ends) == ["the sleep", "the step"]
