"""The journal: every key the engine writes, in one file.

    run            the run record: everything that must change in one write
    input, output  of the run
    events         how many events were emitted so far
    step:<step>    one key per step: its result, its failure, or what it waits for

A step is its name and its occurrence: `charge`, `charge#2`. Its key is written when it
waits and again when it has ended; after that it never changes.

Promises
    `one-writer`: nothing else writes an object's keys.
    A record and the alarm that follows from it are written in one turn.
    What is stored is plain data, readable without the code of this package; only
    inputs, outputs, results and errors are values of the author's types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

import msgspec

from workflows.machine import Status
from workflows.ports import Storage

RUN_KEY: Final = "run"
INPUT_KEY: Final = "input"
OUTPUT_KEY: Final = "output"
EVENTS_KEY: Final = "events"
STEP_PREFIX: Final = "step:"

Kind: TypeAlias = Literal["run", "sleep", "value"]
State: TypeAlias = Literal["done", "failed", "retrying", "sleeping"]


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a run that must change in one write."""

    run_id: str
    workflow: str
    status: Status
    created_at_ms: int
    started_at_ms: int | None = None
    recoveries: int = 0  # begun since the last durable progress
    recover_at_ms: int | None = None  # when it was found interrupted, and waits
    cancel_requested: bool = False
    cancel_reason: str | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One step as the journal has it."""

    step: str
    kind: Kind
    state: State
    called: int  # its place in the order of calls
    ended: int | None  # its place in the order of endings; None while it waits
    is_forked: bool  # called from a task other than the function's own
    began_at_ms: int  # of the first attempt, or of the sleep
    due_at_ms: int | None = None  # when a wait is over
    attempts: int = 0  # finished ones
    value: Any = None  # the result, or the last error


class Journal:
    """Typed access to one run's keys. Reads may wait; writes never do."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._events = 0
        self.record: RunRecord | None = None  # as last loaded or saved

    async def load(self) -> RunRecord | None:
        """Read the record, or None if there is no run."""
        raw = await self._storage.get(RUN_KEY)
        if raw is not None:
            self.record = msgspec.convert(raw, RunRecord)
            self._events = await self._storage.get(EVENTS_KEY, 0)
        return self.record

    def open(self, record: RunRecord, value: object, *, wake_at_ms: int) -> None:
        """Write a new run with its input and its first alarm.

        Raises:
            EncodeError: The input cannot be kept; nothing was written.
            StorageLimitError: The input is too large; nothing was written.
        """
        assert self.record is None
        self._storage.put(INPUT_KEY, value)
        self.save(record, wake_at_ms=wake_at_ms)

    def save(self, record: RunRecord, *, wake_at_ms: int | None) -> None:
        """Write the record and its alarm together; None removes the alarm.

        Not async, so that no crash falls between a status and the alarm it needs.
        """
        self.update(record)
        if wake_at_ms is None:
            self._storage.delete_alarm()
        else:
            self._storage.set_alarm(wake_at_ms)

    def update(self, record: RunRecord) -> None:
        """Write the record and leave the alarm as it is."""
        self.record = record
        self._storage.put(RUN_KEY, msgspec.to_builtins(record))

    def wake_at(self, at_ms: int) -> None:
        """Move the alarm alone: what woke us came before its time."""
        self._storage.set_alarm(at_ms)

    def write_output(self, value: object) -> None:
        """Write what the function returned.

        Raises:
            EncodeError: The value cannot be kept; nothing was written.
            StorageLimitError: The value is too large; nothing was written.
        """
        self._storage.put(OUTPUT_KEY, value)

    def write(self, entry: Entry) -> None:
        """Write one step.

        Raises:
            EncodeError: Its value cannot be kept; nothing was written.
            StorageLimitError: Its value is too large; nothing was written.
        """
        row = msgspec.structs.asdict(entry)
        self._storage.put(STEP_PREFIX + row.pop("step"), row)

    async def read_input(self) -> Any:
        """Return the run's input."""
        return await self._storage.get(INPUT_KEY)

    async def read_output(self) -> Any:
        """Return what the function returned, None if it has not."""
        return await self._storage.get(OUTPUT_KEY)

    async def read_steps(self) -> list[Entry]:
        """Return all steps, in the order they were called. One read, however many."""
        rows = await self._storage.list(prefix=STEP_PREFIX)
        entries = [
            Entry(step=key.removeprefix(STEP_PREFIX), **row)
            for key, row in rows.items()
        ]
        return sorted(entries, key=lambda entry: entry.called)

    def next_event_seq(self) -> int:
        """Count one more event, in this turn."""
        self._events += 1
        self._storage.put(EVENTS_KEY, self._events)
        return self._events

    async def sync(self) -> None:
        """Return once everything written so far is durable."""
        await self._storage.sync()

    async def erase(self) -> None:
        """Delete everything, the alarm too."""
        self.record = None
        self._events = 0
        self._storage.delete_alarm()
        await self._storage.delete_all()


def completed(entries: Iterable[Entry]) -> list[str]:
    """Return the names of the steps that have a result, in the order they ended."""
    done = [entry for entry in entries if entry.state == "done" and entry.kind == "run"]
    return [entry.step for entry in sorted(done, key=lambda entry: entry.ended or 0)]
