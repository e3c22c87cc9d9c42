"""What `create_durable_workflows` makes."""

import pytest

from durable_actor import DurableObject, InvalidTimeError
from workflows import (
    InMemoryTracker,
    InvalidNameError,
    Recovery,
    Step,
    WorkflowClient,
    WorkflowEngine,
    create_durable_workflows,
    workflow,
)


@workflow
async def ship(step: Step) -> None: ...


def test_it_makes_an_engine_class_and_its_client() -> None:
    Workflows, Client = create_durable_workflows({"ship": ship})  # noqa: N806  # classes
    assert issubclass(Workflows, WorkflowEngine)
    assert issubclass(Workflows, DurableObject)
    assert issubclass(Client, WorkflowClient)
    assert Workflows.__name__ == "Workflows"
    assert Client.engine is Workflows
    assert list(Workflows.registry) == ["ship"]


def test_two_sets_of_workflows_do_not_share_anything() -> None:
    one = create_durable_workflows({"ship": ship}, name="One")
    two = create_durable_workflows({"other": ship}, name="Two")
    assert list(one.Workflows.registry) == ["ship"]
    assert list(two.Workflows.registry) == ["other"]
    assert (one.Workflows.__name__, two.Workflows.__name__) == ("One", "Two")


def test_without_a_tracker_nothing_listens() -> None:
    tracker = InMemoryTracker()
    assert create_durable_workflows({"ship": ship}).Workflows.event_sink is None
    made = create_durable_workflows({"ship": ship}, tracker=tracker)
    assert made.Workflows.event_sink is tracker


def test_durations_are_converted_once_and_none_keeps_for_ever() -> None:
    made = create_durable_workflows(
        {"ship": ship},
        recovery=Recovery(max_attempts=5, stale_threshold="60 seconds"),
        retention="7 days",
        resident_sleep="5 seconds",
    )
    policies = made.Workflows.policies
    assert policies.retention_ms == 7 * 86_400_000
    assert policies.resident_sleep_ms == 5_000
    assert policies.recovery.max_attempts == 5
    kept = create_durable_workflows({"ship": ship}, retention=None)
    assert kept.Workflows.policies.retention_ms is None


def test_what_cannot_work_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidTimeError):
        create_durable_workflows({"ship": ship}, retention="for ever")
    with pytest.raises(InvalidNameError):
        create_durable_workflows({"a:b": ship})
    with pytest.raises(TypeError):
        create_durable_workflows({"len": len})  # type: ignore[dict-item]
