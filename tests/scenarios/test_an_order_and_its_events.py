"""The original's order, with its tracker, against a real collector on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from durable_actor import connect
from examples import order_processing
from tests.durable_actor.daemon.process import ROOT, Daemon

SECRET = "tracker-secret"  # of this test's own collector


@pytest.fixture
def collector() -> Iterator[httpx2.Client]:
    """A collector that wants the tracker's header, and a caller that has it."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples/collector.py"), "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLLECTOR_TOKEN": SECRET, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found
        with httpx2.Client(
            base_url=found[0],
            headers={"Authorization": f"Bearer {SECRET}"},
            transport=httpx2.HTTPTransport(trust_env=False),
        ) as caller:
            yield caller
        process.terminate()


async def test_g9_an_orders_events_arrive_in_order_although_the_daemon_is_killed(
    collector: httpx2.Client,
    start: Callable[..., Daemon],
    app_config: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLLECTOR_URL", f"{collector.base_url}/ingest")
    monkeypatch.setenv("COLLECTOR_TOKEN", SECRET)
    config = app_config("examples.order_processing")
    order = order_processing.Order(
        id="order-17", items=["lamp", "book"], cooling_off_ms=1_500
    )

    first = start(config)
    async with connect(first.url, token=first.token) as client:
        runs = client.workflows(order_processing.WorkflowClient)
        begun = await runs.run(order_processing.process_order, order, id=order.id)
        first.kill()  # while the order cools off

    second = start(config)
    async with connect(second.url, token=second.token) as client:
        runs = client.workflows(order_processing.WorkflowClient)
        run = runs.get(order_processing.process_order, order.id)
        receipt = await run.result()
    second.stop()
    third = start(config)  # delivers what the stop may have left behind
    third.stop()

    events = collector.get("/events").json()["events"]
    assert not begun.completed
    assert receipt.status == "completed"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert kinds[0] in {"workflow.queued", "workflow.started"}
    assert kinds[-1] == "workflow.completed"
    assert kinds.count("sleep.started") == 1
    assert kinds.count("retry.scheduled") == 1
    steps = [e["stepName"] for e in events if e["type"] == "step.completed"]
    assert steps == ["fetch order", "process lamp", "process book", "complete"]


def test_a_collector_that_is_away_does_not_hold_up_a_run(
    start: Callable[..., Daemon],
    app_config: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLLECTOR_URL", "http://127.0.0.1:9/ingest")
    daemon = start(app_config("examples.order_processing"))

    with daemon.http() as http:
        order = {"id": "o", "items": [], "cooling_off_ms": 0}
        answer = http.post("/workflow/process_order?id=o", json=order).json()
        metrics = http.get("/metrics").text

    assert answer["completed"] or answer["output"] is None
    waiting = re.search(r"^durable_outbox_waiting_events (\d+)", metrics, re.MULTILINE)
    assert waiting
    assert int(waiting[1]) > 0
