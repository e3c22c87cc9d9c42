"""A session of a real host that a disk fails under, and what the next start finds.

It does a little of everything that writes: calls of several objects at once,
transactions kept and rolled back, alarms set and fired, an object with a database, a
deletion, folds, checkpoints, a start after a crash, an orderly end. Each operation
brings its object to a state that has a number of its own, written in several places, so
that what is found can be neither half of one state nor half of another.

Told line by line, as it happens: `["try", object, state]`, then `["ack", object,
state]` or `["refused", object, state]` (it says that nothing was written) or `["error",
object, text]`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from durable_actor import DurableActorError, DurableObject, Host, StorageFullError
from durable_actor import databases as databases_module
from durable_actor import host as host_module
from durable_actor.config import KIB, Config, SqlConfig, StorageConfig
from durable_actor.gates import OutputGate
from durable_actor.storage.ports import ShardOptions
from durable_actor.testing import TestHost

COPIES = 3
FAR_MS = 10_000_000_000_000  # an alarm that does not fire here
_PAD = b"x" * 700

Say = Callable[[list[Any]], None]


class Ledger(DurableObject):
    """A state in several keys and in the time of its alarm."""

    async def turn(self, state: int) -> None:
        """Go to a state, in one turn."""
        self._write(state)

    async def transact(self, state: int) -> None:
        """Go to a state in a transaction, after one that is rolled back."""

        async def undone() -> None:
            self._write(-1)
            raise ValueError

        async def kept() -> None:
            self._write(state)

        try:
            await self.ctx.storage.transaction(lambda _: undone())
        except ValueError:
            await self.ctx.storage.transaction(lambda _: kept())

    async def turn_in_two(self, state: int) -> None:
        """Go to a state in two turns: the control, which may be found torn."""
        self.ctx.storage.put("copy 0", state)
        await self.ctx.storage.sync()
        self._write(state)

    async def seen(self) -> list[int]:
        """Return the state, once for each place it is written in."""
        copies = [await self.ctx.storage.get(f"copy {i}", 0) for i in range(COPIES)]
        alarm_at_ms = await self.ctx.storage.get_alarm()
        return [*copies, 0 if alarm_at_ms is None else alarm_at_ms - FAR_MS]

    async def alarm(self) -> None:
        """Is never due."""

    def _write(self, state: int) -> None:
        for i in range(COPIES):
            self.ctx.storage.put(f"copy {i}", state)
        self.ctx.storage.put(f"pad {state % 7}", _PAD)
        self.ctx.storage.set_alarm(FAR_MS + state)


class Book(DurableObject, storage="sqlite"):
    """A state in a table, a key and the time of its alarm."""

    async def turn(self, state: int) -> None:
        """Go to a state, in one turn."""
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS copy (num INTEGER, state INTEGER, pad)")
        sql.exec("DELETE FROM copy")
        for i in range(COPIES):
            sql.exec("INSERT INTO copy VALUES (?, ?, ?)", i, state, _PAD)
        self.ctx.storage.put("copy", state)
        self.ctx.storage.set_alarm(FAR_MS + state)

    async def seen(self) -> list[int]:
        """Return the state, once for each place it is written in."""
        copy = await self.ctx.storage.get("copy", 0)
        if not copy:
            return [0]
        rows = self.ctx.storage.sql.exec("SELECT state FROM copy ORDER BY num")
        states = [cast("int", row["state"]) for row in rows]
        alarm_at_ms = await self.ctx.storage.get_alarm() or 0
        return [copy, len(states) - COPIES + copy, *states, alarm_at_ms - FAR_MS]

    async def alarm(self) -> None:
        """Is never due."""


class Waker(DurableObject):
    """State 2 n: armed the n-th time; state 2 n + 1: its alarm has fired."""

    async def turn(self, state: int) -> None:
        """Set the alarm."""
        self._write(state)
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms() + 1_000)

    async def alarm(self) -> None:
        """Note that it fired."""
        self._write(await self.ctx.storage.get("copy 0", 0) | 1)

    async def seen(self) -> list[int]:
        """Return the state; armed and without an alarm is none that there should be."""
        copies = [await self.ctx.storage.get(f"copy {i}", 0) for i in range(COPIES)]
        is_armed = await self.ctx.storage.get_alarm() is not None
        return [*copies, copies[0] if is_armed == (copies[0] % 2 == 0) else -1]

    def _write(self, state: int) -> None:
        for i in range(COPIES):
            self.ctx.storage.put(f"copy {i}", state)


CLASSES: dict[str, type[DurableObject]] = {
    "Ledger": Ledger,
    "Book": Book,
    "Waker": Waker,
}
OBJECTS = ("Ledger/a", "Ledger/b", "Ledger/gone", "Book/x", "Book/gone", "Waker/w")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weakening:
    """What a control leaves out; a sweep over it has to find something."""

    synchronous: str = "FULL"
    has_output_gate: bool = True
    has_whole_turns: bool = True

    def apply(self) -> None:
        """Weaken this process for good."""
        if self.synchronous != "FULL":
            weaker = functools.partial(ShardOptions, synchronous=self.synchronous)
            vars(host_module)["ShardOptions"] = weaker
        if not self.has_output_gate:
            OutputGate.let_out = lambda _, effect: effect(None)  # type: ignore[method-assign, assignment]
        if not self.has_whole_turns:
            Ledger.turn = Ledger.turn_in_two  # type: ignore[method-assign]


@dataclass
class Session:
    """One session, from the first start on a new directory to the end."""

    directory: Path
    say: Say
    make_room: Callable[[], None]  # called when something was refused
    begin: Callable[[str], None]  # called with what the session is about
    _states: dict[str, int] = field(default_factory=dict)
    _test: TestHost = field(init=False)

    def __post_init__(self) -> None:
        # Small enough that everything happens that a long life brings.
        databases_module._CHECKPOINT_BYTES = 24 * KIB
        config = Config(
            storage=StorageConfig(
                wal_grow_bytes=16 * KIB,
                wal_bytes_max=48 * KIB,
                log_bytes_max=24 * KIB,
                ballast_bytes=256 * KIB,
            ),
            sql=SqlConfig(history_bytes_max=48 * KIB),
        )
        self._test = TestHost(
            self.directory,
            classes=CLASSES.values(),
            env=None,
            config=config,
            seed=0,
            driver="thread",
        )

    async def run(self) -> None:
        """Do everything; what goes wrong is told, and ends it."""
        try:
            await self._test.start()
            await self._first_life()
            self.begin("crash: ")
            await self._test.crash()
            self.begin("")
            await self._test.start()
            await self._second_life()
        except DurableActorError as error:
            self._tell_error("session", error)
        self.begin("close: ")
        try:
            await self._test.host.close(grace_ms=0)
        except (DurableActorError, AttributeError) as error:
            self._tell_error("close", error)
        failure = getattr(self._test, "host", None) and self._test.host.failure
        if failure is not None:
            self._tell_error("host", failure)

    async def _first_life(self) -> None:
        host = self._test.host
        for _ in range(4):
            await self._turns("Ledger/a", "Ledger/b", "Book/x")
        await self._turns("Ledger/gone", "Book/gone", "Waker/w")
        await host.committer.fold()
        await self._operate("Ledger/a", "transact")
        await self._turns("Ledger/a", "Ledger/b", "Book/x")
        await asyncio.gather(self._delete("Ledger/gone"), self._delete("Book/gone"))
        await self._turns("Book/gone", "Ledger/a")
        self.say(["try", "Waker/w", self._states["Waker/w"] | 1])
        await self._test.advance("2 seconds")
        self._check()
        await self._turns("Book/x", "Waker/w")

    async def _second_life(self) -> None:
        host = self._test.host
        for _ in range(3):
            await self._turns("Ledger/a", "Ledger/b", "Book/x", "Book/gone")
        await host.committer.fold()
        for name in ("Book/x", "Ledger/b"):
            await host.evict(_stub(host, name).id)
        await self._operate("Ledger/b", "transact")
        for _ in range(2):
            await self._turns("Ledger/a", "Book/x", "Ledger/gone")

    def _check(self) -> None:
        """End the session if the host has failed: all of it would be refused."""
        if self._test.host.failure is not None:
            raise self._test.host.failure

    async def _turns(self, *names: str) -> None:
        await asyncio.gather(*(self._operate(name, "turn") for name in names))
        self._check()

    async def _operate(self, name: str, method: str) -> None:
        stub = _stub(self._test.host, name)
        state = self._next_state(name)
        await self._try(name, state, lambda: getattr(stub, method)(state))

    async def _delete(self, name: str) -> None:
        host = self._test.host
        await self._try(name, 0, lambda: host.delete(_stub(host, name).id))

    async def _try(
        self, name: str, state: int, work: Callable[[], Awaitable[object]]
    ) -> None:
        self.say(["try", name, state])
        try:
            await work()
        except StorageFullError as error:
            self.say(["refused", name, state])
            self._tell_error(name, error)
            self.make_room()
        except DurableActorError as error:
            self._tell_error(name, error)
            self.make_room()
        else:
            self.say(["ack", name, state])

    def _next_state(self, name: str) -> int:
        self._states[name] = self._states.get(name, 0) + 2
        return self._states[name]

    def _tell_error(self, name: str, error: BaseException) -> None:
        self.say(["error", name, f"{type(error).__name__}: {error}"])


async def look(directory: Path) -> dict[str, list[int]]:
    """Return what the next start finds: the states of every object.

    Raises:
        DurableActorError: It does not start.
    """
    found: dict[str, list[int]] = {}
    async with Host(directory, classes=CLASSES.values()) as host:
        page = await host.list_objects()
        there = {f"{entry.object_class}/{entry.name}" for entry in page.objects}
        for name in OBJECTS:
            if name not in there:
                found[name] = [0]
                continue
            try:
                found[name] = await _stub(host, name).seen()
            except DurableActorError as error:
                raise type(error)(f"{name}: {error}") from error
    return found


def _stub(host: Host, name: str) -> Any:
    object_class, _, object_name = name.partition("/")
    return host.namespace(CLASSES[object_class]).get_by_name(object_name)
