"""A shard: one database file, the only connection to it, and how it is opened.

Promises
    `commit` returns after the group's row of the log is synced; if it raises, the group
    is not in the log (disk full) or nothing more is acknowledged (anything else).
    Opening finds every committed group, or says that something is missing.

Theory of operation
    One connection, in exclusive mode and WAL with `synchronous=FULL`, opened in that
    order: exclusive mode before the first access keeps the index of the WAL in memory,
    survives a full disk, and makes a second opener fail (RELIABILITY F2 to F4). A
    commit is one INSERT of one row. The tables are folded from the log between commits;
    a write lock keeps a commit from falling into the middle of a fold's transaction.
    Checkpoints are ours, between groups, and their result is checked.

The only module that knows aiosqlite.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
import msgspec

from durable_actor.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryInUseError,
    FormatTooNewError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.failpoints import failpoint
from durable_actor.log import get_logger
from durable_actor.storage.ballast import Ballast
from durable_actor.storage.batch import AlarmRow, EventRow, ObjectRow, ReplyRow
from durable_actor.storage.database_keeper import Keeper
from durable_actor.storage.fold import CHUNK_ROWS_MAX, Merged, Statement, chunks
from durable_actor.storage.integrity import fields_crc, row_crc, value_crc
from durable_actor.storage.mark import Mark, MarkWriter, mark_path, read_mark
from durable_actor.storage.ports import (
    ENTRY_BYTES,
    DeleteDatabase,
    DirectoryEntry,
    DueAlarm,
    ExpireReplies,
    Group,
    KeyPage,
    ListAlarms,
    Loaded,
    LoadObjects,
    Opened,
    Query,
    ReadAlarms,
    ReadBookmark,
    ReadDirectory,
    ReadKeys,
    ReadOutbox,
    ReadRange,
    ReadReplies,
    ReadStatus,
    RestoreDatabase,
    ShardOptions,
    ShardStatus,
    StoredAlarm,
)
from durable_actor.storage.schema import (
    CREATE,
    FORMAT,
    META_KEYS,
    expected_schema,
    migration_from_1,
)
from durable_actor.storage.sql.wal import WalPosition

A = TypeVar("A")
T = TypeVar("T")
Rows = list[Any]

log = get_logger("durable_actor.storage")

HYDRATE_KEYS_MAX = 512  # an object with more keys loads on demand
HYDRATE_VALUE_BYTES_MAX = 16 * 1024  # so does one with a larger value
# Larger values are read in a second step, when it is known that there is room for them.
_INLINE_BYTES_MAX = 1024
_PAGE_INLINE_BYTES_MAX = 4 * 1024
_LOAD_OBJECTS_MAX = 100  # objects to a statement; SQLite joins at most 500 selects
_LOAD_VALUES_MAX = 10_000  # to a statement, too: SQLite takes at most 32,766 parameters
_PAGE_BYTES = 4096
RESTORE = "Restore a backup; nothing was changed."
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PRIMARY = 0xFF  # of an extended error code, the part that says which error it is
_GROWTH_SEQ = -1  # the row of the log that is there only to make the WAL grow
# What a value of another type than its column's leads to, after a flipped bit.
_NOT_AS_WRITTEN = (TypeError, AttributeError, UnicodeError)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Shard:
    """One open shard file. Made by `Shard.open`."""

    def __init__(self, connection: aiosqlite.Connection, options: ShardOptions) -> None:
        self._db = connection
        self._options = options
        self._write = asyncio.Lock()
        self._folding = asyncio.Lock()
        self._is_closed = False
        self._at_work: set[asyncio.Future[Any]] = set()  # on the files of databases
        self._keeper = Keeper(
            Path(options.path).absolute().parent,
            history_bytes_max=options.history_bytes_max,
            history_ms_max=options.history_ms_max,
        )
        self._ballast = _ballast_of(options)
        self._failure: StorageFailedError | None = None  # the first of a write or sync
        # Invariant: all rows of the log, oldest first.
        self._unfolded: list[Group] = []
        self._seq = 0
        self._last_crc = 0  # of the newest row of the log
        self._mark: MarkWriter | None = None
        if options.uri is None:  # else the disk under it is not the one of the mark
            self._mark = MarkWriter(mark_path(Path(options.path).absolute()))
        self._last_ticket = 0
        self._last_num = 0
        self._last_event = 0
        self._wal_bytes = 0  # an estimate of what the next checkpoint has to copy
        self._checkpoints = 0
        self._folds = 0
        self.opened = Opened(
            epoch=0, last_ticket=0, last_num=0, last_event=0, events_waiting=0
        )

    @classmethod
    async def open(cls, options: ShardOptions) -> Shard:
        """Open or create the file, fold what its log still holds, count the epoch.

        On a full disk the ballast makes room for it (G12).

        Raises:
            DataDirectoryInUseError: Another connection holds the file.
            FormatTooNewError: Written by a later release; untouched.
            StorageFullError: The disk is full, and there is no ballast.
            StorageFailedError: Damaged, or an I/O error.
        """
        try:
            return await cls._open(options)
        except StorageFullError:
            if not await asyncio.to_thread(_ballast_of(options).free):
                raise
            return await cls._open(options)

    @classmethod
    async def _open(cls, options: ShardOptions) -> Shard:
        uri = options.uri or Path(options.path).absolute().as_uri()
        try:
            connection = await aiosqlite.connect(
                uri, uri=True, isolation_level=None, timeout=0
            )
        except sqlite3.Error as error:
            raise _translate("open", error) from error
        shard = cls(connection, options)
        try:
            await shard._prepare()
        except sqlite3.Error as error:
            await shard.drop()
            if _code(error) in _BUSY:
                raise DataDirectoryInUseError(
                    options.path, "another connection"
                ) from error
            raise _translate("open", error) from error
        except BaseException:
            await shard.drop()
            raise
        await shard._keep_ballast()
        return shard

    async def commit(self, group: Group) -> None:
        """Append the group to the log and sync; see `ShardDriver.commit`."""
        crc = row_crc(group.first_ticket, group.last_ticket, group.batch)
        async with self._write:
            self._check_unfailed()
            failpoint("commit.before")
            try:
                await self._all(
                    "INSERT INTO log VALUES (?, ?, ?, ?, ?)",
                    [
                        self._seq + 1,
                        group.first_ticket,
                        group.last_ticket,
                        group.batch,
                        crc,
                    ],
                )
            except sqlite3.Error as error:
                raise self._failed("commit", error) from error
            failpoint("commit.after")
            self._seq += 1
            self._last_crc = crc
            self._last_ticket = group.last_ticket
            self._unfolded.append(group)
            self._wal_bytes += len(group.batch) + 3 * _PAGE_BYTES
            if self._mark is not None:
                self._mark.write(Mark(self._seq, crc))
        await self._keep_wal_within(self._options.wal_bytes_max)

    async def fold(self) -> None:
        """Bring every group committed so far into the tables, in bounded chunks."""
        async with self._folding:
            await self._fold()

    async def _fold(self, *, is_start: bool = False) -> None:
        groups = list(self._unfolded)
        if not groups:
            return
        last_seq, last_ticket, last_crc = self._seq, self._last_ticket, self._last_crc
        merged = Merged()
        for group in groups:
            merged.play(group.batch, group.first_ticket)
            await asyncio.sleep(0)  # the loop has other work than a long log
        # Numbers are never used twice, not even after their object is deleted.
        self._last_num = max(self._last_num, *merged.objects, 0)
        self._last_event = max(self._last_event, *(e.seq for e in merged.events), 0)
        await self._fold_databases(merged, is_start=is_start)
        for statements in chunks(merged):
            returned = CHUNK_ROWS_MAX
            while returned == CHUNK_ROWS_MAX:
                returned = await self._transact(statements)
                failpoint("fold.chunk")
                await self._keep_wal_within(self._options.wal_bytes_max)
        await self._transact(
            [
                ("DELETE FROM log WHERE seq <= ?", [last_seq]),
                _note(
                    folded_seq=last_seq,
                    folded_ticket=last_ticket,
                    folded_crc=last_crc,
                    last_num=self._last_num,
                    last_event=self._last_event,
                ),
            ]
        )
        del self._unfolded[: len(groups)]
        self._folds += 1
        if not is_start:
            await self._keep_ballast()
        await self._keep_wal_within(self._options.wal_grow_bytes)

    async def _fold_databases(self, merged: Merged, *, is_start: bool) -> None:
        """Bring the pages in the log to where they belong, before it forgets them.

        While the owner runs it has written them itself, and only a sync is missing; at
        a start nothing is open, and what a power cut took is written again.
        """
        for raw_id in merged.deleted_databases if is_start else ():
            await asyncio.to_thread(self._keeper.delete, raw_id)
        for turns in merged.databases.values():
            raw_id = turns[0][1].id
            if is_start:
                only = [turn for _, turn in turns]
                await asyncio.to_thread(self._keeper.replay, raw_id, only)
            await asyncio.to_thread(self._keeper.fold, raw_id, turns)

    async def read(self, query: Query[A]) -> A:
        """Answer a question from the tables."""
        try:
            return cast("A", await self._answer(query))
        except sqlite3.Error as error:
            if _code(error) in _DAMAGE:
                raise CorruptionError(f"{self._options.path}: {error}") from error
            raise _translate("read", error) from error

    async def close(self) -> None:
        """Fold, checkpoint and close. The file then needs nothing beside it.

        If the disk is full, the ballast makes room for it (G12). If that does not
        suffice, the log stays, and the next start folds it: nothing is missing.
        """
        try:
            await self._finish()
        except StorageFullError as error:
            log.warning("storage.closed_unfolded", error=str(error))
        finally:
            await self.drop()

    async def _keep_ballast(self) -> None:
        if self._ballast.is_missing:
            await asyncio.to_thread(self._ballast.make)

    async def _finish(self) -> None:
        try:
            await self.fold()
            await self._checkpoint()
        except StorageFullError:
            if not await asyncio.to_thread(self._ballast.free):
                raise
            await self.fold()
            await self._checkpoint()

    async def drop(self) -> None:
        """Close without folding, as after a failure."""
        self._is_closed = True
        if self._at_work:
            await asyncio.wait(self._at_work)
        await self._db.close()
        if self._mark is not None:
            self._mark.close()

    async def _prepare(self) -> None:
        await self._all("PRAGMA locking_mode=EXCLUSIVE")
        mode = (await self._all("PRAGMA journal_mode=WAL"))[0][0]
        if mode not in ("wal", "memory"):
            message = f"{self._options.path}: the file system refuses WAL mode ({mode})"
            raise ConfigError(message)
        await self._all(f"PRAGMA synchronous={self._options.synchronous}")
        await self._all("PRAGMA wal_autocheckpoint=0")
        await self._all("PRAGMA temp_store=MEMORY")
        await self._all("PRAGMA mmap_size=0")
        # Some builds overwrite what is deleted; FAST does so only where it is free.
        await self._all("PRAGMA secure_delete=FAST")
        await self._check_format()
        await self._check_schema()
        meta = await self._read_meta()
        await self._replay(meta)
        epoch = meta["epoch"] + 1
        await self._all(*_note(epoch=epoch))
        if self._mark is not None:
            self._mark.write(Mark(self._seq, self._last_crc))
        await self._grow_wal()
        waiting = await self._all("SELECT count(*) FROM outbox")
        self.opened = Opened(
            epoch=epoch,
            last_ticket=self._last_ticket,
            last_num=self._last_num,
            last_event=self._last_event,
            events_waiting=waiting[0][0],
        )

    async def _check_format(self) -> None:
        rows = await self._all("SELECT name FROM sqlite_schema WHERE type = 'table'")
        tables = {row[0] for row in rows}
        found = 0  # nothing there yet
        if "meta" in tables:
            rows = await self._all("SELECT value FROM meta WHERE key = 'format'")
            # The first release made the row last, this one makes all in one go.
            found = rows[0][0] if rows else FORMAT if "digest" in tables else 1
        if found > FORMAT:
            message = (
                f"{self._options.path} has format {found}, this release reads up to"
                f" {FORMAT}. Use the release that wrote it; nothing was changed."
            )
            raise FormatTooNewError(message)
        if found < FORMAT and "digest" not in tables:
            await self._build(tables)

    async def _build(self, tables: Collection[str]) -> None:
        """Make the tables, in one go; those of the first format are brought over."""
        await self._db.create_function("fields_crc", -1, fields_crc)
        statements = migration_from_1(tables) if "meta" in tables else CREATE
        await self._all("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                await self._all(statement)
            for raw_id, *place in await self._all(
                "SELECT o.id, d.generation, d.wal_end, d.wal_crc FROM database d"
                " JOIN object o ON o.num = d.object WHERE d.generation NOTNULL"
            ):
                position = WalPosition(*place)
                await asyncio.to_thread(self._keeper.adopt, raw_id, position)
            known = {row[0] for row in await self._all("SELECT key FROM meta")}
            fresh = dict.fromkeys((key for key in META_KEYS if key not in known), 0)
            await self._all(*_note(**fresh | {"format": FORMAT}))
            await self._all("COMMIT")
        except BaseException:
            await self._roll_back()
            raise

    async def _check_schema(self) -> None:
        """Compare the tables with those that this release makes.

        A flipped bit in their description changes what every statement means.
        """
        found = dict(
            await self._all("SELECT name, sql FROM sqlite_schema WHERE sql NOTNULL")
        )
        for name, sql in expected_schema().items():
            if found.get(name) != sql:
                message = f"{self._options.path}: the description of {name} is damaged"
                raise CorruptionError(f"{message}. {RESTORE}")

    async def _read_meta(self) -> dict[str, int]:
        rows = await self._all("SELECT key, value, crc FROM meta")
        meta = {key: value for key, value, crc in rows if crc == fields_crc(key, value)}
        if not meta.keys() >= set(META_KEYS):
            missing = ", ".join(sorted(set(META_KEYS) - meta.keys()))
            message = (
                f"{self._options.path}: table meta lacks {missing} or has it changed"
            )
            raise CorruptionError(f"{message}. {RESTORE}")
        return meta

    def _check_mark(self, crcs: Mapping[int, int]) -> None:
        """Refuse a database that is behind its mark, or went another way."""
        path = mark_path(Path(self._options.path))
        mark = None if self._mark is None else read_mark(path)
        if mark is None:
            return
        if mark.seq > self._seq or crcs.get(mark.seq, mark.crc) != mark.crc:
            message = (
                f"{self._options.path} was rolled back: it ends with row {self._seq},"
                f" and {path.name} knows row {mark.seq}. {RESTORE} If what is missing"
                " may be lost, run: durable-actor accept-rollback"
                f" {path.parent}"
            )
            raise CorruptionError(message)

    async def _replay(self, meta: Mapping[str, int]) -> None:
        """Check the log from end to end and fold it."""
        self._seq = meta["folded_seq"]
        self._last_crc = meta["folded_crc"]
        self._last_ticket = meta["folded_ticket"]
        self._last_num = meta["last_num"]
        self._last_event = meta["last_event"]
        # The first format did not keep the checksum of the row folded last.
        crcs = {self._seq: self._last_crc} if self._last_crc else {}
        rows = await self._all(
            "SELECT seq, first_ticket, last_ticket, batch, crc FROM log"
            f" WHERE seq <> {_GROWTH_SEQ} ORDER BY seq"
        )
        for seq, first_ticket, last_ticket, batch, crc in rows:
            whole = (
                seq == self._seq + 1
                and first_ticket == self._last_ticket + 1
                and crc == row_crc(first_ticket, last_ticket, batch)
            )
            if not whole:
                message = (
                    f"{self._options.path}: row {seq} of the log is damaged or does"
                    f" not follow row {self._seq} (ticket {self._last_ticket})."
                    " Restore a backup; nothing was changed."
                )
                raise StorageFailedError("open", message)
            self._seq, self._last_ticket, self._last_crc = seq, last_ticket, crc
            crcs[seq] = crc
            self._unfolded.append(Group(first_ticket, last_ticket, batch))
        self._check_mark(crcs)
        await self._fold(is_start=True)

    async def _grow_wal(self) -> None:
        """Write the WAL once up to its working size; it is reused from then on.

        A commit into an allocated WAL is about twice as fast as into a growing one.
        """
        try:
            if self._options.wal_grow_bytes:
                await self._all(
                    "INSERT OR REPLACE INTO log VALUES (?, 0, 0, zeroblob(?), 0)",
                    [_GROWTH_SEQ, self._options.wal_grow_bytes],
                )
                failpoint("open.grown")
                await self._all("DELETE FROM log WHERE seq = ?", [_GROWTH_SEQ])
            await self._checkpoint()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_FULL:
                raise
        except StorageFullError:
            pass  # what is there can be read; the WAL grows when there is space

    async def _keep_wal_within(self, bytes_max: int) -> None:
        """Checkpoint if the WAL has grown beyond a size.

        A full disk is no failure here: what was committed is committed, and an error
        would unsay it. The next commit tries again.
        """
        if self._wal_bytes > bytes_max:
            with contextlib.suppress(StorageFullError):
                await self._checkpoint()

    async def _checkpoint(self) -> None:
        async with self._write:
            self._check_unfailed()
            try:
                rows = await self._all("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                raise self._failed("checkpoint", error) from error
            busy, frames, copied = rows[0]
            if busy or frames != copied:
                detail = f"{copied} of {frames} pages were copied (busy: {busy})"
                raise StorageFailedError("checkpoint", detail)
            self._wal_bytes = 0
            self._checkpoints += 1

    async def _transact(self, statements: list[Statement]) -> int:
        """Run statements in one transaction; return how many rows they returned."""
        returned = 0
        async with self._write:
            self._check_unfailed()
            try:
                await self._all("BEGIN IMMEDIATE")
                for sql, parameters in statements:
                    rows = await self._all(sql, parameters)
                    returned += len(rows)
                    self._wal_bytes += _wal_bytes(parameters, len(rows))
                await self._all("COMMIT")
            except sqlite3.Error as error:
                await self._roll_back()
                raise self._failed("fold", error) from error
            except BaseException:
                # Cancelled. A transaction left open would swallow the next commit.
                await self._roll_back()
                raise
        return returned

    def _check_unfailed(self) -> None:
        """Refuse to write after a write or a sync has failed (G13).

        What a failed sync was to cover may be gone, and the next one would not say so.
        """
        if self._failure is not None:
            raise self._failure

    def _failed(
        self, operation: str, error: sqlite3.Error
    ) -> StorageFullError | StorageFailedError:
        failure = _translate(operation, error)
        if isinstance(failure, StorageFailedError):
            self._failure = failure
        return failure

    async def _roll_back(self) -> None:
        # It may have ended by itself, or with the connection.
        with contextlib.suppress(sqlite3.Error, StorageFailedError):
            await self._all("ROLLBACK")

    async def _all(self, sql: str, parameters: list[Any] | None = None) -> Rows:
        if self._is_closed:
            raise StorageFailedError("use", "the shard is closed")
        try:
            rows = await self._db.execute_fetchall(sql, parameters or ())
        except sqlite3.OperationalError as error:
            if "decode to UTF-8" not in str(error):
                raise
            # A flipped bit. Its row's checksum tells, to whoever asked for that row.
            self._db.text_factory = _any_text
            rows = await self._db.execute_fetchall(sql, parameters or ())
        return cast("Rows", rows)

    async def _answer(self, query: Query[A]) -> object:  # a table of questions
        match query:
            case LoadObjects(ids=ids):
                return await self._load(ids)
            case ReadKeys(num=num, keys=keys):
                return await self._keys(num, keys)
            case ReadRange():
                return await self._range(query)
            case ReadAlarms(after_ms=after_ms, until_ms=until_ms, limit=limit):
                rows = await self._all(
                    "SELECT a.object, o.id, o.class, o.name, a.due_at_ms FROM alarm a"
                    " JOIN object o ON o.num = a.object WHERE a.due_at_ms > ?"
                    " AND a.due_at_ms <= ? ORDER BY a.due_at_ms, a.object LIMIT ?",
                    [after_ms, until_ms, limit],
                )
                return [DueAlarm(*row) for row in rows]
            case ListAlarms():
                return await self._alarms(query)
            case ReadDirectory():
                return await self._directory(query)
            case ReadOutbox(after=after, limit=limit):
                rows = await self._all(
                    "SELECT seq, id, class, event, crc FROM outbox WHERE seq > ?"
                    " ORDER BY seq LIMIT ?",
                    [after, limit],
                )
                return [EventRow(*row) for row in _intact("outbox", rows)]
            case ReadReplies(num=num):
                rows = await self._all(
                    "SELECT object, request, reply, expires_at_ms, crc FROM reply"
                    " WHERE object = ?"
                    " ORDER BY expires_at_ms",
                    [num],
                )
                if len(intact := _intact("reply", rows)) < len(rows):
                    # A call that is sent again must not run twice for that.
                    raise CorruptionError(f"object number {num}: a kept reply")
                return [ReplyRow(*row[1:]) for row in intact]
            case ExpireReplies(now_ms=now_ms):
                async with self._write:
                    return len(
                        await self._all(
                            "DELETE FROM reply WHERE expires_at_ms <= ? RETURNING 1",
                            [now_ms],
                        )
                    )
            case ReadBookmark(id=raw_id, at_ms=at_ms):
                return await self._undisturbed(
                    lambda: self._keeper.bookmark(raw_id, at_ms)
                )
            case RestoreDatabase(id=raw_id, bookmark=bookmark, seq=seq, at_ms=now_ms):
                return await self._undisturbed(
                    lambda: self._keeper.restore(
                        raw_id, bookmark, seq=seq, at_ms=now_ms
                    )
                )
            case DeleteDatabase(id=raw_id):
                return await self._undisturbed(
                    lambda: self._keeper.delete(raw_id), folds=False
                )
            case ReadStatus():
                return await self._status()
            case _:
                message = f"unknown query {query!r}"
                raise TypeError(message)

    async def _undisturbed(self, work: Callable[[], T], *, folds: bool = True) -> T:
        """Fold, then work on the files of databases, alone and in a thread.

        To its end, even if nobody waits for it any more: a thread cannot be stopped,
        and what comes next must not work on the same files beside it.
        """

        async def alone() -> T:
            async with self._folding:
                if folds:
                    await self._fold()
                return await asyncio.to_thread(work)

        task = asyncio.ensure_future(alone())
        self._at_work.add(task)
        task.add_done_callback(self._worked)
        return await asyncio.shield(task)

    def _worked(self, task: asyncio.Future[Any]) -> None:
        self._at_work.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits, if there is anyone

    async def _load(self, ids: list[bytes]) -> list[Loaded]:
        found: dict[bytes, Loaded] = {}
        for start in range(0, len(ids), _LOAD_OBJECTS_MAX):
            part = ids[start : start + _LOAD_OBJECTS_MAX]
            try:
                found |= await self._load_some(part)
            except (sqlite3.DatabaseError, *_NOT_AS_WRITTEN) as error:
                if isinstance(error, sqlite3.Error) and _code(error) not in _DAMAGE:
                    raise
                # One of them is damaged; the others are to be served.
                if len(part) > 1:  # it may be that none fails again
                    log.warning(
                        "storage.read_singly", objects=len(part), error=str(error)
                    )
                for raw in part if len(part) > 1 else ():
                    (found[raw],) = await self._load([raw])
                if len(part) == 1:
                    found[part[0]] = Loaded(damage=f"its rows ({error})")
        return [found.get(raw) or Loaded() for raw in ids]

    async def _load_some(self, ids: list[bytes]) -> dict[bytes, Loaded]:
        marks = ",".join("?" * len(ids))
        heads = await self._all(
            "SELECT o.num, o.id, o.class, o.name, o.created_at_ms, o.used_at_ms,"
            " o.attributes, a.due_at_ms, a.scheduled_at_ms, a.retries, a.counted,"
            " d.generation, d.wal_end, d.wal_crc, d.restore,"
            " o.crc, a.crc, d.crc, d.restore_crc"
            " FROM object o LEFT JOIN alarm a ON a.object = o.num"
            " LEFT JOIN database d ON d.object = o.num"
            f" WHERE o.id IN ({marks})",
            [*ids],
        )
        if not heads:
            return {}
        # One statement for all: each object's first keys, and one more to see whether
        # there are more. A large value comes back as NULL.
        one = (
            "SELECT * FROM (SELECT object, key, CASE WHEN length(value) <="
            f" {_INLINE_BYTES_MAX} THEN value END, crc, length(value), rowid FROM kv"
            f" WHERE object = ? ORDER BY key LIMIT {HYDRATE_KEYS_MAX + 1})"
            " UNION ALL SELECT object, NULL, NULL, total, rows, NULL FROM digest"
            " WHERE object = ?"
        )
        rows = await self._all(
            " UNION ALL ".join([one] * len(heads)),
            [num for head in heads for num in (head[0], head[0])],
        )
        objects = {
            head[0]: _Hydrating(self._options.hydrate_bytes_max) for head in heads
        }
        for num, *row in rows:
            objects[num].add(*row)
        left_out = [place for found in objects.values() for place in found.left_out]
        for start in range(0, len(left_out), _LOAD_VALUES_MAX):
            part = left_out[start : start + _LOAD_VALUES_MAX]
            large = await self._all(
                "SELECT object, key, value, crc FROM kv WHERE rowid IN"
                f" ({','.join('?' * len(part))})",
                part,
            )
            for num, key, value, crc in large:
                objects[num].rows[key] = (value, crc)
        return {head[1]: _loaded(head, objects[head[0]]) for head in heads}

    async def _keys(self, num: int, keys: list[str]) -> dict[str, bytes]:
        marks = ",".join("?" * len(keys))
        rows = await self._all(
            f"SELECT key, value, crc FROM kv WHERE object = ? AND key IN ({marks})",
            [num, *keys],
        )
        return dict(_checked(num, rows))

    async def _range(self, query: ReadRange) -> KeyPage:
        bound = "" if query.end is None else " AND key < ?"
        order = "DESC" if query.reverse else "ASC"
        parameters: list[Any] = [query.num, query.start]
        parameters += [] if query.end is None else [query.end]
        rows = await self._all(
            "SELECT key, CASE WHEN length(value) <="
            f" {_PAGE_INLINE_BYTES_MAX} THEN value END, crc, length(value) FROM kv"
            f" WHERE object = ? AND key >= ?{bound} ORDER BY key {order} LIMIT ?",
            [*parameters, query.limit + 1],
        )
        room_bytes = query.bytes_max
        count = 0
        while count < min(len(rows), query.limit) and room_bytes > 0:
            room_bytes -= rows[count][3]
            count += 1
        ended_at = rows[count - 1][0] if count < len(rows) else None
        del rows[count:]
        found = dict(
            _checked(query.num, [row[:3] for row in rows if row[1] is not None])
        )
        large = [row[0] for row in rows if row[1] is None]
        if large:
            found |= await self._keys(query.num, large)
        # A large value may have gone between the two questions.
        kept = [(row[0], found[row[0]]) for row in rows if row[0] in found]
        return KeyPage(kept, ended_at)

    async def _alarms(self, query: ListAlarms) -> list[StoredAlarm]:
        conditions, parameters = ["1"], list[Any]()
        if query.object_class is not None:
            conditions.append("o.class = ?")
            parameters.append(query.object_class)
        if query.before_ms is not None:
            conditions.append("a.due_at_ms < ?")
            parameters.append(query.before_ms)
        if query.after is not None:
            conditions.append("(a.due_at_ms, a.object) > (?, ?)")
            parameters += query.after
        rows = await self._all(
            "SELECT o.num, o.id, o.class, o.name, a.due_at_ms, a.scheduled_at_ms,"
            " a.retries, a.counted FROM alarm a JOIN object o ON o.num = a.object"
            f" WHERE {' AND '.join(conditions)}"
            " ORDER BY a.due_at_ms, a.object LIMIT ?",
            [*parameters, query.limit],
        )
        return [
            StoredAlarm(num, raw, object_class, name, AlarmRow(*alarm))
            for num, raw, object_class, name, *alarm in rows
        ]

    async def _directory(self, query: ReadDirectory) -> list[DirectoryEntry]:
        conditions, parameters = ["1"], list[Any]()
        if query.object_class is not None:
            conditions.append("class = ?")
            parameters.append(query.object_class)
        if query.prefix:
            conditions.append("substr(name, 1, ?) = ?")
            parameters += [len(query.prefix), query.prefix]
        for key, value in query.where.items():
            conditions.append(
                "EXISTS (SELECT 1 FROM json_each(o.attributes) j"
                " WHERE j.key = ? AND j.value = ?)"
            )
            parameters += [key, value]
        if query.after is not None:
            conditions.append("(class, ifnull(name, ''), id) > (?, ?, ?)")
            parameters += query.after
        rows = await self._all(
            "SELECT num, id, class, name, created_at_ms, used_at_ms, attributes, crc,"
            " (SELECT ifnull(sum(length(CAST(key AS BLOB)) + length(value)), 0)"
            " FROM kv WHERE kv.object = num),"
            " (SELECT due_at_ms FROM alarm WHERE alarm.object = num),"
            " EXISTS (SELECT 1 FROM database WHERE database.object = num)"
            f" FROM object o WHERE {' AND '.join(conditions)}"
            " ORDER BY class, ifnull(name, ''), id LIMIT ?",
            [*parameters, query.limit],
        )
        return [
            DirectoryEntry(
                num=row[0],
                row=_row(row[1:7]),
                size_bytes=row[8] + (self._keeper.size_bytes(row[1]) if row[10] else 0),
                alarm_at_ms=row[9],
            )
            for row in rows
            if _intact("object", [row[:8]])
        ]

    async def _status(self) -> ShardStatus:
        pages, page_bytes, rows, objects, alarms = (
            await self._all(
                "SELECT (SELECT page_count FROM pragma_page_count),"
                " (SELECT page_size FROM pragma_page_size),"
                " (SELECT count(*) FROM log), (SELECT count(*) FROM object),"
                " (SELECT count(*) FROM alarm)"
            )
        )[0]
        wal = Path(self._options.path + "-wal")
        return ShardStatus(
            database_bytes=pages * page_bytes,
            wal_bytes=wal.stat().st_size if wal.exists() else 0,
            log_rows=rows,
            objects=objects,
            alarms=alarms,
            checkpoints=self._checkpoints,
            folds=self._folds,
        )


def _ballast_of(options: ShardOptions) -> Ballast:
    # Whoever brings a disk of their own does not want a file on this one.
    size_bytes = options.ballast_bytes if options.uri is None else 0
    return Ballast(Path(options.path).absolute().parent, size_bytes)


def _row(columns: Any) -> ObjectRow:
    raw, object_class, name, created_at_ms, used_at_ms, attributes = columns
    return ObjectRow(
        id=raw,
        object_class=object_class,
        name=name,
        created_at_ms=created_at_ms,
        used_at_ms=used_at_ms,
        attributes=msgspec.json.decode(attributes, type=dict[str, str]),
    )


class _Hydrating:
    """What is loaded of one object: all of it, or so much as there is room for."""

    __slots__ = (
        "count",
        "digest",
        "left_out",
        "room_bytes",
        "room_keys",
        "rows",
        "total",
    )

    def __init__(self, bytes_max: int) -> None:
        self.room_bytes = bytes_max
        self.room_keys = HYDRATE_KEYS_MAX
        self.count = self.total = 0  # of the keys that were seen
        self.digest = (0, 0)  # what they are to be
        # None: a large value, yet to be read or left on disk.
        self.rows: dict[str, tuple[bytes | None, int]] = {}
        self.left_out: list[int] = []  # the rowids of those yet to be read

    def add(
        self,
        key: str | None,
        value: bytes | None,
        crc: int,
        size_bytes: int,
        rowid: int,
    ) -> None:
        """Take the next row, unless there is no more room; the last is the digest."""
        if key is None:
            self.digest = (size_bytes, crc)
            return
        self.count += 1
        self.total += crc
        self.room_keys -= 1
        is_left_on_disk = size_bytes > HYDRATE_VALUE_BYTES_MAX
        self.room_bytes -= len(key) + ENTRY_BYTES
        self.room_bytes -= 0 if is_left_on_disk else size_bytes
        if self.room_keys < 0 or self.room_bytes < 0:
            return
        self.rows[key] = (None if is_left_on_disk else value, crc)
        if value is None and not is_left_on_disk:
            self.left_out.append(rowid)


def _damage(head: Any, found: _Hydrating) -> str:
    """Return what of an object's own rows is not as it was written."""
    num = head[0]
    object_crc, alarm_crc, database_crc, restore_crc = head[15:19]
    if object_crc != fields_crc(*head[:7]):
        return "its row in the directory"
    if head[7] is not None and alarm_crc != fields_crc(num, *head[7:11]):
        return "its alarm"
    if head[11] is not None and database_crc != fields_crc(num, *head[11:14]):
        return "where its database ends"
    if head[14] is not None and restore_crc != fields_crc(num, head[14]):
        return "what its database is to be restored to"
    is_all = found.room_keys >= 0 and found.room_bytes >= 0
    if is_all and found.digest != (found.count, found.total):
        return f"the number or the sum of its keys ({found.digest[0]} expected)"
    return ""


