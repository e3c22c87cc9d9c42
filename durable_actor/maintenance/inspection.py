"""Looking for damage: every row, every sum, every page of a settled copy.

What the shard finds when it opens the copy is a finding as well.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable_actor.errors import DurableActorError
from durable_actor.maintenance.copies import (
    NOT_AS_WRITTEN,
    Progress,
    database_of,
    no_progress,
    settled_copy,
    tables_of,
)
from durable_actor.storage.integrity import fields_crc, value_crc
from durable_actor.storage.schema import TABLES
from durable_actor.storage.sql.files import database_path
from durable_actor.storage.sql.history import History
from durable_actor.storage.sql.wal import WalPosition

_FIELDS = {
    "object": "num, id, class, name, created_at_ms, used_at_ms, attributes, crc",
    "alarm": "object, due_at_ms, scheduled_at_ms, retries, counted, crc",
    "outbox": "seq, id, class, event, crc",
    "reply": "object, request, reply, expires_at_ms, crc",
}
_MESSAGES_MAX = 5  # of SQLite's own check


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is not as it was written; `object_id` if it is one object's."""

    check: str
    detail: str
    object_id: str = ""


def damages(directory: Path, progress: Progress = no_progress) -> list[Damage]:
    """Return all damage in a data directory that is locked. Changes nothing in it."""
    found: list[Damage] = []
    try:
        with settled_copy(directory, progress) as copy:
            try:
                found += _shard(copy, progress)
            except NOT_AS_WRITTEN as error:
                found.append(Damage(check="shard.readable", detail=repr(error)))
            found = [_named(damage, copy, directory) for damage in found]
    except DurableActorError as error:
        found.append(Damage(check="shard.opens", detail=str(error)))
    except NOT_AS_WRITTEN as error:
        found.append(Damage(check="shard.opens", detail=repr(error)))
    return found


def _named(damage: Damage, copy: Path, directory: Path) -> Damage:
    detail = damage.detail.replace(str(copy), str(directory))
    return Damage(check=damage.check, detail=detail, object_id=damage.object_id)


def _shard(copy: Path, progress: Progress) -> Iterator[Damage]:
    with tables_of(copy) as db:
        for (line,) in db.execute(f"PRAGMA integrity_check({_MESSAGES_MAX})"):
            if line != "ok":
                yield Damage(check="shard.structure", detail=line)
        ids = {num: raw.hex() for num, raw in db.execute("SELECT num, id FROM object")}
        digests: dict[int, tuple[int, int]] = {}
        for num, rows, total in db.execute("SELECT object, rows, total FROM digest"):
            digests[num] = (rows, total)
        yield from _keys(db, ids, digests)
        for table, number in TABLES.items():
            progress("check", -number, len(TABLES))
            yield from _table(db, table, digests.pop(number, (0, 0)), ids)
        for num, digest in digests.items():
            if digest != (0, 0):
                yield _lost(ids.get(num, ""), num, digest)
        positions = db.execute(
            "SELECT o.id, d.generation, d.wal_end, d.wal_crc FROM database d"
            " JOIN object o ON o.num = d.object WHERE d.generation NOTNULL"
        ).fetchall()
    for raw_id, *place in positions:
        yield from _database(copy, raw_id, WalPosition(*place))


def _keys(
    db: sqlite3.Connection,
    ids: dict[int, str],
    digests: dict[int, tuple[int, int]],
) -> Iterator[Damage]:
    seen: dict[int, tuple[int, int]] = {}
    # By rowid: an index that lost an entry must not hide the row.
    for num, key, value, crc in db.execute(
        "SELECT object, key, value, crc FROM kv NOT INDEXED ORDER BY rowid"
    ):
        count, total = seen.get(num, (0, 0))
        seen[num] = (count + 1, total + crc)
        if value_crc(num, key, value) != crc:
            detail = f"object number {num}, key {key!r}: the checksum does not match"
            yield Damage(check="object.key", detail=detail, object_id=ids.get(num, ""))
    for num, found in seen.items():
        if num not in ids:
            detail = f"object number {num} has keys and no row in the directory"
            yield Damage(check="object.row", detail=detail)
        if digests.pop(num, (0, 0)) != found:
            yield _lost(ids.get(num, ""), num, found)


