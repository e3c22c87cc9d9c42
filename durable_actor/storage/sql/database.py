"""One object's database while it is open.

Theory of operation
    User code runs SQL on the event loop, on this object's only connection. The first
    statement of a turn that may write opens a transaction; at the end of the turn the
    owner calls `commit`, which returns the bytes that became part of the WAL. Nothing
    is synced here: those bytes are durable with the seal they travel in.

    So the WAL may be ahead of what is durable, and SQLite must never copy such frames
    into the database. It does so in a checkpoint, which is ours to call, and when a
    connection is closed, in whatever way. A connection with frames that are not durable
    is therefore *abandoned*: SQLite does not checkpoint at close when the database has
    been moved away from its name, so it is moved aside for that moment. A `Link` holds
    the connection and the statements still open (one of them alone would keep it open),
    and a finalizer holds the link: an owner that is dropped, and the end of the
    process, abandon it too. In a forked child it is neither closed nor abandoned; the
    parent goes on with it.

Promises
    `commit` returns all that the turn wrote, or raises and nothing of it is kept.
    Frames that are not known to be durable never reach the database file.
    A statement that fails leaves the rest of its turn as it was; where SQLite undid the
    whole turn instead, nothing works any more until the owner opens it again.

Does not know about seals, logs, gates or user classes.
"""

from __future__ import annotations

import errno
import math
import secrets
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from durable_actor.errors import (
    CorruptionError,
    SqlError,
    StorageError,
    StorageFailedError,
    StorageFullError,
    StorageLimitError,
)
from durable_actor.storage.integrity import value_crc
from durable_actor.storage.sql.cursor import Row, SqlCursor
from durable_actor.storage.sql.link import Link, RunningStatement
from durable_actor.storage.sql.statements import (
    SqlLimits,
    SqlValue,
    Statement,
    bound,
    parse,
    refusal,
    secure,
)
from durable_actor.storage.sql.wal import (
    PAGE_BYTES,
    WalPosition,
    WalSegment,
    check_database,
    create_database,
    note_checkpoint,
    repair,
    wal_path,
)

T = TypeVar("T")

LOAD_KEYS_MAX = 512  # an object with more keys loads on demand
LOAD_BYTES_MAX = 1024 * 1024  # so does one with more in them
_KEYS_PER_READ = 90  # a statement takes 100 parameters
_KEYS_PER_PEEK = 16  # of a page that is bounded in bytes; a value has up to 2 MiB
_PRIMARY = 0xFF  # of an extended error code, the part that says which error it is
_SPARE_PAGES = 1_024  # beyond the limit, so that it is met between two statements
_SHRINKING = ("DELETE", "DROP")
_COMMIT = "COMMIT"
_CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"
_CHECK_BYTES_MAX = 16 * 1024 * 1024  # at each opening: a millisecond for a megabyte
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_DISK_STATEMENTS = (_COMMIT, _CHECKPOINT)
_FATAL = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PRAGMAS = (
    "synchronous=NORMAL",
    "wal_autocheckpoint=0",
    "cache_spill=OFF",  # a frame is written when its turn commits, not before
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "temp_store=MEMORY",
    "mmap_size=0",
    "secure_delete=FAST",
)
_CREATE_KEYS = (
    "CREATE TABLE IF NOT EXISTS _cf_KV ("
    "key TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) STRICT"
)


class LoadedKeys(Struct, frozen=True, kw_only=True):
    """The keys of an object. `complete` says that `keys` is all there is.

    `damage` names the first key whose checksum did not match.
    """

    complete: bool = True
    keys: dict[str, bytes] = {}
    damage: str | None = None


