"""Opening a data directory takes its lock, and a failure gives it back."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import get_args

import pytest

from durable_actor.errors import DataDirectoryInUseError, StorageFailedError
from durable_actor.storage import integrity
from durable_actor.storage.integrity import LOCK_NAME, DirectoryLock
from durable_actor.storage.mark import mark_path
from durable_actor.storage.store import SHARD_NAME, DriverKind, open_store
from durable_actor.testing import ManualClock
from tests.support.shards import group_of, load_one, seal_of, shard_options

KINDS = get_args(DriverKind)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_open_directory_is_locked_until_it_is_released(
    tmp_path: Path, kind: DriverKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_LOCK_PATIENCE_SECONDS", 0.05)
    directory = tmp_path / "new"
    options = shard_options(directory)
    store = await open_store(directory, options, kind)
    await store.driver.commit(group_of(1, seal_of(1, {"a": b"1"})))

    with pytest.raises(DataDirectoryInUseError, match=f"process {os.getpid()}"):
        await open_store(directory, options, kind)
    await store.driver.close()
    store.release()

    store = await open_store(directory, options, kind)
    assert (await load_one(store.driver, 1)).keys == {"a": b"1"}
    await store.driver.close()
    store.release()
    names = {path.name for path in directory.iterdir()}
    assert names == {SHARD_NAME, LOCK_NAME, mark_path(directory / SHARD_NAME).name}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_shard_that_cannot_be_opened_gives_the_lock_back(
    tmp_path: Path, kind: DriverKind
) -> None:
    (tmp_path / SHARD_NAME).write_bytes(b"not a database" * 1_000)

    with pytest.raises(StorageFailedError):
        await open_store(tmp_path, shard_options(tmp_path), kind)
    DirectoryLock(tmp_path).release()


async def test_who_replaces_the_lock_file_still_meets_the_lock_of_the_shard(
    tmp_path: Path,
) -> None:
    options = shard_options(tmp_path)
    store = await open_store(tmp_path, options, "thread")
    (tmp_path / LOCK_NAME).unlink()

    with pytest.raises(DataDirectoryInUseError):
        await open_store(tmp_path, options, "process")
    await store.driver.close()
    store.release()


async def test_who_is_cancelled_while_waiting_for_the_lock_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = DirectoryLock(tmp_path)
    is_waiting, go_on = threading.Event(), threading.Event()

    class Time:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            is_waiting.set()
            go_on.wait()

    monkeypatch.setattr(integrity, "time", Time)
    opening = asyncio.ensure_future(
        open_store(tmp_path, shard_options(tmp_path), "thread")
    )
    await asyncio.to_thread(is_waiting.wait)
    opening.cancel()
    await asyncio.wait([opening])
    first.release()
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()  # the thread is done
    await ManualClock().settle()  # and so is what follows from that

    DirectoryLock(tmp_path).release()
