"""The statuses of a run, what may follow what, and nothing else.

Theory of operation
    A status and a change are values. `ALLOWED` says which change a status accepts and
    `apply` makes the next status. Only the orchestrator calls it; only the journal
    stores what comes out.

                 Queue           Start
        Pending ───────▶ Queued ───────▶ Running ──▶ Completed | Failed | Cancelled
           └──────────────── Start ────────▲ │
                                    Resume │ │ Pause
                                           │ ▼
                                          Paused

On the wire a status is an object with a `_tag` and camelCase fields, times in epoch
milliseconds: `{"_tag": "Paused", "resumeAt": 1700000000000, "parked": null}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias, assert_never

import msgspec

from workflows.errors import ErrorInfo, IllegalTransitionError


def wire_name(field: str) -> str:
    """Return the camelCase name of a field, without the unit of an instant."""
    head, *rest = field.removesuffix("_ms").split("_")
    return head + "".join(part.capitalize() for part in rest)


class _Tagged(msgspec.Struct, frozen=True, tag_field="_tag", rename=wire_name):
    """What all statuses have in common on the wire."""


class Pending(_Tagged, frozen=True, tag="Pending"):
    """Known, and not yet accepted. Never stored."""


class Queued(_Tagged, frozen=True, tag="Queued"):
    """Accepted; the next alarm starts it."""

    queued_at_ms: int


class Running(_Tagged, frozen=True, tag="Running"):
    """A pass through the function is under way, or was when the process died."""

    started_at_ms: int


class Paused(_Tagged, frozen=True, tag="Paused"):
    """Asleep: until a time, or parked until `resume()` if there is no time.

    Invariant: (self.resume_at_ms is None) == (self.parked is not None)
    """

    resume_at_ms: int | None
    parked: str | None = None


class Completed(_Tagged, frozen=True, tag="Completed"):
    """The function returned."""

    completed_at_ms: int


class Failed(_Tagged, frozen=True, tag="Failed"):
    """The function raised, or the run was given up."""

    failed_at_ms: int
    error: ErrorInfo


class Cancelled(_Tagged, frozen=True, tag="Cancelled"):
    """Somebody asked for it."""

    cancelled_at_ms: int
    reason: str | None = None


Status: TypeAlias = Pending | Queued | Running | Paused | Completed | Failed | Cancelled
Terminal: TypeAlias = Completed | Failed | Cancelled


class Queue(msgspec.Struct, frozen=True):
    """Accept the run; the next alarm starts it."""


class Start(msgspec.Struct, frozen=True):
    """Begin the first pass."""


class Pause(msgspec.Struct, frozen=True):
    """Sleep until a time, or park."""

    resume_at_ms: int | None
    parked: str | None = None


class Resume(msgspec.Struct, frozen=True):
    """Go on after a pause."""


class Recover(msgspec.Struct, frozen=True):
    """Go on after an interruption."""


class Complete(msgspec.Struct, frozen=True):
    """The function returned."""


class Fail(msgspec.Struct, frozen=True):
    """The function raised, or the run is given up."""

    error: ErrorInfo


class Cancel(msgspec.Struct, frozen=True):
    """End the run because somebody asked for it."""

    reason: str | None = None


Transition: TypeAlias = (
    Queue | Start | Pause | Resume | Recover | Complete | Fail | Cancel
)

ALLOWED: Final[Mapping[type[Status], frozenset[type[Transition]]]] = {
    Pending: frozenset({Queue, Start}),
    Queued: frozenset({Start, Cancel}),
    Running: frozenset({Pause, Recover, Complete, Fail, Cancel}),
    Paused: frozenset({Resume, Recover, Cancel}),
    Completed: frozenset(),
    Failed: frozenset(),
    Cancelled: frozenset(),
}


def apply(status: Status, change: Transition, *, now_ms: int) -> Status:
    """Return the status after the change. Pure: the caller stores it.

    Raises:
        IllegalTransitionError: The status does not allow the change.
    """
    if type(change) not in ALLOWED[type(status)]:
        raise IllegalTransitionError(type(status).__name__, type(change).__name__)
    match change:
        case Queue():
            return Queued(now_ms)
        case Start() | Resume() | Recover():
            return Running(now_ms)
        case Pause(resume_at_ms=resume_at_ms, parked=parked):
            assert (resume_at_ms is None) == (parked is not None)
            return Paused(resume_at_ms, parked)
        case Complete():
            return Completed(now_ms)
        case Fail(error=error):
            return Failed(now_ms, error)
        case Cancel(reason=reason):
            return Cancelled(now_ms, reason)
        case _:
            assert_never(change)


def is_terminal(status: Status) -> bool:
    """Whether nothing can follow this status."""
    return not ALLOWED[type(status)]


def tag(status: Status) -> str:
    """Return the status as one lower-case word, as it is published for searching."""
    return type(status).__name__.lower()
