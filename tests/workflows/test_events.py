"""Events as they are sent."""

import random
from typing import Any

import msgspec
import pytest

from workflows import events
from workflows.errors import ErrorInfo
from workflows.events import Event, iso, to_wire, uuid7

NOW_MS = 1_800_000_000_123
ERROR = ErrorInfo(type="OSError", message="away", step="it")

SAMPLES: dict[str, tuple[Event, dict[str, Any]]] = {
    "workflow.queued": (events.WorkflowQueued(), {}),
    "workflow.started": (events.WorkflowStarted(), {}),
    "workflow.completed": (
        events.WorkflowCompleted(completed_steps=["a"], duration_ms=5),
        {"completedSteps": ["a"], "durationMs": 5},
    ),
    "workflow.failed": (
        events.WorkflowFailed(error=ERROR, completed_steps=[]),
        {
            "error": {"type": "OSError", "message": "away", "step": "it"},
            "completedSteps": [],
        },
    ),
    "workflow.paused": (
        events.WorkflowPaused(reason="sleep", resume_at="t", step_name="nap"),
        {"reason": "sleep", "resumeAt": "t", "stepName": "nap", "detail": None},
    ),
    "workflow.resumed": (events.WorkflowResumed(), {}),
    "workflow.cancelled": (
        events.WorkflowCancelled(reason="why", completed_steps=["a"]),
        {"reason": "why", "completedSteps": ["a"]},
    ),
    "workflow.recovered": (events.WorkflowRecovered(attempt=2), {"attempt": 2}),
    "step.started": (
        events.StepStarted(step_name="it", attempt=1),
        {"stepName": "it", "attempt": 1},
    ),
    "step.completed": (
        events.StepCompleted(step_name="it", attempt=1, duration_ms=5),
        {"stepName": "it", "attempt": 1, "durationMs": 5},
    ),
    "step.failed": (
        events.StepFailed(step_name="it", attempt=1, error=ERROR, will_retry=True),
        {
            "stepName": "it",
            "attempt": 1,
            "error": {"type": "OSError", "message": "away", "step": "it"},
            "willRetry": True,
        },
    ),
    "retry.scheduled": (
        events.RetryScheduled(
            step_name="it", attempt=1, next_attempt_at="t", delay_ms=5
        ),
        {"stepName": "it", "attempt": 1, "nextAttemptAt": "t", "delayMs": 5},
    ),
    "retry.exhausted": (
        events.RetryExhausted(step_name="it", attempts=3),
        {"stepName": "it", "attempts": 3},
    ),
    "sleep.started": (
        events.SleepStarted(step_name="nap", duration_ms=5, resume_at="t"),
        {"stepName": "nap", "durationMs": 5, "resumeAt": "t"},
    ),
    "sleep.completed": (
        events.SleepCompleted(step_name="nap", duration_ms=5),
        {"stepName": "nap", "durationMs": 5},
    ),
    "timeout.set": (
        events.TimeoutSet(step_name="it", attempt=1, deadline="t", timeout_ms=5),
        {"stepName": "it", "attempt": 1, "deadline": "t", "timeoutMs": 5},
    ),
    "timeout.exceeded": (
        events.TimeoutExceeded(step_name="it", attempt=1, timeout_ms=5),
        {"stepName": "it", "attempt": 1, "timeoutMs": 5},
    ),
}


def test_every_event_has_a_sample() -> None:
    tags = {kind.__struct_config__.tag for kind in Event.__subclasses__()}
    assert tags == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_an_event_is_one_flat_object_behind_a_common_head(name: str) -> None:
    event, body = SAMPLES[name]
    event_id = uuid7(NOW_MS, random.Random(1))
    wire = to_wire(
        event, event_id=event_id, seq=3, now_ms=NOW_MS, run_id="r1", workflow="w"
    )
    assert wire == {
        "type": name,
        "eventId": str(event_id),
        "seq": 3,
        "timestamp": "2027-01-15T08:00:00.123Z",
        "workflowId": "r1",
        "workflowName": "w",
        **body,
    }
    assert msgspec.json.decode(msgspec.json.encode(wire)) == wire


def test_an_instant_is_iso_text_in_utc() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000Z"


def test_an_event_id_is_a_uuid_of_version_seven_that_sorts_by_time() -> None:
    source = random.Random(1)
    ids = [uuid7(NOW_MS + n, source) for n in range(100)]
    assert {(one.version, one.variant) for one in ids} == {
        (7, "specified in RFC 4122"),
    }
    assert [str(one) for one in ids] == sorted(str(one) for one in ids)
    assert ids[0].int >> 80 == NOW_MS
