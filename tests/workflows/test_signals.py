"""A sleep unwinds the function, and no code mistakes that for a failure."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durable_actor.testing import START_MS
from tests.workflows.support import Bench
from workflows import Cancelled, Completed, Paused, Step, workflow
from workflows.signals import Abandon, Signal, Suspend

HOUR_MS = 3_600_000
Nap = Callable[[Step], Awaitable[Any]]


def test_signals_are_no_exceptions_that_an_author_would_catch() -> None:
    assert issubclass(Signal, BaseException)
    assert not issubclass(Suspend, Exception)
    assert not issubclass(Abandon, Exception)


async def in_except_exception(step: Step) -> str:
    try:
        await step.sleep("1 hour")
    except Exception:  # noqa: BLE001  # the habit this is about
        return "caught"
    return "slept"


async def in_gather(step: Step) -> Any:
    return await asyncio.gather(step.sleep("1 hour"), step.sleep("30 minutes"))


async def in_gather_that_returns_exceptions(step: Step) -> Any:
    return await asyncio.gather(
        step.sleep("1 hour"), step.sleep("30 minutes"), return_exceptions=True
    )


async def in_a_task_group(step: Step) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(step.sleep("1 hour"))
        group.create_task(step.sleep("30 minutes"))
    return "both"


async def in_nested_groups(step: Step) -> str:
    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(step.sleep("1 hour"))

    async with asyncio.TaskGroup() as group:
        group.create_task(inner())
        group.create_task(step.sleep("30 minutes"))
    return "both"


async def in_a_task(step: Step) -> str:
    await asyncio.create_task(step.sleep("1 hour"))
    return "slept"


async def in_a_timeout(step: Step) -> str:
    async with asyncio.timeout(100_000):
        await step.sleep("1 hour")
    return "slept"


async def in_wait_for(step: Step) -> str:
    await asyncio.wait_for(step.sleep("1 hour"), 100_000)
    return "slept"


async def beside_a_task_nobody_awaits(step: Step) -> str:
    forgotten = asyncio.create_task(step.sleep("2 hours"))
    await step.sleep("1 hour")
    forgotten.cancel()
    return "slept"


NAPS: list[tuple[Nap, Any]] = [
    (in_except_exception, "slept"),
    (in_gather, [None, None]),
    (in_gather_that_returns_exceptions, [None, None]),
    (in_a_task_group, "both"),
    (in_nested_groups, "both"),
    (in_a_task, "slept"),
    (in_a_timeout, "slept"),
    (in_wait_for, "slept"),
    (beside_a_task_nobody_awaits, "slept"),
]


@pytest.mark.parametrize(("nap", "output"), NAPS)
@pytest.mark.parametrize("resident_sleep", ["0 seconds", "3 hours"])
async def test_a_sleep_is_invisible(nap: Nap, output: Any, resident_sleep: str) -> None:
    passes: list[int] = []

    @workflow
    async def napping(step: Step) -> Any:
        passes.append(1)
        return await nap(step)

    bench = Bench(napping, resident_sleep=resident_sleep)
    await bench.activate()
    result = await bench.run("napping")
    assert isinstance(result.status, Paused)
    await bench.advance("1 hour")
    assert bench.status == Completed(START_MS + HOUR_MS)
    assert await bench.output() == output
    if resident_sleep == "3 hours":
        assert len(passes) == 1, "a short sleep needs no replay"
    else:
        assert len(passes) > 1, "a long sleep lets go of the run"


@pytest.mark.parametrize(("nap", "output"), NAPS)
async def test_a_sleep_is_invisible_after_a_crash(nap: Nap, output: Any) -> None:
    @workflow
    async def napping(step: Step) -> Any:
        return await nap(step)

    bench = Bench(napping)
    await bench.activate()
    await bench.run("napping")
    for _ in range(5):
        await bench.advance("10 minutes")
        await bench.crash()
    await bench.advance("10 minutes")
    assert bench.status == Completed(START_MS + HOUR_MS)
    assert await bench.output() == output


async def test_code_that_swallows_a_signal_changes_nothing() -> None:
    after: list[str] = []

    @workflow
    async def greedy(step: Step) -> str:
        try:
            await step.sleep("1 hour")
        except BaseException:  # noqa: BLE001  # exactly what nobody should do
            after.append("swallowed")
            await step.run("late", after.append, "late")
        return "over"

    bench = Bench(greedy, resident_sleep="0 seconds")
    await bench.activate()
    await bench.run("greedy")
    assert isinstance(bench.status, Paused)
    await bench.advance("1 hour")
    assert await bench.output() == "over"
    assert after == ["swallowed"]


async def test_code_that_ends_after_swallowing_a_signal_has_not_ended_the_run() -> None:
    @workflow
    async def greedy(step: Step) -> str:
        try:
            await step.sleep("1 hour")
        except BaseException:  # noqa: BLE001  # exactly what nobody should do
            return "too early"
        return "in time"

    bench = Bench(greedy, resident_sleep="0 seconds")
    await bench.activate()
    await bench.run("greedy")
    assert isinstance(bench.status, Paused)
    await bench.advance("1 hour")
    assert await bench.output() == "in time"


async def test_clean_up_runs_while_a_signal_unwinds_and_may_take_no_steps() -> None:
    cleaned: list[str] = []

    @workflow
    async def tidy(step: Step) -> None:
        try:
            await step.sleep("1 hour")
        finally:
            cleaned.append("here")
            await step.run("clean", cleaned.append, "step")

    bench = Bench(tidy, resident_sleep="0 seconds")
    await bench.activate()
    await bench.run("tidy")
    assert cleaned == ["here"]
    await bench.advance("1 hour")
    assert cleaned == ["here", "here", "step"]


@pytest.mark.parametrize(("nap", "output"), NAPS)
@pytest.mark.parametrize("resident_sleep", ["0 seconds", "3 hours"])
async def test_a_sleeping_run_is_cancelled_wherever_it_sleeps(
    nap: Nap, output: Any, resident_sleep: str
) -> None:
    @workflow
    async def napping(step: Step) -> Any:
        await nap(step)
        raise AssertionError

    bench = Bench(napping, resident_sleep=resident_sleep)
    await bench.activate()
    await bench.run("napping")
    assert (await bench.cancel("enough")).cancelled
    await bench.settle()
    assert bench.status == Cancelled(START_MS, "enough")
    assert not [task for task in bench._tasks if not task.done()]
