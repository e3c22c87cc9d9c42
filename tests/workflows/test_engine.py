"""Runs on a real host: its storage, its alarms, its gates, and its crashes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durable_actor import Config, DurableObject
from durable_actor.testing import START_MS, TestHost, open_test_host
from workflows import (
    Cancelled,
    Completed,
    Failed,
    InMemoryTracker,
    Paused,
    Recovery,
    Retry,
    RunExistsError,
    Running,
    Step,
    UnknownWorkflowError,
    WorkflowCancelledError,
    WorkflowDefinition,
    WorkflowFailedError,
    create_durable_workflows,
    workflow,
)

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Order:
    id: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Receipt:
    order_id: str
    processed: list[str]


class Shop(DurableObject):
    """An object that steps talk to."""

    async def process(self, item: str) -> str:
        self.ctx.storage.put(f"item:{item}", True)
        return item.upper()

    async def items(self) -> list[str]:
        return [key[5:] for key in await self.ctx.storage.list(prefix="item:")]


@workflow
async def process_order(step: Step, order: Order) -> Receipt:
    shop = step.env.namespace(Shop).get_by_name("shop")
    processed = [
        await step.run(f"process {item}", shop.process, item) for item in order.items
    ]
    await step.sleep("cooling off", "1 hour")
    return Receipt(order.id, processed)


@workflow
async def failing(step: Step) -> None:
    await step.run("it", int, "x", retry=Retry(max_attempts=2, delay="5 seconds"))


class Stuck:
    """A step that does not end until the process dies."""

    begun = 0

    async def wait(self) -> None:
        type(self).begun += 1
        await asyncio.get_running_loop().create_future()


@workflow
async def stuck(step: Step) -> None:
    await step.run("before", len, "x")
    await step.run("stuck", Stuck().wait)


class Gate:
    """A step that ends when the test says so."""

    opened: asyncio.Future[None]
    begun = 0

    async def wait(self) -> None:
        type(self).begun += 1
        await asyncio.shield(type(self).opened)


@workflow
async def quick(step: Step) -> str:
    return await step.run("only", lambda: "done")


@workflow
async def gated(step: Step) -> str:
    await step.run("first", Gate().wait)
    await step.run("second", Gate().wait)
    return "through"


WORKFLOWS: dict[str, WorkflowDefinition[Any, Any]] = {
    "process_order": process_order,
    "failing": failing,
    "stuck": stuck,
    "gated": gated,
    "quick": quick,
}
tracker = InMemoryTracker()
Workflows, WorkflowClient = create_durable_workflows(
    WORKFLOWS, tracker=tracker, recovery=Recovery(max_attempts=2), retention="3 hours"
)
ORDER = Order("o1", ("a", "b"))


@pytest.fixture
async def test(tmp_path: Path) -> AsyncIterator[TestHost]:
    tracker.clear()
    Stuck.begun = 0
    config = Config()
    async with open_test_host(
        tmp_path, classes=[Workflows, Shop], config=config
    ) as test:
        yield test


def client_of(test: TestHost) -> Any:
    return WorkflowClient.from_binding(test.host.namespace(Workflows))


async def test_a_run_goes_from_its_start_to_its_result(test: TestHost) -> None:
    client = client_of(test)
    result = await client.run(process_order, ORDER, id="r1")
    assert not result.completed
    assert result.status == Paused(START_MS + HOUR_MS)
    await test.advance("1 hour")
    handle = client.get(process_order, "r1")
    assert await handle.result() == Receipt("o1", ["A", "B"])
    assert await handle.status() == Completed(START_MS + HOUR_MS)
    assert await handle.completed_steps() == ["process a", "process b"]
    shop = test.host.namespace(Shop).get_by_name("shop")
    assert await shop.items() == ["a", "b"]


async def test_a_sleeping_run_wakes_after_a_crash(test: TestHost) -> None:
    await client_of(test).run(process_order, ORDER, id="r1")
    await test.restart()
    await test.advance("1 hour")
    handle = client_of(test).get(process_order, "r1")
    assert await handle.result() == Receipt("o1", ["A", "B"])


async def test_a_queued_run_starts_although_the_process_died(test: TestHost) -> None:
    """Whoever was answered can rely on it: reply-after-commit."""
    await client_of(test).run_async(process_order, ORDER, id="r1")
    await test.restart()
    await test.settle()
    handle = client_of(test).get(process_order, "r1")
    assert isinstance(await handle.status(), Paused)


async def test_an_interrupted_run_is_found_again_by_its_alarm(test: TestHost) -> None:
    await client_of(test).start(stuck, id="r1")
    await test.settle()
    assert Stuck.begun == 1
    await test.restart()
    await test.advance("1 second")
    assert Stuck.begun == 2, "nobody had to ask for it"
    await test.settle()
    assert "workflow.recovered" in tracker.types("r1")


async def test_an_interrupted_run_that_was_run_directly_is_found_again(
    test: TestHost,
) -> None:
    asking = asyncio.ensure_future(client_of(test).run(stuck, id="r1"))
    await test.settle()
    assert Stuck.begun == 1
    await test.crash()
    with pytest.raises(Exception, match="dropped"):
        await asking
    await test.start()
    await test.advance("1 second")
    assert Stuck.begun == 1, "its alarm has only found it interrupted"
    await test.advance("1 second")
    assert Stuck.begun == 2


async def test_a_run_that_is_over_says_so_when_it_is_queued_again(
    test: TestHost,
) -> None:
    first = await client_of(test).run("quick", id="r1")
    assert await client_of(test).run_async("quick", id="r1") == first


async def test_a_run_that_is_over_at_once_fires_no_alarm(test: TestHost) -> None:
    before = test.host.stats().alarms_delivered
    result = await client_of(test).run("quick", id="r1")
    assert result.output == "done"
    await test.advance("1 minute")
    assert test.host.stats().alarms_delivered == before


async def test_restarts_in_quick_succession_use_up_no_recovery(
    test: TestHost,
) -> None:
    """What was not tried has not failed; nor does asking for it put it off."""
    handle = await client_of(test).start(stuck, id="r1")
    await test.settle()
    for _ in range(5):
        await test.crash()
        await test.start()
        await test.advance("150 milliseconds")
        handle = client_of(test).get(stuck, "r1")
        assert isinstance(await handle.status(), Running)
        assert (await handle.describe()).recoveries == 0
    assert Stuck.begun == 1
    await test.advance("250 milliseconds")
    assert Stuck.begun == 2
    assert (await handle.describe()).recoveries == 1


async def test_g21_a_run_that_kills_its_process_is_given_up_without_the_others(
    test: TestHost,
) -> None:
    """The others have not got on either, as their steps take longer than it lives."""
    Gate.begun, Gate.opened = 0, asyncio.get_running_loop().create_future()
    others = [f"r{n}" for n in range(3)]
    for run_id in others:
        await client_of(test).start(gated, id=run_id)
    await client_of(test).start(stuck, id="poison")
    kills = 0
    for _ in range(600):
        await test.advance("1 second")
        if Stuck.begun > kills:
            kills += 1
            await test.crash()
            await test.start()
    assert kills == 3, "once, and two recoveries"
    assert isinstance(await client_of(test).get(stuck, "poison").status(), Failed)
    Gate.opened.set_result(None)
    await test.settle()
    for run_id in others:
        assert isinstance(await client_of(test).get(gated, run_id).status(), Completed)


async def test_a_suspect_that_waits_for_its_turn_can_be_cancelled(
    test: TestHost,
) -> None:
    Gate.begun, Gate.opened = 0, asyncio.get_running_loop().create_future()
    for run_id in ("a", "b"):
        await client_of(test).start(gated, id=run_id)
    await test.settle()
    begun = []
    for _ in range(2):
        await test.crash()
        await test.start()
        await test.advance("4 seconds")
        begun.append(Gate.begun)
    assert begun == [4, 5], "both, and then one of them"
    handles = [client_of(test).get(gated, run_id) for run_id in ("a", "b")]
    counts = [(await handle.describe()).recoveries for handle in handles]
    assert sorted(counts) == [1, 2]
    on_trial, waiting = sorted(handles, key=lambda h: counts[handles.index(h)])[::-1]
    assert (await waiting.cancel("no more")).cancelled
    assert isinstance(await waiting.status(), Cancelled)
    Gate.opened.set_result(None)
    await test.settle()
    assert isinstance(await on_trial.status(), Completed)
    assert Gate.begun == 6


async def test_a_run_that_never_gets_on_fails_in_the_end(test: TestHost) -> None:
    await client_of(test).start(stuck, id="r1")
    await test.settle()
    for _ in range(4):
        await test.restart()
        await test.advance("5 seconds")
    assert Stuck.begun == 3
    with pytest.raises(WorkflowFailedError) as caught:
        await client_of(test).get(stuck, "r1").result()
    assert caught.value.error.type == "RecoveryExhaustedError"


async def test_a_run_is_asked_and_cancelled_while_a_step_is_running(
    test: TestHost,
) -> None:
    handle = await client_of(test).start(stuck, id="r1")
    await test.settle()
    assert isinstance(await handle.status(), Running)
    assert await handle.completed_steps() == ["before"]
    assert (await handle.cancel("enough")).cancelled
    await test.restart()
    with pytest.raises(WorkflowCancelledError) as caught:
        await client_of(test).get(stuck, "r1").result()
    assert caught.value.reason == "enough"
    assert Stuck.begun == 1


async def test_a_failed_run_tells_who_asks_for_its_result(test: TestHost) -> None:
    handle = await client_of(test).start(failing, id="r1")
    await test.advance("5 seconds")
    with pytest.raises(WorkflowFailedError) as caught:
        await handle.result()
    assert caught.value.error.type == "ValueError"
    assert caught.value.error.step == "it"
    info = await handle.describe()
    assert info.steps[0].attempts == 2


async def test_an_id_is_given_once(test: TestHost) -> None:
    client = client_of(test)
    first = await client.run(process_order, ORDER, id="r1")
    assert await client.run(process_order, ORDER, id="r1") == first
    with pytest.raises(RunExistsError):
        await client.run(process_order, Order("o2"), id="r1")
    with pytest.raises(UnknownWorkflowError):
        await client.run("process_ordre", ORDER)


async def test_a_run_without_an_id_gets_a_fresh_one(test: TestHost) -> None:
    client = client_of(test)
    one = await client.start(failing)
    two = await client.start(failing)
    assert one.id != two.id


async def test_a_client_may_keep_to_one_object_as_the_original_does(
    test: TestHost,
) -> None:
    namespace = test.host.namespace(Workflows)
    client = WorkflowClient.from_binding(namespace, id_from_name="order-1")
    result = await client.run("process_order", ORDER)
    assert result.id == "order-1"
    assert isinstance(await client.get("process_order", "order-1").status(), Paused)


async def test_events_arrive_in_order_and_with_their_numbers(test: TestHost) -> None:
    await client_of(test).run(process_order, ORDER, id="r1")
    await test.advance("1 hour")
    assert tracker.types("r1") == [
        "workflow.started",
        "step.started",
        "step.completed",
        "step.started",
        "step.completed",
        "sleep.started",
        "workflow.paused",
        "workflow.resumed",
        "sleep.completed",
        "workflow.completed",
    ]
    assert [event["seq"] for event in tracker.events] == list(range(1, 11))
    assert {event["workflowName"] for event in tracker.events} == {"process_order"}
    assert len({event["eventId"] for event in tracker.events}) == 10


async def test_runs_are_found_by_their_status_in_the_directory(test: TestHost) -> None:
    client = client_of(test)
    await client.run(process_order, ORDER, id="r1")
    await client.run(process_order, Order("o2"), id="r2")
    await client.get(process_order, "r1").cancel()
    page = await test.host.list_objects("Workflows", where={"status": "paused"})
    assert [entry.attributes["run"] for entry in page.objects] == ["r2"]


async def test_a_finished_run_is_deleted_after_its_retention(test: TestHost) -> None:
    client = client_of(test)
    await client.run(process_order, ORDER, id="r1")
    await client.get(process_order, "r1").cancel()
    await test.advance("3 hours")
    page = await test.host.list_objects("Workflows")
    assert [entry.name for entry in page.objects if entry.attributes] == []


async def test_two_runs_do_not_wait_for_each_other(test: TestHost) -> None:
    client = client_of(test)
    await client.start(stuck, id="r1")
    await test.settle()
    result = await client.run(process_order, ORDER, id="r2")
    assert isinstance(result.status, Paused)


async def test_a_host_that_closes_lets_a_run_go_on_in_the_next_one(
    test: TestHost,
) -> None:
    Gate.opened, Gate.begun = asyncio.get_running_loop().create_future(), 0
    await client_of(test).start(gated, id="r1")
    await test.settle()
    closing = asyncio.ensure_future(test.host.close())
    await test.settle()
    assert not closing.done(), "it waits for the step that is running"
    Gate.opened.set_result(None)
    await closing
    assert Gate.begun == 1
    await test.start()
    await test.settle()
    assert await client_of(test).get(gated, "r1").result() == "through"
    assert Gate.begun == 2, "the finished step was recorded"
    await test.settle()
    assert "workflow.recovered" not in tracker.types("r1")


async def test_a_host_does_not_wait_for_a_run_that_sleeps(test: TestHost) -> None:
    client = client_of(test)
    await client.run(process_order, ORDER, id="r1")
    await test.host.close()
    await test.start()
    await test.advance("1 hour")
    assert await client_of(test).get(process_order, "r1").result()
