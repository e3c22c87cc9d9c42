"""Trackers without a network, and the stamps on events."""

import random
from collections.abc import Mapping

from durable_actor import OutboxEvent
from durable_actor.testing import ManualClock
from workflows.events import StepStarted, WorkflowStarted
from workflows.tracker import Announcer, InMemoryTracker, NoopTracker


def row(seq: int, run: str = "r1") -> OutboxEvent:
    data = {"type": "t", "eventId": f"{run}/{seq}", "seq": seq, "workflowId": run}
    return OutboxEvent(seq=seq, object_id="x", data=data)


async def test_the_tracker_in_memory_keeps_the_order() -> None:
    tracker = InMemoryTracker()
    await tracker.deliver([row(1), row(2)])
    await tracker.deliver([row(3)])
    assert [event["seq"] for event in tracker.events] == [1, 2, 3]


async def test_an_event_that_comes_again_is_kept_once() -> None:
    tracker = InMemoryTracker()
    await tracker.deliver([row(1), row(2)])
    await tracker.deliver([row(1), row(2), row(3)])
    assert [event["seq"] for event in tracker.events] == [1, 2, 3]


async def test_beyond_the_bound_the_oldest_events_go() -> None:
    tracker = InMemoryTracker(events_max=2)
    await tracker.deliver([row(n) for n in range(1, 6)])
    assert [event["seq"] for event in tracker.events] == [4, 5]


async def test_types_are_told_for_one_run_or_for_all() -> None:
    tracker = InMemoryTracker()
    await tracker.deliver([row(1, "a"), row(1, "b")])
    assert tracker.types() == ["t", "t"]
    assert tracker.types("a") == ["t"]
    tracker.clear()
    assert tracker.types() == []


async def test_the_tracker_that_does_nothing_takes_everything() -> None:
    await NoopTracker().deliver([row(1)])


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
