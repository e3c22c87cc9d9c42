"""The overlay: one object's view of its storage, in memory.

Theory of operation
    Reads are answered from a cache of encoded values, filled when the object is
    activated: all of a small object, so that absent keys are known too. Writes go to
    the cache at once and are noted as unsealed. At the end of the turn `seal` hands all
    of them to the committer as one unit and returns its ticket.

    A transaction is a stretch in which nothing is sealed, with a record of what each
    key was before; rolling back puts it back.

    A large object is cached in part. What was written and is not durable yet always
    stays, and so does what somebody is reading; the rest may be dropped and read again.
    A small object that grows large becomes such a one, at the end of a turn.

Promises
    Writes made without an await between them are in one seal.
    What was sealed is never changed afterwards.

Does not know about gates, tasks or user code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal, TypeAlias

from msgspec import UNSET, UnsetType

from durable_actor.clock import Clock
from durable_actor.errors import (
    ObjectResetError,
    StorageError,
    StorageLimitError,
)
from durable_actor.ids import ObjectId
from durable_actor.storage.batch import (
    AlarmRow,
    DatabaseTurn,
    EventRow,
    ObjectRow,
    ReplyRow,
    Seal,
)
from durable_actor.storage.committer import Committer
from durable_actor.storage.order import KeyOrder
from durable_actor.storage.ports import ENTRY_BYTES, Loaded
from durable_actor.storage.watches import KeyChanges

_ABSENT: Literal[False] = False  # in a rollback record: the cache did not know the key
PARTIAL_CACHE_BYTES_MAX = 1024 * 1024  # a large object keeps about this much in memory
# Of one seal, whatever it is made of: it is one row of the log, or part of one, and
# SQLite takes no row of a billion bytes. Keys have a lower bound of their own.
SEAL_BYTES_MAX = 256 * 1024 * 1024


class Overlay:
    """One object's cache and unsealed writes."""

    __slots__ = (
        "_alarm",
        "_alarm_running",
        "_alarm_unsealed",
        "_attributes",
        "_cache",
        "_cleared",
        "_committer",
        "_database_turn",
        "_elsewhere",
        "_events",
        "_id",
        "_kept_bytes",
        "_kept_ticket",
        "_object_class",
        "_order",
        "_pins",
        "_replies",
        "_row",
        "_row_unsealed",
        "_told_bytes",
        "_transactions",
        "_undo",
        "_unsealed",
        "alarm_ticket",
        "complete",
        "num",
        "reset",
        "size_bytes",
        "ticket",
        "unsealed_bytes",
    )

    def __init__(
        self,
        committer: Committer,
        object_id: ObjectId,
        object_class: str,
        loaded: Loaded,
    ) -> None:
        self._committer = committer
        self._id = object_id
        self._object_class = object_class
        self.num = loaded.num
        self._row = loaded.row
        self._row_unsealed = True  # the first seal of an activation notes its use
        self._attributes: dict[str, str] | None = None
        # None as a value: the key is known to be absent (only while not complete).
        self._cache: dict[str, bytes | None] = dict(loaded.keys)
        self.complete = loaded.complete
        self.size_bytes = sum(
            len(key) + len(value) + ENTRY_BYTES for key, value in loaded.keys.items()
        )
        # What had to stay when the cache was last shrunk, and until when.
        self._kept_bytes = self._kept_ticket = 0
        self._told_bytes = 0  # how much of the committer's sum is this object's
        self._pins: list[Collection[str]] | None = None  # keys that are being read
        self._order: KeyOrder | None = None
        self._unsealed: dict[str, bytes | None] | None = None
        self.unsealed_bytes = 0  # of its keys and values
        self._cleared = False
        self._alarm = loaded.alarm
        self._alarm_unsealed = False
        self._alarm_running: AlarmRow | None = None
        self._events: list[bytes] | None = None
        self._replies: list[ReplyRow] | None = None
        self._database_turn: DatabaseTurn | None = None  # of an object that has one
        self._elsewhere: KeyChanges | None = None  # what it did to the keys there
        self._undo: list[_Undo] | None = None
        self._transactions: asyncio.Lock | None = None
        self.ticket = 0  # of the last seal of this activation
        self.alarm_ticket = 0  # of the last one that changed the alarm
        self.reset: ObjectResetError | None = None  # why nothing works any more
        self._tell_size()

    # -- keys ---------------------------------------------------------------

    def lookup(self, key: str) -> bytes | UnsetType | None:
        """Return a key's bytes, None if it is absent, UNSET if the disk must say."""
        if self.reset is not None:
            raise self.reset
        value = self._cache.get(key, UNSET)
        if value is UNSET and self.complete:
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Write a key. The bytes belong to the overlay from now on."""
        self._note(key)
        old = self._cache.get(key)
        if old is not None:  # the usual case: another value for a key that is there
            self._cache[key] = value
            self.size_bytes += len(value) - len(old)
        else:
            self._know(key, value)
        self._write(key, value)

    def delete(self, key: str) -> None:
        """Delete a key, whether it is there or not."""
        self._note(key)
        self._know(key, _ABSENT if self.complete else None)
        self._write(key, None)

    def bytes_with(self, entries: Iterable[tuple[str, bytes | None]]) -> int:
        """Return what `unsealed_bytes` would be if these keys were written too."""
        unsealed = self._unsealed or {}
        size_bytes = self.unsealed_bytes
        for key, value in entries:
            size_bytes += _written_bytes(key, value)
            if key in unsealed:
                size_bytes -= _written_bytes(key, unsealed[key])
        return size_bytes

    def delete_all(self) -> None:
        """Delete every key and the alarm."""
        if self.reset is not None:
            raise self.reset
        if self._undo:
            detail = (
                "Cannot call delete_all() within a transaction; delete the keys instead"
            )
            raise StorageError("delete_all", detail)
        self._cache = {}
        self._order = None
        self.complete = True
        self.size_bytes = 0
        self._unsealed = {}
        self.unsealed_bytes = 0
        self._cleared = True
        self.set_alarm(None)

    def keys_between(
        self, start: str, end: str | None, *, reverse: bool = False
    ) -> Iterator[str]:
        """Return the known keys in [start, end), in order; all, if complete.

        To be used up before the next write.
        """
        if self.reset is not None:
            raise self.reset
        if self._order is None:
            self._order = KeyOrder(self._cache)
        return self._order.between(start, end, reverse=reverse)

    def scan(
        self, start: str, end: str | None, limit: int | None, *, reverse: bool
    ) -> dict[str, bytes] | None:
        """Return a range with its values, in order; None if the disk must say."""
        if self.reset is not None:
            raise self.reset
        if not self.complete:
            return None
        keys = islice(self.keys_between(start, end, reverse=reverse), limit)
        return {key: value for key in keys if (value := self._cache[key]) is not None}

    def known(self, key: str) -> bytes | UnsetType | None:
        """Return what the cache has for a key, UNSET if nothing."""
        return self._cache.get(key, UNSET)

    def pin(self, keys: Collection[str]) -> None:
        """Keep what is known of these keys while somebody reads; see `unpin`."""
        if self._pins is None:
            self._pins = []
        self._pins.append(keys)

    def unpin(self, keys: Collection[str]) -> None:
        """Undo one `pin`, with the same collection."""
        pins = [pin for pin in self._pins or () if pin is not keys]
        self._pins = pins or None

    def remember(self, found: Mapping[str, bytes | None]) -> None:
        """Take in what the disk said, unless something newer is known already."""
        if self.complete:
            return  # everything was deleted while the disk was asked
        for key, value in found.items():
            if key not in self._cache:
                self._know(key, value)
        self._tell_size()

    def shrink(self) -> None:
        """Forget what can be read again, if the object has grown large."""
        committer = self._committer
        bytes_max = PARTIAL_CACHE_BYTES_MAX
        if self._kept_ticket > committer.durable_ticket:
            # Else each write would look in vain through all that has to stay.
            bytes_max = max(bytes_max, 2 * self._kept_bytes)
        if self.size_bytes <= bytes_max:
            return
        needed = self._needed()
        if needed is None:
            return
        cache = self._cache
        if self.complete:  # from now on, what is absent has to be known as absent
            kept = {key: cache.get(key) for key in needed}
        else:
            kept = {key: cache[key] for key in needed if key in cache}
        self._cache = kept
        self.complete = False
        self._order = None
        self.size_bytes = sum(_entry_bytes(key, value) for key, value in kept.items())
        self._kept_bytes = self.size_bytes
        self._kept_ticket = committer.last_ticket + (self._unsealed is not None)
        self._tell_size()

    # -- alarm --------------------------------------------------------------

    @property
    def alarm(self) -> AlarmRow | None:
        """The alarm as the object sees it; None while its handler runs."""
        if self._alarm_running is not None and self._alarm is self._alarm_running:
            return None
        return self._alarm

    @property
    def stored_alarm(self) -> AlarmRow | None:
        """The alarm as the disk has it, or will have after this turn."""
        return self._alarm

    def set_alarm(self, alarm: AlarmRow | None) -> None:
        """Set, move or drop the alarm."""
        if self.reset is not None:
            raise self.reset
        self._remember_alarm()
        self._alarm = alarm
        self._alarm_unsealed = True
        # An alarm that was dropped in its own handler is gone for good.
        if self._alarm_running is not None:
            self._alarm_running = _HANDLED

    def begin_alarm(self) -> AlarmRow | None:
        """Hide the alarm while its handler runs; the disk keeps it until it is done."""
        self._alarm_running = self._alarm
        return self._alarm

    @property
    def running_alarm(self) -> AlarmRow | None:
        """The alarm whose handler runs, unless the handler decided about it."""
        return None if self._alarm_running is _HANDLED else self._alarm_running

    def end_alarm(self, retry: AlarmRow | None) -> None:
        """Drop the alarm that was handled, or keep it for a retry.

        Does nothing if the handler set or deleted the alarm itself.
        """
        running, self._alarm_running = self._alarm_running, None
        if running is not _HANDLED:
            self.set_alarm(retry)

    # -- the rest of what an object has --------------------------------------

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Replace what the object publishes in the directory.

        Raises:
            UnicodeEncodeError: A lone surrogate; a batch could not be encoded with it.
        """
        if self.reset is not None:
            raise self.reset
        for text in (*attributes, *attributes.values()):
            text.encode()
        self._attributes = dict(attributes)
        self._row_unsealed = True

    def emit(self, event: bytes) -> None:
        """Put an event in the outbox."""
        if self.reset is not None:
            raise self.reset
        if self._events is None:
            self._events = []
        self._events.append(event)

    def keep_reply(self, reply: ReplyRow) -> None:
        """Keep a reply, in the seal of the turn that made it.

        Raises:
            UnicodeEncodeError: A lone surrogate in the request's identity.
        """
        reply.request_id.encode()
        if self._replies is None:
            self._replies = []
        self._replies.append(reply)

    # -- turns and transactions ----------------------------------------------

    @property
    def is_unsealed(self) -> bool:
        """Whether something was written that has no ticket yet."""
        return (
            self._unsealed is not None
            or self._alarm_unsealed
            or self._attributes is not None
            or self._events is not None
            or self._replies is not None
            or self._database_turn is not None
        )

    def seal(self, clock: Clock) -> int:
        """End the turn: hand its writes over as one unit; return the last ticket.

        Not async, so that nothing runs between the writes and their ticket.

        Raises:
            StorageLimitError: More than a row of the log can hold; nothing was sealed.
        """
        if not self.is_unsealed or self._undo or self.reset is not None:
            return self.ticket
        size_bytes = self._sealed_bytes()
        committer = self._committer
        if not self.num:
            self.num = committer.new_num()
        seal = Seal(self.num, self._unsealed or {})
        if self._unsealed is not None:
            self._unsealed, self.unsealed_bytes = None, 0
            seal.cleared, self._cleared = self._cleared, False
        if self._alarm_unsealed:
            seal.alarm, self._alarm_unsealed = self._alarm, False
            self.alarm_ticket = committer.last_ticket + 1
        if self._events is not None:
            seal.events = tuple(
                EventRow(committer.new_event(), self._id.raw, self._object_class, data)
                for data in self._events
            )
            self._events = None
        if self._replies is not None:
            seal.replies, self._replies = tuple(self._replies), None
        elsewhere: KeyChanges | None = None
        if self._database_turn is not None:
            seal.database, self._database_turn = self._database_turn, None
            elsewhere, self._elsewhere = self._elsewhere, None
        if self._row_unsealed:
            seal.row = self._next_row(clock.now_ms())
        self.ticket = committer.seal(seal, self._id.raw, elsewhere, size_bytes)
        if self.size_bytes > PARTIAL_CACHE_BYTES_MAX:
            self.shrink()
        if self.size_bytes != self._told_bytes:
            self._tell_size()
        return self.ticket

    def transaction_lock(self) -> asyncio.Lock:
        """Return what lets outermost transactions run one after the other."""
        if self._transactions is None:
            self._transactions = asyncio.Lock()
        return self._transactions

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction is open; nothing is sealed until its end."""
        return bool(self._undo)

    def begin(self) -> None:
        """Begin a transaction; sealing stops until its end. May be nested."""
        if self._undo is None:
            self._undo = []
        attributes = self._attributes, self._row_unsealed
        self._undo.append(_Undo(self._events, attributes))

    def outlast(
        self,
        keys: Iterable[str] = (),
        *,
        alarm: bool = False,
        attributes: bool = False,
        event: bytes | None = None,
    ) -> None:
        """Let what was just written survive the rollback of the open transactions.

        For code that runs beside a transaction and is no part of it.
        """
        for undo in self._undo or ():
            for key in keys:
                undo.cache[key] = self._cache.get(key, _ABSENT)
                undo.unsealed[key] = (self._unsealed or {}).get(key, _ABSENT)
            if alarm:
                undo.alarm = self._alarm, self._alarm_unsealed, self._alarm_running
            if attributes:
                undo.attributes = self._attributes, self._row_unsealed
            if event is not None:
                undo.events = [*(undo.events or ()), event]

    def commit(self) -> None:
        """End the innermost transaction and keep its writes."""
        assert self._undo, "commit without begin"
        undo = self._undo.pop()
        if self._undo:
            outer = self._undo[-1]
            outer.cache = {**undo.cache, **outer.cache}
            outer.unsealed = {**undo.unsealed, **outer.unsealed}
            if outer.alarm is UNSET:
                outer.alarm = undo.alarm
        else:
            self._undo = None

    def rollback(self) -> None:
        """End the innermost transaction and put everything back."""
        assert self._undo, "rollback without begin"
        undo = self._undo.pop()
        self._undo = self._undo or None
        for key, old in undo.cache.items():
            self._know(key, old)
        if self._unsealed is not None:
            for key, was in undo.unsealed.items():
                if was is not _ABSENT:
                    self._write(key, was)
                elif key in self._unsealed:
                    self.unsealed_bytes -= _written_bytes(key, self._unsealed.pop(key))
            if not self._unsealed and not self._cleared:
                self._unsealed = None
        if undo.alarm is not UNSET:
            self._alarm, self._alarm_unsealed, self._alarm_running = undo.alarm
        self._events = undo.events
        self._attributes, self._row_unsealed = undo.attributes

    def retire(self) -> None:
        """The object leaves memory, and all of it is durable."""

    def break_off(self, reset: ObjectResetError) -> None:
        """Forget what is not sealed and refuse everything from now on."""
        self.reset = reset
        self._unsealed = self._events = self._replies = self._attributes = None
        self.unsealed_bytes = 0
        self._alarm_unsealed = False
        self._undo = None
        self._committer.cached_bytes -= self._told_bytes
        self._told_bytes = 0

    def _needed(self) -> set[str] | None:
        """Return the keys that must stay in memory; None if that is all of them."""
        if self._cleared or (self.complete and self._pins):
            return None  # the disk still has what was deleted
        needed = set(self._unsealed or ())
        for pin in self._pins or ():
            needed.update(pin)
        for seal in self._committer.unsettled(self._id.raw):
            if seal.cleared:
                return None
            needed.update(seal.keys)
        return needed

    def _tell_size(self) -> None:
        if self.reset is None:
            self._committer.cached_bytes += self.size_bytes - self._told_bytes
            self._told_bytes = self.size_bytes

    def _know(self, key: str, value: _Before) -> None:
        """Change what the cache knows of a key; `_ABSENT` makes it know nothing."""
        old = self._cache.get(key, _ABSENT)
        if old is not _ABSENT:
            self.size_bytes -= _entry_bytes(key, old)
        if value is _ABSENT:
            self._cache.pop(key, None)
        else:
            self._cache[key] = value
            self.size_bytes += _entry_bytes(key, value)
        if self._order is not None and (old is _ABSENT) is not (value is _ABSENT):
            self._order.note(key)

    def _note(self, key: str) -> None:
        """Prepare a write of `key`."""
        if self.reset is not None:
            raise self.reset
        if self._unsealed is None:
            self._unsealed = {}
        if self._undo:
            undo = self._undo[-1]
            if key not in undo.cache:
                undo.cache[key] = self._cache.get(key, _ABSENT)
                undo.unsealed[key] = self._unsealed.get(key, _ABSENT)

    def _write(self, key: str, value: bytes | None) -> None:
        """Let the next seal have a key; `_note` came before."""
        unsealed = self._unsealed
        assert unsealed is not None
        size_bytes = len(key) if value is None else len(key) + len(value)
        if key in unsealed:
            size_bytes -= _written_bytes(key, unsealed[key])
        self.unsealed_bytes += size_bytes
        unsealed[key] = value

    def _sealed_bytes(self) -> int:
        """Return the size of what the next seal has, without looking into values."""
        size_bytes = self.unsealed_bytes
        if self._events is not None:
            size_bytes += sum(map(len, self._events))
        if self._replies is not None:
            size_bytes += sum(len(row.reply) for row in self._replies)
        turn = self._database_turn
        if turn is not None and turn.segment is not None:
            size_bytes += len(turn.segment.data)
        if size_bytes > SEAL_BYTES_MAX:
            detail = (
                f"the turn has {size_bytes} bytes of writes, events and kept replies,"
                f" the limit is {SEAL_BYTES_MAX}; write and return less at a time"
            )
            raise StorageLimitError("commit", detail)
        return size_bytes

    def _remember_alarm(self) -> None:
        if self._undo and self._undo[-1].alarm is UNSET:
            self._undo[-1].alarm = (
                self._alarm,
                self._alarm_unsealed,
                self._alarm_running,
            )

    def _next_row(self, now_ms: int) -> ObjectRow:
        self._row_unsealed = False
        old = self._row
        attributes = self._attributes
        if attributes is None:
            attributes = old.attributes if old is not None else {}
        self._attributes = None
        self._row = ObjectRow(
            id=self._id.raw,
            object_class=self._object_class,
            name=self._id.name,
            created_at_ms=now_ms if old is None else old.created_at_ms,
            used_at_ms=now_ms,
            attributes=attributes,
        )
        return self._row


_HANDLED = AlarmRow(0, 0)  # the handler decided about the alarm itself
_Before: TypeAlias = bytes | Literal[False] | None


def _written_bytes(key: str, value: bytes | None) -> int:
    return len(key) + len(value or b"")


def _entry_bytes(key: str, value: bytes | Literal[False] | None) -> int:
    return len(key) + len(value or b"") + ENTRY_BYTES


class _Undo:
    """What a transaction has to put back."""

    __slots__ = ("alarm", "attributes", "cache", "events", "unsealed")

    def __init__(
        self,
        events: list[bytes] | None,
        attributes: tuple[dict[str, str] | None, bool],
    ) -> None:
        self.attributes = attributes
        self.cache: dict[str, _Before] = {}
        self.unsealed: dict[str, _Before] = {}
        self.alarm: tuple[AlarmRow | None, bool, AlarmRow | None] | UnsetType = UNSET
        self.events = None if events is None else list(events)


def list_too_large(count: int, bytes_max: int) -> StorageLimitError:
    """Return the error for a range that does not fit in memory."""
    detail = (
        f"more than {bytes_max} bytes after {count} keys; read it in pages, with limit="
        " and start_after= the last key of the page before"
    )
    return StorageLimitError("list", detail)


async def settle(committer: Committer, ticket: int) -> None:
    """Return once a ticket is durable or has failed; for whoever starts afresh."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settled(_: StorageError | None) -> None:
        if not done.done():
            done.set_result(None)

    committer.when_durable(ticket, settled)
    await done
