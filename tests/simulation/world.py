"""One seed from its first call to its last check: clients, lives, crashes, a verdict.

The process lives several times on one disk. In each life a real host is opened on what
the one before left, clients go on with their scripts, and something ends it. In the
last life nothing goes wrong; when the clients are done there is a long quiet, and
everything that was promised has to have come about.

What is checked
    G1, G4, G6  every object's history is that of one register
    G2          both copies, alarm and what it is for agree, in memory and on disk
    G3, G8      events that may not overlap do not; one alarm handler at a time
    G5, G9      events arrive in order, without gaps, and none that never was
    G7, G14     no alarm comes early or is lost; the index has what the objects have
    G12, G13    a full disk passes; after an error nothing is lost
    and         everything ends, no task is left, no exception was unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from msgspec import UNSET

from durable_actor.errors import DurableActorError
from durable_actor.host import Host
from durable_actor.rpc import OutboxEvent
from durable_actor.storage import overlay as overlay_module
from tests.simulation.cells import SINK, Cell
from tests.simulation.clients import Clients
from tests.simulation.diary import Diary
from tests.simulation.edges import (
    SimulatedClock,
    SimulatedConnection,
    SimulatedLock,
    SimulatedMarks,
    simulated_edges,
)
from tests.simulation.histories import Operation
from tests.simulation.loop import Elsewhere, SimulatedLoop, StuckError
from tests.simulation.plans import NAMES, Life, Plan
from tests.simulation.runs import BOOKS, RECOVERIES_MAX, Ledger, Workflows
from tests.simulation.staging import DATABASE, LOGGER, config_of, listening, template
from tests.simulation.verdicts import (
    check_file,
    emitted,
    look_at_objects,
    look_at_runs,
    open_file,
    wrong_in_tables,
)
from tests.support.simulated_disk import SimulatedDisk

_QUIET_SECONDS = 90.0  # longer than any alarm here is away, with its retries
_SINK_FAILURES_MAX = 8
_KILLS_MAX = 3 * (RECOVERIES_MAX + 1)  # one run may do so; and then it is failed
_LAST = Life()


class World:
    """Everything that outlives a life."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"world {plan.seed}")
        self.disk = SimulatedDisk(plan.seed)
        self.marks = SimulatedMarks()
        self.clock = SimulatedClock()
        self.clock.offset_ms = 0
        self.diary = Diary()
        self.steps = 0
        self._ledger = Ledger()
        self._ledger.check, self._ledger.saw = self.diary.check, self.diary.saw
        self._ledger.crash = self._crash_by_a_step
        self._ledger.sink_fails = self._sink_fails
        self._clients = Clients(plan, self.diary, self._ledger)
        self._lives = len(plan.lives)
        self._alone: dict[object, str] = {}
        self._alarms: dict[tuple[str, int], Operation] = {}
        self._alarms_to_fail = plan.settings.alarms_fail
        self._events: dict[str, list[int]] = {name: [] for name in NAMES}
        self._sink_failures = 0
        self._emitted: dict[str, int] = {}
        self._event_totals: dict[tuple[str, int], int] = {}
        self._host: Host | None = None
        self._connection: SimulatedConnection | None = None
        self._thread: Elsewhere | None = None
        self._loop: SimulatedLoop
        self._is_open = False
        self._is_over = False
        self._refusals_before = 0
        self._was_opening = False  # the life before ended while it was opened
        self._life = _LAST
        self._names: dict[str, str] = {}  # object id -> name

    # -- lives -----------------------------------------------------------------

    def run(self) -> None:
        """Live through all lives."""
        settings = self.plan.settings
        if not settings.is_new:
            self.disk.write(DATABASE, template())
        now = 1.0
        lives = (*self.plan.lives, *[_LAST] * (1 + _KILLS_MAX))
        for number, life in enumerate(lives):
            loop = self._loop = self.clock.loop = self.diary.loop = SimulatedLoop(
                random.Random(f"life {self.plan.seed} {number}"), now
            )
            loop.crash_at_step = life.crash_at_step
            self._life, self._is_open, self._host = life, False, None
            self.diary.note(f"life {number + 1} begins")
            is_last = number >= len(self.plan.lives)
            try:
                self._live_one(loop, life, is_last=is_last)
            except Exception as error:  # noqa: BLE001  # a mutant may do anything
                self.diary.problems.append(f"{type(error).__name__}: {error}")
            finally:
                self._bury(loop)
                self.steps += loop.steps
                now = loop.time() + 0.001
            if self.diary.problems or self._is_over:
                break
        if not self.diary.problems and not self._is_over:
            self.diary.problems.append(f"kills its process: {dict(self._ledger.kills)}")
        if not self.diary.problems:
            self._judge()

    def _live_one(self, loop: SimulatedLoop, life: Life, *, is_last: bool) -> None:
        disk = self.disk
        disk.cut(life.cut_at, after=life.cut_is_after)
        disk.fail(life.error_at)
        self._refusals_before = disk.refusals
        main = loop.create_task(self._live(life), name="main")
        try:
            loop.run_life(main)
            if loop.crashed is None:
                main.result()
        except StuckError as error:
            self.diary.problems.append(f"stuck: {error}; {_tasks(loop)}")
            loop.crash("stuck")
        except DurableActorError as error:
            self.diary.note(f"the process ends: {error}")
            faulty = life.error_at or life.full_ms or life.cut_at
            if is_last or not faulty:
                self.diary.problems.append(f"without a fault of the disk: {error!r}")
            loop.crash("by itself")
        self.diary.states["disk full"] += disk.refusals > self._refusals_before
        if self._is_over or loop.crashed == "stuck":
            gc.collect()  # a task whose exception nobody saw says so when it goes
        self.diary.problems += loop.complaints
        if loop.crashed is None:
            left = [task for task in asyncio.all_tasks(loop) if not task.done()]
            if left:
                self.diary.problems.append(f"tasks are left: {_tasks(loop)}")
            disk.cut(0, after=False)
            disk.fail(0)
            disk.fill(full=False)
            if not is_last:  # the power may go as soon as the host is closed
                self._lose_power(life)
        else:
            self._note_crash(loop)
            self._lose_power(life)

    def _lose_power(self, life: Life) -> None:
        self.disk.crash(life.survival)
        self.marks.crash(life.survival, self.rng)

    def _bury(self, loop: SimulatedLoop) -> None:
        """Leave nothing of a life behind but the disk."""
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        SimulatedLock.holder = None
        LOGGER.setLevel(logging.CRITICAL + 1)  # the dead have nothing to report
        loop.bury()
        LOGGER.setLevel(logging.ERROR)
        self._alone.clear()

    async def _connect(self) -> SimulatedConnection:
        self._thread = Elsewhere(
            self._loop, self._loop._rng, slow=self.plan.settings.slow
        )
        connection = SimulatedConnection(self._loop, self.disk, self._thread)
        self._connection = connection
        return await connection

    async def _live(self, life: Life) -> None:
        loop = self._loop
        host = self._host = Host(
            "/simulated",
            classes=(Workflows,),
            config=config_of(self.plan),
            clock=self.clock,
            rng=random.Random(f"host {self.plan.seed}"),
            storage_uri=self.disk.uri(DATABASE),
        )
        cells = host.namespace(Cell)
        host.bind("cells", cells)
        self._names = {str(cells.id_from_name(name)): name for name in NAMES}
        SINK.witness, BOOKS.ledger = self, self._ledger
        if life.full_ms is not None and life.full_ms[0] == 0:
            self._fill(0, life.full_ms[1])
        await host.open()
        self._is_open = True
        if self._was_opening:
            self.diary.states["opened after a crash while opening"] += 1
        self.diary.note(f"open, epoch {host.epoch}")
        self._check_tables()
        if life.crash_at_ms is not None:
            loop.call_later(life.crash_at_ms / 1_000, loop.crash, "at a time")
        for at_ms, by_ms in life.jumps:
            loop.call_later(at_ms / 1_000, self._jump, by_ms)
        if life.full_ms is not None and life.full_ms[0]:
            self._fill(*life.full_ms)
        for at_ms, name in life.evictions:
            loop.call_later(at_ms / 1_000, self._evict, name)
        clients = [
            loop.create_task(
                self._clients.client(number, host), name=f"client {number}"
            )
            for number in range(len(self._clients))
        ]
        waits: list[asyncio.Task[Any]] = [
            loop.create_task(asyncio.wait(clients), name="clients"),
            loop.create_task(host.failed.wait(), name="failed"),
        ]
        if life.close_at_ms is not None:
            waits.append(
                loop.create_task(
                    asyncio.sleep(life.close_at_ms / 1_000), name="closing"
                )
            )
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if host.failure is not None:
            # Exit 74. What is under way may still find its end.
            self.diary.states["I/O error: the host failed"] += 1
            await asyncio.sleep(self.rng.choice((0.0, 0.001, 0.01)))
            raise host.failure
        are_done = waits[0].done()
        if not are_done:
            self.diary.states["closed with calls under way"] += bool(self._alone)
        else:
            self.disk.fill(full=False)
            # A wait for a time of day is longer by what the clock went back.
            jumps = [by_ms for life in self.plan.lives for _, by_ms in life.jumps]
            back_ms = sum(-by_ms for by_ms in jumps if by_ms < 0)
            await asyncio.sleep(_QUIET_SECONDS + back_ms / 1_000)
            await self._last_looks(host)
        await host.close()
        self.diary.note("closed")
        for task in (*waits, *clients):
            if not task.done():
                task.cancel()
        await asyncio.wait([*waits, *clients])
        for task in clients:
            if not task.cancelled():
                task.result()
        if not self.diary.problems:
            self._check_file()
        self._is_over = are_done

    # -- what the objects tell (cells.Witness) ---------------------------------

    def enters(self, cell: object, name: str, what: str) -> None:
        other = self._alone.get(cell)
        self.check(other is None, f"{name}: {what} overlaps {other}")
        self._alone[cell] = what

    def leaves(self, cell: object, name: str) -> None:
        self._alone.pop(cell, None)

    def check(self, holds: object, wrong: str) -> None:
        self.diary.check(holds, wrong)

    def has_fired(self, name: str, tag: int) -> bool:
        return (name, tag) in self._alarms

    def fires(self, name: str, tag: int) -> bool:
        self.diary.note(f"alarm of {name}: {tag}")
        if (name, tag) not in self._alarms:
            operation = self.diary.operation(name, "add", tag, "alarm")
            self._alarms[name, tag] = operation
        else:
            self.diary.states["an alarm came again"] += 1
        fails = self._alarms_to_fail > 0 and self.rng.random() < 0.5
        self._alarms_to_fail -= fails
        return fails

    def moves(self, name: str, *, is_earlier: bool) -> None:
        state = f"alarm moved {'earlier' if is_earlier else 'later'}"
        self.diary.states[state] += 1
        host = self._host
        assert host is not None
        object_id = host.namespace(Cell).id_from_name(name)
        commits = any(
            seal.alarm is not UNSET for seal in host.committer.unsettled(object_id.raw)
        )
        self.diary.states[f"{state} while a later one commits"] += (
            is_earlier and commits
        )

    def told(self, call: int, result: int) -> None:
        if not self._loop.is_buried:
            self._clients.told(call, result)

    async def take(self, events: Sequence[OutboxEvent]) -> None:
        if self._sink_fails():
            message = "the sink is away"
            raise ConnectionError(message)
        for event in events:
            name = self._names[event.object_id]
            number, total = (
                int(str(event.data["number"])),
                int(str(event.data["total"])),
            )
            arrived = self._events[name]
            if number > (arrived[-1] if arrived else 0):
                follows = number == len(arrived) + 1
                self.check(follows, f"{name}: event {number} after {len(arrived)}")
                arrived.append(number)
            else:
                self.diary.states["an event arrived twice"] += 1
            same = self._event_totals.setdefault((name, number), total) == total
            self.check(same, f"{name}: event {number} arrived with two contents")
        await asyncio.sleep(self.rng.choice((0.0, 0.001)))

    def _sink_fails(self) -> bool:
        # Each failure doubles a wait: not so many that the quiet is too short.
        fails = self.rng.random() < self.plan.settings.sink_fails
        self._sink_failures += fails
        return fails and self._sink_failures <= _SINK_FAILURES_MAX

    def _crash_by_a_step(self) -> None:
        self.diary.states["a step killed the process"] += 1
        self._loop.crash("by a step")

    def saw(self, state: str) -> None:
        self.diary.saw(state)

    # -- what happens to the host ----------------------------------------------

    def _jump(self, by_ms: int) -> None:
        self.diary.note(f"the clock jumps by {by_ms} ms")
        self.clock.offset_ms += by_ms
        self.diary.states[f"clock jumped {'back' if by_ms < 0 else 'forward'}"] += 1

    def _fill(self, after_ms: int, for_ms: int) -> None:
        def fill(full: bool) -> None:
            self.diary.note(f"the disk is {'full' if full else 'no longer full'}")
            self.disk.fill(full=full)

        if not after_ms:
            fill(True)
        self._loop.call_later(after_ms / 1_000, fill, True)
        self._loop.call_later((after_ms + for_ms) / 1_000, fill, False)

    def _evict(self, name: str) -> None:
        host = self._host
        if host is None or not self._is_open or host.failure is not None:
            return
        object_id = host.namespace(Cell).id_from_name(name)
        activation = host._residents.find(object_id)
        if activation is not None and activation.ticket > host.committer.durable_ticket:
            self.diary.states["eviction asked for before the gate opened"] += 1

        async def evict() -> None:
            with contextlib.suppress(DurableActorError):
                gone = await host.evict(object_id)
                self.diary.states["evicted"] += gone

        self._loop.create_task(evict(), name="evict")

    def _note_crash(self, loop: SimulatedLoop) -> None:
        """Count what the crash fell into."""
        states, connection, thread = self.diary.states, self._connection, self._thread
        self.diary.note(
            f"crash {loop.crashed}; {self._life.survival} of what was not synced"
        )
        if not self._is_open:
            states["crash while opening"] += 1
            states["second crash while opening"] += self._was_opening
            self._was_opening = True
        else:
            self._was_opening = False
        states[f"crash: {self._life.survival} survives"] += self.disk.unsynced > 0
        if connection is None or thread is None:
            return
        statement = connection.statement
        if statement.startswith("INSERT INTO log"):
            call, _ = self.disk.cut_in if self.disk.is_dead else ("", "")
            if thread.is_answering or (call == "sync" and self._life.cut_is_after):
                states["crash between sync and acknowledgement"] += 1
            elif call:
                states[f"crash in the {call} of a commit"] += 1
        elif statement.startswith("PRAGMA wal_checkpoint"):
            states["crash in a checkpoint"] += 1
        host = self._host
        if host is None or not self._is_open:
            return
        states["crash in a fold"] += host.committer._fold_task is not None
        states["crash with a group gathering"] += bool(host.committer._gathering.seals)
        states["crash with answers at the gate"] += bool(
            host.committer._in_flight_group and host.committer._in_flight_group.settled
        )
        states["crash in an alarm handler"] += "alarm" in self._alone.values()
        states["crash in a handler"] += bool(self._alone)

    # -- verdicts --------------------------------------------------------------

    async def _last_looks(self, host: Host) -> None:
        """Everything has come to rest: is it what was promised?"""
        diary, ledger = self.diary, self._ledger
        await look_at_objects(host, diary)
        await look_at_runs(host, diary, self._clients, ledger, self._lives)
        diary.check(not self._alone, f"still at work: {self._alone}")

    def _check_tables(self) -> None:
        """The log was folded just now: the tables have to agree with themselves."""
        assert self._connection is not None
        wrong = wrong_in_tables(self._connection._opened)
        self.diary.check(not wrong, f"after opening: {wrong}")

    def _check_file(self) -> None:
        with contextlib.closing(open_file(self.disk, DATABASE)) as db:
            had_room = self.disk.refusals == self._refusals_before
            check_file(db, self.diary, is_folded=had_room)
            self._emitted = emitted(db)

    def _judge(self) -> None:
        self.diary.judge()
        for name, count in self._emitted.items():
            arrived = len(self._events[name])
            if count != arrived:
                wrong = f"{name} emitted {count} events, {arrived} came"
                self.diary.problems.append(wrong)


def _tasks(loop: SimulatedLoop) -> list[str]:
    return sorted(task.get_name() for task in asyncio.all_tasks(loop))


def run(plan: Plan) -> World:
    """Run a plan from its beginning to the verdict, in `World.diary`."""
    if not plan.settings.is_new:
        template()
    world = World(plan)
    partial = 1 if plan.settings.is_partial else overlay_module.PARTIAL_CACHE_BYTES_MAX
    with (
        simulated_edges(world._connect, world.marks),
        patch.object(overlay_module, "PARTIAL_CACHE_BYTES_MAX", partial),
        listening() as errors,
    ):
        was_enabled = gc.isenabled()
        gc.disable()  # what it finds, and when, must not matter
        gc.freeze()  # it need not look through what was there before, either
        try:
            world.run()
        finally:
            gc.unfreeze()
            if was_enabled:
                gc.enable()
    world.diary.problems += errors.unseen
    return world
