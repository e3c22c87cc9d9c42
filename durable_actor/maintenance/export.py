"""A data directory as lines of JSON, sorted, the same for the same data.

The first line says which release wrote it. Then follow the objects in order of class,
name and id; each has a line for itself, with its alarm, and behind it its keys, the
schema and rows of its database, its kept replies and its undelivered events. `value` is
for people, and `raw` (base64) is what `import` takes. A run of a workflow is an object;
its journal is its keys.

What is counted anew by every start (numbers of objects, epochs, tickets) is not in it,
so an export of an import is the same, byte for byte. The history of databases is not in
it either; a backup has it.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from durable_actor.codec.readable import stored_to_json
from durable_actor.errors import CorruptionError, DecodeError, DurableActorError
from durable_actor.maintenance.copies import (
    NOT_AS_WRITTEN,
    Progress,
    database_of,
    no_progress,
    settled_copy,
    tables_of,
)
from durable_actor.storage.integrity import value_crc
from durable_actor.storage.sql.wal import WalPosition

EXPORT_VERSION = 1
_KEYS_TABLE = "_cf_KV"


def export_lines(directory: Path, progress: Progress = no_progress) -> Iterator[str]:
    """Yield the lines of a data directory that is locked, each without its newline.

    Raises:
        CorruptionError: Something is damaged; run `doctor`, and restore a backup.
        StorageError: The same, or the disk failed.
    """
    try:
        yield from _lines(directory, progress)
    except DurableActorError:
        raise
    except NOT_AS_WRITTEN as error:
        raise CorruptionError(f"a row cannot be read: {error!r}") from error


def _lines(directory: Path, progress: Progress) -> Iterator[str]:
    with settled_copy(directory, progress) as copy, tables_of(copy) as db:
        yield _line({"export": EXPORT_VERSION})
        objects = db.execute(
            "SELECT num, id, class, name, created_at_ms, used_at_ms, attributes"
            " FROM object ORDER BY class, ifnull(name, ''), id"
        ).fetchall()
        for number, row in enumerate(objects):
            progress("export", number, len(objects))
            yield from _object(copy, db, row)
        progress("export", len(objects), len(objects))


def _object(copy: Path, db: sqlite3.Connection, row: Any) -> Iterator[str]:
    num, raw_id, object_class, name, created_at_ms, used_at_ms, attributes = row
    who = {"class": object_class, "id": raw_id.hex(), "name": name}
    alarms = db.execute(
        "SELECT due_at_ms, scheduled_at_ms, retries, counted FROM alarm"
        " WHERE object = ?",
        [num],
    ).fetchall()
    alarm = None
    if alarms:
        words = ("due_at_ms", "scheduled_at_ms", "retries", "counted")
        alarm = dict(zip(words, alarms[0], strict=True))
    places = db.execute(
        "SELECT generation, wal_end, wal_crc, restore FROM database WHERE object = ?",
        [num],
    ).fetchall()
    line = {
        **who,
        "created_at_ms": created_at_ms,
        "used_at_ms": used_at_ms,
        "attributes": json.loads(attributes),
        "alarm": alarm,
    }
    has_database = bool(places and places[0][0] is not None)
    if has_database:
        line["database"] = True
    yield _line(line)
    for key, value, crc in db.execute(
        "SELECT key, value, crc FROM kv WHERE object = ? ORDER BY key", [num]
    ):
        yield _line(who | _key(num, key, value, crc))
    if has_database:
        position = WalPosition(*places[0][:3])
        with database_of(copy, raw_id, position) as own:
            salt = int(raw_id.hex()[:8], 16)
            yield from (_line(who | part) for part in _database(own, salt))
    for request, reply, expires_at_ms in db.execute(
        "SELECT request, reply, expires_at_ms FROM reply WHERE object = ?"
        " ORDER BY request",
        [num],
    ):
        kept = {"reply": request, "expires_at_ms": expires_at_ms, "raw": _raw(reply)}
        yield _line(who | kept)
    for (event,) in db.execute(
        "SELECT event FROM outbox WHERE id = ? AND class = ? ORDER BY seq",
        [raw_id, object_class],
    ):
        yield _line(who | {"event": json.loads(event), "raw": _raw(event)})


def _key(num: int, key: str, value: bytes, crc: int) -> dict[str, object]:
    if value_crc(num, key, value) != crc:
        raise CorruptionError(f"key {key!r}: the checksum does not match")
    return {"key": key, "value": _readable(value), "raw": _raw(value)}


def _database(db: sqlite3.Connection, salt: int) -> Iterator[dict[str, object]]:
    schema = db.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema"
        " ORDER BY type <> 'table', rowid"  # as an import makes them
    ).fetchall()
    virtual = [
        name for _, name, _, sql in schema if sql and sql.upper().startswith(_VIRTUAL)
    ]
    for kind, name, _, sql in schema:
        if sql is None or name == _KEYS_TABLE or name.startswith("sqlite_"):
            continue
        if not _is_shadow(name, virtual):
            yield {"schema": sql, "type": kind}
    for kind, name, _, _ in schema:
        if kind != "table" or _is_shadow(name, virtual):
            continue
        if name == _KEYS_TABLE:
            for key, value, crc in db.execute(
                f"SELECT key, value, crc FROM {_KEYS_TABLE} ORDER BY key"  # noqa: S608  # a constant
            ):
                yield _key(salt, key, value, crc)
        else:
            yield from _rows(db, name)


def _rows(db: sqlite3.Connection, table: str) -> Iterator[dict[str, object]]:
    quoted = '"' + table.replace('"', '""') + '"'
    columns = [
        row[1]
        for row in db.execute(f"PRAGMA table_xinfo({quoted})")
        if row[6] == 0  # neither hidden nor generated
    ]
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    try:
        rows = db.execute(f"SELECT rowid, {names} FROM {quoted} ORDER BY rowid")  # noqa: S608  # quoted
    except sqlite3.OperationalError:  # a table without rowids
        rows = db.execute(f"SELECT NULL, {names} FROM {quoted}")  # noqa: S608  # quoted
    for rowid, *values in rows:
        yield {
            "table": table,
            "rowid": rowid,
            "row": {n: _sql(v) for n, v in zip(columns, values, strict=True)},
        }


_VIRTUAL = "CREATE VIRTUAL"


def _is_shadow(name: str, virtual: list[str]) -> bool:
    """Whether a table belongs to a virtual one, which makes it again."""
    return any(name.startswith(f"{one}_") for one in virtual)


def _sql(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": _raw(value)}
    if isinstance(value, float):
        return {"float": value.hex()}
    return value


def _raw(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _readable(value: bytes) -> object:
    try:
        return stored_to_json(value)
    except DecodeError as error:
        return {"unreadable": str(error)}


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=True, separators=(",", ":"))
