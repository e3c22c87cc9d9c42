"""Runs as the daemon serves them: JSON in, JSON out."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durable_actor.testing import START_MS, TestHost, open_test_host
from workflows import (
    InvalidInputError,
    RunExistsError,
    Step,
    UnknownWorkflowError,
    create_durable_workflows,
    workflow,
)
from workflows.extension import WorkflowRuns


@dataclass(frozen=True)
class Value:
    value: int


@workflow
async def simple(step: Step, data: Value) -> tuple[int, str]:
    return await step.run("double", lambda: data.value * 2), "done"


@workflow
async def sleeping(step: Step) -> str:
    await step.run("before", len, "x")
    await step.sleep("nap", "5 seconds")
    return "done"


Workflows, _ = create_durable_workflows({"simple": simple, "sleeping": sleeping})


@pytest.fixture
async def test(tmp_path: Path) -> AsyncIterator[TestHost]:
    async with open_test_host(tmp_path, classes=[Workflows]) as test:
        yield test


@pytest.fixture
def runs(test: TestHost) -> WorkflowRuns:
    hook = Workflows.__durable_runs__  # type: ignore[attr-defined]  # made by the factory
    found = hook(test.host)
    assert isinstance(found, WorkflowRuns)
    return found


async def test_it_names_its_workflows(runs: WorkflowRuns) -> None:
    assert list(runs.names()) == ["simple", "sleeping"]


async def test_a_run_that_ends_at_once_answers_with_its_output(
    runs: WorkflowRuns,
) -> None:
    answer = await runs.start("simple", {"value": 21}, run_id="r1", is_async=False)
    assert answer == {
        "id": "r1",
        "completed": True,
        "output": [42, "done"],
        "status": {"_tag": "Completed", "completedAt": START_MS},
    }


async def test_a_run_that_sleeps_answers_that_it_does(
    test: TestHost, runs: WorkflowRuns
) -> None:
    answer = await runs.start("sleeping", {}, run_id="r1", is_async=False)
    assert answer["completed"] is False
    status = await runs.status("sleeping", "r1")
    assert status["status"] == {
        "_tag": "Paused",
        "resumeAt": START_MS + 5_000,
        "parked": None,
    }
    assert status["completed_steps"] == ["before"]
    assert status["exists"] is True
    await test.advance("5 seconds")
    status = await runs.status("sleeping", "r1")
    assert status["status"] == {"_tag": "Completed", "completedAt": START_MS + 5_000}


async def test_a_queued_run_answers_before_it_starts(
    test: TestHost, runs: WorkflowRuns
) -> None:
    answer = await runs.start("sleeping", None, run_id="r1", is_async=True)
    assert answer["status"] == {"_tag": "Queued", "queuedAt": START_MS}
    result = await runs.cancel("sleeping", "r1", "never mind")
    assert result == {"cancelled": True, "reason": "never mind"}
    await test.settle()
    status = await runs.status("sleeping", "r1")
    assert status["status"] == {
        "_tag": "Cancelled",
        "cancelledAt": START_MS,
        "reason": "never mind",
    }


async def test_a_run_that_is_not_there_says_so(runs: WorkflowRuns) -> None:
    answer = await runs.status("simple", "nobody")
    assert answer == {"status": None, "completed_steps": [], "exists": False}
    assert (await runs.cancel("simple", "nobody", None))["cancelled"] is False


async def test_what_does_not_fit_is_refused(runs: WorkflowRuns) -> None:
    with pytest.raises(UnknownWorkflowError):
        await runs.start("smiple", {}, run_id="r1", is_async=False)
    with pytest.raises(UnknownWorkflowError):
        await runs.status("smiple", "r1")
    with pytest.raises(InvalidInputError):
        await runs.start("simple", {"value": "x"}, run_id="r1", is_async=False)
    await runs.start("simple", {"value": 1}, run_id="r1", is_async=False)
    with pytest.raises(RunExistsError):
        await runs.start("simple", {"value": 2}, run_id="r1", is_async=False)


async def test_runs_are_listed_by_status_and_workflow_in_pages(
    runs: WorkflowRuns,
) -> None:
    for n in range(3):
        await runs.start("simple", {"value": n}, run_id=f"s{n}", is_async=False)
    await runs.start("sleeping", None, run_id="z", is_async=False)
    page = await runs.list(status="Paused", workflow=None, limit=10, cursor=None)
    assert [(run["id"], run["status"]) for run in rows(page)] == [("z", "Paused")]
    found: list[object] = []
    cursor: Any = None
    while True:
        page = await runs.list(status=None, workflow="simple", limit=2, cursor=cursor)
        found += [run["id"] for run in rows(page)]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == ["s0", "s1", "s2"]


def rows(page: object) -> list[dict[str, object]]:
    assert isinstance(page, dict)
    runs = page["runs"]
    assert isinstance(runs, list)
    return runs
