"""Replay: what earlier passes recorded, and whether this pass still follows it.

Theory of operation
    A pass runs the function again from its beginning. A step that is recorded answers
    with its record instead of running. Two questions remain.

    In which order do answers arrive? Branches that run in parallel may depend on which
    of them was first (`as_completed`, a shared queue, the second step called "x"). So
    answers are handed out in the order in which they were recorded: `is_next` says
    whether it is a step's turn, and whoever comes early waits. A function without
    branches always asks for the next one and never waits.

    Is it still the same function? A step is recorded only after everything that led to
    its call was durable. So once all recorded answers were handed out, the function
    must have met every recorded step, before it may begin a new one and before it may
    end. If it has not, steps were renamed or removed. A function that never branched
    must also meet them in the recorded order; for one that did, the order of calls may
    honestly differ. Either way the kind (a run, a sleep, a value) must be the same.

Promises
    A function that takes its decisions from its input and its steps alone is never
    reported. A mismatch is reported before anything is written.

Does not know tasks, storage or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from workflows.errors import NondeterminismError
from workflows.journal import Entry, Kind


class Replay:
    """The record of one run, while one pass goes through it."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        by_call = sorted(entries, key=lambda entry: entry.called)
        self._unmet = {entry.step: entry for entry in by_call}
        # The strict order of calls, kept only while nothing ever branched.
        self._script: deque[Entry] | None = deque(by_call)
        if any(entry.is_forked for entry in by_call):
            self._script = None
        ended = [entry for entry in by_call if entry.ended is not None]
        ended.sort(key=lambda entry: entry.ended or 0)
        self._answers = deque(entry.step for entry in ended)
        self.calls_recorded = 1 + max((entry.called for entry in by_call), default=-1)
        self.ends_recorded = 1 + max((entry.ended or 0 for entry in ended), default=-1)

    @property
    def is_over(self) -> bool:
        """Whether every recorded step was met and every answer handed out."""
        return not self._unmet and not self._answers

    def meet(self, step: str, kind: Kind, *, is_forked: bool) -> Entry | None:
        """Return the record of a step that is called now, or None if it is new.

        Raises:
            NondeterminismError: Another step, or another kind of step, is recorded.
        """
        if is_forked:
            self._script = None
        if self._script:
            expected = self._script.popleft()
            if expected.step != step or expected.kind != kind:
                raise NondeterminismError(_label(expected), _name(kind, step))
        entry = self._unmet.get(step)
        if entry is None:
            return None
        if entry.kind != kind:
            raise NondeterminismError(_label(entry), _name(kind, step))
        del self._unmet[step]
        return entry

    def is_next(self, step: str) -> bool:
        """Whether this step's answer is the next to hand out."""
        return bool(self._answers) and self._answers[0] == step

    def hand_out(self, step: str) -> None:
        """Take note that a step was answered."""
        if self.is_next(step):
            self._answers.popleft()
        else:
            self._answers.remove(step)

    def first_of(self, steps: Iterable[str]) -> str:
        """Return the one of these whose answer was recorded first."""
        waiting = set(steps)
        return next(step for step in self._answers if step in waiting)

    def check_all_met(self, found: str) -> None:
        """Refuse to go on to `found` if a recorded step was not met.

        Raises:
            NondeterminismError: Names the first such step.
        """
        for entry in self._unmet.values():
            raise NondeterminismError(_label(entry), found)


def _label(entry: Entry) -> str:
    return _name(entry.kind, entry.step)


def _name(kind: Kind, step: str) -> str:
    return f"{'step' if kind == 'run' else kind} {step!r}"