class Database:
    """One open file. Made by `Database.open`, which repairs it first."""

    def __init__(
        self,
        path: Path,
        link: Link,
        position: WalPosition | None,
        limits: SqlLimits,
    ) -> None:
        self.path = path
        self._link = link
        self._limits = limits
        self._guard = link.guard
        self._tail = link.tail
        # Invariant: everything up to here was committed, and returned by `commit`.
        self._position = position
        self._salt = int(path.stem[:8], 16) if _is_hex(path.stem) else 0
        self._mark = f"/*{secrets.token_hex(8)}*/"
        self._has_keys = False
        self._is_in_turn = False
        self._savepoints = 0
        self._failure: StorageError | None = None
        self._is_closed = False
        self._cursors: weakref.WeakSet[SqlCursor] = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, link.abandon)

    @classmethod
    def open(
        cls,
        path: Path,
        position: WalPosition | None,
        limits: SqlLimits | None = None,
        *,
        check_bytes_max: int | None = _CHECK_BYTES_MAX,
    ) -> Database:
        """Repair the files, then open the database, creating it if it is new.

        Args:
            path: `<64 hex>.db`, see `files.database_path`.
            position: The end of the last segment known to be durable; None: there never
                was one, and whatever lies at the path goes.
            limits: What statements and the file may be.
            check_bytes_max: The pages of a larger file are not all compared with their
                checksums; None: of any file.

        Raises:
            CorruptionError: Durable bytes are missing or changed.
            StorageFullError: The disk is full.
            StorageFailedError: Any other error of the disk.
        """
        limits = limits or SqlLimits()
        try:
            repair(path, position)
            if position is not None:
                check_database(path, position, bytes_max=check_bytes_max)
            if not path.exists():
                create_database(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                detail = "the disk is full; free some space"
                raise StorageFullError("open", detail) from error
            raise StorageFailedError("open", f"{path}: {error.strerror}") from error
        link = Link(path, position)
        database = cls(path, link, position, limits)
        try:
            database._prepare()
        except BaseException:
            database.abandon()
            raise
        return database

    # -- turns ---------------------------------------------------------------

    @property
    def position(self) -> WalPosition | None:
        """The end of what was committed; None if nothing ever was."""
        return self._position

    @property
    def is_in_turn(self) -> bool:
        """Whether a turn has begun to write."""
        return self._is_in_turn

    @property
    def needs_end(self) -> bool:
        """Whether `commit` is to be called at the end of this turn."""
        return self._is_in_turn or len(self._cursors) > 0

    @property
    def failure(self) -> StorageError | None:
        """Why nothing works any more; the owner abandons it and opens it again."""
        return self._failure

    @property
    def is_closed(self) -> bool:
        """Whether it was closed or abandoned."""
        return self._is_closed

    def begin(self) -> None:
        """Open the turn's transaction, unless it is open."""
        self._check()
        if not self._is_in_turn:
            self._run("BEGIN IMMEDIATE")
            self._is_in_turn = True
            if not self._has_keys:
                self._run(_CREATE_KEYS)
                self._has_keys = True

    def commit(self) -> WalSegment | None:
        """End the turn; return what it appended to the WAL, None if nothing.

        Does not sync. Statements that are still being read are taken into memory.

        Raises:
            StorageError: Nothing of the turn was kept. Abandon the database.
        """
        self._check()
        self._keep_cursors()
        if not self._is_in_turn:
            return None
        assert not self._savepoints, "commit inside a savepoint"
        try:
            self._run(_COMMIT)
            self._is_in_turn = False
            segment = self._tail.take()
        except StorageError as error:
            self._fail(error)
            raise
        except (OSError, CorruptionError) as error:
            self._fail(StorageFailedError("commit", str(error)))
            raise self._failure from error  # type: ignore[misc]  # set by the line above
        if segment is None:
            return None
        turn_bytes_max = self._limits.turn_bytes_max
        if len(segment.data) > turn_bytes_max:
            detail = (
                f"the turn changed {len(segment.data)} bytes of pages, the limit is"
                f" {turn_bytes_max}; write in several turns"
            )
            too_much = StorageLimitError("commit", detail)
            self._fail(too_much)  # and nobody will ever call its frames durable
            raise too_much
        self._position = segment.position
        return segment

    def rollback(self) -> None:
        """End the turn and undo all of it."""
        self._check()
        self._keep_cursors()
        if self._is_in_turn:
            self._run("ROLLBACK")
            self._is_in_turn = False
            self._savepoints = 0
            self._look_for_keys()

    def begin_savepoint(self) -> None:
        """Begin a part of the turn that may be rolled back. May be nested."""
        self.begin()
        self._run(f"SAVEPOINT s{self._savepoints}")
        self._savepoints += 1

    def release_savepoint(self) -> None:
        """End the innermost part and keep it."""
        self._check()
        assert self._savepoints, "release without a savepoint"
        self._run(f"RELEASE s{self._savepoints - 1}")
        self._savepoints -= 1

    def rollback_savepoint(self) -> None:
        """End the innermost part and undo it."""
        self._check()
        assert self._savepoints, "rollback without a savepoint"
        self._keep_cursors()
        name = f"s{self._savepoints - 1}"
        self._run(f"ROLLBACK TO {name}")
        self._run(f"RELEASE {name}")
        self._savepoints -= 1

    # -- statements ----------------------------------------------------------

    def exec(
        self,
        query: str,
        bindings: Sequence[object] = (),
        *,
        check_write: Callable[[], None] = lambda: None,
    ) -> SqlCursor:
        """Run the statements of a query; return the rows of the last one.

        Args:
            query: What to run.
            bindings: Of the last statement.
            check_write: Called before anything runs, if something of it may write.

        Raises:
            SqlError: Refused, or failed; this statement changed nothing.
            StorageLimitError: Over a limit; the message has the limit and the value.
            TypeError: A binding of a type that SQL does not have.
        """
        self._check()
        statements = parse(query, self._limits)
        values = bound(statements[-1], bindings, self._limits)
        if any(statement.writes for statement in statements):
            check_write()
        for statement in statements[:-1]:
            self._execute(statement, (), is_last=False)
        return self._execute(statements[-1], values, is_last=True)

    @property
    def size_bytes(self) -> int:
        """The pages in use as this turn sees them; a file keeps those that are free."""
        self._check()
        pages = int(self._run("PRAGMA page_count")[0][0])
        return (pages - int(self._run("PRAGMA freelist_count")[0][0])) * PAGE_BYTES

    # -- keys ----------------------------------------------------------------

    def load(
        self, keys_max: int = LOAD_KEYS_MAX, bytes_max: int = LOAD_BYTES_MAX
    ) -> LoadedKeys:
        """Return all keys if they are few and small, else those that came first."""
        self._check()
        if not self._has_keys:
            return LoadedKeys()
        size = 0
        keys: dict[str, bytes] = {}
        lengths = self._run(
            "SELECT key, length(value), length(CAST(key AS BLOB)) FROM _cf_KV"
            " ORDER BY key LIMIT ?",
            (keys_max + 1,),
        )
        wanted: list[str] = []
        for key, value_bytes, key_bytes in lengths[:keys_max]:
            size += value_bytes + key_bytes
            if size > bytes_max:
                break
            wanted.append(key)
        try:
            keys = self.read_keys(wanted)
        except CorruptionError as error:
            return LoadedKeys(complete=False, damage=str(error))
        return LoadedKeys(complete=len(wanted) == len(lengths), keys=keys)

    def read_keys(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of these keys, missing ones omitted.

        Raises:
            CorruptionError: A checksum does not match.
        """
        self._check()
        wanted = list(keys)
        found: dict[str, bytes] = {}
        if not self._has_keys:
            return found
        for start in range(0, len(wanted), _KEYS_PER_READ):
            part = wanted[start : start + _KEYS_PER_READ]
            marks = ",".join("?" * len(part))
            rows = self._run(
                f"SELECT key, value, crc FROM _cf_KV WHERE key IN ({marks})"
                " ORDER BY key",
                part,
            )
            found.update(self._checked(rows))
        return found

    def read_range(
        self,
        start: str = "",
        end: str | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[tuple[str, bytes]]:
        """Return the keys in [start, end) with their values, in UTF-8 byte order.

        Raises:
            CorruptionError: A checksum does not match.
        """
        self._check()
        if not self._has_keys:
            return []
        below = "" if end is None else " AND key < ?"
        order = "DESC" if reverse else "ASC"
        parameters: list[SqlValue] = [start] if end is None else [start, end]
        rows = self._run(
            f"SELECT key, value, crc FROM _cf_KV WHERE key >= ?{below}"
            f" ORDER BY key {order} LIMIT ?",
            [*parameters, -1 if limit is None else limit],
        )
        return self._checked(rows)

    def read_page(
        self, start: str, end: str | None, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[str, bytes]], str | None]:
        """Return the first keys in [start, end), and the last one if more may follow.

        The page ends after `limit` keys, or after the one that brings the values to
        `bytes_max`.

        Raises:
            CorruptionError: A checksum does not match.
        """
        page: list[tuple[str, bytes]] = []
        room_bytes = bytes_max
        while True:
            rows = self.read_range(start, end, limit=_KEYS_PER_PEEK)
            for key, value in rows:
                if len(page) == limit or room_bytes <= 0:
                    return page, page[-1][0]
                page.append((key, value))
                room_bytes -= len(value)
            if len(rows) < _KEYS_PER_PEEK:
                return page, None
            start = page[-1][0] + "\x00"

    def write_keys(self, keys: Mapping[str, bytes | None]) -> None:
        """Write keys in this turn; a value of None deletes its key.

        Raises:
            StorageFullError: The disk is full.
            StorageLimitError: The database is at its limit.
        """
        self.begin()
        if any(value is not None for value in keys.values()):
            self._check_room()
        for key, value in keys.items():
            if value is None:
                self._run("DELETE FROM _cf_KV WHERE key = ?", (key,))
            else:
                self._run(
                    "INSERT INTO _cf_KV VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                    " SET value = excluded.value, crc = excluded.crc",
                    (key, value, value_crc(self._salt, key, value)),
                )

    def clear(self) -> None:
        """Drop everything in this turn: keys, tables, views, indexes, triggers."""
        self._keep_cursors()
        self.begin()
        self._run("PRAGMA defer_foreign_keys=ON")
        for kind in ("trigger", "view", "virtual", "table"):
            while (name := self._first(kind)) is not None:
                quoted = '"' + name.replace('"', '""') + '"'
                word = "TABLE" if kind == "virtual" else kind.upper()
                self._run(f"DROP {word} {quoted}")
        self._run("DELETE FROM _cf_KV")

    def run_trusted(self, sql: str, values: Sequence[SqlValue] = ()) -> None:
        """Run a statement of an import in this turn: none of its limits applies."""
        self._run(sql, values)

    # -- the file ------------------------------------------------------------

    @property
    def wal_bytes(self) -> int:
        """How much of the WAL is in use, which a checkpoint would have to copy."""
        if self._position is None or not wal_path(self.path).exists():
            return 0
        return self._position.end

    def checkpoint(self) -> None:
        """Copy the WAL into the database and sync; the next commit begins a new WAL.

        Only when everything committed is durable in the log and folded (its WAL synced
        and its segments no longer needed): what a checkpoint copies is permanent.

        Raises:
            StorageFullError: The disk is full; it may be tried again.
            StorageFailedError: Not everything was copied.
        """
        self._check()
        assert not self._is_in_turn, "checkpoint within a turn"
        self._keep_cursors()
        busy, frames, copied = self._run(_CHECKPOINT)[0]
        if busy or frames != copied:
            detail = f"{copied} of {frames} pages were copied (busy: {busy})"
            error = StorageFailedError("checkpoint", detail)
            self._fail(error)
            raise error
        try:
            note_checkpoint(self.path, self._position)
        except (OSError, CorruptionError) as cause:
            if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
                # The next one tries again. Until then the WAL must not begin anew.
                full = StorageFullError("checkpoint", "the disk is full")
                self._fail(full)
                raise full from cause
            error = StorageFailedError("checkpoint", f"{self.path}: {cause}")
            self._fail(error)
            raise error from cause

    def close(self, durable: WalPosition | None) -> None:
        """Close the database.

        Args:
            durable: The position up to which everything is durable and folded. If that
                is all that was committed, the file afterwards needs nothing beside it;
                if not, it is abandoned.

        Raises:
            StorageError: The checkpoint failed. It is closed nevertheless.
        """
        if self._is_closed:
            return
        is_settled = durable == self._position and self._failure is None
        if not is_settled:
            self.abandon()
            return
        try:
            if self._is_in_turn:
                self.rollback()
            self.checkpoint()
        except BaseException:
            self.abandon()
            raise
        self._keep_cursors()
        self._is_closed = True
        self._finalizer.detach()
        self._link.close()

    def abandon(self) -> None:
        """Close it without a checkpoint: frames that are not durable stay in the WAL.

        The next `open` decides by its position which of them became durable.
        """
        if not self._is_closed:
            self._is_closed = True
            self._finalizer()

    # -- insides ---------------------------------------------------------------

    def _prepare(self) -> None:
        connection = self._link.connection
        try:
            # Before the first access: no index file, no second process (RELIABILITY F3)
            self._run("PRAGMA locking_mode=EXCLUSIVE")
            mode = self._run("PRAGMA journal_mode=WAL")[0][0]
            if mode != "wal":
                detail = f"{self.path}: the file system refuses WAL mode ({mode})"
                raise StorageFailedError("open", detail)
            for pragma in _PRAGMAS:
                self._run(f"PRAGMA {pragma}")
            pages_max = self._limits.database_bytes_max // PAGE_BYTES
            pages_max += max(_SPARE_PAGES, pages_max // 8)
            self._run(f"PRAGMA max_page_count={pages_max}")
            page_bytes = self._run("PRAGMA page_size")[0][0]
            self._look_for_keys()
            self._link.has_read = True
        except SqlError as error:
            raise StorageFailedError("open", f"{self.path}: {error}") from error
        if page_bytes != PAGE_BYTES:
            message = f"{self.path}: pages of {page_bytes} bytes, {PAGE_BYTES} expected"
            raise CorruptionError(message)
        secure(connection, self._guard, self._limits)

    def _execute(
        self,
        statement: Statement,
        values: dict[str, SqlValue] | tuple[SqlValue, ...],
        *,
        is_last: bool,
    ) -> SqlCursor:
        if statement.writes:
            self.begin()
            if statement.verb not in _SHRINKING:
                self._check_room()
        connection = self._link.connection
        budget = self._limits.statement_ms_max / 1_000
        started = time.monotonic()
        rows = RunningStatement(
            self._link, statement, check=self._check, translate=self._translate
        )
        changes = connection.total_changes
        kept: list[Row] = []
        try:
            rows.start(values, budget)
            # Of a statement that reads, two rows: most have one, and are done then.
            rows_max = None if statement.writes or not is_last else 2
            while (row := rows.fetch(budget)) is not None:
                if is_last:
                    kept.append(row)
                if len(kept) == rows_max:
                    break
        except BaseException:
            rows.close()
            raise
        columns = rows.columns
        is_open = row is not None
        if not is_open:
            rows.close()
        cursor = SqlCursor(
            columns,
            rows if is_open else None,
            kept,
            query=statement.sql,
            rows_written=connection.total_changes - changes,
            budget_seconds=budget - (time.monotonic() - started),
        )
        if is_open:
            self._cursors.add(cursor)
        return cursor

    def _run(
        self,
        sql: str,
        parameters: Sequence[SqlValue] = (),
    ) -> list[Any]:
        """Run a statement of ours to its end."""
        guard = self._guard
        guard.trusted = True
        guard.deadline = math.inf
        try:
            return self._link.connection.execute(
                self._mark + sql, parameters
            ).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error, sql) from error
        finally:
            guard.trusted = False

    def _translate(self, error: sqlite3.Error, query: str) -> StorageError:
        """Return the error to raise, and fail if the turn is gone with it."""
        translated = self._told(error, query)
        if isinstance(translated, StorageFailedError):
            self._fail(translated)
        elif self._is_in_turn and not self._link.connection.in_transaction:
            translated.add_note("SQLite undid the whole turn with it.")
            self._fail(translated)
        return translated

    def _told(self, error: sqlite3.Error, query: str) -> StorageError:
        name = getattr(error, "sqlite_errorname", "")
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        limits = self._limits
        if code in _FATAL:
            return StorageFailedError("sql", f"{self.path.name}: {name}: {error}")
        if code in _DAMAGE:
            failure = StorageFailedError("sql", f"{self.path.name}: {name}: {error}")
            self._fail(failure)
            message = f"{self.path}: {error} ({name})"
            raise CorruptionError(message) from error
        if code == sqlite3.SQLITE_FULL:
            # Nothing is written to the disk before the end of a turn.
            if query in _DISK_STATEMENTS:
                return StorageFullError("sql", "the disk is full; free some space")
            return self._too_large()
        if code == sqlite3.SQLITE_INTERRUPT:
            detail = f"the statement ran longer than {limits.statement_ms_max} ms"
            return StorageLimitError("sql", detail)
        if code == sqlite3.SQLITE_TOOBIG:
            detail = f"{error}: the limit is {limits.value_bytes_max} bytes"
            return StorageLimitError("sql", detail)
        if code == sqlite3.SQLITE_AUTH:
            refused, self._guard.refused = self._guard.refused, None
            detail = f"not authorized: {refused}" if refused else "not authorized"
            return refusal(detail, query, sqlite_name=name)
        text = str(error)
        if code == sqlite3.SQLITE_CONSTRAINT and name == "unknown":
            name = "SQLITE_CONSTRAINT"  # of a kind that this Python has no name for
        for start, limit in (
            ("too many columns", limits.columns_max),
            ("LIKE or GLOB pattern too complex", limits.like_pattern_bytes_max),
            ("too many SQL variables", limits.parameters_max),
        ):
            if text.startswith(start):
                return StorageLimitError("sql", f"{text}: the limit is {limit}")
        return refusal(text, query, sqlite_name=name)

    def _fail(self, error: StorageError) -> None:
        if self._failure is None:
            self._failure = error

    def _check_room(self) -> None:
        """Refuse to let a database grow that is at its limit.

        The bound of SQLite itself is a little higher: when a statement meets that one,
        the whole turn is undone.
        """
        pages = int(self._run("PRAGMA page_count")[0][0])
        if pages * PAGE_BYTES >= self._limits.database_bytes_max:
            free = int(self._run("PRAGMA freelist_count")[0][0])
            if (pages - free) * PAGE_BYTES >= self._limits.database_bytes_max:
                raise self._too_large()

    def _too_large(self) -> StorageLimitError:
        bytes_max = self._limits.database_bytes_max
        return StorageLimitError(
            "sql", f"the database is full: the limit is {bytes_max}"
        )

    def _check(self) -> None:
        if self._is_closed:
            raise SqlError("sql", "the database is closed")
        if self._failure is not None:
            detail = (
                f"{self._failure}; nothing more is possible until the object restarts"
            )
            raise StorageFailedError("sql", detail) from self._failure

    def _keep_cursors(self) -> None:
        for cursor in list(self._cursors):
            cursor.keep()
        self._cursors.clear()

    def _look_for_keys(self) -> None:
        found = self._run("SELECT count(*) FROM sqlite_schema WHERE name = '_cf_KV'")
        self._has_keys = found[0][0] > 0

    def _first(self, kind: str) -> str | None:
        """Return the name of the first user view, trigger or table, if there is one."""
        where = {
            "virtual": "type = 'table' AND sql LIKE 'CREATE VIRTUAL%'",
            "table": "type = 'table' AND substr(name, 1, 7) <> 'sqlite_'",
        }.get(kind, f"type = '{kind}'")
        found = self._run(
            f"SELECT name FROM sqlite_schema WHERE {where} AND name <> '_cf_KV' LIMIT 1"
        )
        return str(found[0][0]) if found else None

    def _checked(self, rows: list[Any]) -> list[tuple[str, bytes]]:
        for key, value, crc in rows:
            if value_crc(self._salt, key, value) != crc:
                message = f"{self.path}, key {key!r}: the checksum does not match"
                raise CorruptionError(message)
        return [(key, value) for key, value, _ in rows]


def _is_hex(text: str) -> bool:
    return len(text) >= 8 and all(c in "0123456789abcdef" for c in text[:8])  # noqa: PLR2004
