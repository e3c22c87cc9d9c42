"""A copy of a data directory, folded and closed, to be read with plain SQLite.

A shard that was not closed in order has to be folded before it can be read, and that
writes. So it is done to a copy, inside the data directory, which goes afterwards: what
was damaged can be looked at as often as one likes. It needs as much room again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from durable_actor.errors import ConfigError, CorruptionError
from durable_actor.storage.integrity import DirectoryLock, sync_directory
from durable_actor.storage.mark import mark_path
from durable_actor.storage.ports import ShardOptions
from durable_actor.storage.shard import Shard
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import OBJECTS_FOLDER, database_path
from durable_actor.storage.sql.wal import WalPosition
from durable_actor.storage.store import SHARD_NAME

T = TypeVar("T")

SCRATCH_PREFIX = "scratch-"
SQL_SUFFIXES = (
    ".db",
    ".db-wal",
    ".db-aside",
    ".db-wal-aside",
    ".sum",
    ".redo",
    ".base",
)
# What reading a damaged file leads to: SQLite's own errors, and those of a value that
# is not of the type of its column.
NOT_AS_WRITTEN = (
    *(sqlite3.DatabaseError, AttributeError, KeyError),
    *(IndexError, OverflowError, TypeError, ValueError),
)
Progress = Callable[[str, int, int], None]  # what, how much of it, out of how much


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a data directory, so that no daemon starts on it meanwhile.

    Raises:
        ConfigError: There is no data directory.
        DataDirectoryInUseError: A daemon, or another tool, has it.
    """
    if not (directory / SHARD_NAME).is_file():
        message = f"{directory} is no data directory: it has no {SHARD_NAME}"
        raise ConfigError(message)
    lock = DirectoryLock(directory)
    try:
        yield
    finally:
        lock.release()


def accept_rolled_back(directory: Path) -> None:
    """Forget how far the shard had come, so that it opens as it is (F6)."""
    mark_path(directory / SHARD_NAME).unlink(missing_ok=True)
    sync_directory(directory)


def data_files(directory: Path) -> list[Path]:
    """Return the files that hold data, relative to the data directory, in order."""
    shard = directory / SHARD_NAME
    beside = (shard, shard.with_name(SHARD_NAME + "-wal"), mark_path(shard))
    files = [path.relative_to(directory) for path in beside if path.exists()]
    files += (
        path.relative_to(directory)
        for path in sorted((directory / OBJECTS_FOLDER).glob("*/*"))
        if path.name.endswith(SQL_SUFFIXES)
    )
    return files


def copy_files(
    source: Path, target: Path, files: Iterable[Path], progress: Progress = no_progress
) -> None:
    """Copy files into another directory and make them durable there."""
    chosen = list(files)
    folders = {target}
    for number, name in enumerate(chosen):
        progress("copy", number, len(chosen))
        place = target / name
        for folder in reversed(place.relative_to(target).parents):
            (target / folder).mkdir(mode=0o700, exist_ok=True)
            folders.add(target / folder)
        shutil.copyfile(source / name, place)
        place.chmod(0o600)
        with place.open("rb") as file:
            os.fsync(file.fileno())
    for folder in folders:
        sync_directory(folder)
    progress("copy", len(chosen), len(chosen))


@contextmanager
def settled_copy(directory: Path, progress: Progress = no_progress) -> Iterator[Path]:
    """Copy a data directory that is locked, and fold and close the copy.

    Raises:
        CorruptionError: Something that all objects need is damaged.
        StorageError: The same, or the disk failed.
        ConfigError: A later release wrote it.
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=directory) as scratch:
        copy = Path(scratch)
        for name in data_files(directory):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, copy / name)
        progress("read", 0, 1)
        run_apart(settle(copy))
        yield copy


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, whether or not a loop runs in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def settle(directory: Path) -> None:
    """Open a shard and close it in order, as a start and a stop would."""
    path = str(directory / SHARD_NAME)
    shard = await Shard.open(ShardOptions(path=path, wal_grow_bytes=0))
    await shard.close()


@contextmanager
def tables_of(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open the shard of a settled copy for reading."""
    uri = f"{(directory / SHARD_NAME).absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        db.text_factory = _any_text
        yield db


@contextmanager
def database_of(
    directory: Path, raw_id: bytes, position: WalPosition
) -> Iterator[sqlite3.Connection]:
    """Open the database of one object of a settled copy for reading.

    Raises:
        CorruptionError: Durable bytes are missing or changed.
    """
    path = database_path(directory, raw_id)
    Database.open(path, position, check_bytes_max=None).close(position)
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        db.text_factory = _any_text
        try:
            yield db
        except sqlite3.DatabaseError as error:
            raise CorruptionError(f"{path.name}: {error}") from error


def _any_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
