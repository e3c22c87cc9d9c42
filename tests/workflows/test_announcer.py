"""What is said about a run, and how it is stamped."""

import random
from collections.abc import Mapping

import pytest

from durable_actor.testing import ManualClock
from workflows import events
from workflows.announcer import NAMES_MAX, Announcer, Telling, event_of
from workflows.errors import ErrorInfo
from workflows.events import Event, StepStarted, WorkflowStarted
from workflows.journal import RunRecord
from workflows.machine import (
    Cancel,
    Complete,
    Fail,
    Pause,
    Queue,
    Queued,
    Recover,
    Resume,
    Start,
    Transition,
)

ERROR = ErrorInfo(type="E", message="m")
RECORD = RunRecord(
    run_id="r1",
    workflow="w",
    status=Queued(1),
    created_at_ms=1_000,
    started_at_ms=2_000,
    recoveries=2,
)
TELLING = Telling(record=RECORD, now_ms=5_000, completed_steps=["a"])


@pytest.mark.parametrize(
    ("change", "event"),
    [
        (Queue(), events.WorkflowQueued()),
        (Start(), events.WorkflowStarted()),
        (Resume(), events.WorkflowResumed()),
        (Recover(), events.WorkflowRecovered(attempt=2)),
        (
            Complete(),
            events.WorkflowCompleted(completed_steps=["a"], duration_ms=3_000),
        ),
        (Fail(ERROR), events.WorkflowFailed(error=ERROR, completed_steps=["a"])),
        (Cancel("why"), events.WorkflowCancelled(reason="why", completed_steps=["a"])),
        (
            Pause(0),
            events.WorkflowPaused(
                reason="restart", resume_at="1970-01-01T00:00:00.000Z"
            ),
        ),
        (
            Pause(None, "changed"),
            events.WorkflowPaused(reason="parked", detail="changed"),
        ),
    ],
)
def test_each_change_has_its_event(change: Transition, event: Event) -> None:
    assert event_of(change, TELLING) == event


def test_a_pause_names_what_it_waits_for() -> None:
    telling = Telling(
        record=RECORD,
        now_ms=0,
        completed_steps=[],
        waiting_step="nap",
        waiting_reason="sleep",
    )
    event = event_of(Pause(0), telling)
    assert isinstance(event, events.WorkflowPaused)
    assert (event.reason, event.step_name) == ("sleep", "nap")


def test_of_many_steps_only_the_newest_are_named() -> None:
    names = [f"step {n}" for n in range(NAMES_MAX + 5)]
    telling = Telling(record=RECORD, now_ms=0, completed_steps=names)
    event = event_of(Cancel(), telling)
    assert isinstance(event, events.WorkflowCancelled)
    assert event.completed_steps == names[5:]


def test_events_are_stamped_with_time_number_and_run() -> None:
    seen: list[Mapping[str, object]] = []
    numbers = iter(range(1, 10))
    announcer = Announcer(
        seen.append,
        ManualClock(1_000),
        random.Random(1),
        next_seq=lambda: next(numbers),
    )
    announcer.announce(WorkflowStarted(), run_id="r1", workflow="w")
    started = StepStarted(step_name="a", attempt=1)
    announcer.announce(started, run_id="r1", workflow="w")
    assert [(event["type"], event["seq"]) for event in seen] == [
        ("workflow.started", 1),
        ("step.started", 2),
    ]
    assert {event["timestamp"] for event in seen} == {"1970-01-01T00:00:01.000Z"}
    assert seen[0]["eventId"] != seen[1]["eventId"]


def test_without_a_tracker_events_are_not_even_counted() -> None:
    def count() -> int:
        raise AssertionError

    announcer = Announcer(None, ManualClock(), random.Random(1), next_seq=count)
    announcer.announce(WorkflowStarted(), run_id="r1", workflow="w")
