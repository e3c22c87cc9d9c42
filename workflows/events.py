"""What happened to a run, as frozen records, and their form on the wire.

An event leaves through the object's outbox: it is written in the commit of the change
it tells of and delivered at least once, in order per run. On the wire it is one flat
object with camelCase keys. The head is the same for all:

    type           "step.completed"
    eventId        UUIDv7, so that a receiver can drop repeats and sort
    seq            1, 2, 3, ... without gaps within a run
    timestamp      ISO 8601, UTC
    workflowId     the run's id
    workflowName   the definition's name

Inputs, outputs and step results are not sent: they may be large, or nobody's business.
"""

from __future__ import annotations

import random
from uuid import UUID

import msgspec

from durable_actor import to_datetime
from workflows.errors import ErrorInfo


class Event(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="type"
):
    """What all events have in common: a type, and no more."""


class WorkflowQueued(Event, frozen=True, tag="workflow.queued"):
    """Accepted; the next alarm starts it."""


class WorkflowStarted(Event, frozen=True, tag="workflow.started"):
    """The first pass began."""


class WorkflowCompleted(Event, frozen=True, tag="workflow.completed"):
    """The function returned; `duration_ms` counts from the start."""

    completed_steps: list[str]
    duration_ms: int


class WorkflowFailed(Event, frozen=True, tag="workflow.failed"):
    """The function raised, or the run was given up."""

    error: ErrorInfo
    completed_steps: list[str]


class WorkflowPaused(Event, frozen=True, tag="workflow.paused"):
    """Nothing to do for a while.

    `reason` is "sleep", "retry", "parked" (see `detail`), or "restart": the host was
    asked to stop, and the run goes on in the next process.
    """

    reason: str
    resume_at: str | None = None
    step_name: str | None = None
    detail: str | None = None


class WorkflowResumed(Event, frozen=True, tag="workflow.resumed"):
    """The pause is over."""


class WorkflowCancelled(Event, frozen=True, tag="workflow.cancelled"):
    """Ended on request."""

    reason: str | None
    completed_steps: list[str]


class WorkflowRecovered(Event, frozen=True, tag="workflow.recovered"):
    """Goes on after an interruption; `attempt` counts those without progress."""

    attempt: int


class StepStarted(Event, frozen=True, tag="step.started"):
    """An attempt is about to begin."""

    step_name: str
    attempt: int


class StepCompleted(Event, frozen=True, tag="step.completed"):
    """The result is recorded."""

    step_name: str
    attempt: int
    duration_ms: int


class StepFailed(Event, frozen=True, tag="step.failed"):
    """An attempt failed."""

    step_name: str
    attempt: int
    error: ErrorInfo
    will_retry: bool


class RetryScheduled(Event, frozen=True, tag="retry.scheduled"):
    """The next attempt has a time."""

    step_name: str
    attempt: int
    next_attempt_at: str
    delay_ms: int


class RetryExhausted(Event, frozen=True, tag="retry.exhausted"):
    """There will be no further attempt of a step that had a retry policy."""

    step_name: str
    attempts: int


class SleepStarted(Event, frozen=True, tag="sleep.started"):
    """A sleep was recorded."""

    step_name: str
    duration_ms: int
    resume_at: str


class SleepCompleted(Event, frozen=True, tag="sleep.completed"):
    """A sleep is over; `duration_ms` is what was asked for."""

    step_name: str
    duration_ms: int


class TimeoutSet(Event, frozen=True, tag="timeout.set"):
    """An attempt has a deadline."""

    step_name: str
    attempt: int
    deadline: str
    timeout_ms: int


class TimeoutExceeded(Event, frozen=True, tag="timeout.exceeded"):
    """An attempt was cancelled at its deadline."""

    step_name: str
    attempt: int
    timeout_ms: int


def to_wire(
    event: Event, *, event_id: UUID, seq: int, now_ms: int, run_id: str, workflow: str
) -> dict[str, object]:
    """Return the event as it is sent."""
    body: dict[str, object] = msgspec.to_builtins(event)
    return {
        "type": body.pop("type"),
        "eventId": str(event_id),
        "seq": seq,
        "timestamp": iso(now_ms),
        "workflowId": run_id,
        "workflowName": workflow,
        **body,
    }


def iso(at_ms: int) -> str:
    """Return an instant as ISO 8601 text in UTC, to the millisecond."""
    text = to_datetime(at_ms).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def uuid7(now_ms: int, source: random.Random) -> UUID:
    """Return a UUID that sorts by time (RFC 9562, version 7)."""
    value = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | source.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
