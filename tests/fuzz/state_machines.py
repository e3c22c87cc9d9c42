"""Alarms and the statuses of a run, against models that say in a few lines what is due.

    python -m tests.fuzz.state_machines [--examples N] [--steps N]

Hypothesis makes sequences of what may happen; a failing one is made shorter. Key-value
storage has programs of its own: `tests/simulation/storage_programs.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from durable_actor import DurableObject
from durable_actor.testing import open_test_host
from workflows import machine
from workflows.errors import ErrorInfo, IllegalTransitionError

ALARMS_NAMES = ("a", "b")
_RANDOM_FROM = 100  # examples; fewer are the same each time
TIMES_MS = st.integers(0, 30_000)


class Bell(DurableObject):
    """Notes when it rings, where no crash can undo it."""

    async def set(self, at_ms: int, again_ms: int | None) -> None:
        self.ctx.storage.put("again_ms", again_ms)
        self.ctx.storage.set_alarm(at_ms)

    async def unset(self) -> None:
        self.ctx.storage.delete_alarm()

    async def clear(self) -> None:
        self.ctx.storage.delete_all()
        self.ctx.storage.delete_alarm()

    async def due(self) -> int | None:
        return await self.ctx.storage.get_alarm()

    async def alarm(self) -> None:
        now_ms = self.env.clock().now_ms()
        self.env.rung.append((self.ctx.id.name, now_ms))
        again_ms = await self.ctx.storage.get("again_ms", None)
        if again_ms is not None:
            self.ctx.storage.put("again_ms", None)
            self.ctx.storage.set_alarm(now_ms + again_ms)


class Alarms(RuleBasedStateMachine):
    """An alarm rings once, when it is due, whatever becomes of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._rung: list[tuple[str, int]] = []
        self._expected: list[tuple[str, int]] = []
        self._due: dict[str, tuple[int, int | None]] = {}
        self._host: Any = None

    @initialize()
    def open(self) -> None:
        env: dict[str, object] = {"rung": self._rung, "clock": lambda: self._host.clock}
        opened = open_test_host(env=env)
        self._host = self._run(self._stack.enter_async_context(opened))

    @rule(
        name=st.sampled_from(ALARMS_NAMES),
        in_ms=TIMES_MS,
        again_ms=st.none() | st.integers(1, 10_000),
    )
    def set_alarm(self, name: str, in_ms: int, again_ms: int | None) -> None:
        at_ms = self._host.clock.now_ms() + in_ms
        self._due[name] = (at_ms, again_ms)
        self._run(self._bell(name).set(at_ms, again_ms))
        self._pass(0)

    @rule(name=st.sampled_from(ALARMS_NAMES))
    def delete_alarm(self, name: str) -> None:
        self._due.pop(name, None)
        self._run(self._bell(name).unset())

    @rule(name=st.sampled_from(ALARMS_NAMES))
    def delete_all(self, name: str) -> None:
        self._due.pop(name, None)
        self._run(self._bell(name).clear())

    @rule(by_ms=TIMES_MS)
    def advance(self, by_ms: int) -> None:
        self._pass(by_ms)

    @rule()
    def restart(self) -> None:
        self._run(self._host.restart())
        self._pass(0)

    @rule()
    def crash(self) -> None:
        self._run(self._host.crash())
        self._run(self._host.start())
        self._pass(0)

    @precondition(lambda self: self._host is not None)
    @invariant()
    def agrees(self) -> None:
        assert sorted(self._rung) == sorted(self._expected)
        for name in ALARMS_NAMES:
            due = self._due.get(name)
            found = self._run(self._bell(name).due())
            assert found == (None if due is None else due[0]), name

    def teardown(self) -> None:
        self._run(self._stack.aclose())
        self._runner.close()

    def _pass(self, by_ms: int) -> None:
        """Let time pass, here and in the model."""
        until_ms = self._host.clock.now_ms() + by_ms
        for name in ALARMS_NAMES:
            while name in self._due and self._due[name][0] <= until_ms:
                at_ms, again_ms = self._due.pop(name)
                self._expected.append((name, at_ms))
                if again_ms is not None:
                    self._due[name] = (at_ms + again_ms, None)
        self._run(self._host.advance(by_ms))

    def _bell(self, name: str) -> Bell:
        bell: Bell = self._host.host.namespace(Bell).get_by_name(name)
        return bell

    def _run(self, work: Any) -> Any:
        async def await_it() -> Any:
            return await work

        return self._runner.run(await_it())


# What may follow what, drawn once more and by name: a change of the table in
# `workflows.machine` has to be made here too.
FOLLOWS = {
    ("Pending", "Queue"): "Queued",
    ("Pending", "Start"): "Running",
    ("Queued", "Start"): "Running",
    ("Queued", "Cancel"): "Cancelled",
    ("Running", "Pause"): "Paused",
    ("Running", "Recover"): "Running",
    ("Running", "Complete"): "Completed",
    ("Running", "Fail"): "Failed",
    ("Running", "Cancel"): "Cancelled",
    ("Paused", "Resume"): "Running",
    ("Paused", "Recover"): "Running",
    ("Paused", "Cancel"): "Cancelled",
}
CHANGES = st.sampled_from(
    [
        machine.Queue(),
        machine.Start(),
        machine.Pause(1),
        machine.Pause(None, "why"),
        machine.Resume(),
        machine.Recover(),
        machine.Complete(),
        machine.Fail(ErrorInfo(type="ValueError", message="no")),
        machine.Cancel("why"),
    ]
)


class Statuses(RuleBasedStateMachine):
    """A run goes where the drawing has an arrow, and stays where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self._status: machine.Status = machine.Pending()
        self._name = "Pending"
        self._now_ms = 0

    @rule(change=CHANGES, later_ms=st.integers(0, 1_000))
    def change(self, change: machine.Transition, later_ms: int) -> None:
        self._now_ms += later_ms
        follows = FOLLOWS.get((self._name, type(change).__name__))
        try:
            status = machine.apply(self._status, change, now_ms=self._now_ms)
        except IllegalTransitionError:
            if follows is not None:
                raise
            return
        assert type(status).__name__ == follows, f"{self._name} allows {change}"
        self._status, self._name = status, type(status).__name__
        told = msgspec.to_builtins(status)
        assert told.pop("_tag") == self._name
        stamped = [value for name, value in told.items() if name.endswith("At")]
        assert self._name == "Paused" or stamped == [self._now_ms]

    @invariant()
    def is_kept_as_it_is(self) -> None:
        kept = msgspec.json.encode(self._status)
        assert msgspec.json.decode(kept, type=machine.Status) == self._status
        ends = not any(before == self._name for before, _ in FOLLOWS)
        assert machine.is_terminal(self._status) == ends


MACHINES: dict[str, type[RuleBasedStateMachine]] = {
    "alarms": Alarms,
    "statuses": Statuses,
}


def run(name: str, *, examples: int, steps: int = 25, shrinks: bool = True) -> None:
    """Run so many sequences; raises what does not agree with the model."""
    limits = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=examples < _RANDOM_FROM,
        phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(MACHINES[name], settings=limits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every machine."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.state_machines")
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args(arguments)
    for name in MACHINES:
        run(name, examples=options.examples, steps=options.steps)
        sys.stdout.write(f"{name}: {options.examples} sequences agree\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
