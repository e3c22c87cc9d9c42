"""When a finished run's data is deleted."""

from __future__ import annotations

from workflows.machine import Cancelled, Completed, Failed, Status


def ended_at_ms(status: Status) -> int | None:
    """Return when a run ended, None if it has not."""
    match status:
        case Completed(completed_at_ms=at_ms):
            return at_ms
        case Failed(failed_at_ms=at_ms):
            return at_ms
        case Cancelled(cancelled_at_ms=at_ms):
            return at_ms
        case _:
            return None


def purge_at_ms(status: Status, retention_ms: int | None) -> int | None:
    """Return when a run's data is to be deleted, None for never or not yet."""
    ended = ended_at_ms(status)
    if ended is None or retention_ms is None:
        return None
    return ended + retention_ms
