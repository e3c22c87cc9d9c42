"""`ctx.storage`: what user code sees of its storage.

Writes are plain functions: they act at once and return an awaitable, so forgetting to
await one loses nothing. Reads of a cached key do not suspend. Durability comes with the
end of the turn; the output gate makes everyone outside wait for it.

Follows https://developers.cloudflare.com/durable-objects/api/storage-api/ in names and
behaviour, in snake_case, with the camelCase names as aliases.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from msgspec import UNSET, Struct

from durable_actor.clock import Clock, Instant, instant_ms
from durable_actor.codec import decode, encode
from durable_actor.errors import StorageLimitError, TransactionClosedError
from durable_actor.storage.batch import AlarmRow
from durable_actor.storage.kv import (
    KeyRange,
    KeyValueLimits,
    LargeObject,
    check_key,
    check_value,
    key_range,
)
from durable_actor.storage.overlay import Overlay

T = TypeVar("T")


class StorageOwner(Protocol):
    """What the storage of an object needs from its activation."""

    @property
    def clock(self) -> Clock:
        """The host's clock."""
        ...

    @property
    def has_alarm_handler(self) -> bool:
        """Whether the class can take an alarm."""
        ...

    @property
    def limits(self) -> KeyValueLimits:
        """The sizes that keys and values may have."""
        ...

    def wrote(self) -> None:
        """Plan the end of this turn."""

    def end_turn(self) -> int:
        """Seal what was written so far; return the last ticket."""

    async def wait_durable(self, ticket: int) -> None:
        """Return once a ticket is on disk."""

    def large_object(self) -> LargeObject:
        """Return a reader for an object that is only partly in memory."""

    def hold_input(self) -> None:
        """Keep other events out."""

    def release_input(self) -> None:
        """Undo one hold."""


class Ready(Struct, Generic[T], eq=False):
    """An awaitable that already has its result; awaiting it does not suspend."""

    value: T

    def __await__(self) -> Generator[Any, None, T]:
        return self.value
        yield  # unreachable; makes this a generator, as __await__ must be


class _Later(Generic[T]):
    """An awaitable that asks the disk when it is awaited, and not before."""

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask

    def __await__(self) -> Generator[Any, None, T]:
        return self._ask().__await__()


_DONE: Ready[None] = Ready(None)
_TRUE: Ready[bool] = Ready(True)  # a value, not an option
_FALSE: Ready[bool] = Ready(False)

# The innermost open transaction of the running code, if any.
_current: contextvars.ContextVar[DurableObjectTransaction | None] = (
    contextvars.ContextVar("durable_actor_transaction", default=None)
)


