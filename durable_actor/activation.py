"""An activation: one object alive in memory, and the delivery of its events.

Theory of operation
    Events come as envelopes. A serial object runs one at a time in a single task,
    the drainer, which starts with the first envelope and ends with the last: an idle
    object is not a task. What may overlap (an interleaving method, a call that came
    back along its own chain, every event of a gated object) runs in a task of its own
    once the input gate is open: one is let in at a time, and the next one when the one
    before has ended or suspended, as it may have closed the gate again.

    At the end of every turn the overlay is sealed. When a handler is done its answer
    goes to the output gate, and the next event starts at once: nobody waits for the
    disk except what leaves. An answer to another object of this host need not wait
    either; it carries the ticket it depends on, and the other object adopts it.

    When something breaks the activation (a failed write, a failed constructor,
    `abort`), everyone who waits is told whether the call ran, and the host forgets it.
    The next event starts another one from the disk.

What has a module of its own: where an activation stands (`lifecycle`), what it finds
around it (`surroundings`), the event that runs and who waits for whom (`delivery`), the
alarm (`alarm_delivery`), `block_concurrency_while` (`blocks`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from durable_actor.alarm_delivery import (
    deliver_alarm,
    retry_of,
    take_over_owed_alarm,
    tell_of_alarm,
)
from durable_actor.blocks import TOO_LONG, BlockFailure, Blocks
from durable_actor.breadcrumbs import CONSTRUCTOR
from durable_actor.clock import Clock, deadline
from durable_actor.codec import clone
from durable_actor.delivery import (
    Delivery,
    circle_of_waits,
    current_delivery,
    was_cancelled,
)
from durable_actor.entrypoints import ClassInfo, DurableObject
from durable_actor.errors import (
    BadArgumentsError,
    CorruptionError,
    DurableActorError,
    EventQuarantinedError,
    ObjectDeadlockError,
    ObjectError,
    ObjectOverloadedError,
    ObjectResetError,
    Outcome,
    SqlError,
    StorageError,
    StorageFullError,
    StorageLimitError,
)
from durable_actor.gates import Effect, InputGate, OutputGate
from durable_actor.hibernation import HibernatingSockets
from durable_actor.ids import ObjectId
from durable_actor.lifecycle import Lifecycle, moved
from durable_actor.log import get_logger
from durable_actor.mailbox import Envelope, Mailbox
from durable_actor.replies import KeptReplies, has_run
from durable_actor.signals import Abort, Interrupted
from durable_actor.state import DurableObjectState
from durable_actor.storage.batch import ObjectRow
from durable_actor.storage.facade import (
    DurableObjectStorage,
    is_beside_a_transaction,
)
from durable_actor.storage.kv import KeyValueLimits, LargeObject
from durable_actor.storage.overlay import Overlay, settle
from durable_actor.storage.ports import Loaded
from durable_actor.surroundings import Surroundings
from durable_actor.texts import check_attributes

T = TypeVar("T")
_E = TypeVar("_E", bound=ObjectError)

_CHAIN_MAX = 500  # calls within calls: deeper is a recursion that does not end
_RESTS_MAX = 3  # folds in a row, for an event that does not stop writing
_ENDS_THE_PROGRAM = (SystemExit, KeyboardInterrupt, GeneratorExit)

log = get_logger("durable_actor.objects")


class Activation:
    """One live object."""

    __slots__ = (
        "_admitter",
        "_alarm_is_queued",
        "_background",
        "_blocks",
        "_drainer",
        "_events_reserved",
        "_held_answers",
        "_held_effects",
        "_host",
        "_input",
        "_instance",
        "_is_draining",
        "_is_resting",
        "_kept",
        "_line",
        "_output",
        "_overlay",
        "_reset",
        "_running",
        "_side_line",
        "_tasks",
        "_turn_is_confirmed",
        "_turn_is_planned",
        "id",
        "info",
        "lifecycle",
        "used_at_ms",
    )

    def __init__(
        self, host: Surroundings, info: ClassInfo, object_id: ObjectId
    ) -> None:
        self._host = host
        self.info = info
        # A copy, if it was opened by its id: it may still learn its name.
        self.id = (
            object_id
            if object_id.name is not None
            else ObjectId(object_id.namespace, object_id.raw, None)
        )
        self.lifecycle = Lifecycle.COLD
        self.used_at_ms = 0  # when the last event came, by elapsed time
        self._input = InputGate(self._pump)
        self._output = OutputGate(host.committer)
        self._line = Mailbox(host.settings.bounds, host.memory)
        self._side_line: Mailbox | None = None  # may overlap; waits for the gate
        # Lets events in beside others; loses the role when it first suspends.
        self._admitter: asyncio.Task[None] | None = None
        # Answers that may rest on a transaction which is not over.
        self._held_answers: list[Envelope] | None = None
        self._held_effects: list[Effect] | None = None  # the same, of what else leaves
        self._overlay: Overlay | None = None
        self._instance: DurableObject | None = None
        # Invariant: each delivery that has begun and not ended, by its number.
        self._running: dict[int, tuple[Delivery, Envelope]] | None = None
        # Invariant: who has a drainer is draining.
        self._is_draining = False  # a drain is planned, or under way
        self._is_resting = False
        self._drainer: asyncio.Task[None] | None = None  # the task it runs in
        self._tasks: set[asyncio.Task[Any]] | None = None
        self._background: set[asyncio.Future[Any]] | None = None
        self._blocks: Blocks | None = None
        self._kept: KeptReplies | None = None
        self._alarm_is_queued = False
        self._events_reserved = 0  # room taken in the outbox by what is not sealed
        self._turn_is_planned = False
        self._turn_is_confirmed = False  # somebody has to wait for what it wrote
        self._reset: ObjectResetError | None = None

    # -- what the host asks -----------------------------------------------------

    @property
    def ticket(self) -> int:
        """The last ticket this object depends on, or has sealed unconfirmed."""
        sealed = 0 if self._overlay is None else self._overlay.ticket
        return max(self._output.ticket, sealed)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits here and everything is durable."""
        return (
            self.lifecycle is Lifecycle.RUNNING
            and not self._is_draining
            and not self._running
            and not self._background
            and not self._tasks
            and len(self._line) == 0
            and not self._side_line
            and not self._turn_is_planned
            and self._input.is_open
            and self.ticket <= self._host.committer.durable_ticket
        )

    @property
    def host(self) -> Surroundings:
        """Where this activation lives."""
        return self._host

    @property
    def pending_tasks(self) -> list[asyncio.Future[Any]]:
        """What has to end before this object is idle."""
        found: list[asyncio.Future[Any]] = [*(self._tasks or ())]
        found += self._background or ()
        return found if self._drainer is None else [self._drainer, *found]

    def adopt(self, ticket: int) -> None:
        """Depend on what an answer rested on."""
        self._output.depend_on(ticket)

    def check_unbroken(self) -> None:
        """Refuse to go on with code whose object is gone.

        Raises:
            ObjectResetError: Why it is gone; nothing was done.
        """
        if self._reset is not None:
            raise self._reset_error(self._reset.detail, "not_executed")

    @property
    def waiting(self) -> int:
        """How many events wait in the mailbox."""
        return len(self._line) + len(self._side_line or ())

    @property
    def overlay(self) -> Overlay | None:
        """The object's storage; None until it is loaded."""
        return self._overlay

    @property
    def cached_bytes(self) -> int:
        """How much of the object's storage is in memory."""
        return 0 if self._overlay is None else self._overlay.size_bytes

    def start(self, predecessor_ticket: int) -> None:
        """Load the object and run its constructor; events wait meanwhile.

        Args:
            predecessor_ticket: The last ticket of the activation before this one; what
                it sealed must be settled before the disk is read.
        """
        self.lifecycle = moved(self.lifecycle, Lifecycle.STARTING)
        self._input.hold()
        self._spawn(self._start(predecessor_ticket), "start")

    def accept(self, envelope: Envelope, *, may_overlap: bool) -> None:
        """Take an event, to be run when its turn comes.

        Raises:
            ObjectOverloadedError: The mailbox met a bound.
            ObjectDeadlockError: The sender would wait for itself.
        """
        self.used_at_ms = self._host.clock.elapsed_ms()
        if envelope.chain:
            self._check_room(
                len(envelope.chain) >= _CHAIN_MAX, "calls are nested too deeply"
            )
            if self._is_own_chain(envelope):
                self._spawn_run(envelope)
                return
        line = self._line
        now = asyncio.get_running_loop().time()
        if self._host.settings.bounds.rate_max and not envelope.is_internal:
            refusal = line.rate_refusal(now)
            self._check_room(refusal is not None, refusal or "")
        if may_overlap:
            if self._side_line is None:
                self._side_line = Mailbox(self._host.settings.bounds, self._host.memory)
            if not self._input.is_open:
                self._check_waiting(envelope, self._side_line, now)
            self._side_line.put(envelope, now)
            self._pump()
            return
        is_open = self._input.is_open
        has_to_wait = not is_open or (not self.info.is_gated and self._is_draining)
        if has_to_wait and not envelope.is_internal:
            self._check_waiting(envelope, line, now)
        if envelope.sender is not None and not envelope.is_internal:
            circle = circle_of_waits(envelope.sender, self)
            if circle is not None:
                raise self._about_me(ObjectDeadlockError, circle)
        line.put(envelope, now)
        if not self._is_draining:
            self._pump()

    def learn_name(self, name: str) -> None:
        """Take note of the name, which nobody knew when the object was opened."""
        self.id.name = name
        if self._overlay is not None:
            self._spawn(self._store_name(), "store name")

    def fire_alarm(self) -> asyncio.Future[Any]:
        """Deliver the alarm if it is due, unless that is under way already.

        Returns:
            Done when it was delivered; at once if that is under way.
        """
        if self._alarm_is_queued:
            return _done()
        self._alarm_is_queued = True
        envelope = Envelope("alarm", self._deliver_alarm, (), {})
        envelope.is_internal = True
        envelope.reply.add_done_callback(_retrieve)
        self.accept(envelope, may_overlap=False)
        return envelope.reply

    def release(self, *, is_draining: bool) -> None:
        """Ask the object to let go of what keeps it in memory."""
        if self.lifecycle is Lifecycle.RUNNING and self._instance is not None:
            self._instance._on_release(is_draining=is_draining)  # noqa: SLF001  # our hook

    def rest(self) -> None:
        """Let no event in until everything that was written is folded."""
        if not self._is_resting and self.lifecycle is Lifecycle.RUNNING:
            self._is_resting = True
            self._spawn(self._rest(), "rest")

    def evict(self) -> None:
        """Let go of the object; the next event activates it again."""
        assert self.is_idle, "only an idle object can be evicted"
        self.lifecycle = moved(self.lifecycle, Lifecycle.COLD)
        if self._overlay is not None:
            # A task that nobody told us of must not write beside the next activation.
            self._overlay.retire()
            reason = "the object was evicted; keep tasks alive with ctx.wait_until"
            self._overlay.break_off(self._reset_error(reason, "failed"))
        # Cut what goes round in a circle, so that the memory is free at once, and not
        # when the garbage collector has looked through all other objects.
        self._instance = None
        self._input = InputGate(_nothing)
        self._release_events()

    def break_off(
        self,
        reason: str,
        *,
        outcome: Outcome = "unknown",
        counts: bool = False,
        overloaded: bool = False,
        cause: StorageError | None = None,
    ) -> None:
        """Throw the activation away and tell everyone who waits.

        Args:
            reason: What the callers read.
            outcome: What is known of the calls that were running.
            counts: Whether a running alarm handler is to blame.
            overloaded: Whether the callers should not come back at once.
            cause: What failed. If the disk is full, callers read that, and no alarm is
                to blame for anything (G12).
        """
        if self.lifecycle in (Lifecycle.BROKEN, Lifecycle.COLD):
            return
        was_starting = self.lifecycle is Lifecycle.STARTING
        self.lifecycle = moved(self.lifecycle, Lifecycle.BROKEN)
        self._host.counters.reset += 1
        self._reset = self._reset_error(reason, outcome)
        self._reset.overloaded = overloaded
        full = cause if isinstance(cause, StorageFullError) else None
        kept_back = 0 if full is None else self._host.counters.full_lines.kept_back()
        if kept_back is not None:
            log.warning("object.reset", object=repr(self.id), reason=reason)
        running = list((self._running or {}).values())
        if self._overlay is not None:
            self._overlay.break_off(self._reset)
            alarm = self._overlay.running_alarm
            if alarm is not None and full is None:
                retry = retry_of(alarm, self._host, counts=counts)
                self._host.reminders.owe(self.id, retry)
        if self._alarm_is_queued and was_starting and cause is None:
            self._host.reminders.not_started(self.id)
        elif self._alarm_is_queued:
            self._host.reminders.undelivered(self.id)
        for _, envelope in running:
            envelope.fail(full or self._reset_error(reason, outcome))
        for envelope in self._held_answers or ():
            envelope.fail(full or self._reset_error(reason, outcome))
        self._held_answers = None
        held, self._held_effects = self._held_effects or (), None
        for effect in held:
            effect(StorageError("commit", reason))
        self._release_events()
        unstarted = full if outcome == "not_executed" else None
        for envelope in self._take_waiting():
            envelope.fail(unstarted or self._reset_error(reason, "not_executed"))
        self._host.forget(self)
        here = asyncio.current_task()
        for task in (self._drainer, *(self._tasks or ()), *(self._background or ())):
            if task is not None and task is not here:
                task.cancel()

    # -- what user code asks, through ctx and storage ----------------------------

    @property
    def clock(self) -> Clock:
        """The host's clock."""
        return self._host.clock

    @property
    def random(self) -> random.Random:
        """The host's source of randomness."""
        return self._host.random

    @property
    def sockets(self) -> HibernatingSockets:
        """The hibernatable sockets of the object.

        Raises:
            ObjectResetError: This activation is broken; they are not its own.
        """
        self.check_unbroken()
        return self._host.sockets.of(self.id)

    @property
    def limits(self) -> KeyValueLimits:
        """The sizes that keys and values may have."""
        return self._host.settings.limits

    @property
    def has_alarm_handler(self) -> bool:
        """Whether the class can take an alarm."""
        return self.info.has_alarm

    def wrote(self, *, is_confirmed: bool = True) -> None:
        """Plan the end of this turn: after this step of the task, at the latest.

        Args:
            is_confirmed: Whether what the object says has to wait for this write.
        """
        if is_confirmed:
            self._turn_is_confirmed = True
        if not self._turn_is_planned:
            self._turn_is_planned = True
            self._host.plan_turn_end(self)

    def end_turn(self) -> int:
        """Seal what was written so far; return the last ticket depended on."""
        overlay = self._overlay
        if overlay is not None and overlay.is_unsealed:
            alarm_before = overlay.alarm_ticket
            ticket = overlay.seal(self._host.clock)
            if self._turn_is_confirmed:
                self._output.depend_on(ticket)
                self._turn_is_confirmed = overlay.is_in_transaction
            if overlay.alarm_ticket != alarm_before:
                tell_of_alarm(self._host, self.id, overlay)
            if self._events_reserved and not overlay.is_in_transaction:
                count, self._events_reserved = self._events_reserved, 0
                release = self._host.release_events
                self._host.committer.when_durable(
                    overlay.ticket, lambda _: release(count)
                )
        return self._output.ticket

    def let_out(self, effect: Effect) -> None:
        """Run an effect once everything written so far is durable.

        Raises:
            ObjectResetError: The object is broken; nothing leaves it any more.
        """
        self.check_unbroken()
        if self._is_in_transaction:
            if self._held_effects is None:
                self._held_effects = []
            self._held_effects.append(effect)
            return
        self.end_turn()
        self._output.let_out(effect)

    async def wait_durable(self, ticket: int) -> None:
        """Return once a ticket is on disk."""
        await self._host.committer.wait(ticket)

    async def bookmark(self, at_ms: int | None) -> str:
        """Return the bookmark of the object's database now, or at a time."""
        return await self._host.databases.bookmark(self.id, at_ms)

    def large_object(self) -> LargeObject:
        """Return a reader for what is not in memory."""
        assert self._overlay is not None
        return LargeObject(
            self._host.committer, self._host.driver, self._overlay, self.id.raw
        )

    def hold_input(self) -> None:
        """Keep other events out."""
        self._input.hold()

    def release_input(self) -> None:
        """Undo one hold."""
        if self._held_answers and not self._is_in_transaction:
            held, self._held_answers = self._held_answers, None
            self.end_turn()
            for envelope in held:
                self._send(envelope)
        if self._held_effects and not self._is_in_transaction:
            effects, self._held_effects = self._held_effects, None
            self.end_turn()
            for effect in effects:
                self._output.let_out(effect)
        self._input.release()

    def emit(self, event: Mapping[str, object]) -> None:
        """Put an event in the outbox, with this turn."""
        if self.info.cls.event_sink is None:
            return
        assert self._overlay is not None
        if self._overlay.reset is not None:
            raise self._overlay.reset
        data = msgspec.json.encode(event)
        if not self._host.reserve_event():
            self._host.counters.events_dropped += 1
            return
        self._events_reserved += 1
        self._overlay.emit(data)
        if is_beside_a_transaction(self._overlay):
            self._overlay.outlast(event=data)
        self.wrote()

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Publish a few texts in the directory, with this turn."""
        assert self._overlay is not None
        check_attributes(attributes)
        self._overlay.set_attributes(attributes)
        if is_beside_a_transaction(self._overlay):
            self._overlay.outlast(attributes=True)
        self.wrote()

    def block_concurrency_while(
        self, callback: Callable[[], Awaitable[T]]
    ) -> asyncio.Future[T]:
        """Run `callback` with the input gate held."""
        if self._blocks is None:
            limit_ms = self._host.settings.constructor_timeout_ms
            self._blocks = Blocks(self._host.clock, limit_ms)
        task = self._blocks.begin(
            self._followed(callback), self._block_failed, name=f"block {self.id!r}"
        )
        self._input.hold()
        self._track(task)
        task.add_done_callback(self._block_ended)
        return task

    def _followed(
        self, callback: Callable[[], Awaitable[T]]
    ) -> Callable[[], Awaitable[T]]:
        """Let a block of the constructor count as part of it (G18)."""
        crumbs = self._host.breadcrumbs
        if crumbs is None or self.lifecycle is not Lifecycle.STARTING:
            return callback
        return lambda: crumbs.follow(self.id, CONSTRUCTOR, callback())

    def wait_until(self, awaitable: Awaitable[T]) -> asyncio.Future[T]:
        """Run something in the background; keeps the activation alive."""
        future = asyncio.ensure_future(awaitable)
        if self._background is None:
            self._background = set()
        self._background.add(future)
        future.add_done_callback(self._background_done)
        return future

    def abort(self, reason: str | None) -> NoReturn:
        """Throw this activation away; never returns."""
        text = reason or "Application called abort() to reset Durable Object."
        self.break_off(text, outcome="failed", counts=True)
        raise Abort(text)

    # -- starting -----------------------------------------------------------------

    async def _start(self, predecessor_ticket: int) -> None:
        limit_ms = self._host.settings.constructor_timeout_ms
        scope: asyncio.Timeout | None = None
        try:
            if self._is_quarantined(CONSTRUCTOR):
                raise self._quarantine_error(CONSTRUCTOR)
            await settle(self._host.committer, predecessor_ticket)
            await self._load()
            async with deadline(self._host.clock, limit_ms) as scope:
                await self._construct()
        except asyncio.CancelledError:
            if self.lifecycle is not Lifecycle.BROKEN:
                self.break_off("its start was cancelled", outcome="not_executed")
            raise
        except (CorruptionError, EventQuarantinedError) as error:
            self._refuse(error)
        except StorageFullError as error:
            error.outcome = "not_executed"
            self.break_off(str(error), outcome="not_executed", cause=error)
        except Exception as error:
            if isinstance(error, StorageError) and error.overloaded:
                self.break_off(str(error), outcome="not_executed", overloaded=True)
            elif scope is not None and scope.expired():
                # Nothing but a block can take time in a constructor.
                reason = f"{TOO_LONG} The limit is {limit_ms} ms."
                self.break_off(reason, outcome="not_executed", overloaded=True)
            else:
                log.exception("object.start_failed", object=repr(self.id))
                reason = f"the constructor failed: {_describe(error)}"
                self.break_off(reason, outcome="not_executed")
        except BaseException as raised:
            # An abort has told everyone already; alone, or inside a group.
            reason = f"the constructor failed: {_describe(raised)}"
            self.break_off(reason, outcome="not_executed")
            if isinstance(raised, _ENDS_THE_PROGRAM):
                raise
        else:
            self.lifecycle = moved(self.lifecycle, Lifecycle.RUNNING)
            self._host.counters.activated += 1
            self._input.release()

    async def _load(self) -> None:
        loaded = await self._host.committer.load(self.id.raw)
        if loaded.damage is not None:
            raise self._about_me(
                CorruptionError,
                f"{loaded.damage}: the checksum does not match. Restore a backup;"
                " nothing was deleted.",
            )
        if self.id.name is None and loaded.row is not None:
            # Opened by its id, or woken by its alarm: it still knows its name.
            self.id.name = loaded.row.name
        self._overlay = await self._open_overlay(loaded)
        self._keep_name(loaded.row)
        if take_over_owed_alarm(self._host, self.id, self._overlay):
            self.wrote()

    async def _open_overlay(self, loaded: Loaded) -> Overlay:
        if self.info.has_database:
            databases = self._host.databases
            return await databases.overlay(self.id, self.info.name, loaded)
        if loaded.position is not None:
            detail = (
                f"{self.info.name} has no database, but this object was stored with"
                ' one; write storage="sqlite" again, or register the class under'
                " another name"
            )
            raise StorageError("open", detail)
        return Overlay(self._host.committer, self.id, self.info.name, loaded)

    async def _rest(self) -> None:
        self.hold_input()
        try:
            for _ in range(_RESTS_MAX):
                ticket = self.end_turn()
                await self.wait_durable(ticket)
                await self._host.committer.fold()
                if ticket == self.ticket:
                    break  # else the event under way went on writing
        except StorageError:
            pass  # whoever rests on what was not written hears of it
        finally:
            self._is_resting = False
            self.release_input()

    async def _store_name(self) -> None:
        """Bring the name into the directory, if the object is there without it."""
        committer = self._host.committer
        loaded = await committer.load(self.id.raw)
        if self._reset is not None or self._is_in_transaction:
            return  # the next activation that is opened by name does it
        self.end_turn()
        # What was sealed or committed since the answer was made is newer.
        rows = [loaded.row]
        rows += [change.row for change in committer.pending(self.id.raw)]
        rows += [seal.row for seal in committer.unsettled(self.id.raw)]
        self._keep_name(next((row for row in reversed(rows) if row is not None), None))

    def _keep_name(self, row: ObjectRow | None) -> None:
        """Let the next seal bring the name into a directory row that has none."""
        if row is not None and row.name is None and self.id.name is not None:
            assert self._overlay is not None
            self._overlay.set_attributes(row.attributes)
            self.wrote()

    async def _construct(self) -> None:
        assert self._overlay is not None
        storage = DurableObjectStorage(self._overlay, self)
        ctx = DurableObjectState(self, self.id, storage, self._host.env)
        delivery = Delivery(self, "constructor", (), asyncio.current_task())
        current_delivery.set(delivery)
        crumbs = self._host.breadcrumbs
        if crumbs is not None:
            crumbs.mark(self.id, CONSTRUCTOR)
        try:
            self._instance = self.info.cls(ctx, self._host.env)
        finally:
            if crumbs is not None:
                crumbs.wipe()
        while self._blocks:
            await asyncio.shield(self._blocks.first)
        if crumbs is not None:
            crumbs.survived(self.id, CONSTRUCTOR)
        self.end_turn()

    def _refuse(self, error: DurableActorError) -> None:
        """Fail everyone with one error, and start afresh for the next event."""
        self.lifecycle = moved(self.lifecycle, Lifecycle.BROKEN)
        is_corrupt = isinstance(error, CorruptionError)
        event = "object.corrupt" if is_corrupt else "object.refused"
        log.error(event, object=repr(self.id), error=str(error))
        for envelope in self._take_waiting():
            envelope.fail(error)
        self._host.forget(self)
        if self._alarm_is_queued:
            self._host.reminders.not_started(self.id)

    # -- delivery -----------------------------------------------------------------

    def _pump(self) -> None:
        """Let in whoever may come in now."""
        if self.lifecycle is not Lifecycle.RUNNING or not self._input.is_open:
            return
        if self._admitter is None and (
            self._side_line or (self.info.is_gated and len(self._line))
        ):
            admitter = self._spawn(self._admit(), "admit")
            self._admitter = admitter
            # Runs after the first step of the task, which is in line before it.
            asyncio.get_running_loop().call_soon(self._admitted, admitter)
        if not self.info.is_gated and not self._is_draining and len(self._line):
            self._is_draining = True
            self._host.plan_drain(self)

    def _next_beside(self) -> Envelope | None:
        """Take the next event that need not wait for its turn."""
        if self._side_line is not None:
            envelope = self._side_line.take()
            if envelope is not None:
                return envelope
            self._side_line = None
        return self._line.take() if self.info.is_gated else None

    async def _admit(self) -> None:
        """Run events until one suspends; it is alone with that one then."""
        me = asyncio.current_task()
        while self._admitter is me and self._input.is_open:
            envelope = self._next_beside()
            if envelope is None:
                return
            await self._run(envelope)

    def _admitted(self, admitter: asyncio.Task[None]) -> None:
        """Let another task go on where this one suspended, or closed the gate."""
        if self._admitter is admitter:
            self._admitter = None
            self._pump()

    def _take_waiting(self) -> list[Envelope]:
        """Empty the lines and return what was in them."""
        waiting = self._line.take_all()
        if self._side_line is not None:
            waiting += self._side_line.take_all()
        self._side_line = None
        return waiting

    async def drain(self, task: asyncio.Task[None]) -> None:
        """Run the events in line, one after the other, until there is none."""
        self._drainer = task
        loop = asyncio.get_running_loop()
        until = loop.time() + self._host.settings.slice_ms / 1_000
        try:
            # Whoever closes the gate meanwhile pumps again.
            while self._input.is_open and (envelope := self._line.take()) is not None:
                await self._run(envelope, task)
                if loop.time() >= until:
                    break  # its slice is over; it is planned again below
        finally:
            self._drainer = None
            self._is_draining = False
            self._running = self._running or None  # an idle object keeps no empty dict
        if len(self._line):
            self._pump()

    def _run(
        self, envelope: Envelope, task: asyncio.Task[None] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Run one event; its end is the envelope's."""
        running = self._run_event(envelope, task)
        crumbs = self._host.breadcrumbs
        if crumbs is None:
            return running
        return crumbs.follow(self.id, envelope.label, running)

    async def _run_event(
        self, envelope: Envelope, task: asyncio.Task[None] | None
    ) -> None:
        if envelope.reply.done():
            return  # the sender has gone
        if self._is_quarantined(envelope.label):
            self._alarm_is_queued = self._alarm_is_queued and not envelope.is_internal
            envelope.fail(self._quarantine_error(envelope.label))
            return
        ticket = envelope.ticket
        lost = self._host.committer.failure_of(ticket) if ticket else None
        if self._reset is not None or lost is not None:
            reason = "what the call rested on was not written"
            reason = reason if self._reset is None else self._reset.detail
            envelope.fail(self._reset_error(reason, "not_executed"))
            return
        task = task or asyncio.current_task()
        delivery = Delivery(self, envelope.label, envelope.chain, task)
        token = current_delivery.set(delivery)
        if self._running is None:
            self._running = {}
        self._running[delivery.number] = (delivery, envelope)
        self._output.depend_on(envelope.ticket)
        try:
            if self.info.has_database:
                await self._host.databases.ready(self._overlay)
            if envelope.is_internal:
                await envelope.function()
            elif envelope.request_id is not None:
                envelope.result = await self._run_once(envelope)
            else:
                called = self._invoke(envelope)  # if it raises, nothing has run
                try:
                    envelope.result = clone(await called)
                except Exception as raised:
                    has_run(raised)
                    raise
        except asyncio.CancelledError:
            if self._reset is not None:
                raise
            if was_cancelled():
                # Not by us: the loop is ended around us.
                self.break_off("the event loop is ending")
                raise
            envelope.error = self._about_me(ObjectError, "the handler was cancelled")
        except Exception as raised:  # noqa: BLE001  # user code's; goes to the caller
            envelope.error = raised
        except BaseException as raised:
            # An abort has told everyone already; alone, or inside a group.
            reason = f"the handler raised {_describe(raised)}"
            self.break_off(reason, outcome="failed", counts=True)
            if isinstance(raised, _ENDS_THE_PROGRAM):
                raise
        finally:
            current_delivery.reset(token)
            self._running.pop(delivery.number, None)
        if self._reset is None:
            self._answer(envelope)

    def _is_quarantined(self, event: str) -> bool:
        crumbs = self._host.breadcrumbs
        return crumbs is not None and crumbs.refuses(self.id, event)

    def _quarantine_error(self, event: str) -> EventQuarantinedError:
        detail = (
            f"the process died too often while it ran {event}, which is quarantined"
            " until it is released"
        )
        return self._about_me(EventQuarantinedError, detail)

    def _answer(self, envelope: Envelope) -> None:
        """Hand the answer to the output gate."""
        counters = self._host.counters
        counters.calls += 1
        if envelope.error is not None:
            counters.calls_failed += 1
        if self._is_in_transaction and not self._is_own_chain(envelope):
            # It may have seen what is going to be rolled back.
            if self._held_answers is None:
                self._held_answers = []
            self._held_answers.append(envelope)
            return
        if self._turn_is_planned:
            try:
                self.end_turn()
            except StorageError as failure:
                outcome = _outcome_of(failure)
                self.break_off(str(failure), outcome=outcome, cause=failure)
                is_full = isinstance(failure, StorageFullError)
                reset = self._reset_error(str(failure), outcome)
                envelope.fail(failure if is_full else reset)
                return
            except Exception as failure:  # noqa: BLE001  # ours; nobody is to hang
                envelope.fail(self._give_up(failure))
                return
        self._send(envelope)

    def _send(self, envelope: Envelope) -> None:
        if envelope.sender is None:
            self._output.let_out(envelope.release)
        elif not envelope.reply.done():
            # Stays in this host, and so need not wait: whoever hears it depends on it.
            envelope.sender.activation.adopt(self._output.ticket)
            envelope.release(None)

    @property
    def _is_in_transaction(self) -> bool:
        return self._overlay is not None and self._overlay.is_in_transaction

    async def _run_once(self, envelope: Envelope) -> Any:
        """Run a call that has an identity, unless its answer is known already."""
        assert self._overlay is not None
        if self._kept is None:
            host = self._host
            self._kept = KeptReplies(
                host.committer,
                host.driver,
                host.clock,
                self._overlay,
                self.id,
                limits=host.settings.replies,
                counters=host.counters.replies,
            )
        # A stub that was made with an identity may be used for several methods.
        request_id = f"{envelope.label}:{envelope.request_id}"
        if self._kept.is_under_way_in(request_id, envelope.chain):
            detail = f"the call with request_id {request_id!r} would wait for itself"
            raise self._about_me(ObjectDeadlockError, detail)
        delivery = current_delivery.get()
        assert delivery is not None, "a call runs in a delivery"
        return await self._kept.run(
            request_id,
            lambda: self._invoke(envelope),
            self.wrote,
            delivery=delivery.number,
            first_sent_ms=envelope.first_sent_ms,
        )

    def _invoke(self, envelope: Envelope) -> Awaitable[Any]:
        """Call the method; nothing of it has run when this returns.

        Raises:
            BadArgumentsError: They do not fit.
        """
        try:
            called: Awaitable[Any] = envelope.function(
                self._instance, *envelope.args, **envelope.kwargs
            )
        except TypeError as error:
            # A coroutine function runs nothing before it is awaited.
            raise self._about_me(BadArgumentsError, str(error)) from None
        return called

    def _release_events(self) -> None:
        """Give back the room of events that were never sealed."""
        self._host.release_events(self._events_reserved)
        self._events_reserved = 0

    def _is_own_chain(self, envelope: Envelope) -> bool:
        if not envelope.chain:
            return False
        running = self._running
        return running is not None and any(n in running for n in envelope.chain)

    def _check_waiting(self, envelope: Envelope, line: Mailbox, now: float) -> None:
        """Refuse an event that would have to wait, and may not."""
        envelope.measure()
        refusal = line.refusal(envelope.size_bytes, now)
        self._check_room(refusal is not None, refusal or "")
        refusal = self._host.memory.refusal(envelope.size_bytes)
        if refusal is not None:
            self._host.counters.shed += 1
            error = self._about_me(ObjectOverloadedError, refusal)
            error.is_everywhere = True
            raise error

    def _check_room(self, refused: bool, why: str) -> None:  # noqa: FBT001
        if refused:
            self._host.counters.shed += 1
            raise self._about_me(ObjectOverloadedError, why)

    def delivery_before(self, envelope: Envelope | None) -> Delivery | None:
        """Return the delivery that has to end before an event here is answered.

        Args:
            envelope: The event; None for one that would come to the end of the line.
        """
        if envelope is not None and envelope.reply.done():
            return None
        running = list((self._running or {}).values())
        for delivery, its_envelope in running:
            if its_envelope is envelope:
                return delivery
        if envelope is not None and envelope not in self._line:
            return None  # waits for the gate only
        for delivery, _ in running:
            if delivery.task is self._drainer:
                return delivery
        return None

    async def _deliver_alarm(self) -> None:
        overlay, instance = self._overlay, self._instance
        assert overlay is not None
        assert instance is not None
        try:
            if await deliver_alarm(self._host, self.id, overlay, instance, self.info):
                self.wrote()
        except Interrupted as raised:
            # Before the turn ends below: half of one must not be written.
            self.break_off(str(raised), outcome="failed", counts=True)
            raise
        finally:
            if self.lifecycle is Lifecycle.RUNNING:
                self.end_turn()  # if it fails, the object is reminded again
                tell_of_alarm(self._host, self.id, overlay)
            self._alarm_is_queued = False

    # -- the rest -----------------------------------------------------------------

    def turn_ended(self) -> None:
        """Seal what the step that is over wrote, unless that is done already."""
        self._turn_is_planned = False
        if self.lifecycle is not Lifecycle.BROKEN:
            try:
                self.end_turn()
            except StorageError as error:
                self.break_off(str(error), outcome=_outcome_of(error), cause=error)
            except Exception as error:  # noqa: BLE001  # the turns of others are to end
                self._give_up(error)

    def _give_up(self, failure: Exception) -> ObjectResetError:
        """Break off after an error of ours: nobody knows what it has left behind."""
        log.error("object.turn_failed", object=repr(self.id), exc_info=failure)
        reason = f"its turn could not be ended: {_describe(failure)}"
        self.break_off(reason)
        return self._reset_error(reason, "unknown")

    def _block_failed(self, failure: BlockFailure) -> ObjectResetError:
        self.break_off(
            failure.reason,
            outcome=failure.outcome,
            counts=True,
            overloaded=failure.overloaded,
        )
        return self._reset_error(failure.reason, "failed")

    def _block_ended(self, task: asyncio.Task[Any]) -> None:
        assert self._blocks is not None, "the last one ends them"
        self._blocks.end(task)
        self._blocks = self._blocks or None  # an idle object keeps no empty list
        self._input.release()

    def _background_done(self, future: asyncio.Future[Any]) -> None:
        assert self._background is not None
        self._background.discard(future)
        if not future.cancelled():
            error = future.exception()
            if error is not None and not isinstance(error, Abort):
                log.warning(
                    "object.background_failed",
                    object=repr(self.id),
                    error=f"{type(error).__name__}: {error}",
                )

    def _spawn(
        self, coroutine: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(
            coroutine, name=name, context=self._host.context.copy()
        )
        self._track(task)
        return task

    def _spawn_run(self, envelope: Envelope) -> None:
        """Run an event at once; if its task is ended before it begins, tell so."""

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                reset = self._reset
                reason = "it was cancelled" if reset is None else reset.detail
                envelope.fail(self._reset_error(reason, "not_executed"))

        task = self._spawn(self._run(envelope), envelope.label)
        task.add_done_callback(ended)

    def _track(self, task: asyncio.Task[Any]) -> None:
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._untrack)

    def _untrack(self, task: asyncio.Task[Any]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
            self._tasks = self._tasks or None  # an idle object keeps no empty set

    def _reset_error(self, reason: str, outcome: Outcome) -> ObjectResetError:
        error = self._about_me(ObjectResetError, reason)
        error.outcome = outcome
        error.overloaded = self._reset is not None and self._reset.overloaded
        return error

    def _about_me(self, kind: type[_E], detail: str) -> _E:
        return kind(
            detail,
            object_class=self.info.name,
            object_name=self.id.name,
            object_id=str(self.id),
        )


def _outcome_of(error: StorageError) -> Outcome:
    """Return what is known of a turn that could not be sealed."""
    # The database refused it, and SQLite undid all of it.
    undone = isinstance(error, SqlError | StorageLimitError | StorageFullError)
    return "failed" if undone else "unknown"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _done() -> asyncio.Future[Any]:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def _nothing() -> None:
    """Do nothing: nobody waits at the gate of an object that was let go."""


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark a failure as seen; whoever needs it has heard of it another way."""
    if not future.cancelled():
        future.exception()