def _loaded(head: Any, found: _Hydrating) -> Loaded:
    num = head[0]
    if damage := _damage(head, found):
        return Loaded(num=num, damage=damage)
    alarm = AlarmRow(*head[7:11]) if head[7] is not None else None
    complete = found.room_keys >= 0 and found.room_bytes >= 0
    keys: dict[str, bytes] = {}
    for key, (value, crc) in found.rows.items():
        if value is None:
            complete = False
        elif value_crc(num, key, value) != crc:
            return Loaded(num=num, row=_row(head[1:7]), damage=f"key {key!r}")
        else:
            keys[key] = value
    return Loaded(
        num=num,
        row=_row(head[1:7]),
        alarm=alarm,
        complete=complete,
        keys=keys,
        position=None if head[11] is None else WalPosition(*head[11:14]),
        restore=head[14] or "",
    )


def _checked(num: int, rows: Rows) -> list[tuple[str, bytes]]:
    for key, value, crc in rows:
        try:
            is_whole = value_crc(num, key, value) == crc
        except _NOT_AS_WRITTEN:
            is_whole = False
        if not is_whole:
            message = f"object number {num}, key {key!r}: the checksum does not match"
            raise CorruptionError(message)
    return [(key, value) for key, value, _ in rows]


def _intact(table: str, rows: Rows) -> Rows:
    """Return rows without their checksum, those left out where it does not match."""
    kept = [row[:-1] for row in rows if row[-1] == fields_crc(*row[:-1])]
    if len(kept) < len(rows):
        log.error("storage.damaged_rows", table=table, rows=len(rows) - len(kept))
    return kept


def _note(**values: int) -> Statement:
    """Return the statement that notes numbers in `meta`."""
    marks = ", ".join(["(?, ?, ?)"] * len(values))
    parameters: list[Any] = []
    for key, value in values.items():
        parameters += (key, value, fields_crc(key, value))
    sql = (
        f"INSERT INTO meta VALUES {marks} ON CONFLICT (key) DO UPDATE SET"
        " value = excluded.value, crc = excluded.crc"
    )
    return sql, parameters


def _any_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _wal_bytes(parameters: list[Any], returned: int) -> int:
    """Estimate what a statement adds to the WAL: its values, and the pages of rows."""
    values = sum(len(item) for item in parameters if isinstance(item, bytes | str))
    rows = len(parameters) // 4 + returned
    return values + _PAGE_BYTES * (2 + rows)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY


def _translate(
    operation: str, error: sqlite3.Error
) -> StorageFullError | StorageFailedError:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if _code(error) == sqlite3.SQLITE_FULL:
        return StorageFullError(operation, "the disk is full; free some space")
    return StorageFailedError(operation, f"{name}: {error}")
