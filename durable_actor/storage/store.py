"""Opening a data directory: its lock, its shard, and the driver that runs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from durable_actor.storage.integrity import DirectoryLock, prepare_directory
from durable_actor.storage.ports import ShardDriver, ShardOptions
from durable_actor.storage.process import RemoteShard
from durable_actor.storage.shard import Shard

DriverKind = Literal["thread", "process"]
SHARD_NAME = "shard-00.db"


@dataclass(frozen=True, slots=True)
class Store:
    """An open data directory."""

    directory: Path
    lock: DirectoryLock
    driver: ShardDriver

    def release(self) -> None:
        """Let the next owner in; the driver is closed already."""
        self.lock.release()


async def open_store(
    directory: Path, options: ShardOptions, driver: DriverKind
) -> Store:
    """Take the lock of a data directory and open its shard.

    Args:
        directory: Created if it is absent.
        options: How; its `path` lies in the directory.
        driver: `thread` runs SQLite in this process, `process` in one of its own.

    Raises:
        DataDirectoryInUseError: Another process holds it.
        ConfigError: The directory cannot be used; the message says why.
        StorageError: The shard is damaged, or the disk is.
    """
    await asyncio.to_thread(prepare_directory, directory)
    lock = await _take_lock(directory)
    try:
        if options.uri is None:
            # SQLite gives its other files the mode of this one.
            Path(options.path).touch(mode=0o600)
        shard: ShardDriver
        if driver == "process":
            shard = await RemoteShard.open(options, lock_fd=lock.fd)
        else:
            shard = await Shard.open(options)
    except BaseException:
        lock.release()
        raise
    return Store(directory, lock, shard)


async def _take_lock(directory: Path) -> DirectoryLock:
    taking = asyncio.ensure_future(asyncio.to_thread(DirectoryLock, directory))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        # The thread goes on, and may still get what nobody wants any more.
        taking.add_done_callback(_give_back)
        raise


def _give_back(taking: asyncio.Future[DirectoryLock]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().release()
