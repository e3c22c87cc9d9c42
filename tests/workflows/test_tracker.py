"""Trackers without a network."""

from durable_actor import OutboxEvent
from workflows.tracker import InMemoryTracker, NoopTracker


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
