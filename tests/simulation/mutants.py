"""Planted bugs: a runtime that is wrong in a known way has to be found out.

Each mutant replaces something of the product for the length of a context, in the
process of the test only. A simulation that cannot tell it from the product proves
nothing of what the mutant breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from msgspec import UNSET
from msgspec.structs import replace

from durable_actor import activation as activation_module
from durable_actor.activation import Activation
from durable_actor.alarm_delivery import deliver_alarm
from durable_actor.clock import SystemClock
from durable_actor.gates import Effect, OutputGate
from durable_actor.host import Host
from durable_actor.mailbox import Envelope
from durable_actor.reminders import Reminders
from durable_actor.replies import KeptReplies
from durable_actor.storage import committer as committer_module
from durable_actor.storage.batch import Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.fold import ObjectChange
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import Loaded, ShardOptions
from durable_actor.storage.shard import Shard
from workflows.context import RunContext
from workflows.machine import Recover
from workflows.orchestrator import Orchestrator
from workflows.steps import Step

Mutant = Callable[[], Any]
MUTANTS: dict[str, Mutant] = {}


def _mutant(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
    name = function.__name__.removeprefix("_").replace("_", "-")
    MUTANTS[name] = contextmanager(function)
    return function


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a bug for the length of the context; None plants nothing."""
    if name is None:
        yield
        return
    with MUTANTS[name]():
        yield


@_mutant
def _reply_before_commit() -> Iterator[None]:
    def let_out(_: OutputGate, effect: Effect) -> None:
        effect(None)

    with patch.object(OutputGate, "let_out", let_out):
        yield


@_mutant
def _reads_not_gated() -> Iterator[None]:
    """An answer waits for what its own call wrote, not for what it saw."""
    run, send = Activation._run, Activation._send
    before: dict[int, int] = {}

    async def wrong_run(self: Activation, envelope: Envelope, task: Any = None) -> None:
        before[id(envelope)] = self.ticket
        try:
            await run(self, envelope, task)
        finally:
            before.pop(id(envelope), None)

    def wrong_send(self: Activation, envelope: Envelope) -> None:
        if before.get(id(envelope)) == self.ticket:
            envelope.release(None)
        else:
            send(self, envelope)

    with (
        patch.object(Activation, "_run", wrong_run),
        patch.object(Activation, "_send", wrong_send),
    ):
        yield


def _synchronous(how: str) -> Iterator[None]:
    wrong = partial(ShardOptions, synchronous=how)
    with patch("durable_actor.host.ShardOptions", wrong):
        yield


@_mutant
def _synchronous_normal() -> Iterator[None]:
    yield from _synchronous("NORMAL")


@_mutant
def _synchronous_off() -> Iterator[None]:
    yield from _synchronous("OFF")


@_mutant
def _alarm_deleted_before_its_handler() -> Iterator[None]:
    async def wrong(
        host: Any, object_id: Any, overlay: Overlay, instance: Any, info: Any
    ) -> bool:
        alarm = overlay.stored_alarm
        if alarm is None or alarm.due_at_ms > host.clock.now_ms():
            return False
        overlay.set_alarm(None)
        overlay.seal(host.clock)
        await instance.alarm()
        return True

    with patch.object(activation_module, "deliver_alarm", wrong):
        yield


@_mutant
def _alarm_before_its_time() -> Iterator[None]:
    class Hasty:
        """Surroundings whose clock is a little fast."""

        def __init__(self, host: Any) -> None:
            self._host = host

        def __getattr__(self, name: str) -> Any:
            return getattr(self._host, name)

        @property
        def clock(self) -> Any:
            return self

        def now_ms(self) -> int:
            return int(self._host.clock.now_ms()) + 2

    async def wrong(host: Any, *rest: Any) -> bool:
        hasty: Any = Hasty(host)
        return await deliver_alarm(hasty, *rest)

    with patch.object(activation_module, "deliver_alarm", wrong):
        yield


@_mutant
def _no_serialisation() -> Iterator[None]:
    accept = Activation.accept

    def wrong(self: Activation, envelope: Envelope, *, may_overlap: bool) -> None:
        accept(self, envelope, may_overlap=True)

    with patch.object(Activation, "accept", wrong):
        yield


def _in_two(halves: Callable[[Seal], tuple[Seal, Seal] | None]) -> Iterator[None]:
    seal = Committer.seal

    def wrong(self: Committer, whole: Seal, *rest: Any) -> int:
        both = halves(whole)
        if both is None or self.failure is not None:
            return seal(self, whole, *rest)
        seal(self, both[0], *rest)
        self._flush()
        return seal(self, both[1], *rest)

    with patch.object(Committer, "seal", wrong):
        yield


@_mutant
def _turn_in_two_transactions() -> Iterator[None]:
    def halves(whole: Seal) -> tuple[Seal, Seal] | None:
        if len(whole.keys) < 2 or whole.cleared:
            return None
        first, *rest = whole.keys
        keys, whole.keys = whole.keys, {key: whole.keys[key] for key in rest}
        return Seal(whole.num, {first: keys[first]}, row=whole.row), whole

    yield from _in_two(halves)


@_mutant
def _alarm_in_a_commit_of_its_own() -> Iterator[None]:
    def halves(whole: Seal) -> tuple[Seal, Seal] | None:
        if whole.alarm is UNSET or not whole.keys:
            return None
        alarm, whole.alarm = whole.alarm, UNSET
        return whole, Seal(whole.num, {}, row=whole.row, alarm=alarm)

    yield from _in_two(halves)


