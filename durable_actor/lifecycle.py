"""The lifecycle of an activation, as a table.

cold -> starting -> running -> cold, and broken from starting and running. What is cold
or broken takes no more events: the next one makes another activation, from the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Lifecycle(Enum):
    """Where an activation stands."""

    COLD = "cold"
    STARTING = "starting"
    RUNNING = "running"
    BROKEN = "broken"


# from -> where it may go
TRANSITIONS: Mapping[Lifecycle, frozenset[Lifecycle]] = {
    Lifecycle.COLD: frozenset({Lifecycle.STARTING}),
    Lifecycle.STARTING: frozenset({Lifecycle.RUNNING, Lifecycle.BROKEN}),
    Lifecycle.RUNNING: frozenset({Lifecycle.COLD, Lifecycle.BROKEN}),
    Lifecycle.BROKEN: frozenset(),
}


def moved(lifecycle: Lifecycle, to: Lifecycle) -> Lifecycle:
    """Return where an activation stands after the move, which the table must allow."""
    assert to in TRANSITIONS[lifecycle], f"{lifecycle} -> {to}"
    return to
