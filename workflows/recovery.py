"""After a restart: what becomes of a run that was under way. A decision, as a value.

A run found Running by an activation that did not start it is orphaned by definition:
one process owns the data directory, and one activation the object. So nobody asks how
long it has been quiet, and no clock can make it look alive.

A recovery is counted when it begins, durably and before the author's code runs, since
that code may be what kills the process. Until then the record only says when it is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from durable_actor import Duration, duration_ms
from workflows.journal import RunRecord
from workflows.machine import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How patiently interrupted runs are taken up again.

    Args:
        max_attempts: How often in a row a run may be interrupted without any durable
            progress before it is failed, so that a run that kills its process cannot
            do so for ever.
        delay: Before the first recovery; it doubles with each further one in a row.
        stale_threshold: The longest that delay grows, so an orphaned run is never left
            alone for longer. (In the original: how long a run must have been quiet
            before it counts as orphaned, which here no run has to wait for.)
    """

    max_attempts: int = 3
    delay: Duration = "1 second"
    stale_threshold: Duration = "60 seconds"

    def __post_init__(self) -> None:
        if self.max_attempts < 0:
            message = f"max_attempts must not be negative, got {self.max_attempts}"
            raise ValueError(message)
        duration_ms(self.delay)
        duration_ms(self.stale_threshold)

    def delay_ms(self, recoveries: int) -> int:
        """Return the wait before the n-th recovery in a row (from 1)."""
        # Forty doublings of a millisecond are thirty years.
        grown = duration_ms(self.delay) << min(recoveries - 1, 40)
        return min(grown, duration_ms(self.stale_threshold))


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """Nothing was under way: asleep, waiting for its start, or over."""


@dataclass(frozen=True, slots=True)
class TakeUp:
    """Go on at this time."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Finish:
    """It had promised to stop before its next step."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It was interrupted too often."""

    recoveries: int


Decision: TypeAlias = LeaveAlone | TakeUp | Finish | GiveUp


def decide(record: RunRecord, recovery: Recovery, *, now_ms: int) -> Decision:
    """Return what to do with a run that nobody works on. Pure.

    Asking again, after another restart, neither counts as an attempt nor puts it off.
    """
    if not isinstance(record.status, Running):
        return LeaveAlone()
    if record.cancel_requested:
        return Finish(record.cancel_reason)
    if record.recoveries >= recovery.max_attempts:
        return GiveUp(record.recoveries)
    latest_ms = now_ms + recovery.delay_ms(record.recoveries + 1)
    return TakeUp(min(record.recover_at_ms or latest_ms, latest_ms))