@_mutant
def _reply_kept_in_another_turn() -> Iterator[None]:
    keep = Overlay.keep_reply

    def wrong(self: Overlay, reply: Any) -> None:
        if self.is_unsealed:
            self.seal(SystemClock())
            self._committer._flush()
        keep(self, reply)

    with patch.object(Overlay, "keep_reply", wrong):
        yield


@_mutant
def _replies_not_kept() -> Iterator[None]:
    async def wrong(
        self: KeptReplies, request_id: str, call: Any, *_: Any, **__: Any
    ) -> Any:
        return await call()

    with patch.object(KeptReplies, "run", wrong):
        yield


@_mutant
def _activation_kept_after_a_failed_commit() -> Iterator[None]:
    failed = Host._storage_failed

    def wrong(self: Host, error: Any, first_failed: int) -> None:
        if type(error).__name__ != "StorageFullError":
            failed(self, error, first_failed)

    with patch.object(Host, "_storage_failed", wrong):
        yield


@_mutant
def _evicted_before_it_is_durable() -> Iterator[None]:
    is_idle = Activation.is_idle.fget  # type: ignore[attr-defined]  # a property

    def wrong(self: Activation) -> bool:
        durable, committer = self._host.committer.durable_ticket, self._host.committer
        committer.durable_ticket = 1 << 60
        try:
            return bool(is_idle(self))
        finally:
            committer.durable_ticket = durable

    async def evict(self: Host, object_id: Any) -> bool:
        activation = self._residents.find(object_id)
        if activation is None or not activation.is_idle:
            return False
        self._residents.evict(activation)
        return True

    with (
        patch.object(Activation, "is_idle", property(wrong)),
        patch.object(Host, "evict", evict),
    ):
        yield


@_mutant
def _drain_closes_before_the_gate() -> Iterator[None]:
    async def wrong(self: Committer) -> None:
        await self.drop()

    async def settled(self: Host, ticket: int) -> None:
        pass

    with (
        patch.object(Committer, "close", wrong),
        patch.object(Host, "_settled", settled),
    ):
        yield


@_mutant
def _tickets_not_adopted() -> Iterator[None]:
    """A caller answers without waiting for what its callee wrote."""
    with patch.object(Activation, "adopt", lambda _, __: None):
        yield


@_mutant
def _events_before_their_commit() -> Iterator[None]:
    seal = Committer.seal

    def wrong(self: Committer, whole: Seal, *rest: Any) -> int:
        ticket = seal(self, whole, *rest)
        if whole.events:
            self._on_events(whole.events)
        return ticket

    with patch.object(Committer, "seal", wrong):
        yield


@_mutant
def _unfolded_is_forgotten() -> Iterator[None]:
    """An object is loaded from the tables alone."""

    def wrong(loaded: Loaded, *_: ObjectChange) -> Loaded:
        return loaded

    with patch.object(committer_module, "_overlay", wrong):
        yield


@_mutant
def _fold_forgets_too_early() -> Iterator[None]:
    start = Committer._start_fold

    def wrong(self: Committer) -> None:
        start(self)
        self._folding = {}

    with patch.object(Committer, "_start_fold", wrong):
        yield


@_mutant
def _log_cut_before_the_fold() -> Iterator[None]:
    fold = Shard._fold

    async def wrong(self: Shard, *, is_start: bool = False) -> None:
        if self._unfolded and not is_start:
            await self._transact([("DELETE FROM log WHERE seq < ?", [self._seq])])
        await fold(self, is_start=is_start)

    with patch.object(Shard, "_fold", wrong):
        yield


@_mutant
def _reminder_not_moved() -> Iterator[None]:
    """A wheel that hears of no new alarm."""
    changed = Reminders.changed

    def wrong(self: Reminders, object_id: Any, due_at_ms: int | None) -> None:
        if due_at_ms is None:
            changed(self, object_id, due_at_ms)

    with patch.object(Reminders, "changed", wrong):
        yield


@_mutant
def _rollback_leaves_the_alarm() -> Iterator[None]:
    rollback = Overlay.rollback

    def wrong(self: Overlay) -> None:
        assert self._undo is not None
        self._undo[-1].alarm = UNSET
        rollback(self)

    with patch.object(Overlay, "rollback", wrong):
        yield


@_mutant
def _failed_commit_acknowledged() -> Iterator[None]:
    """What waited for a commit hears that it went well, when the disk was full."""
    give_up = Committer._give_up

    def wrong(self: Committer, group: Any, error: Any) -> None:
        told, group.settled = group.settled, []
        for settled in told:
            settled(None)
        give_up(self, group, error)

    with patch.object(Committer, "_give_up", wrong):
        yield


@_mutant
def _step_recorded_before_it_ran() -> Iterator[None]:
    act = Step._act

    async def wrong(self: Step, entry: Any, *rest: Any) -> Any:
        context = self._context
        early = replace(entry, ended=context.next_end(), value=0)
        context.write(early, is_progress=True)
        await context.sync()
        return await act(self, entry, *rest)

    with patch.object(Step, "_act", wrong):
        yield


@_mutant
def _step_begun_before_the_last_is_durable() -> Iterator[None]:
    async def wrong(_: RunContext) -> None:
        pass

    with patch.object(RunContext, "sync", wrong):
        yield


@_mutant
def _recoveries_forgotten_on_entry() -> Iterator[None]:
    change = Orchestrator._change

    def wrong(self: Orchestrator, what: Any, **rest: Any) -> None:
        change(self, what, **rest)
        if isinstance(what, Recover):
            self._journal.update(replace(self._require(), recoveries=0))

    with patch.object(Orchestrator, "_change", wrong):
        yield
