"""The objects of the simulation: a register each, kept in two copies, with an alarm.

Whatever an object does is one or two operations on its register, so that histories can
be judged. Beside it everything is stored that has to agree with it: a second copy, what
the alarm is for, and how many events were emitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from durable_actor import DurableObject, interleave
from durable_actor.rpc import AlarmInfo, OutboxEvent


class Witness(Protocol):
    """Who watches the objects."""

    def enters(self, cell: object, name: str, what: str) -> None:
        """An event that no other may overlap begins."""

    def leaves(self, cell: object, name: str) -> None:
        """It has ended, one way or another."""

    def check(self, holds: object, wrong: str) -> None:
        """Something has to hold."""

    def has_fired(self, name: str, tag: int) -> bool:
        """Whether the handler of an alarm has run before."""

    def fires(self, name: str, tag: int) -> bool:
        """An alarm handler runs; should it fail?"""

    def moves(self, name: str, *, is_earlier: bool) -> None:
        """An alarm is moved."""

    def told(self, call: int, result: int) -> None:
        """Somebody outside was told in the middle of a call."""

    async def take(self, events: Sequence[OutboxEvent]) -> None:
        """Events arrive."""

    def saw(self, state: str) -> None:
        """A state worth reaching was reached."""


class _Sink:
    witness: Witness

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        await self.witness.take(events)


SINK = _Sink()


class UndoError(Exception):
    """Raised in a transaction to roll it back."""


class Cell(DurableObject):
    """One register."""

    event_sink = SINK

    # -- calls: each answers like a register -----------------------------------

    async def add(self, amount: int, pauses: int) -> int:
        """Read, think, write."""
        with _Alone(self, "add"):
            total = await self._total()
            await _think(pauses)
            return await self._write(total + amount)

    async def swap(self, amount: int, pauses: int) -> int:
        with _Alone(self, "swap"):
            total = await self._total()
            await _think(pauses)
            await self._write(amount)
            return total

    async def read(self, pauses: int) -> int:
        """Look at everything that has to agree."""
        with _Alone(self, "read"):
            await _think(pauses)
            await self._check()
            return await self._total()

    @interleave
    async def peek(self) -> int:
        """Look beside whatever else goes on."""
        return int(await self.ctx.storage.get("a", 0))

    async def twice(self, amount: int, other: int, pauses: int) -> tuple[int, int]:
        """Write in two turns."""
        with _Alone(self, "twice"):
            first = await self._write(await self._total() + amount)
            await _think(pauses + 1)
            second = await self._write(await self._total() + other)
            return first, second

    async def move(self, amount: int, pauses: int) -> int:
        """Add, in a transaction."""
        with _Alone(self, "move"):

            async def change(_: object) -> int:
                total = await self._total()
                self.ctx.storage.put("a", total + amount // 2)
                await _think(pauses)
                return await self._write(total + amount)

            return await self.ctx.storage.transaction(change)

    async def undo(self, amount: int, pauses: int) -> int:
        """Add in a transaction and roll it back, with the alarm and the event."""
        with _Alone(self, "undo"):

            async def change(_: object) -> None:
                self.ctx.storage.delete_alarm()
                await self._write(await self._total() + amount)
                await _think(pauses)
                raise UndoError

            try:
                await self.ctx.storage.transaction(change)
            except UndoError:
                pass
            await self._check()
            return await self._total()

    async def block(self, amount: int, pauses: int) -> int:
        """Add, with every other event held back."""
        with _Alone(self, "block"):

            async def change() -> int:
                total = await self._total()
                await _think(pauses)
                return await self._write(total + amount)

            return await self.ctx.block_concurrency_while(change)

    async def post(self, amount: int, call: int) -> int:
        """Add, and tell somebody outside as soon as it is durable."""
        with _Alone(self, "post"):
            total = await self._write(await self._total() + amount)
            await self.ctx.storage.sync()
            self._witness.told(call, total)
            await _think(1)
            return total

    async def fall(self, amount: int, pauses: int) -> int:
        """Write, and throw the activation away."""
        with _Alone(self, "fall"):
            total = await self._total()
            await _think(pauses)
            await self._write(total + amount)
            self.ctx.abort("it was asked to")

    async def relay(self, other: str, amount: int, pauses: int) -> int:
        """Let another object add, and write nothing."""
        with _Alone(self, "relay"):
            cell = self.env.cells.get_by_name(other)
            return int(await cell.add(amount, pauses))

    async def transfer(self, other: str, amount: int, pauses: int) -> tuple[int, int]:
        """Let another object add, and add the same here."""
        with _Alone(self, "transfer"):
            cell = self.env.cells.get_by_name(other)
            there = int(await cell.add(amount, pauses))
            return there, await self._write(await self._total() + amount)

    # -- alarms ----------------------------------------------------------------

    async def arm(self, tag: int, after_ms: int, again_ms: int) -> int:
        """Set or move the alarm that will add `tag`."""
        with _Alone(self, "arm"):
            total = await self._total()
            due_ms = self.ctx.clock.now_ms() + after_ms
            before = await self.ctx.storage.get_alarm()
            if before is not None:
                is_earlier = due_ms < before
                self._witness.moves(str(self.ctx.id.name), is_earlier=is_earlier)
            self.ctx.storage.put("armed", [tag, due_ms, again_ms])
            self.ctx.storage.set_alarm(due_ms)
            return total

    async def disarm(self) -> int:
        with _Alone(self, "disarm"):
            self.ctx.storage.delete_alarm()
            self.ctx.storage.delete("armed")
            return await self._total()

    async def alarm(self, info: AlarmInfo) -> None:
        with _Alone(self, "alarm"):
            # At once: while something is read, the clock may jump back.
            early_ms = info.scheduled_at_ms - self.ctx.clock.now_ms()
            armed = await self.ctx.storage.get("armed")
            self._witness.check(armed, f"{self.ctx.id.name}: an alarm that nobody set")
            if armed is None:
                return
            tag, due_ms, again_ms = armed
            is_it = due_ms == info.scheduled_at_ms
            self._witness.check(is_it, f"an alarm that was replaced by {armed}")
            name = str(self.ctx.id.name)
            # A retry has its own time; the clock may have been put back since the try
            # before it. That one has to have come, and has been looked at here.
            is_again = info.is_retry and self._witness.has_fired(name, tag)
            is_late = early_ms <= 0 or is_again
            self._witness.check(is_late, f"an alarm came {early_ms} ms early")
            fails = self._witness.fires(name, tag)
            total, number = await self._total(), await self._next_event()
            await _think(tag % 3)
            if fails:
                message = "the handler fails"
                raise RuntimeError(message)
            self.ctx.storage.delete("armed")
            if again_ms:
                self._witness.saw("alarm set inside its handler")
                due_ms = self.ctx.clock.now_ms() + again_ms
                self.ctx.storage.put("armed", [tag + 1, due_ms, 0])
                self.ctx.storage.set_alarm(due_ms)
            self._put(total + tag, number)

    # -- the register ----------------------------------------------------------

    @property
    def _witness(self) -> Witness:
        return SINK.witness

    async def _total(self) -> int:
        return int(await self.ctx.storage.get("a", 0))

    async def _write(self, total: int) -> int:
        """Write both copies and emit an event, in one turn."""
        return self._put(total, await self._next_event())

    async def _next_event(self) -> int:
        return int(await self.ctx.storage.get("events", 0)) + 1

    def _put(self, total: int, number: int) -> int:
        self.ctx.storage.put("a", total)
        self.ctx.storage.put("b", total)
        self.ctx.storage.put("events", number)
        self.ctx.emit({"number": number, "total": total})
        return total

    async def _check(self) -> None:
        storage = self.ctx.storage
        found = await storage.get(["a", "b", "armed"])
        alarm = await storage.get_alarm()
        name = self.ctx.id.name
        torn = f"{name}: half of a turn: {found}, alarm {alarm}"
        self._witness.check(found.get("a") == found.get("b"), torn)
        self._witness.check(("armed" in found) == (alarm is not None), torn)


class _Alone:
    """Tells the witness of an event that no other may overlap."""

    def __init__(self, cell: Cell, what: str) -> None:
        self._cell, self._what = cell, what
        self._name = str(cell.ctx.id.name)

    def __enter__(self) -> None:
        SINK.witness.enters(self._cell, self._name, self._what)

    def __exit__(self, *_: object) -> None:
        SINK.witness.leaves(self._cell, self._name)


async def _think(pauses: int) -> None:
    """Suspend: a pass of the loop, or a while."""
    for _ in range(pauses):
        await asyncio.sleep(0)
    if pauses > 1:
        await asyncio.sleep(0.0005 * pauses)
