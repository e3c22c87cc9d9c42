"""Shards for tests: small files, seals made by hand, and a look at the file itself."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from durable_actor.storage.batch import AlarmRow, ObjectRow, Seal, encode_batch
from durable_actor.storage.ports import Group, Loaded, LoadObjects, ShardOptions
from durable_actor.storage.shard import Shard
from durable_actor.storage.store import SHARD_NAME

WAL_GROW_BYTES = 64 * 1024  # opening writes this much, so tests keep it small


def shard_options(directory: Path, **changes: Any) -> ShardOptions:
    """Return how to open the shard of a directory, with a small WAL."""
    chosen: dict[str, Any] = {"wal_grow_bytes": WAL_GROW_BYTES, **changes}
    return ShardOptions(path=str(directory / SHARD_NAME), **chosen)


@asynccontextmanager
async def open_shard(directory: Path, **changes: Any) -> AsyncIterator[Shard]:
    """Open a shard; dropped at the end, unless the test has closed it."""
    shard = await Shard.open(shard_options(directory, **changes))
    try:
        yield shard
    finally:
        await shard.drop()


def raw_id(number: int) -> bytes:
    """Return the id of the object with this number."""
    return number.to_bytes(32, "big")


def object_row(num: int, *, name: str | None = None, **attributes: str) -> ObjectRow:
    """Return a directory row."""
    return ObjectRow(
        id=raw_id(num),
        object_class="Thing",
        name=name if name is not None else f"thing {num}",
        created_at_ms=1,
        used_at_ms=2,
        attributes=attributes,
    )


def seal_of(
    num: int,
    keys: Mapping[str, bytes | None],
    *,
    alarm_at_ms: int | None = None,
    **rest: Any,
) -> Seal:
    """Return one turn of an object; every turn brings the directory row too."""
    if alarm_at_ms is not None:
        rest["alarm"] = AlarmRow(alarm_at_ms, alarm_at_ms)
    return Seal(num=num, keys=dict(keys), row=object_row(num), **rest)


def group_of(first_ticket: int, *seals: Seal) -> Group:
    """Return the group with these seals, one ticket each."""
    return Group(first_ticket, first_ticket + len(seals) - 1, encode_batch(seals))


async def load_one(shard: Any, num: int) -> Loaded:
    """Return one object as the tables have it."""
    (loaded,) = await shard.read(LoadObjects([raw_id(num)]))
    assert isinstance(loaded, Loaded)
    return loaded


def change_file(directory: Path, *statements: tuple[str, Iterable[Any]]) -> None:
    """Write into a closed shard behind its back."""
    with closing(sqlite3.connect(directory / SHARD_NAME)) as db, db:
        for sql, parameters in statements:
            changed = db.execute(sql, list(parameters))
            assert changed.rowcount != 0, f"nothing to change for {sql}"


def change_format(directory: Path, number: int) -> None:
    """Let a closed shard say that it has another format."""
    sql = "UPDATE meta SET value = ? WHERE key = 'format'"
    change_file(directory, (sql, [number]))


def rows_of(directory: Path, sql: str) -> list[Any]:
    """Read a closed shard behind its back."""
    with closing(sqlite3.connect(directory / SHARD_NAME)) as db:
        return db.execute(sql).fetchall()


def fill_disk(directory: Path, *, free_blocks: int) -> Path:
    """Leave so little free of a file system; without this file there is room again."""
    ballast = directory / "ballast"
    free = os.statvfs(directory)
    ballast.write_bytes(bytes((free.f_bavail - free_blocks) * free.f_bsize))
    return ballast
