"""The diary of a world: what happened, what was answered, and what was wrong."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from tests.simulation.histories import (
    FOREVER,
    Operation,
    UndecidedError,
    is_linearizable,
)
from tests.simulation.loop import SimulatedLoop
from tests.simulation.plans import NAMES


class Diary:
    """Outlives every life, and is closed to those who are dead."""

    def __init__(self) -> None:
        self.loop: SimulatedLoop
        self.problems: list[str] = []
        self.states: Counter[str] = Counter()  # how often each was reached
        self.lines: list[str] = []
        self.histories: dict[str, list[Operation]] = {name: [] for name in NAMES}
        self._moment = 0

    def note(self, text: str) -> None:
        """Write down what happens."""
        if not self.loop.is_buried:
            self.lines.append(f"{self.loop.time() * 1_000:10.2f}  {text}")

    def saw(self, state: str) -> None:
        """Count a state that is worth reaching."""
        if not self.loop.is_buried:
            self.states[state] += 1

    def check(self, holds: object, wrong: str) -> None:
        """Say that something has to hold."""
        if not holds and not self.loop.is_buried:
            self.note(f"WRONG: {wrong}")
            self.problems.append(wrong)

    def next_moment(self) -> int:
        """Return the next place in the order of questions and answers."""
        self._moment += 1
        return self._moment

    def operation(
        self,
        name: str,
        kind: Literal["add", "set", "read"],
        amount: int | str,
        what: str,
    ) -> Operation:
        """Begin an operation on a register."""
        operation = Operation(kind, int(amount), self.next_moment(), what=what)
        self.histories[name].append(operation)
        return operation

    def judge(self) -> None:
        """Look whether each history is that of a register (G1, G4, G6)."""
        for name, history in self.histories.items():
            try:
                fits = is_linearizable(history)
            except UndecidedError:
                self.states["history too long to judge"] += 1
                continue
            if not fits:
                self.problems.append(f"the history of {name} is not that of a register")

    @property
    def story(self) -> str:
        """What happened, and each object's history."""
        lines = list(self.lines)
        for name, history in self.histories.items():
            lines.append(f"-- {name}")
            for op in history:
                end = "-" if op.answered == FOREVER else str(op.answered)
                void = " void" if op.is_void else ""
                lines.append(
                    f"   [{op.asked:4} {end:>4}] {op.kind} {op.amount}"
                    f" -> {op.result}{void}  ({op.what})"
                )
        return "\n".join(lines)
