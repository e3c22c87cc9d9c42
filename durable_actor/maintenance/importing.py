"""From the lines of an export to a data directory.

The directory is made beside its place, inside it, and moved there when it is whole: an
import that breaks off leaves nothing that a host would open.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from durable_actor.errors import ConfigError, DecodeError
from durable_actor.maintenance.copies import (
    SCRATCH_PREFIX,
    Progress,
    data_files,
    no_progress,
    run_apart,
)
from durable_actor.maintenance.export import EXPORT_VERSION
from durable_actor.storage.batch import (
    AlarmRow,
    DatabaseTurn,
    EventRow,
    ObjectRow,
    ReplyRow,
    Seal,
    encode_batch,
)
from durable_actor.storage.integrity import (
    DirectoryLock,
    prepare_directory,
    sync_directory,
)
from durable_actor.storage.ports import Group, ShardOptions
from durable_actor.storage.shard import Shard
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import database_path
from durable_actor.storage.sql.statements import SqlLimits
from durable_actor.storage.store import SHARD_NAME

_SEAL_LINES_MAX = 500  # of one object in one row of the log
_FOLD_OBJECTS = 100  # what is not folded is in memory
_LIMITS = SqlLimits(
    turn_bytes_max=1 << 40, database_bytes_max=1 << 40, statement_ms_max=86_400_000
)


def import_lines(
    directory: Path, lines: Iterable[str], progress: Progress = no_progress
) -> int:
    """Make a data directory of the lines of an export; return how many objects.

    Raises:
        ConfigError: The directory holds data already, or cannot be used.
        DataDirectoryInUseError: A daemon, or another tool, has it.
        DecodeError: A line is none of an export; nothing is left behind.
        StorageError: The disk is full, or failed; nothing is left behind.
    """
    prepare_directory(directory)
    lock = DirectoryLock(directory)
    try:
        check_empty(directory)
        with tempfile.TemporaryDirectory(
            prefix=SCRATCH_PREFIX, dir=directory
        ) as scratch:
            copy = Path(scratch)
            count = run_apart(_Import(copy, progress).run(_parsed(lines)))
            move_in(copy, directory)
    finally:
        lock.release()
    return count


def check_empty(directory: Path) -> None:
    """Refuse a directory that holds data: nothing is ever replaced.

    Raises:
        ConfigError: There is some.
    """
    if found := data_files(directory):
        message = (
            f"{directory} holds data already ({found[0]}); name an empty directory,"
            " or move it away first"
        )
        raise ConfigError(message)


def move_in(copy: Path, directory: Path) -> None:
    """Move a whole data directory to where a host finds it, the shard last."""
    files = data_files(copy)
    files.sort(key=lambda name: name.name == SHARD_NAME)
    folders = {directory}
    for name in files:
        place = directory / name
        for folder in (place.parent.parent, place.parent):
            if folder.is_relative_to(directory):
                folder.mkdir(mode=0o700, exist_ok=True)
                folders.add(folder)
        (copy / name).rename(place)
    for folder in folders:
        sync_directory(folder)


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    version = None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DecodeError(f"line {number} is no JSON: {error}") from error
        if number == 1:
            version = line.get("export") if isinstance(line, dict) else None
            if version != EXPORT_VERSION:
                message = f"line 1 names no export of version {EXPORT_VERSION}"
                raise DecodeError(message)
            continue
        if not isinstance(line, dict) or not {"class", "id"} <= line.keys():
            raise DecodeError(f"line {number} names no object")
        yield line
    if version is None:
        raise DecodeError("there are no lines")


class _Import:
    """One import on its way."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self._directory = directory
        self._progress = progress
        self._ticket = 0
        self._num = 0
        self._event = 0
        self._shard: Shard

    async def run(self, lines: Iterator[dict[str, Any]]) -> int:
        path = str(self._directory / SHARD_NAME)
        self._shard = await Shard.open(ShardOptions(path=path, wal_grow_bytes=0))
        try:
            for _, group in groupby(lines, lambda line: (line["class"], line["id"])):
                try:
                    await self._object(group)
                except (KeyError, TypeError, ValueError) as error:
                    message = f"object {self._num + 1}: {error!r}"
                    raise DecodeError(message) from error
                self._progress("import", self._num, self._num)
            await self._shard.close()
        except BaseException:
            await self._shard.drop()
            raise
        return self._num

    async def _object(self, lines: Iterator[dict[str, Any]]) -> None:
        self._num += 1
        head = next(lines)
        raw_id = bytes.fromhex(head["id"])
        row = ObjectRow(
            id=raw_id,
            object_class=head["class"],
            name=head["name"],
            created_at_ms=head["created_at_ms"],
            used_at_ms=head["used_at_ms"],
            attributes=head["attributes"],
        )
        alarm = None if head["alarm"] is None else AlarmRow(**head["alarm"])
        own = None
        if head.get("database"):
            path = database_path(self._directory, raw_id)
            own = _Own(Database.open(path, None, _LIMITS))
        try:
            await self._commit(Seal(num=self._num, row=row, alarm=alarm))
            part: list[dict[str, Any]] = []
            for line in lines:
                part.append(line)
                if len(part) == _SEAL_LINES_MAX:
                    await self._commit(self._seal(row, part, own))
                    part = []
            if part:
                await self._commit(self._seal(row, part, own))
            if own is not None:
                await self._commit(self._seal(row, own.finish(), own))
            if own is not None or self._num % _FOLD_OBJECTS == 0:
                await self._shard.fold()
        finally:
            if own is not None:
                own.database.close(own.database.position)

    async def _commit(self, seal: Seal) -> None:
        self._ticket += 1
        await self._shard.commit(
            Group(self._ticket, self._ticket, encode_batch([seal]))
        )

    def _seal(
        self, row: ObjectRow, lines: list[dict[str, Any]], own: _Own | None
    ) -> Seal:
        keys: dict[str, bytes | None] = {}
        replies: list[ReplyRow] = []
        events: list[EventRow] = []
        for line in lines:
            if "key" in line:
                keys[line["key"]] = base64.b64decode(line["raw"])
            elif "reply" in line:
                raw = base64.b64decode(line["raw"])
                replies.append(ReplyRow(line["reply"], raw, line["expires_at_ms"]))
            elif "event" in line:
                self._event += 1
                raw = base64.b64decode(line["raw"])
                events.append(EventRow(self._event, row.id, row.object_class, raw))
            elif own is not None:
                own.take(line)
            else:
                message = f"a line with {', '.join(line)} is not understood"
                raise DecodeError(message)
        turn = None
        if own is not None:
            if keys:
                own.database.write_keys(keys)
                keys = {}
            segment = own.database.commit()
            turn = DatabaseTurn(row.id, row.used_at_ms, segment)
        return Seal(
            num=self._num,
            keys=keys,
            replies=tuple(replies),
            events=tuple(events),
            database=turn,
        )


