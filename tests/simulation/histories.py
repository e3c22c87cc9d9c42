"""Histories, and whether one register could have answered like this.

A history is what the callers of one object saw: for each operation when it was asked
for, when it was answered, and with what. It is linearizable if the operations can be
put in one order in which each takes effect between its two moments and a register
answers as they were answered. One that nobody answered may have taken effect at any
time after it was asked for, or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FOREVER = 1 << 60
_STATES_MAX = 200_000


@dataclass(slots=True)
class Operation:
    """One operation on one register, which begins with 0.

    `add` adds the amount and answers the new value; `set` stores it and answers the
    old value; `read` answers the value.
    """

    kind: Literal["add", "set", "read"]
    amount: int
    asked: int
    answered: int = FOREVER
    result: int | None = None  # None: nobody was told
    is_void: bool = False  # known to have had no effect
    what: str = ""  # for the reader of a history

    def apply(self, value: int) -> tuple[int, int]:
        """Return the value after it, and the answer."""
        if self.kind == "add":
            return value + self.amount, value + self.amount
        if self.kind == "set":
            return self.amount, value
        return value, value


class UndecidedError(Exception):
    """The search took too long."""


def is_linearizable(history: Sequence[Operation], start: int = 0) -> bool:
    """Say whether a register that begins with `start` could have answered so.

    Raises:
        UndecidedError: There are too many orders to try.
    """
    operations = sorted(
        (op for op in history if not op.is_void), key=lambda op: (op.asked, op.answered)
    )
    # One that only reads and was not answered says nothing.
    operations = [op for op in operations if op.kind != "read" or op.result is not None]
    count = len(operations)
    needed = sum(1 << n for n, op in enumerate(operations) if op.answered != FOREVER)
    seen: set[tuple[int, int]] = set()
    stack = [(0, start)]  # which are done, and the value
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        if len(seen) > _STATES_MAX:
            raise UndecidedError
        done, value = state
        if done & needed == needed:
            return True
        # Whoever was answered before another was asked for comes before it.
        limit = FOREVER
        for n in range(count):
            if not done >> n & 1 and operations[n].answered < limit:
                limit = operations[n].answered
        for n in range(count):
            op = operations[n]
            if op.asked > limit:
                break
            if done >> n & 1:
                continue
            after, answer = op.apply(value)
            if op.result is None or op.result == answer:
                stack.append((done | 1 << n, after))
    return False
