"""Letting a damaged object be served again, with what of it can be read.

For after a look: a backup is better. What does not match its checksum is taken out of
the object and written to `released-*.jsonl` in the data directory, so nothing is lost
that somebody could still make something of. Pages of a database are taken as they are.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from durable_actor.errors import ConfigError
from durable_actor.maintenance.copies import Progress, no_progress, run_apart, settle
from durable_actor.maintenance.inspection import Damage, damages
from durable_actor.storage.integrity import fields_crc, sync_directory, value_crc
from durable_actor.storage.sql.files import database_path
from durable_actor.storage.sql.sums import Sums, sums_of, sums_path, write_sums
from durable_actor.storage.sql.wal import wal_path
from durable_actor.storage.store import SHARD_NAME


def quarantined(
    directory: Path, progress: Progress = no_progress
) -> dict[str, list[Damage]]:
    """Return the objects of a locked data directory that are refused, and why."""
    found: dict[str, list[Damage]] = {}
    for damage in damages(directory, progress):
        if damage.object_id:
            found.setdefault(damage.object_id, []).append(damage)
    return found


def release(directory: Path, object_id: str) -> int:
    """Let an object of a locked data directory be served with what can be read.

    Returns:
        How many rows were taken out; they are in `released-<id>.jsonl`.

    Raises:
        ConfigError: There is no such object, or nothing of it is damaged.
        StorageError: The shard itself is damaged; restore a backup.
    """
    if object_id not in quarantined(directory):
        message = f"{object_id} is not the id of an object that is refused"
        raise ConfigError(message)
    run_apart(settle(directory))  # what the log still has, comes into the tables first
    path = directory / SHARD_NAME
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(
            "SELECT num FROM object WHERE id = ?", [bytes.fromhex(object_id)]
        ).fetchall()
        if not rows:
            message = f"the directory has no row for {object_id}; restore a backup"
            raise ConfigError(message)
        num = rows[0][0]
        taken = _take_out(db, num)
        if taken:
            _keep(directory, object_id, taken)
        _sum_up(db, num)
        position = db.execute(
            "SELECT generation, wal_end FROM database WHERE object = ?"
            " AND generation NOTNULL",
            [num],
        ).fetchall()
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if position:
        _accept_pages(directory, bytes.fromhex(object_id), *position[0])
    return len(taken)


def _take_out(db: sqlite3.Connection, num: int) -> list[dict[str, Any]]:
    """Remove what does not match its checksum, and return it."""
    taken: list[dict[str, Any]] = []
    keys = db.execute(
        "SELECT rowid, key, value, crc FROM kv WHERE object = ?", [num]
    ).fetchall()
    for rowid, key, value, crc in keys:
        if value_crc(num, key, value) != crc:
            raw = base64.b64encode(value).decode()
            taken.append({"table": "kv", "key": key, "raw": raw, "crc": crc})
            db.execute("DELETE FROM kv WHERE rowid = ?", [rowid])
    for table, fields in (
        ("alarm", "object, due_at_ms, scheduled_at_ms, retries, counted"),
        ("reply", "object, request, reply, expires_at_ms"),
    ):
        rows = db.execute(
            f"SELECT rowid, crc, {fields} FROM {table} WHERE object = ?",  # noqa: S608  # constants
            [num],
        ).fetchall()
        for rowid, crc, *row in rows:
            if fields_crc(*row) != crc:
                taken.append({"table": table, "row": [repr(one) for one in row]})
                db.execute(f"DELETE FROM {table} WHERE rowid = ?", [rowid])  # noqa: S608  # a constant
    return taken


def _sum_up(db: sqlite3.Connection, num: int) -> None:
    """Take what is there for what should be there: the digest, and the own row."""
    db.execute("DELETE FROM digest WHERE object = ?", [num])
    db.execute(
        "INSERT INTO digest SELECT object, count(*), sum(crc) FROM kv WHERE object = ?"
        " GROUP BY object",
        [num],
    )
    (row,) = db.execute(
        "SELECT num, id, class, name, created_at_ms, used_at_ms, attributes"
        " FROM object WHERE num = ?",
        [num],
    )
    db.execute("UPDATE object SET crc = ? WHERE num = ?", [fields_crc(*row), num])


def _keep(directory: Path, object_id: str, taken: list[dict[str, Any]]) -> None:
    path = directory / f"released-{object_id}.jsonl"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "a") as file:
        for row in taken:
            file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def _accept_pages(directory: Path, raw_id: bytes, generation: bytes, end: int) -> None:
    """Take the pages of a database as they are, with or without its WAL."""
    path = database_path(directory, raw_id)
    if not path.exists():
        return
    if wal_path(path).exists():
        generation, end = bytes(8), 0
    sums_path(path).unlink(missing_ok=True)
    write_sums(path, Sums(generation, end, sums_of(path)))