class KeyValueStorage:
    """What storage and transactions have in common: keys and the alarm."""

    __slots__ = ("_limits", "_overlay", "_owner")

    def __init__(self, overlay: Overlay, owner: StorageOwner) -> None:
        self._overlay = overlay
        self._owner = owner
        self._limits = owner.limits

    @overload
    def get(self, key: str, default: Any = None) -> Awaitable[Any]: ...

    @overload
    def get(self, key: Iterable[str]) -> Awaitable[dict[str, Any]]: ...

    def get(self, key: str | Iterable[str], default: Any = None) -> Awaitable[Any]:
        """Return the value of a key, or `default`; or a dict of those that exist.

        Raises:
            StorageLimitError: A key over 2,048 bytes, or more than 128 keys.
        """
        if isinstance(key, str):
            self._check_open()
            value = self._overlay.lookup(check_key(key, self._limits))
            if value is UNSET:
                return self._fetch(key, default)
            return Ready(default if value is None else decode(value))
        return self._get_many(key)

    @overload
    def put(self, key: str, value: object, /) -> Awaitable[None]: ...

    @overload
    def put(self, entries: Mapping[str, object], /) -> Awaitable[None]: ...

    def put(
        self, key: str | Mapping[str, object], value: object = UNSET, /
    ) -> Awaitable[None]:
        """Write one key, or all keys of a mapping together or none of them.

        The value is kept as it is now; changing it later changes nothing here.

        Raises:
            EncodeError: A value that cannot be kept exactly; names where it sits.
            StorageLimitError: Key, value or batch over its limit.
        """
        self._check_open()
        limits = self._limits
        if isinstance(key, Mapping):
            if value is not UNSET:
                message = "put takes a key and a value, or one mapping"
                raise TypeError(message)
            if len(key) > limits.batch_entries_max:
                raise StorageLimitError("put", _too_many(len(key), limits))
            encoded = [
                (check_key(name, limits), check_value(name, encode(item), limits))
                for name, item in key.items()
            ]
            for name, data in encoded:
                self._overlay.put(name, data)
            self._wrote(key)
        else:
            if value is UNSET:
                message = "put takes a key and a value, or one mapping"
                raise TypeError(message)
            check_key(key, limits)
            self._overlay.put(key, check_value(key, encode(value), limits))
            self._wrote((key,))
        return _DONE

    @overload
    def delete(self, key: str) -> Awaitable[bool]: ...

    @overload
    def delete(self, key: Iterable[str]) -> Awaitable[int]: ...

    def delete(self, key: str | Iterable[str]) -> Awaitable[bool | int]:
        """Delete a key; was it there? Or keys; how many were there?"""
        self._check_open()
        if isinstance(key, str):
            existed = self._overlay.lookup(check_key(key, self._limits))
            if existed is None:
                return _FALSE
            self._overlay.delete(key)
            self._wrote((key,))
            return _TRUE if existed is not UNSET else self._existed([key], bool)
        return self._delete_many(key)

    def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Awaitable[dict[str, Any]]:
        """Return keys and values in order of the keys' UTF-8 bytes.

        Args:
            prefix: Only keys that begin with it.
            start: From this key on, inclusive.
            start_after: From behind this key on.
            end: Up to this key, exclusive.
            limit: At most so many, counted in the order asked for.
            reverse: From the end to the start; the range means the same.
        """
        self._check_open()
        wanted = key_range(
            prefix=prefix,
            start=start,
            start_after=start_after,
            end=end,
            limit=limit,
            reverse=reverse,
        )
        if self._overlay.complete:
            return Ready(self._list_known(wanted))
        return self._scan(wanted)

    def set_alarm(self, when: Instant) -> Awaitable[None]:
        """Call the object's `alarm` handler at a time; replaces an earlier alarm.

        Args:
            when: A `datetime`, a `timedelta` from now, or epoch milliseconds. The past
                means now.

        Raises:
            TypeError: The class has no `async def alarm`.
            InvalidTimeError: Not a time.
        """
        self._check_open()
        if not self._owner.has_alarm_handler:
            message = (
                "set_alarm: this class has no alarm handler; write `async def alarm`"
            )
            raise TypeError(message)
        now_ms = self._owner.clock.now_ms()
        due_at_ms = max(instant_ms(when, now_ms=now_ms), now_ms)
        self._overlay.set_alarm(AlarmRow(due_at_ms, due_at_ms))
        self._wrote(alarm=True)
        return _DONE

    def get_alarm(self) -> Awaitable[int | None]:
        """Return when the alarm is set for, in epoch milliseconds, or None.

        None also while the handler runs, until it sets one.
        """
        self._check_open()
        alarm = self._overlay.alarm
        return Ready(None if alarm is None else alarm.scheduled_at_ms)

    def delete_alarm(self) -> Awaitable[None]:
        """Drop the alarm; inside its handler, also the retry."""
        self._check_open()
        self._overlay.set_alarm(None)
        self._wrote(alarm=True)
        return _DONE

    setAlarm = set_alarm
    getAlarm = get_alarm
    deleteAlarm = delete_alarm

    def _check_open(self) -> None:
        """Refuse use after the end; storage itself never ends."""

    def _wrote(self, keys: Iterable[str] = (), *, alarm: bool = False) -> None:
        """Plan the end of the turn that wrote this."""
        if self._overlay.is_in_transaction and self._is_beside_a_transaction():
            self._overlay.outlast(keys, alarm=alarm)
        self._owner.wrote()

    def _is_beside_a_transaction(self) -> bool:
        return is_beside_a_transaction(self._overlay)

    def _get_many(self, keys: Iterable[str]) -> Awaitable[dict[str, Any]]:
        self._check_open()
        limits = self._limits
        wanted = sorted({check_key(key, limits) for key in keys})
        if len(wanted) > limits.batch_entries_max:
            raise StorageLimitError("get", _too_many(len(wanted), limits))
        values = {key: self._overlay.lookup(key) for key in wanted}
        if UNSET in values.values():
            return self._fetch_many(wanted)
        return Ready(_decoded(values))

    def _delete_many(self, keys: Iterable[str]) -> Awaitable[int]:
        limits = self._limits
        wanted = sorted({check_key(key, limits) for key in keys})
        if len(wanted) > limits.batch_entries_max:
            raise StorageLimitError("delete", _too_many(len(wanted), limits))
        unknown = [key for key in wanted if self._overlay.lookup(key) is UNSET]
        existed = sum(self._overlay.lookup(key) not in (None, UNSET) for key in wanted)
        for key in wanted:
            self._overlay.delete(key)
        self._wrote(wanted)
        if unknown:
            return self._existed(unknown, lambda found: existed + found)
        return Ready(existed)

    def _list_known(self, wanted: KeyRange) -> dict[str, Any]:
        keys = self._overlay.keys_between(wanted.start, wanted.end)
        if wanted.reverse:
            keys.reverse()
        if wanted.limit is not None:
            keys = keys[: wanted.limit]
        return _decoded({key: self._overlay.known(key) for key in keys})

    # Reads that need the disk hold the input gate, so that no other event sees the
    # object in the middle of one.

    async def _fetch(self, key: str, default: Any) -> Any:
        await self._read(self._owner.large_object().fetch([key]))
        value = self._overlay.lookup(key)
        return decode(value) if isinstance(value, bytes) else default

    async def _fetch_many(self, keys: Sequence[str]) -> dict[str, Any]:
        await self._read(self._owner.large_object().fetch(keys))
        return _decoded({key: self._overlay.lookup(key) for key in keys})

    async def _scan(self, wanted: KeyRange) -> dict[str, Any]:
        found = await self._read(self._owner.large_object().scan(wanted))
        return {key: decode(value) for key, value in found.items()}

    def _existed(self, keys: Sequence[str], answer: Callable[[int], T]) -> Awaitable[T]:
        """Ask the disk how many of some keys, deleted meanwhile, had been there."""
        reader = self._owner.large_object()
        pending = reader.pending()

        async def ask() -> T:
            return answer(len(await self._read(reader.stored(keys, pending))))

        return _Later(ask)

    async def _read(self, reading: Awaitable[T]) -> T:
        self._owner.hold_input()
        try:
            return await reading
        finally:
            self._owner.release_input()


