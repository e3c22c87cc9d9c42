"""The public test tool."""

import pytest

from workflows import (
    Completed,
    Failed,
    InMemoryTracker,
    Retry,
    Step,
    StepFailedError,
    workflow,
)
from workflows.testing import run_to_end


@workflow
async def patient(step: Step, name: str) -> str:
    await step.sleep("90 days")
    greeting = await step.run("greet", str.upper, name)
    await step.sleep("90 days")
    return greeting


@workflow
async def failing(step: Step) -> None:
    try:
        await step.run("it", int, "x", retry=Retry(max_attempts=3, delay="1 day"))
    except StepFailedError:
        await step.sleep("1 hour")
        raise


@workflow
async def late(step: Step) -> None:
    await step.sleep("2 days")


@pytest.mark.parametrize("has_crashes", [False, True])
async def test_a_run_of_half_a_year_ends_at_once(has_crashes: bool) -> None:
    result = await run_to_end(patient, "ada", has_crashes=has_crashes)
    assert isinstance(result.status, Completed)
    assert result.output == "ADA"


async def test_a_run_may_end_badly() -> None:
    tracker = InMemoryTracker()
    result = await run_to_end(failing, tracker=tracker, has_crashes=True)
    assert isinstance(result.status, Failed)
    assert result.status.error.step == "it"
    assert tracker.types().count("retry.scheduled") == 2


async def test_a_run_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(AssertionError, match="has not ended"):
        await run_to_end(late, within="1 day")
