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
import inspect
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar, overload

from msgspec import UNSET, Struct

from durable_actor.clock import Clock, Instant, instant_ms
from durable_actor.codec import decode, encode
from durable_actor.errors import (
    StorageError,
    StorageLimitError,
    TransactionClosedError,
)
from durable_actor.storage.batch import AlarmRow
from durable_actor.storage.database_overlay import DatabaseOverlay
from durable_actor.storage.kv import (
    KeyRange,
    KeyValueLimits,
    LargeObject,
    check_key,
    check_value,
    key_range,
)
from durable_actor.storage.overlay import Overlay, list_too_large
from durable_actor.storage.ports import ENTRY_BYTES
from durable_actor.storage.ready import Ready
from durable_actor.storage.sql.history import bookmark_at_ms, bookmark_seq
from durable_actor.storage.sql.surface import SqlStorage
from durable_actor.storage.sync_kv import SyncKeyValueStorage

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

    def wrote(self, *, is_confirmed: bool = True) -> None:
        """Plan the end of this turn.

        Args:
            is_confirmed: Whether what the object says has to wait for this write.
        """

    def end_turn(self) -> int:
        """Seal what was written so far; return the last ticket."""

    async def wait_durable(self, ticket: int) -> None:
        """Return once a ticket is on disk."""

    async def bookmark(self, at_ms: int | None) -> str:
        """Return the bookmark of the object's database now, or at a time."""
        ...

    def large_object(self) -> LargeObject:
        """Return a reader for an object that is only partly in memory."""

    def hold_input(self) -> None:
        """Keep other events out."""

    def release_input(self) -> None:
        """Undo one hold."""


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


class _Reading(Struct, frozen=True):
    """How the disk is read."""

    holds: bool = True  # the input gate
    keeps: bool = True  # in memory, what was read


