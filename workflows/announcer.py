"""What is said about a run: events, stamped and handed to the object's outbox.

Emitting is part of the turn it happens in: the event and the change it tells of are
committed together, or neither is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from durable_actor import Clock
from workflows import events
from workflows.events import Event, iso, to_wire, uuid7
from workflows.journal import RunRecord
from workflows.machine import (
    Cancel,
    Complete,
    Fail,
    Pause,
    Queue,
    Recover,
    Resume,
    Start,
    Transition,
)

# A list of names goes into one event; the newest thousand say what happened.
NAMES_MAX: Final = 1_000


class Announcer:
    """Stamps the events of a run and emits them."""

    def __init__(
        self,
        emit: Callable[[Mapping[str, object]], None] | None,
        clock: Clock,
        source: random.Random,
        *,
        next_seq: Callable[[], int],
    ) -> None:
        self._emit = emit  # None: nobody listens, so nothing is written either
        self._clock = clock
        self._source = source
        self._next_seq = next_seq

    @property
    def is_heard(self) -> bool:
        """Whether anybody takes events."""
        return self._emit is not None

    def announce(self, event: Event, *, run_id: str, workflow: str) -> None:
        """Emit one event in this turn."""
        if self._emit is None:
            return
        now_ms = self._clock.now_ms()
        self._emit(
            to_wire(
                event,
                event_id=uuid7(now_ms, self._source),
                seq=self._next_seq(),
                now_ms=now_ms,
                run_id=run_id,
                workflow=workflow,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What an event about a change says beside the change itself."""

    record: RunRecord  # after the change
    now_ms: int
    completed_steps: list[str]
    waiting_step: str | None = None  # the first to go on after a pause
    waiting_reason: str | None = None


def event_of(change: Transition, telling: Telling) -> Event:
    """Return the event that tells of a change of status."""
    names = telling.completed_steps[-NAMES_MAX:]
    record = telling.record
    match change:
        case Queue():
            return events.WorkflowQueued()
        case Start():
            return events.WorkflowStarted()
        case Pause(resume_at_ms=resume_at_ms, parked=parked):
            reason = "restart" if parked is None else "parked"
            return events.WorkflowPaused(
                reason=telling.waiting_reason or reason,
                resume_at=None if resume_at_ms is None else iso(resume_at_ms),
                step_name=telling.waiting_step,
                detail=parked,
            )
        case Resume():
            return events.WorkflowResumed()
        case Recover():
            return events.WorkflowRecovered(attempt=record.recoveries)
        case Complete():
            began_at_ms = record.started_at_ms or record.created_at_ms
            return events.WorkflowCompleted(
                completed_steps=names, duration_ms=max(0, telling.now_ms - began_at_ms)
            )
        case Fail(error=error):
            return events.WorkflowFailed(error=error, completed_steps=names)
        case Cancel(reason=reason):
            return events.WorkflowCancelled(reason=reason, completed_steps=names)
        case _:
            assert_never(change)
