r"""An order, processed by a workflow: steps, a sleep, and retries with back-off.

Each step's result is written down, so a run that is interrupted goes on where it was:
finished steps are not run again, and a sleep goes on through restarts. A step that
raises is tried again as its `Retry` says. The run is found by its id, so starting the
same order twice processes it once.

    python examples/order_processing.py [DIRECTORY]

If the environment names a collector, such as `examples/collector.py`, events go there:

    COLLECTOR_URL=http://127.0.0.1:8788/ingest COLLECTOR_TOKEN=secret

The daemon serves the same file, if its configuration says
`main = "examples/order_processing.py"`:

    durable-actor workflows run process_order --id order-17 \
        --input '{"id": "order-17", "items": ["lamp", "book"]}'

Expected output:
    fetching order-17
    processing lamp: the press is busy (attempt 1)
    processing lamp: done (attempt 2)
    processing book: done (attempt 1)
    completing order-17
    Receipt(status='completed', order_id='order-17', total_cents=5800)
    the same order again, the same receipt: True
"""

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import structlog

from durable_actor import Host
from workflows import (
    Backoff,
    HttpBatchTracker,
    Retry,
    Step,
    create_durable_workflows,
    workflow,
)

PRICES_CENTS = {"lamp": 4_500, "book": 1_300}
PATIENTLY = Retry(max_attempts=3, delay=Backoff.exponential("100 ms", max="30 s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a customer sends."""

    id: str
    items: list[str]
    cooling_off_ms: int = 300  # an hour in earnest


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a customer gets."""

    status: str
    order_id: str
    total_cents: int


@workflow
async def process_order(step: Step, order: Order) -> Receipt:
    """Fetch, wait for second thoughts, process each item, complete."""
    prices = await step.run("fetch order", fetch_order, order)
    await step.sleep("cooling off", order.cooling_off_ms)
    for item in order.items:
        await step.run(
            f"process {item}",
            process_item,
            step,
            item,
            retry=PATIENTLY,
            timeout="30 seconds",
        )
    await step.run("complete", complete_order, order.id)
    total_cents = sum(prices.values())
    return Receipt(status="completed", order_id=order.id, total_cents=total_cents)


async def fetch_order(order: Order) -> dict[str, int]:
    """Return the prices of today; a replay will see the same."""
    print(f"fetching {order.id}")
    return {item: PRICES_CENTS.get(item, 1_000) for item in order.items}


async def process_item(step: Step, item: str) -> str:
    """Send an item to the workshop, whose press is always busy at first."""
    if item == "lamp" and step.attempt == 1:
        print(f"processing {item}: the press is busy (attempt {step.attempt})")
        raise ConnectionError("the press is busy")
    print(f"processing {item}: done (attempt {step.attempt})")
    # The same for every attempt: the workshop can tell a repeat from a second order.
    return step.idempotency_key


async def complete_order(order_id: str) -> None:
    """Tell everybody."""
    print(f"completing {order_id}")


def tracker_from_environ() -> HttpBatchTracker | None:
    """Return what sends events to the collector, if there is one."""
    url, token = os.environ.get("COLLECTOR_URL"), os.environ.get("COLLECTOR_TOKEN")
    if not url:
        return None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return HttpBatchTracker(url, headers=headers)


tracker = tracker_from_environ()
Workflows, WorkflowClient = create_durable_workflows(
    {"process_order": process_order}, tracker=tracker
)


async def process(directory: Path) -> None:
    """Process an order, and ask for it again."""
    async with Host(directory) as host:
        client = WorkflowClient.from_binding(host.namespace(Workflows))
        order = Order(id="order-17", items=["lamp", "book"])
        run = await client.start(process_order, order, id=order.id)
        receipt = await run.result()
        print(receipt)

        run = await client.start(process_order, order, id=order.id)
        is_same = await run.result() == receipt
        print("the same order again, the same receipt:", is_same)

        if tracker is not None:
            await _until_delivered(host)
            await tracker.close()


async def _until_delivered(host: Host) -> None:
    """Wait for the events. In a directory that stays, the next start sends the rest."""
    async with asyncio.timeout(5):
        while host.stats().events_waiting:  # noqa: ASYNC110  # a number, not an event
            await asyncio.sleep(0.01)


def main() -> None:
    """Process in the directory given, or in one that is gone afterwards."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(process(Path(sys.argv[1] if sys.argv[1:] else temporary)))


if __name__ == "__main__":
    main()