class KeyValueStorage:
    """What storage and transactions have in common: keys and the alarm."""

    __slots__ = ("_limits", "_overlay", "_owner")

    def __init__(self, overlay: Overlay, owner: StorageOwner) -> None:
        self._overlay = overlay
        self._owner = owner
        self._limits = owner.limits

    @overload
    def get(
        self,
        key: str,
        default: Any = None,
        *,
        allow_concurrency: bool = False,
        no_cache: bool = False,
    ) -> Awaitable[Any]: ...

    @overload
    def get(
        self,
        key: Iterable[str],
        *,
        allow_concurrency: bool = False,
        no_cache: bool = False,
    ) -> Awaitable[dict[str, Any]]: ...

    def get(
        self,
        key: str | Iterable[str],
        default: Any = None,
        *,
        allow_concurrency: bool = False,
        no_cache: bool = False,
    ) -> Awaitable[Any]:
        """Return the value of a key, or `default`; or a dict of those that exist.

        Args:
            key: One key, or several.
            default: For one key that does not exist.
            allow_concurrency: Let other events in while the disk is read.
            no_cache: Do not keep in memory what had to be read.

        Raises:
            StorageLimitError: A key over 2,048 bytes, or more than 128 keys.
        """
        if isinstance(key, str):
            self._check_open("get")
            value = self._overlay.lookup(check_key(key, self._limits))
            if value is UNSET:
                options = _Reading(holds=not allow_concurrency, keeps=not no_cache)
                return self._fetch(key, default, options)
            return Ready(default if value is None else decode(value))
        options = _Reading(holds=not allow_concurrency, keeps=not no_cache)
        return self._get_many(key, options)

    @overload
    def put(
        self,
        key: str,
        value: object,
        /,
        *,
        allow_unconfirmed: bool = False,
        no_cache: bool = False,
    ) -> Awaitable[None]: ...

    @overload
    def put(
        self,
        entries: Mapping[str, object],
        /,
        *,
        allow_unconfirmed: bool = False,
        no_cache: bool = False,
    ) -> Awaitable[None]: ...

    def put(
        self,
        key: str | Mapping[str, object],
        value: object = UNSET,
        /,
        *,
        allow_unconfirmed: bool = False,
        no_cache: bool = False,  # noqa: ARG002  # see the docstring
    ) -> Awaitable[None]:
        """Write one key, or all keys of a mapping together or none of them.

        The value is kept as it is now; changing it later changes nothing here.

        Args:
            key: One key, or a mapping of keys to values.
            value: For one key.
            allow_unconfirmed: Nobody need wait for this write: what the object says may
                leave before it is on disk, unless the turn wrote something else too.
            no_cache: Accepted; a written value leaves memory as any other does.

        Raises:
            EncodeError: A value that cannot be kept exactly; names where it sits.
            StorageLimitError: Key, value, batch or turn over its limit.
        """
        self._check_open("put")
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
            self._check_turn("put", encoded)
            for name, data in encoded:
                self._overlay.put(name, data)
            self._wrote(key, is_confirmed=not allow_unconfirmed)
        else:
            if value is UNSET:
                message = "put takes a key and a value, or one mapping"
                raise TypeError(message)
            check_key(key, limits)
            data = check_value(key, encode(value), limits)
            overlay = self._overlay
            if overlay.unsealed_bytes + len(key) + len(data) > limits.turn_bytes_max:
                self._check_turn("put", ((key, data),))
            overlay.put(key, data)
            self._wrote((key,), is_confirmed=not allow_unconfirmed)
        return _DONE

    @overload
    def delete(
        self, key: str, *, allow_unconfirmed: bool = False, no_cache: bool = False
    ) -> Awaitable[bool]: ...

    @overload
    def delete(
        self,
        key: Iterable[str],
        *,
        allow_unconfirmed: bool = False,
        no_cache: bool = False,
    ) -> Awaitable[int]: ...

    def delete(
        self,
        key: str | Iterable[str],
        *,
        allow_unconfirmed: bool = False,
        no_cache: bool = False,  # noqa: ARG002  # as in `put`
    ) -> Awaitable[bool | int]:
        """Delete a key; was it there? Or keys; how many? Options as in `put`."""
        self._check_open("delete")
        if isinstance(key, str):
            existed = self._overlay.lookup(check_key(key, self._limits))
            if existed is None:
                return _FALSE
            self._check_turn("delete", ((key, None),))
            self._overlay.delete(key)
            self._wrote((key,), is_confirmed=not allow_unconfirmed)
            return _TRUE if existed is not UNSET else self._existed([key], bool)
        return self._delete_many(key, is_confirmed=not allow_unconfirmed)

    def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        allow_concurrency: bool = False,
        no_cache: bool = False,  # noqa: ARG002  # see the docstring
    ) -> Awaitable[dict[str, Any]]:
        """Return keys and values in order of the keys' UTF-8 bytes.

        Of a large object, read a page at a time: `limit`, and `start_after` the last
        key of the page before. A page costs the same however large the object is.

        Args:
            prefix: Only keys that begin with it.
            start: From this key on, inclusive.
            start_after: From behind this key on.
            end: Up to this key, exclusive.
            limit: At most so many, counted in the order asked for.
            reverse: From the end to the start; the range means the same.
            allow_concurrency: Let other events in while the disk is read.
            no_cache: Accepted; a range that is read is never kept.

        Raises:
            StorageLimitError: The answer would not fit in memory.
        """
        self._check_open("list")
        wanted = key_range(
            prefix=prefix,
            start=start,
            start_after=start_after,
            end=end,
            limit=limit,
            reverse=reverse,
        )
        known = self._overlay.scan(
            wanted.start, wanted.end, wanted.limit, reverse=wanted.reverse
        )
        if known is not None:
            return Ready(_decoded(known))
        return self._scan(wanted, _Reading(holds=not allow_concurrency))

    def set_alarm(
        self, when: Instant, *, allow_unconfirmed: bool = False
    ) -> Awaitable[None]:
        """Call the object's `alarm` handler at a time; replaces an earlier alarm.

        Args:
            when: A `datetime`, a `timedelta` from now, or epoch milliseconds. The past
                means now.
            allow_unconfirmed: As in `put`.

        Raises:
            TypeError: The class has no `async def alarm`.
            InvalidTimeError: Not a time.
        """
        self._check_open("set_alarm")
        if not self._owner.has_alarm_handler:
            message = (
                "set_alarm: this class has no alarm handler; write `async def alarm`"
            )
            raise TypeError(message)
        now_ms = self._owner.clock.now_ms()
        due_at_ms = max(instant_ms(when, now_ms=now_ms), now_ms)
        self._overlay.set_alarm(AlarmRow(due_at_ms, due_at_ms))
        self._wrote(alarm=True, is_confirmed=not allow_unconfirmed)
        return _DONE

    def get_alarm(self) -> Awaitable[int | None]:
        """Return when the alarm is set for, in epoch milliseconds, or None.

        None also while the handler runs, until it sets one.
        """
        self._check_open("get_alarm")
        alarm = self._overlay.alarm
        return Ready(None if alarm is None else alarm.scheduled_at_ms)

    def delete_alarm(self, *, allow_unconfirmed: bool = False) -> Awaitable[None]:
        """Drop the alarm; inside its handler, also the retry."""
        self._check_open("delete_alarm")
        self._overlay.set_alarm(None)
        self._wrote(alarm=True, is_confirmed=not allow_unconfirmed)
        return _DONE

    setAlarm = set_alarm
    getAlarm = get_alarm
    deleteAlarm = delete_alarm

    def _check_open(self, operation: str) -> None:
        """Refuse use after the end; storage itself never ends."""

    def _wrote(
        self,
        keys: Iterable[str] = (),
        *,
        alarm: bool = False,
        is_confirmed: bool = True,
    ) -> None:
        """Plan the end of the turn that wrote this."""
        if self._overlay.is_in_transaction and self._is_beside_a_transaction():
            self._overlay.outlast(keys, alarm=alarm)
        self._owner.wrote(is_confirmed=is_confirmed)

    def _is_beside_a_transaction(self) -> bool:
        return is_beside_a_transaction(self._overlay)

    def _get_many(
        self, keys: Iterable[str], options: _Reading
    ) -> Awaitable[dict[str, Any]]:
        self._check_open("get")
        limits = self._limits
        wanted = sorted({check_key(key, limits) for key in keys})
        if len(wanted) > limits.batch_entries_max:
            raise StorageLimitError("get", _too_many(len(wanted), limits))
        values = {key: self._overlay.lookup(key) for key in wanted}
        if UNSET in values.values():
            return self._fetch_many(wanted, options)
        return Ready(_decoded(values))

    def _delete_many(
        self, keys: Iterable[str], *, is_confirmed: bool
    ) -> Awaitable[int]:
        limits = self._limits
        wanted = sorted({check_key(key, limits) for key in keys})
        if len(wanted) > limits.batch_entries_max:
            raise StorageLimitError("delete", _too_many(len(wanted), limits))
        unknown = [key for key in wanted if self._overlay.lookup(key) is UNSET]
        existed = sum(self._overlay.lookup(key) not in (None, UNSET) for key in wanted)
        self._check_turn("delete", [(key, None) for key in wanted])
        for key in wanted:
            self._overlay.delete(key)
        self._wrote(wanted, is_confirmed=is_confirmed)
        if unknown:
            return self._existed(unknown, lambda found: existed + found)
        return Ready(existed)

    def _check_turn(
        self, operation: str, entries: Collection[tuple[str, bytes | None]]
    ) -> None:
        """Refuse what would make the turn's seal too large; nothing is written yet."""
        bytes_max = self._limits.turn_bytes_max
        size_bytes = self._overlay.bytes_with(entries)
        if size_bytes > bytes_max:
            detail = (
                f"the turn would have {size_bytes} bytes of keys and values, the limit"
                f" is {bytes_max}; write in several turns, with `await"
                " ctx.storage.sync()` between them"
            )
            raise StorageLimitError(operation, detail)

    # Reads that need the disk hold the input gate, unless told otherwise, so that no
    # other event sees the object in the middle of one.

    async def _fetch(self, key: str, default: Any, options: _Reading) -> Any:
        reading = self._owner.large_object().fetch([key], keeps=options.keeps)
        found = await self._read(reading, options)
        return decode(found[key]) if key in found else default

    async def _fetch_many(
        self, keys: Sequence[str], options: _Reading
    ) -> dict[str, Any]:
        reading = self._owner.large_object().fetch(keys, keeps=options.keeps)
        return _decoded(await self._read(reading, options))

    async def _scan(self, wanted: KeyRange, options: _Reading) -> dict[str, Any]:
        return await self._read(self._collect(wanted), options)

    async def _collect(self, wanted: KeyRange) -> dict[str, Any]:
        """Return a range of a large object.

        Raises:
            StorageLimitError: More than fits in memory; nothing was changed.
        """
        answer: dict[str, Any] = {}
        room_bytes = self._limits.list_bytes_max
        async with aclosing(self._owner.large_object().pages(wanted)) as pages:
            async for page in pages:
                for key, value in page.items():
                    room_bytes -= len(key) + len(value) + ENTRY_BYTES
                    answer[key] = decode(value)
                if room_bytes < 0:
                    raise list_too_large(len(answer), self._limits.list_bytes_max)
        return answer

    def _existed(self, keys: Sequence[str], answer: Callable[[int], T]) -> Awaitable[T]:
        """Ask the disk how many of some keys, deleted meanwhile, had been there."""
        reader = self._owner.large_object()
        # What is pending goes on changing, so it is asked now.
        known = reader.durable_now(keys)
        unknown = [key for key in keys if key not in known]

        async def ask() -> T:
            stored = await self._read(reader.stored(unknown), _Reading())
            return answer(sum(known.values()) + len(stored))

        return _Later(ask)

    async def _read(self, reading: Awaitable[T], options: _Reading) -> T:
        if not options.holds:
            return await reading
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
        await self._owner.wait_durable(max(ticket, self._overlay.ticket))

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

    def transaction_sync(self, callback: Callable[[], T]) -> T:
        """Run a plain function; all its writes are kept, or none do if it raises.

        Keys, the alarm and SQL. May be nested, and stand inside `transaction`.

        Raises:
            TypeError: Not a function, or an async one; nothing of it is kept.
            StorageError: A transaction is open that this code is no part of.
        """
        if not callable(callback):
            message = f"transaction_sync needs a function, got {callback!r}"
            raise TypeError(message)
        if self._is_beside_a_transaction():
            detail = "another transaction of this object is open; use `transaction`"
            raise StorageError("transaction_sync", detail)
        outer = self._open_transaction()
        transaction = DurableObjectTransaction(self._overlay, self._owner, outer)
        self._overlay.begin()
        token = _current.set(transaction)
        try:
            value = callback()
            if isinstance(value, Awaitable):
                if inspect.iscoroutine(value):
                    value.close()
                message = "transaction_sync takes a plain function; use `transaction`"
                raise TypeError(message)
        except BaseException:
            transaction.finish(commit=False)
            raise
        finally:
            _current.reset(token)
        transaction.finish(commit=True)
        return value

    @property
    def kv(self) -> SyncKeyValueStorage:
        """The same keys, without an await."""
        return SyncKeyValueStorage(self)

    # -- with a database of its own --------------------------------------------

    @property
    def sql(self) -> SqlStorage:
        """The object's own SQL database.

        Raises:
            StorageError: The class has none.
        """
        overlay = self._with_database("sql")
        return SqlStorage(
            lambda: overlay.database,
            wrote=self._owner.wrote,
            check_write=self._check_sql_write,
        )

    async def get_current_bookmark(self) -> str:
        """Return the bookmark of the database as it is now, with this turn's writes.

        Bookmarks are texts; later ones sort behind earlier ones.

        Raises:
            StorageError: The class has no database.
        """
        self._with_database("get_current_bookmark")
        await self.sync()
        return await self._owner.bookmark(None)

    async def get_bookmark_for_time(self, when: Instant) -> str:
        """Return the newest bookmark that is not after a time.

        Args:
            when: A `datetime`, a `timedelta` from now, or epoch milliseconds.

        Raises:
            StorageError: The history does not reach back so far, or the class has no
                database.
        """
        self._with_database("get_bookmark_for_time")
        at_ms = instant_ms(when, now_ms=self._owner.clock.now_ms())
        await self.sync()
        return await self._owner.bookmark(at_ms)

    async def on_next_session_restore_bookmark(self, bookmark: str) -> str:
        """Go back to a bookmark when the object next starts, as after `ctx.abort()`.

        SQL and keys go back; the alarm stays.

        Returns:
            A bookmark that undoes this.

        Raises:
            StorageError: Not a bookmark of this object's past.
        """
        overlay = self._with_database("on_next_session_restore_bookmark")
        seq = bookmark_seq(bookmark)
        before = await self.get_current_bookmark()
        if seq > bookmark_seq(before):
            detail = f"{bookmark!r} is not in the past, which ends with {before!r}"
            raise StorageError("on_next_session_restore_bookmark", detail)
        await self._owner.bookmark(bookmark_at_ms(bookmark))  # or it is forgotten
        overlay.restore_at_next_start(bookmark)
        self._owner.wrote()
        await self.sync()
        return before

    def _check_sql_write(self) -> None:
        """Refuse what a rollback would undo, and its writer never hear of."""
        if self._is_beside_a_transaction():
            detail = (
                "another transaction of this object is open, and SQL beside it would be"
                " rolled back with it; use `transaction`, which waits for its end"
            )
            raise StorageError("sql", detail)

    def _with_database(self, operation: str) -> DatabaseOverlay:
        if not isinstance(self._overlay, DatabaseOverlay):
            detail = (
                "this class has no database; write"
                ' `class ...(DurableObject, storage="sqlite")`'
            )
            raise StorageError(operation, detail)
        return self._overlay

    deleteAll = delete_all
    transactionSync = transaction_sync
    getCurrentBookmark = get_current_bookmark
    getBookmarkForTime = get_bookmark_for_time
    onNextSessionRestoreBookmark = on_next_session_restore_bookmark


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
        self._check_open("rollback")
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

    def _check_open(self, operation: str) -> None:
        if self._ended == "rolled back":
            detail = f"Cannot {operation}() on rolled back transaction"
            raise TransactionClosedError(operation, detail)
        if self._ended is not None:
            detail = (
                f"Cannot call {operation}() on transaction that has already committed:"
                " did you move `txn` outside of the closure?"
            )
            raise TransactionClosedError(operation, detail)


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
        f"Maximum number of key value pairs is {limits.batch_entries_max}."
        f" {count} pairs were provided. Split them; the turn keeps them together."
    )