class _Own:
    """The database of one object, while it is filled."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._later: list[dict[str, Any]] = []

    def take(self, line: dict[str, Any]) -> None:
        """Make a table, or put a row into it; what watches rows comes at the end."""
        database = self.database
        if "schema" in line:
            if line["type"] != "table":
                self._later.append(line)
            else:
                database.begin()
                database.run_trusted(line["schema"])
        elif "table" in line:
            database.begin()
            self._insert(line)
        else:
            message = f"a line with {', '.join(line)} is not understood"
            raise DecodeError(message)

    def finish(self) -> list[dict[str, Any]]:
        """Make the indexes, views and triggers; nothing is left to take."""
        for line in self._later:
            self.database.begin()
            self.database.run_trusted(line["schema"])
        return []

    def _insert(self, line: dict[str, Any]) -> None:
        table, rowid = line["table"], line["rowid"]
        names, values = list(line["row"]), [_sql(v) for v in line["row"].values()]
        if rowid is not None and not {"rowid"} & {name.lower() for name in names}:
            names, values = ["rowid", *names], [rowid, *values]
        if table == "sqlite_sequence":
            self.database.run_trusted(
                "DELETE FROM sqlite_sequence WHERE name = ?", [line["row"]["name"]]
            )
        columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
        quoted = '"' + table.replace('"', '""') + '"'
        marks = ", ".join("?" * len(values))
        sql = f"INSERT INTO {quoted} ({columns}) VALUES ({marks})"  # noqa: S608  # quoted
        self.database.run_trusted(sql, values)


def _sql(value: Any) -> Any:
    if isinstance(value, dict):
        if "base64" in value:
            return base64.b64decode(value["base64"])
        return float.fromhex(value["float"])
    return value
