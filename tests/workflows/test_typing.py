"""What mypy knows about workflows. Only type-checked: nothing here needs to run.

`warn_unused_ignores` turns each ignored error into an assertion that it is one.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_type
from uuid import UUID

from durable_actor import DurableObjectNamespace
from durable_actor.testing import ManualClock
from workflows import (
    Backoff,
    InMemoryTracker,
    NoopTracker,
    Retry,
    RunResult,
    Step,
    Tracker,
    WorkflowClient,
    WorkflowDefinition,
    WorkflowEngine,
    WorkflowHandle,
    create_durable_workflows,
    workflow,
)
from workflows.http_tracker import HttpBatchTracker


@dataclass(frozen=True)
class Order:
    id: str


@dataclass(frozen=True)
class Receipt:
    total: int


async def price(order: Order, *, discount: int = 0) -> int:
    return 10 - discount


async def charge(card: str, total: int) -> Receipt:
    return Receipt(total)


@workflow
async def checkout(step: Step, order: Order) -> Receipt:
    total = assert_type(await step.run("price", price, order), int)
    length = assert_type(await step.run("plain", len, "text"), int)
    retry = Retry(delay=Backoff.exponential("1 second"))
    receipt = await step.run("charge", charge, "card", total, retry=retry, timeout=5)
    assert_type(receipt, Receipt)
    assert_type(await step.now(), datetime)
    assert_type(await step.uuid(), UUID)
    return Receipt(receipt.total + length)


@workflow
async def nightly(step: Step) -> int:
    await step.sleep("nap", "1 hour")
    await step.sleep("1 hour")
    return 1


@workflow(name="other")
async def named(step: Step, order: Order) -> str:
    return order.id


async def wrong_steps(step: Step) -> None:
    await step.run("price", price, "no order")  # type: ignore[arg-type]
    await step.run("charge", charge, "card")  # type: ignore[arg-type]
    await step.sleep("nap", "1 hour", 3)  # type: ignore[call-overload]


async def starting(client: WorkflowClient) -> None:
    assert_type(checkout, WorkflowDefinition[Order, Receipt])
    assert_type(nightly, WorkflowDefinition[None, int])
    assert_type(named, WorkflowDefinition[Order, str])
    assert_type(await client.run(checkout, Order("1")), RunResult[Receipt])
    assert_type(await client.run(nightly, id="n"), RunResult[int])
    assert_type(await client.run("checkout", {"id": "1"}), RunResult[Any])
    handle = await client.start(checkout, Order("1"), id="o")
    assert_type(handle, WorkflowHandle[Receipt])
    assert_type(await handle.result(), Receipt)
    assert_type(client.get(checkout, "o"), WorkflowHandle[Receipt])


async def wrong_inputs(client: WorkflowClient) -> None:
    await client.run(checkout, "no order")  # type: ignore[misc]
    await client.run(checkout)  # type: ignore[arg-type]
    await client.start(nightly, Order("1"))  # type: ignore[misc]


def binding(namespace: DurableObjectNamespace[WorkflowEngine]) -> WorkflowClient:
    _, Client = create_durable_workflows({"checkout": checkout})  # noqa: N806
    return Client.from_binding(namespace)


def trackers() -> list[Tracker]:
    clock = ManualClock()
    remote = HttpBatchTracker("http://localhost", clock=clock)
    return [NoopTracker(), InMemoryTracker(), remote]


def test_this_file_is_checked_by_mypy() -> None:
    assert [tracker.deliver for tracker in trackers()]