def _lost(object_id: str, num: int, found: tuple[int, int]) -> Damage:
    detail = f"object number {num}: {found[0]} keys do not add up to its digest"
    return Damage(check="object.digest", detail=detail, object_id=object_id)


def _table(
    db: sqlite3.Connection, table: str, digest: tuple[int, int], ids: dict[int, str]
) -> Iterator[Damage]:
    count = total = 0
    for row in db.execute(_select(table)):
        count += 1
        crc, is_whole = _row_crc(table, row)
        total += crc
        if not is_whole:
            owner = "" if table == "outbox" else ids.get(row[0], "")
            detail = f"table {table}, row {row[0]}: the checksum does not match"
            yield Damage(check=f"{table}.row", detail=detail, object_id=owner)
        if table != "outbox" and row[0] not in ids:
            detail = f"table {table}: there is no object number {row[0]}"
            yield Damage(check=f"{table}.row", detail=detail)
    if (count, total) != digest:
        detail = f"table {table}: {count} rows do not add up to its digest"
        yield Damage(check=f"{table}.digest", detail=detail)


def _select(table: str) -> str:
    fields = "object, generation, wal_end, wal_crc, crc, restore, restore_crc"
    return f"SELECT {_FIELDS.get(table, fields)} FROM {table} NOT INDEXED"  # noqa: S608  # of constants


def _row_crc(table: str, row: Any) -> tuple[int, bool]:
    """Return what a row adds to the sum, and whether its checksums match."""
    if table != "database":
        return row[-1], row[-1] == fields_crc(*row[:-1])
    num, generation, end, wal_crc, crc, restore, restore_crc = row
    is_whole = (
        crc is None
        if generation is None
        else crc == fields_crc(num, generation, end, wal_crc)
    ) and (
        restore_crc is None
        if restore is None
        else restore_crc == fields_crc(num, restore)
    )
    return (crc or 0) + (restore_crc or 0), is_whole


def _database(copy: Path, raw_id: bytes, position: WalPosition) -> Iterator[Damage]:
    object_id = raw_id.hex()
    try:
        with database_of(copy, raw_id, position) as db:
            for (line,) in db.execute(f"PRAGMA integrity_check({_MESSAGES_MAX})"):
                if line != "ok":
                    yield Damage(check="database.structure", detail=line)
            yield from _database_keys(db, object_id)
    except DurableActorError as error:
        yield Damage(check="database.opens", detail=str(error), object_id=object_id)
    except (*NOT_AS_WRITTEN, OSError) as error:
        yield Damage(check="database.opens", detail=repr(error), object_id=object_id)
    yield from _history(database_path(copy, raw_id), object_id)


def _database_keys(db: sqlite3.Connection, object_id: str) -> Iterator[Damage]:
    found = db.execute("SELECT 1 FROM sqlite_schema WHERE name = '_cf_KV'").fetchall()
    if not found:
        return
    salt = int(object_id[:8], 16)
    for key, value, crc in db.execute("SELECT key, value, crc FROM _cf_KV"):
        if value_crc(salt, key, value) != crc:
            detail = f"key {key!r}: the checksum does not match"
            yield Damage(check="object.key", detail=detail, object_id=object_id)


def _history(path: Path, object_id: str) -> Iterator[Damage]:
    try:
        problem = History(path).problem()  # after a fold: nothing is half written
    except (DurableActorError, OSError) as error:
        problem = str(error)
    if problem:
        yield Damage(check="database.history", detail=problem, object_id=object_id)
