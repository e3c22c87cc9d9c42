"""What every shard driver does: in this process, and in one of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from durable_actor.errors import (
    CorruptionError,
    DataDirectoryInUseError,
    FormatTooNewError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.storage.batch import AlarmRow, EventRow, ReplyRow, Seal
from durable_actor.storage.integrity import DirectoryLock
from durable_actor.storage.ports import (
    DirectoryEntry,
    DueAlarm,
    ExpireReplies,
    ReadAlarms,
    ReadDirectory,
    ReadKeys,
    ReadOutbox,
    ReadRange,
    ReadReplies,
    ReadStatus,
    ShardDriver,
    ShardOptions,
)
from durable_actor.storage.process import RemoteShard
from durable_actor.storage.schema import FORMAT
from durable_actor.storage.shard import Shard
from durable_actor.storage.store import SHARD_NAME
from tests.support.shards import (
    change_file,
    change_format,
    fill_disk,
    group_of,
    load_one,
    object_row,
    open_shard,
    raw_id,
    rows_of,
    seal_of,
    shard_options,
)


class Driver:
    """Opens shards with one of the drivers, and drops what is left of them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def open(self, options: ShardOptions) -> ShardDriver:
        if self.kind == "process":
            return await RemoteShard.open(options, lock_fd=None)
        return await Shard.open(options)

    @asynccontextmanager
    async def opened(
        self, directory: Path, **changes: Any
    ) -> AsyncIterator[ShardDriver]:
        shard = await self.open(shard_options(directory, **changes))
        try:
            yield shard
        finally:
            await shard.drop()


@pytest.fixture(params=["thread", "process"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


ODD_KEYS = ["", "a", "a\x00b", "é", "\ufffd", "😀", "\U0010ffff"]


async def test_what_was_committed_is_folded_read_and_found_again(
    driver: Driver, tmp_path: Path
) -> None:
    event = EventRow(1, raw_id(1), "Thing", b"e")
    reply = ReplyRow("request", b"\x00\xff", 10)
    keys = {key: key.encode() for key in ODD_KEYS}
    row = object_row(1, name="😀", color="röd")
    seal = Seal(
        num=1,
        keys=dict(keys),
        row=row,
        alarm=AlarmRow(5, 4, 3, 2),
        events=(event,),
        replies=(reply,),
    )

    async def check(shard: ShardDriver) -> None:
        loaded = await load_one(shard, 1)
        assert (loaded.num, loaded.row, loaded.keys) == (1, row, keys)
        assert (loaded.alarm, loaded.complete) == (AlarmRow(5, 4, 3, 2), True)
        assert (await load_one(shard, 2)).num == 0
        assert await shard.read(ReadKeys(1, ["é", "no"])) == {"é": "é".encode()}
        found = await shard.read(ReadRange(1, "a", "😀", 9, True))
        expected = sorted(key for key in ODD_KEYS if "a" <= key < "😀")
        assert [key for key, _ in found.rows] == expected[::-1]
        assert found.ended_at is None
        assert await shard.read(ReadAlarms(0, 9, 9)) == [
            DueAlarm(1, raw_id(1), "Thing", "😀", 5)
        ]
        size_bytes = 2 * sum(len(key.encode()) for key in ODD_KEYS)
        query = ReadDirectory("Thing", "😀", {"color": "röd"}, None, 9)
        assert await shard.read(query) == [DirectoryEntry(1, row, size_bytes, 5)]
        assert await shard.read(ReadOutbox(0, 9)) == [event]
        assert await shard.read(ReadReplies(1)) == [reply]
        assert await shard.read(ExpireReplies(9)) == 0
        status = await shard.read(ReadStatus())
        assert (status.objects, status.alarms, status.log_rows) == (1, 1, 0)

    async with driver.opened(tmp_path) as shard:
        assert (shard.opened.epoch, shard.opened.last_ticket) == (1, 0)
        await shard.commit(group_of(1, seal))
        await shard.fold()
        await check(shard)
        await shard.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {SHARD_NAME, "shard-00.mark"}
    async with driver.opened(tmp_path) as shard:
        assert (shard.opened.epoch, shard.opened.last_ticket) == (2, 1)
        await check(shard)


async def test_dropping_does_not_fold(driver: Driver, tmp_path: Path) -> None:
    async with driver.opened(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))

    assert rows_of(tmp_path, "SELECT seq FROM log") == [(1,)]
    async with driver.opened(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1"}


async def test_commits_folds_and_reads_keep_their_order(
    driver: Driver, tmp_path: Path
) -> None:
    """None of them is awaited before the next one is asked for."""
    async with driver.opened(tmp_path) as shard:
        asked: list[Any] = []
        for ticket in range(1, 21):
            group = group_of(ticket, seal_of(1, {"n": b"%d" % ticket}))
            asked.append(asyncio.ensure_future(shard.commit(group)))
            if ticket % 7 == 0:
                asked.append(asyncio.ensure_future(shard.fold()))
        await asyncio.gather(*asked)
        await shard.fold()
        assert (await load_one(shard, 1)).keys == {"n": b"20"}


async def test_a_large_group_arrives_whole(driver: Driver, tmp_path: Path) -> None:
    values: dict[str, bytes | None] = {f"{n}": bytes([n]) * 300_000 for n in range(9)}
    async with driver.opened(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, values)))
        await shard.fold()
        assert await shard.read(ReadKeys(1, list(values))) == values


