"""The overlay of an object that has a database of its own: keys and SQL in one turn.

Theory of operation
    Keys are cached and change at once, as in every overlay. Before anything could tell
    the difference (the end of the turn, a savepoint, a read of a range) what has
    changed is written to the database, into the transaction that the turn's SQL is in
    too. The seal then carries the pages that the commit changed, beside the alarm and
    the rest, so all of it becomes durable together or not at all.

    A transaction of the overlay is a savepoint of the database.
"""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from durable_actor.clock import Clock
from durable_actor.errors import ObjectResetError
from durable_actor.ids import ObjectId
from durable_actor.storage.batch import DatabaseTurn
from durable_actor.storage.committer import Committer
from durable_actor.storage.overlay import (
    PARTIAL_CACHE_BYTES_MAX,
    Overlay,
    list_too_large,
)
from durable_actor.storage.ports import ENTRY_BYTES, Loaded
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import SqlFile
from durable_actor.storage.watches import KeyChanges

_PAGE_KEYS = 100  # read at once, of values that may be large


class DatabaseOverlay(Overlay):
    """An overlay over the key-value table of the object's own database."""

    __slots__ = ("_file", "_list_bytes_max", "_restore", "_unwritten")

    def __init__(
        self,
        committer: Committer,
        object_id: ObjectId,
        object_class: str,
        loaded: Loaded,
        file: SqlFile,
        *,
        list_bytes_max: int,
    ) -> None:
        super().__init__(committer, object_id, object_class, loaded)
        self._file = file
        self._list_bytes_max = list_bytes_max
        # Invariant: what of the unsealed keys is not in the database's transaction yet.
        self._unwritten: dict[str, bytes | None] = {}
        self._restore: str | None = None

    @property
    def database(self) -> Database:
        """The open database.

        Raises:
            ObjectResetError: The object is gone.
            StorageError: It cannot be opened.
        """
        if self.reset is not None:
            raise self.reset
        return self._file.database

    @property
    def is_open(self) -> bool:
        """Whether the database is open; else its next use opens it."""
        return self._file.opened is not None

    # -- keys ---------------------------------------------------------------

    def lookup(self, key: str) -> bytes | UnsetType | None:
        """Return a key's bytes, or None if it is absent; never UNSET."""
        value = super().lookup(key)
        if value is not UNSET:
            return value
        found = self.database.read_keys([key]).get(key)
        self.remember({key: found})
        if self.size_bytes > PARTIAL_CACHE_BYTES_MAX and not self._undo:
            self.shrink()
        return found

    def put(self, key: str, value: bytes) -> None:
        """Write a key."""
        super().put(key, value)
        self._unwritten[key] = value

    def delete(self, key: str) -> None:
        """Delete a key, whether it is there or not."""
        super().delete(key)
        self._unwritten[key] = None

    def delete_all(self) -> None:
        """Delete every key, table and view, and the alarm."""
        if not self._undo:  # refused below
            self.database.clear()  # may fail, and then nothing has changed
        super().delete_all()
        self._unwritten = {}

    def scan(
        self, start: str, end: str | None, limit: int | None, *, reverse: bool
    ) -> dict[str, bytes]:
        """Return a range with its values, in order; never None.

        Raises:
            StorageLimitError: More than fits in memory; nothing was changed.
        """
        known = super().scan(start, end, limit, reverse=reverse)
        if known is not None:
            return known
        database = self.database
        self._write_keys(database)
        found: dict[str, bytes] = {}
        room_bytes = self._list_bytes_max
        while True:
            count = _PAGE_KEYS if limit is None else min(limit - len(found), _PAGE_KEYS)
            rows = database.read_range(start, end, limit=count, reverse=reverse)
            found.update(rows)
            room_bytes -= sum(len(k) + len(v) + ENTRY_BYTES for k, v in rows)
            if room_bytes < 0:
                raise list_too_large(len(found), self._list_bytes_max)
            if len(rows) < count or len(found) == limit:
                return found
            if reverse:
                end = rows[-1][0]
            else:
                start = rows[-1][0] + "\x00"

    # -- turns and transactions ----------------------------------------------

    @property
    def is_unsealed(self) -> bool:
        """Whether something was written that has no ticket yet."""
        database = self._file.opened
        return (
            super().is_unsealed
            or (database is not None and database.needs_end)
            or self._restore is not None
        )

    def seal(self, clock: Clock) -> int:
        """End the turn, in the database and in the log.

        Raises:
            StorageError: The database failed; nothing of the turn is kept.
        """
        if not self.is_unsealed or self._undo or self.reset is not None:
            return self.ticket
        segment = None
        opened = self._file.opened
        if self._unwritten or (opened is not None and opened.needs_end):
            database = self._file.database
            self._write_keys(database)
            segment = database.commit()
        changes = KeyChanges(self._unsealed or {}, self._cleared)
        self._unsealed, self._cleared = None, False
        self.unsealed_bytes = 0
        if segment is not None or self._restore is not None:
            self._elsewhere = changes
            self._database_turn = DatabaseTurn(
                self._id.raw, clock.now_ms(), segment, self._restore
            )
            self._restore = None
        return super().seal(clock)

    def begin(self) -> None:
        """Begin a transaction: keys, alarm and SQL are rolled back together."""
        database = self.database
        self._write_keys(database)
        database.begin_savepoint()
        super().begin()

    def commit(self) -> None:
        """End the innermost transaction and keep its writes."""
        super().commit()
        self._file.database.release_savepoint()

    def rollback(self) -> None:
        """End the innermost transaction and put everything back."""
        super().rollback()
        # What outlasts the rollback has gone from the database with the savepoint.
        self._unwritten = dict(self._unsealed or {})
        database = self._file.database
        if database.failure is None:
            database.rollback_savepoint()

    def restore_at_next_start(self, bookmark: str) -> None:
        """Have the next activation begin with the database of a bookmark."""
        if self.reset is not None:
            raise self.reset
        self._restore = bookmark

    # -- its end ---------------------------------------------------------------

    def retire(self) -> None:
        """Close the database: the object leaves memory, and all of it is durable."""
        self._file.release()

    def break_off(self, reset: ObjectResetError) -> None:
        """Forget what is not sealed and refuse everything from now on."""
        super().break_off(reset)
        self._unwritten = {}
        self._restore = None
        self._file.abandon()

    def _needed(self) -> set[str] | None:
        """Everything but this turn's keys can be read from the database again."""
        return set(self._unsealed or ())

    def _write_keys(self, database: Database) -> None:
        if self._unwritten:
            database.write_keys(self._unwritten)
            self._unwritten = {}  # not before: what was refused has to be tried again
