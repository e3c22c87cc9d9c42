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
from collections.abc import Callable
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
from durable_actor.storage.batch import AlarmRow, EventRow, ObjectRow, ReplyRow
from durable_actor.storage.database_keeper import Keeper
from durable_actor.storage.fold import CHUNK_ROWS_MAX, Merged, Statement, chunks
from durable_actor.storage.integrity import row_crc, value_crc
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
from durable_actor.storage.schema import CREATE, FORMAT
from durable_actor.storage.sql.wal import WalPosition

A = TypeVar("A")
T = TypeVar("T")
Rows = list[Any]

HYDRATE_KEYS_MAX = 512  # an object with more keys loads on demand
HYDRATE_VALUE_BYTES_MAX = 16 * 1024  # so does one with a larger value
# Larger values are read in a second step, when it is known that there is room for them.
_INLINE_BYTES_MAX = 1024
_PAGE_INLINE_BYTES_MAX = 4 * 1024
_LOAD_OBJECTS_MAX = 100  # objects to a statement; SQLite joins at most 500 selects
_LOAD_VALUES_MAX = 10_000  # to a statement, too: SQLite takes at most 32,766 parameters
_PAGE_BYTES = 4096
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PRIMARY = 0xFF  # of an extended error code, the part that says which error it is
_GROWTH_SEQ = -1  # the row of the log that is there only to make the WAL grow
_NOTE_FOLDED = (
    "INSERT OR REPLACE INTO meta VALUES ('folded_seq', ?), ('folded_ticket', ?),"
    " ('last_num', ?), ('last_event', ?)"
)


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
        # Invariant: all rows of the log, oldest first.
        self._unfolded: list[Group] = []
        self._seq = 0
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

        Raises:
            DataDirectoryInUseError: Another connection holds the file.
            FormatTooNewError: Written by a later release; untouched.
            StorageFailedError: Damaged, or an I/O error.
        """
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
        return shard

    async def commit(self, group: Group) -> None:
        """Append the group to the log and sync; see `ShardDriver.commit`."""
        crc = row_crc(group.first_ticket, group.last_ticket, group.batch)
        async with self._write:
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
                raise _translate("commit", error) from error
            failpoint("commit.after")
            self._seq += 1
            self._last_ticket = group.last_ticket
            self._unfolded.append(group)
            self._wal_bytes += len(group.batch) + 3 * _PAGE_BYTES
        await self._keep_wal_within(self._options.wal_bytes_max)

    async def fold(self) -> None:
        """Bring every group committed so far into the tables, in bounded chunks."""
        async with self._folding:
            await self._fold()

    async def _fold(self, *, is_start: bool = False) -> None:
        groups = list(self._unfolded)
        if not groups:
            return
        last_seq, last_ticket = self._seq, self._last_ticket
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
                (
                    _NOTE_FOLDED,
                    [last_seq, last_ticket, self._last_num, self._last_event],
                ),
            ]
        )
        del self._unfolded[: len(groups)]
        self._folds += 1
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
            raise _translate("read", error) from error

    async def close(self) -> None:
        """Fold, checkpoint and close. The file then needs nothing beside it."""
        try:
            await self.fold()
            await self._checkpoint()
        finally:
            await self.drop()

    async def drop(self) -> None:
        """Close without folding, as after a failure."""
        self._is_closed = True
        if self._at_work:
            await asyncio.wait(self._at_work)
        await self._db.close()

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
        for statement in CREATE:
            await self._all(statement)
        await self._replay()
        epoch = await self._meta("epoch") + 1
        await self._all(
            "INSERT OR REPLACE INTO meta VALUES ('epoch', ?), ('format', ?)",
            [epoch, FORMAT],
        )
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
        tables = await self._all(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'meta'"
        )
        found = await self._meta("format") if tables[0][0] else FORMAT
        if found > FORMAT:
            message = (
                f"{self._options.path} has format {found}, this release reads up to"
                f" {FORMAT}. Use the release that wrote it; nothing was changed."
            )
            raise FormatTooNewError(message)

    async def _replay(self) -> None:
        """Check the log from end to end and fold it."""
        self._seq = await self._meta("folded_seq")
        self._last_ticket = await self._meta("folded_ticket")
        self._last_num = await self._meta("last_num")
        self._last_event = await self._meta("last_event")
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
            self._seq, self._last_ticket = seq, last_ticket
            self._unfolded.append(Group(first_ticket, last_ticket, batch))
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
            try:
                rows = await self._all("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                raise _translate("checkpoint", error) from error
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
            try:
                await self._all("BEGIN IMMEDIATE")
                for sql, parameters in statements:
                    rows = await self._all(sql, parameters)
                    returned += len(rows)
                    self._wal_bytes += _wal_bytes(parameters, len(rows))
                await self._all("COMMIT")
            except sqlite3.Error as error:
                await self._roll_back()
                raise _translate("fold", error) from error
            except BaseException:
                # Cancelled. A transaction left open would swallow the next commit.
                await self._roll_back()
                raise
        return returned

    async def _roll_back(self) -> None:
        # It may have ended by itself, or with the connection.
        with contextlib.suppress(sqlite3.Error, StorageFailedError):
            await self._all("ROLLBACK")

    async def _all(self, sql: str, parameters: list[Any] | None = None) -> Rows:
        if self._is_closed:
            raise StorageFailedError("use", "the shard is closed")
        return cast("Rows", await self._db.execute_fetchall(sql, parameters or ()))

    async def _meta(self, key: str) -> int:
        rows = await self._all("SELECT value FROM meta WHERE key = ?", [key])
        return int(rows[0][0]) if rows else 0

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
                    "SELECT seq, id, class, event FROM outbox WHERE seq > ?"
                    " ORDER BY seq LIMIT ?",
                    [after, limit],
                )
                return [EventRow(*row) for row in rows]
            case ReadReplies(num=num):
                rows = await self._all(
                    "SELECT request, reply, expires_at_ms FROM reply WHERE object = ?"
                    " ORDER BY expires_at_ms",
                    [num],
                )
                return [ReplyRow(*row) for row in rows]
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
            found |= await self._load_some(ids[start : start + _LOAD_OBJECTS_MAX])
        return [found.get(raw) or Loaded() for raw in ids]

    async def _load_some(self, ids: list[bytes]) -> dict[bytes, Loaded]:
        marks = ",".join("?" * len(ids))
        heads = await self._all(
            "SELECT o.num, o.id, o.class, o.name, o.created_at_ms, o.used_at_ms,"
            " o.attributes, a.due_at_ms, a.scheduled_at_ms, a.retries, a.counted,"
            " d.generation, d.wal_end, d.wal_crc, d.restore"
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
        )
        rows = await self._all(
            " UNION ALL ".join([one] * len(heads)), [head[0] for head in heads]
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
            "SELECT num, id, class, name, created_at_ms, used_at_ms, attributes,"
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
                size_bytes=row[7] + (self._keeper.size_bytes(row[1]) if row[9] else 0),
                alarm_at_ms=row[8],
            )
            for row in rows
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

    __slots__ = ("left_out", "room_bytes", "room_keys", "rows")

    def __init__(self, bytes_max: int) -> None:
        self.room_bytes = bytes_max
        self.room_keys = HYDRATE_KEYS_MAX
        # None: a large value, yet to be read or left on disk.
        self.rows: dict[str, tuple[bytes | None, int]] = {}
        self.left_out: list[int] = []  # the rowids of those yet to be read

    def add(
        self, key: str, value: bytes | None, crc: int, size_bytes: int, rowid: int
    ) -> None:
        """Take the next row, unless there is no more room."""
        self.room_keys -= 1
        is_left_on_disk = size_bytes > HYDRATE_VALUE_BYTES_MAX
        self.room_bytes -= len(key) + ENTRY_BYTES
        self.room_bytes -= 0 if is_left_on_disk else size_bytes
        if self.room_keys < 0 or self.room_bytes < 0:
            return
        self.rows[key] = (None if is_left_on_disk else value, crc)
        if value is None and not is_left_on_disk:
            self.left_out.append(rowid)


def _loaded(head: Any, found: _Hydrating) -> Loaded:
    num = head[0]
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
        if value_crc(num, key, value) != crc:
            message = f"object number {num}, key {key!r}: the checksum does not match"
            raise CorruptionError(message)
    return [(key, value) for key, value, _ in rows]


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