async def test_a_second_opener_is_told_that_it_is_in_use(
    driver: Driver, tmp_path: Path
) -> None:
    async with driver.opened(tmp_path):
        with pytest.raises(DataDirectoryInUseError) as caught:
            await driver.open(shard_options(tmp_path))
        assert caught.value.retryable
        assert caught.value.holder == "another connection"
        assert caught.value.directory == shard_options(tmp_path).path


async def test_a_later_format_is_told_by_its_name(
    driver: Driver, tmp_path: Path
) -> None:
    async with driver.opened(tmp_path) as shard:
        await shard.close()
    change_format(tmp_path, FORMAT + 1)

    with pytest.raises(FormatTooNewError, match=f"has format {FORMAT + 1}, this"):
        await driver.open(shard_options(tmp_path))


async def test_damage_is_told_by_its_name(driver: Driver, tmp_path: Path) -> None:
    async with driver.opened(tmp_path) as shard:
        await shard.commit(
            group_of(1, seal_of(1, {"a": b"1"}), seal_of(2, {"b": b"2"}))
        )
        await shard.close()
    change_file(tmp_path, ("UPDATE kv SET value = x'00' WHERE object = 1", []))

    async with driver.opened(tmp_path) as shard:
        assert (await load_one(shard, 1)).damage == "key 'a'"
        with pytest.raises(CorruptionError, match="checksum"):
            await shard.read(ReadKeys(1, ["a"]))
        assert (await load_one(shard, 2)).keys == {"b": b"2"}, "it goes on"
        await shard.commit(group_of(3, seal_of(1, {"c": b"3"})))
    change_file(tmp_path, ("UPDATE log SET crc = crc + 1", []))
    with pytest.raises(StorageFailedError) as caught:
        await driver.open(shard_options(tmp_path))
    assert caught.value.operation == "open"
    assert "row 2 of the log is damaged" in caught.value.detail


async def test_after_the_end_everything_is_refused(
    driver: Driver, tmp_path: Path
) -> None:
    async with driver.opened(tmp_path) as shard:
        await shard.close()

        with pytest.raises(StorageError):
            await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        with pytest.raises(StorageError):
            await load_one(shard, 1)


async def test_a_full_disk_is_told_by_its_name_and_passes(
    driver: Driver, small_disk: Path
) -> None:
    async with driver.opened(small_disk) as shard:
        ballast = fill_disk(small_disk, free_blocks=40)
        huge = group_of(1, seal_of(1, {"a": bytes(500_000)}))
        with pytest.raises(StorageFullError) as caught:
            await shard.commit(huge)
        assert caught.value.operation == "commit"
        assert caught.value.retryable
        ballast.unlink()
        await shard.commit(group_of(1, seal_of(1, {"b": b"2"})))
        await shard.fold()
        assert (await load_one(shard, 1)).keys == {"b": b"2"}


# -- a process of its own -----------------------------------------------------


async def test_killing_the_storage_process_fails_the_commits_that_wait(
    tmp_path: Path,
) -> None:
    shard = await RemoteShard.open(shard_options(tmp_path), lock_fd=None)
    pid = shard._process.pid
    await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
    os.kill(pid, signal.SIGSTOP)
    commits = [
        asyncio.ensure_future(shard.commit(group_of(n, seal_of(1, {"a": b"2"}))))
        for n in (2, 3)
    ]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    ends = await asyncio.gather(*commits, return_exceptions=True)

    assert [type(end) for end in ends] == [StorageFailedError] * 2
    with pytest.raises(StorageFailedError, match="storage process is gone"):
        await shard.commit(group_of(4, seal_of(1, {})))
    with pytest.raises(StorageFailedError):
        await shard.close()
    async with open_shard(tmp_path) as local:
        assert (await load_one(local, 1)).keys in ({"a": b"1"}, {"a": b"2"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_to_the_whole_group_do_not_end_the_storage_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Its owner decides when writing is over."""
    async with Driver("process").opened(tmp_path) as shard:
        assert isinstance(shard, RemoteShard)
        os.kill(shard._process.pid, number)
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        await shard.fold()
        assert (await load_one(shard, 1)).keys == {"a": b"1"}


_OWNER = """
import asyncio, sys
from pathlib import Path
from durable_actor.storage.store import open_store
from tests.support.shards import group_of, seal_of, shard_options

async def main():
    directory = Path(sys.argv[1])
    store = await open_store(directory, shard_options(directory), "process")
    await store.driver.commit(group_of(1, seal_of(1, {"a": b"1"})))
    print(store.driver._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_storage_process_ends_with_its_owner_and_lets_the_next_one_in(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "data"
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OWNER, str(directory), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    pid = int(await owner.stdout.readline())
    owner.kill()
    await owner.wait()

    lock = await asyncio.to_thread(DirectoryLock, directory)
    lock.release()
    await owner.stdout.read()  # its end: nobody holds the other side any more
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"
    async with open_shard(directory) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1"}