class DurableObjectStorage(KeyValueStorage):
    """An object's own storage: ordered keys, one alarm, transactions."""

    __slots__ = ()

    def delete_all(self) -> Awaitable[None]:
        """Delete every key and the alarm, in one unit.

        Raises:
            StorageError: Inside a transaction.
        """
        self._overlay.delete_all()
        self._owner.wrote()
        return _DONE

    async def sync(self) -> None:
        """Return once everything written so far is on disk.

        Raises:
            StorageError: It never will be; the object is reset.
        """
        if self._is_beside_a_transaction():
            # Nothing is sealed before its end.
            async with self._overlay.transaction_lock():
                ticket = self._owner.end_turn()
        else:
            ticket = self._owner.end_turn()
        await self._owner.wait_durable(ticket)

    async def transaction(
        self, callback: Callable[[DurableObjectTransaction], Awaitable[T]]
    ) -> T:
        """Run `callback`; all its writes become durable together, or none do.

        Other events wait meanwhile. An exception rolls everything back and passes on;
        `txn.rollback()` rolls back and goes on. May be nested.
        """
        while (outer := self._open_transaction()) is not None:
            async with outer.child_lock:
                if outer is self._open_transaction():
                    return await self._transact(callback, outer)
        self._owner.hold_input()
        try:
            async with self._overlay.transaction_lock():
                self._owner.end_turn()
                return await self._transact(callback, None)
        finally:
            self._owner.release_input()

    def _open_transaction(self) -> DurableObjectTransaction | None:
        return _open_transaction(self._overlay)

    async def _transact(
        self,
        callback: Callable[[DurableObjectTransaction], Awaitable[T]],
        outer: DurableObjectTransaction | None,
    ) -> T:
        transaction = DurableObjectTransaction(self._overlay, self._owner, outer)
        token = _current.set(transaction)
        self._overlay.begin()
        try:
            result = await callback(transaction)
        except BaseException:
            transaction.finish(commit=False)
            raise
        finally:
            _current.reset(token)
        transaction.finish(commit=True)
        return result

    deleteAll = delete_all


class DurableObjectTransaction(KeyValueStorage):
    """Storage inside `transaction`; of no use after its end.

    Those inside it run one after the other, as what each has to put back is a stack.
    """

    __slots__ = ("_ended", "_inner", "child_lock", "outer")

    def __init__(
        self,
        overlay: Overlay,
        owner: StorageOwner,
        outer: DurableObjectTransaction | None,
    ) -> None:
        super().__init__(overlay, owner)
        self._ended: str | None = None
        self._inner: DurableObjectTransaction | None = None  # the newest inside this
        self.outer = outer
        self.child_lock = asyncio.Lock()
        if outer is not None:
            outer._inner = self  # noqa: SLF001  # one of our own kind

    def rollback(self) -> None:
        """Put everything back; the callback may go on, but not use the transaction."""
        self._check_open()
        self.finish(commit=False)

    def belongs_to(self, overlay: Overlay) -> bool:
        """Whether this is an open transaction of that object."""
        return self._overlay is overlay and self._ended is None

    def finish(self, *, commit: bool) -> None:
        """End the transaction, unless `rollback` has."""
        if self._ended is not None:
            return
        if self._inner is not None:
            self._inner.finish(commit=False)  # nobody waited for it
        self._ended = "committed" if commit else "rolled back"
        if self._overlay.reset is not None:
            return
        if commit:
            self._overlay.commit()
        else:
            self._overlay.rollback()
        self._owner.wrote()

    def _is_beside_a_transaction(self) -> bool:
        return False  # whoever holds it writes in it

    def _check_open(self) -> None:
        if self._ended is not None:
            detail = f"the transaction was {self._ended}; use ctx.storage instead"
            raise TransactionClosedError("transaction", detail)


def is_beside_a_transaction(overlay: Overlay) -> bool:
    """Whether a transaction is open that the running code is no part of."""
    return overlay.is_in_transaction and _open_transaction(overlay) is None


def _open_transaction(overlay: Overlay) -> DurableObjectTransaction | None:
    """Return the innermost transaction the running code is in, if any is open."""
    found = _current.get()
    while found is not None and not found.belongs_to(overlay):
        found = found.outer
    return found


def _decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: decode(value) for key, value in values.items() if isinstance(value, bytes)
    }


def _too_many(count: int, limits: KeyValueLimits) -> str:
    return (
        f"at most {limits.batch_entries_max} keys at once, got {count};"
        " split them, the turn keeps them together"
    )
