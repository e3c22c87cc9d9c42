"""Statuses, changes, and what may follow what."""

import itertools
from typing import get_args

import msgspec
import pytest

from workflows.errors import ErrorInfo, IllegalTransitionError
from workflows.machine import (
    ALLOWED,
    Cancel,
    Cancelled,
    Complete,
    Completed,
    Fail,
    Failed,
    Pause,
    Paused,
    Pending,
    Queue,
    Queued,
    Recover,
    Resume,
    Running,
    Start,
    Status,
    Transition,
    apply,
    is_terminal,
    tag,
)

ERROR = ErrorInfo(type="ValueError", message="no")
STATUSES: list[Status] = [
    Pending(),
    Queued(1),
    Running(2),
    Paused(3),
    Completed(4),
    Failed(5, ERROR),
    Cancelled(6, "why"),
]
CHANGES: list[Transition] = [
    Queue(),
    Start(),
    Pause(9),
    Resume(),
    Recover(),
    Complete(),
    Fail(ERROR),
    Cancel("why"),
]
RESULTS: dict[type[Transition], Status] = {
    Queue: Queued(7),
    Start: Running(7),
    Pause: Paused(9),
    Resume: Running(7),
    Recover: Running(7),
    Complete: Completed(7),
    Fail: Failed(7, ERROR),
    Cancel: Cancelled(7, "why"),
}


def test_the_samples_cover_every_status_and_every_change() -> None:
    assert {type(status) for status in STATUSES} == set(get_args(Status))
    assert {type(change) for change in CHANGES} == set(get_args(Transition))


@pytest.mark.parametrize(
    ("status", "change"), list(itertools.product(STATUSES, CHANGES))
)
def test_every_change_of_every_status_is_made_or_refused_by_the_table(
    status: Status, change: Transition
) -> None:
    if type(change) in ALLOWED[type(status)]:
        assert apply(status, change, now_ms=7) == RESULTS[type(change)]
    else:
        with pytest.raises(IllegalTransitionError) as caught:
            apply(status, change, now_ms=7)
        assert caught.value.status == type(status).__name__
        assert caught.value.change == type(change).__name__


def test_nothing_follows_the_end_of_a_run() -> None:
    ends = {type(status) for status in STATUSES if is_terminal(status)}
    assert ends == {Completed, Failed, Cancelled}


def test_a_run_that_is_not_over_can_always_be_cancelled() -> None:
    for status in (Queued(1), Running(1), Paused(1)):
        assert Cancel in ALLOWED[type(status)]


def test_a_pause_without_a_time_is_a_parked_run() -> None:
    parked = apply(Running(1), Pause(None, "changed"), now_ms=2)
    assert parked == Paused(None, "changed")


def test_a_status_is_published_as_one_lower_case_word() -> None:
    assert [tag(status) for status in STATUSES] == [
        "pending",
        "queued",
        "running",
        "paused",
        "completed",
        "failed",
        "cancelled",
    ]


def test_on_the_wire_a_status_has_a_tag_and_camel_case_names() -> None:
    assert msgspec.to_builtins(Paused(3)) == {
        "_tag": "Paused",
        "resumeAt": 3,
        "parked": None,
    }
    assert msgspec.to_builtins(Failed(5, ERROR)) == {
        "_tag": "Failed",
        "failedAt": 5,
        "error": {"type": "ValueError", "message": "no", "step": None},
    }


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_comes_back_from_the_wire_as_it_was(status: Status) -> None:
    assert msgspec.convert(msgspec.to_builtins(status), Status) == status
