"""After a restart: what becomes of a run that was under way. A decision, as a value.

A run found Running by an activation that did not start it is orphaned by definition:
one process owns the data directory, and one activation the object. So nobody asks how
long it has been quiet, and no clock can make it look alive.

A recovery is counted when it begins, durably and before the author's code runs, since
that code may be what kills the process. Until then the record only says when it is due.

A run that was interrupted again before it got anything recorded is a *suspect*: it, or
another one that was under way with it, kills the process. So suspects are taken up one
at a time. Each is on *trial* until it has recorded something, pauses or ends, or has
lived for `stale_threshold`, in which case this recovery is not counted; the next one
waits. So a process that dies again has counted it for one of them only, and a run that
kills its process is given up without the others (RELIABILITY G21).
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from durable_actor import Duration, Env, duration_ms
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
        stale_threshold: The longest that delay grows, and the longest a run that was
            interrupted twice holds up others of its kind. (In the original: how long
            a run must have been quiet before it counts as orphaned, which here no run
            has to wait for.)
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


class Trials:
    """Lets the suspects of one host begin one after the other, as they came."""

    def __init__(self) -> None:
        # The first is on trial; invariant: its future is done.
        self._line: deque[asyncio.Future[None]] = deque()

    def enter(self) -> asyncio.Future[None]:
        """Get in line; the future is done when one's own trial begins."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._begin_first()
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """End a trial, or leave the line; may be done twice."""
        if turn in self._line:
            self._line.remove(turn)
            self._begin_first()

    def _begin_first(self) -> None:
        if self._line and not self._line[0].done():
            self._line[0].set_result(None)


_trials: weakref.WeakKeyDictionary[Env, Trials] = weakref.WeakKeyDictionary()


def trials_of(env: Env) -> Trials:
    """Return the line of one host's suspects; each host has an `Env` of its own."""
    return _trials.setdefault(env, Trials())


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
