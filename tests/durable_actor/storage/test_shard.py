"""A shard keeps what it acknowledged, and says so when it cannot."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
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
from durable_actor.storage import fold
from durable_actor.storage import shard as shard_module
from durable_actor.storage.batch import AlarmRow, EventRow, ReplyRow, Seal
from durable_actor.storage.ports import (
    ExpireReplies,
    Loaded,
    LoadObjects,
    ReadAlarms,
    ReadDirectory,
    ReadKeys,
    ReadOutbox,
    ReadRange,
    ReadReplies,
    ReadStatus,
)
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

PAGE_BYTES = 4096


async def commit_three(directory: Path) -> None:
    """Leave a log of three rows, tickets 1 to 4, and empty tables."""
    async with open_shard(directory) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        await shard.commit(
            group_of(2, seal_of(1, {"a": b"2"}), seal_of(2, {"b": b"1"}))
        )
        await shard.commit(group_of(4, seal_of(1, {"c": b"3"})))


# -- commit and reopen --------------------------------------------------------


async def test_a_commit_is_one_row_of_the_log(tmp_path: Path) -> None:
    await commit_three(tmp_path)

    rows = rows_of(tmp_path, "SELECT seq, first_ticket, last_ticket FROM log")
    assert rows == [(1, 1, 1), (2, 2, 3), (3, 4, 4)]
    assert rows_of(tmp_path, "SELECT * FROM kv") == []


async def test_opening_folds_what_the_log_still_holds(tmp_path: Path) -> None:
    await commit_three(tmp_path)

    async with open_shard(tmp_path) as shard:
        assert shard.opened.last_ticket == 4
        assert shard.opened.last_num == 2
        assert (await load_one(shard, 1)).keys == {"a": b"2", "c": b"3"}
        assert (await load_one(shard, 2)).keys == {"b": b"1"}
    assert rows_of(tmp_path, "SELECT * FROM log") == []


async def test_tickets_and_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    await commit_three(tmp_path)
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(5, Seal(num=2, deleted=True)))
        await shard.close()

    async with open_shard(tmp_path) as shard:
        assert shard.opened.last_ticket == 5
        assert shard.opened.last_num == 2, "a deleted object's number is not used again"


async def test_a_commit_during_a_fold_is_not_lost(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        folding = asyncio.ensure_future(shard.fold())
        await shard.commit(group_of(2, seal_of(1, {"a": b"2"})))
        await folding

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"2"}


async def test_folds_at_the_same_time_do_not_forget_a_commit_between_them(
    tmp_path: Path,
) -> None:
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        first = asyncio.ensure_future(shard.fold())
        await asyncio.sleep(0)
        second = asyncio.ensure_future(shard.fold())
        await shard.commit(group_of(2, seal_of(1, {"b": b"2"})))
        await asyncio.gather(first, second)
        await shard.fold()

        assert (await load_one(shard, 1)).keys == {"a": b"1", "b": b"2"}


async def test_each_opening_counts_an_epoch(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        async with open_shard(tmp_path) as shard:
            assert shard.opened.epoch == epoch


async def test_a_closed_shard_needs_nothing_beside_its_file(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        await shard.close()

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {SHARD_NAME, "shard-00.mark"}
    assert rows_of(tmp_path, "SELECT object, key, value FROM kv") == [(1, "a", b"1")]


async def test_a_fold_that_is_cancelled_leaves_no_transaction_open(
    tmp_path: Path,
) -> None:
    """Otherwise the next commit falls into it, and is acknowledged without a sync."""
    for statement in range(1, 12):
        async with open_shard(tmp_path) as shard:
            ticket = shard.opened.last_ticket + 1
            old, new = b"%d" % statement, b"%d" % (statement + 100)
            await shard.commit(group_of(ticket, seal_of(1, {"a": old})))
            folding = asyncio.ensure_future(shard.fold())
            count = itertools.count(1)

            def cancel(sql: str) -> None:
                if next(count) == statement:  # while the statement is under way
                    asyncio.get_running_loop().call_soon(folding.cancel)

            break_statements(shard, cancel)
            await asyncio.wait([folding])
            await shard.commit(group_of(ticket + 1, seal_of(1, {"a": new})))
            assert not shard._db.in_transaction

        async with open_shard(tmp_path) as shard:
            assert (await load_one(shard, 1)).keys == {"a": new}
            assert shard.opened.last_ticket == ticket + 1


# -- who may open -------------------------------------------------------------


async def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    async with open_shard(tmp_path):
        with pytest.raises(DataDirectoryInUseError):
            await Shard.open(shard_options(tmp_path))


async def test_a_second_opener_in_another_process_is_refused(tmp_path: Path) -> None:
    program = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=0);"
        "db.execute('SELECT * FROM meta')"
    )
    async with open_shard(tmp_path):
        tried = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / SHARD_NAME)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "database is locked" in tried.stderr


async def test_a_later_format_is_refused_and_untouched(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        await shard.close()
    change_format(tmp_path, FORMAT + 1)
    before = (tmp_path / SHARD_NAME).read_bytes()

    with pytest.raises(FormatTooNewError, match=f"format {FORMAT + 1}"):
        await Shard.open(shard_options(tmp_path))

    assert (tmp_path / SHARD_NAME).read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database" * 1_000, None])
async def test_what_is_no_database_is_refused_with_an_error_of_ours(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is None:
        (tmp_path / SHARD_NAME).mkdir()
    else:
        (tmp_path / SHARD_NAME).write_bytes(content)

    with pytest.raises(StorageFailedError, match="open"):
        await Shard.open(shard_options(tmp_path))
    # aiosqlite ends its thread by itself then; it still talks to this loop.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join)


# -- damage -------------------------------------------------------------------

DAMAGE: dict[str, list[tuple[str, list[Any]]]] = {
    "a flipped byte": [
        (
            "UPDATE log SET batch = CAST(? || substr(batch, 2) AS BLOB) WHERE seq = 2",
            [b"\x93"],
        )
    ],
    "a flipped checksum": [("UPDATE log SET crc = crc + 1 WHERE seq = 3", [])],
    "another last ticket": [
        ("UPDATE log SET last_ticket = ? WHERE seq = 3", [4 + (1 << 40)])
    ],
    "a missing row": [("DELETE FROM log WHERE seq = 2", [])],
    "a missing first row": [("DELETE FROM log WHERE seq = 1", [])],
    "a gap in the numbers": [("UPDATE log SET seq = 9 WHERE seq = 3", [])],
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_log_is_refused_and_untouched(
    tmp_path: Path, damage: str
) -> None:
    await commit_three(tmp_path)
    change_file(tmp_path, *DAMAGE[damage])
    before = (tmp_path / SHARD_NAME).read_bytes()

    with pytest.raises(StorageFailedError, match="of the log is damaged"):
        await Shard.open(shard_options(tmp_path))

    assert (tmp_path / SHARD_NAME).read_bytes() == before


@pytest.mark.parametrize("byte", range(24))
async def test_each_flipped_byte_of_a_log_row_is_found(
    tmp_path: Path, byte: int
) -> None:
    await commit_three(tmp_path)
    ((batch,),) = rows_of(tmp_path, "SELECT batch FROM log WHERE seq = 3")
    data = (tmp_path / SHARD_NAME).read_bytes()
    place = data.rindex(batch) + byte * len(batch) // 24
    flipped = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
    (tmp_path / SHARD_NAME).write_bytes(flipped)

    with pytest.raises(StorageFailedError):
        await Shard.open(shard_options(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        "value = CAST(x'00' || substr(value, 2) AS BLOB)",
        "key = 'aa'",
        "crc = crc + 1",
        "object = 2",
    ],
)
async def test_a_changed_value_is_found_and_only_its_object_is_affected(
    tmp_path: Path, change: str
) -> None:
    async with open_shard(tmp_path) as shard:
        for num in (1, 2, 3):
            await shard.commit(
                group_of(num, seal_of(num, {"k" * num: b"value", "z": b"other"}))
            )
        await shard.close()
    change_file(
        tmp_path,
        (
            f"UPDATE kv SET {change} WHERE object = 1 AND key = 'k'".replace(
                "'aa'", "'m'"
            ),
            [],
        ),
    )

    async with open_shard(tmp_path) as shard:
        affected = 2 if "object" in change else 1
        loaded = await load_one(shard, affected)
        assert loaded.damage is not None
        assert loaded.keys == {}, "nothing damaged is ever served"
        # A row that went to another object is missing where it was, too.
        for num in {1, 2, 3} - {affected, 1}:
            assert (await load_one(shard, num)).damage is None
        with pytest.raises(CorruptionError):
            await shard.read(ReadRange(affected, "", None, 10, False))
        with pytest.raises(CorruptionError):
            await shard.read(ReadKeys(affected, ["k", "m"]))


async def test_an_unfinished_growth_of_the_wal_does_not_look_like_damage(
    tmp_path: Path,
) -> None:
    """Killed between the two statements that grow the WAL, its row is left."""
    await commit_three(tmp_path)
    change_file(tmp_path, ("INSERT INTO log VALUES (-1, 0, 0, zeroblob(65536), 0)", []))

    async with open_shard(tmp_path) as shard:
        assert shard.opened.last_ticket == 4
    assert rows_of(tmp_path, "SELECT * FROM log") == []


# -- checkpoints and the size of the WAL --------------------------------------


async def test_the_wal_stays_within_its_bound(tmp_path: Path) -> None:
    wal_bytes_max = 1024 * 1024
    wal = tmp_path / f"{SHARD_NAME}-wal"
    largest = 0
    async with open_shard(tmp_path, wal_bytes_max=wal_bytes_max) as shard:
        for ticket in range(1, 2_001):
            seal = seal_of(ticket % 300 + 1, {f"{ticket % 7}": bytes(4_000)})
            await shard.commit(group_of(ticket, seal))
            if ticket % 50 == 0:
                await shard.fold()
            largest = max(largest, wal.stat().st_size)
        status = await shard.read(ReadStatus())

    assert status.checkpoints > 5
    # The last group or chunk may begin just below the bound.
    assert largest <= wal_bytes_max + 1024 * 1024


async def test_the_wal_stays_within_its_bound_when_values_are_large(
    tmp_path: Path,
) -> None:
    """A chunk of a fold is bounded in rows; large values make it long all the same."""
    wal_bytes_max = 1024 * 1024
    wal = tmp_path / f"{SHARD_NAME}-wal"
    largest = 0
    async with open_shard(tmp_path, wal_bytes_max=wal_bytes_max) as shard:
        for ticket in range(1, 41):
            keys: dict[str, bytes | None] = {f"{n}": bytes(60_000) for n in range(4)}
            await shard.commit(group_of(ticket, seal_of(ticket, keys)))
            if ticket % 10 == 0:
                await shard.fold()
            largest = max(largest, wal.stat().st_size)

    assert largest <= wal_bytes_max + fold.CHUNK_BYTES_MAX
    assert rows_of(tmp_path, "SELECT count(*) FROM kv") == [(160,)]


class BrokenConnection:
    """Stands before a connection and answers some statements with an error."""

    def __init__(self, real: Any, answer: Callable[[str], Any]) -> None:
        self._real = real
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def execute_fetchall(self, sql: str, parameters: Any = ()) -> Any:
        answer = self._answer(sql)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        return await self._real.execute_fetchall(sql, parameters)


def sqlite_error(code: int, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("made up")
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


def break_statements(shard: Shard, answer: Callable[[str], Any]) -> None:
    shard._db = BrokenConnection(shard._db, answer)  # type: ignore[assignment]


@pytest.mark.parametrize("row", [(1, 10, 5), (0, 10, 9), (0, 10, -1)])
async def test_a_checkpoint_that_did_not_copy_everything_is_a_failure(
    tmp_path: Path, row: tuple[int, int, int]
) -> None:
    async with open_shard(tmp_path, wal_bytes_max=1) as shard:
        break_statements(shard, lambda sql: [row] if "checkpoint" in sql else None)

        with pytest.raises(StorageFailedError, match="checkpoint"):
            await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))


@pytest.mark.parametrize("step", ["commit", "fold", "close"])
async def test_an_error_in_a_checkpoint_is_one_of_ours(
    tmp_path: Path, step: str
) -> None:
    async with open_shard(tmp_path, wal_bytes_max=1, wal_grow_bytes=0) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        broken = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC")
        break_statements(shard, lambda sql: broken if "checkpoint" in sql else None)

        with pytest.raises(StorageFailedError, match="SQLITE_IOERR_FSYNC"):
            if step == "commit":
                await shard.commit(group_of(2, seal_of(1, {"a": b"2"})))
            else:
                await getattr(shard, step)()


async def test_a_full_disk_in_a_checkpoint_does_not_unsay_the_commit_before_it(
    tmp_path: Path,
) -> None:
    """The group is in the log: an error would make the committer use its tickets again.

    The next opening would then find tickets twice, and refuse the log.
    """
    full = sqlite_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")
    async with open_shard(tmp_path, wal_bytes_max=1) as shard:
        break_statements(shard, lambda sql: full if "checkpoint" in sql else None)

        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        await shard.commit(group_of(2, seal_of(1, {"b": b"2"})))

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE"),
        (sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"),
        (sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"),
    ],
)
async def test_a_commit_that_fails_names_the_error(
    tmp_path: Path, code: int, name: str
) -> None:
    async with open_shard(tmp_path) as shard:
        broken = sqlite_error(code, name)
        break_statements(shard, lambda sql: broken if "INSERT" in sql else None)

        with pytest.raises(StorageFailedError, match=name):
            await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))


async def test_a_busy_file_is_in_use_whatever_the_busy_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Shard) -> None:
        code = sqlite3.SQLITE_BUSY_RECOVERY
        raise sqlite_error(code, "SQLITE_BUSY_RECOVERY")

    monkeypatch.setattr(Shard, "_prepare", refuse)

    with pytest.raises(DataDirectoryInUseError):
        await Shard.open(shard_options(tmp_path))


# -- a full disk --------------------------------------------------------------


async def limit_pages(shard: Shard, pages: int | None) -> None:
    """Make SQLite find the disk full beyond a size, and with None no longer."""
    if pages is None:
        pages = 1_000_000
    await shard._all(f"PRAGMA max_page_count={pages}")


async def test_on_a_full_disk_a_commit_is_refused_and_not_applied(
    tmp_path: Path,
) -> None:
    async with open_shard(tmp_path, wal_grow_bytes=0) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        await limit_pages(shard, 1)  # not below what there is: no page may be added

        with pytest.raises(StorageFullError):
            await shard.commit(group_of(2, seal_of(1, {"a": bytes(100_000)})))

        await limit_pages(shard, None)
        # As the committer does: the lost ticket is covered by the next group.
        await shard.commit(
            group_of(2, seal_of(1, {"b": b"2"}), seal_of(1, {"c": b"3"}))
        )

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1", "b": b"2", "c": b"3"}


async def test_on_a_full_disk_a_fold_is_rolled_back_and_works_later(
    tmp_path: Path,
) -> None:
    async with open_shard(tmp_path, wal_grow_bytes=0) as shard:
        for ticket in range(1, 30):
            keys = {f"{ticket:03}": bytes(3_000)}
            await shard.commit(group_of(ticket, seal_of(1, keys)))
        await limit_pages(shard, 1)

        with pytest.raises(StorageFullError):
            await shard.fold()
        assert not shard._db.in_transaction
        await limit_pages(shard, None)
        await shard.fold()

        assert len((await load_one(shard, 1)).keys) == 29


async def test_a_really_full_disk_refuses_commits_until_there_is_space(
    small_disk: Path,
) -> None:
    kept: dict[str, bytes] = {}
    async with open_shard(small_disk, wal_bytes_max=400_000) as shard:
        ballast = fill_disk(small_disk, free_blocks=40)
        ticket, refused = 1, 0
        while refused < 5:
            key, value = f"{ticket:04}", bytes(3_000)
            try:
                await shard.commit(group_of(ticket, seal_of(1, {key: value})))
            except StorageFullError:
                refused += 1
            else:
                kept[key] = value
                ticket += 1
        with pytest.raises(StorageFullError):
            await shard.fold()
        assert len((await load_one(shard, 1)).keys) <= len(kept), "reading still works"

        ballast.unlink()
        await shard.commit(group_of(ticket, seal_of(1, {"last": b"1"})))
        await shard.fold()
        kept["last"] = b"1"
        assert (await load_one(shard, 1)).keys == kept
        await shard.close()

    async with open_shard(small_disk) as shard:
        assert (await load_one(shard, 1)).keys == kept


async def test_a_full_disk_can_be_opened_and_read(small_disk: Path) -> None:
    async with open_shard(small_disk) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        await shard.close()
    fill_disk(small_disk, free_blocks=20)

    # Room for an epoch, not for the WAL's working size.
    async with open_shard(small_disk, wal_grow_bytes=1024 * 1024) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1"}


# -- questions ----------------------------------------------------------------


async def test_a_small_object_is_loaded_whole_and_a_large_one_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "HYDRATE_KEYS_MAX", 3)
    async with open_shard(tmp_path) as shard:
        for num, count in ((1, 3), (2, 4)):
            keys: dict[str, bytes | None] = {f"{n}": b"v" for n in range(count)}
            await shard.commit(group_of(num, seal_of(num, keys)))
        await shard.fold()

        small, large = await load_one(shard, 1), await load_one(shard, 2)
        assert (small.complete, len(small.keys)) == (True, 3)
        assert (large.complete, len(large.keys)) == (False, 3)


async def test_a_large_value_is_left_on_disk_until_it_is_asked_for(
    tmp_path: Path,
) -> None:
    big = bytes(shard_module.HYDRATE_VALUE_BYTES_MAX + 1)
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, {"big": big, "small": b"s"})))
        await shard.fold()

        loaded = await load_one(shard, 1)
        assert (loaded.complete, loaded.keys) == (False, {"small": b"s"})
        assert await shard.read(ReadKeys(1, ["big", "none"])) == {"big": big}


async def test_many_objects_are_loaded_in_their_order(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        seals = [seal_of(num, {"n": b"%d" % num}) for num in range(1, 251)]
        await shard.commit(group_of(1, *seals))
        await shard.fold()

        asked = [250, 999, 1, 120, 1, *range(2, 240)]
        found = await asyncio.gather(*(load_one(shard, num) for num in asked[:5]))
        assert [loaded.num for loaded in found] == [250, 0, 1, 120, 1]


async def test_alarms_come_in_due_order_after_one_time_and_up_to_another(
    tmp_path: Path,
) -> None:
    async with open_shard(tmp_path) as shard:
        seals = [
            seal_of(num, {}, alarm_at_ms=due)
            for num, due in ((1, 30), (2, 10), (3, 20), (4, 20))
        ]
        await shard.commit(group_of(1, *seals))
        await shard.fold()

        found = await shard.read(ReadAlarms(10, 30, 10))
        assert [(alarm.num, alarm.due_at_ms) for alarm in found] == [
            (3, 20),
            (4, 20),
            (1, 30),
        ]
        assert [alarm.num for alarm in await shard.read(ReadAlarms(0, 30, 1))] == [2]


async def test_the_directory_is_ordered_filtered_and_paged(tmp_path: Path) -> None:
    names = ["b", "a", "ab", "", "ü", "a%b", "😀", "\ufffd"]
    odd = 'quote" back\\slash ü'
    async with open_shard(tmp_path) as shard:
        seals = [
            Seal(num=n, row=object_row(n, name=name, **{odd: str(n % 2)}))
            for n, name in enumerate(names, 1)
        ]
        await shard.commit(group_of(1, *seals))
        await shard.fold()

        async def listed(**changes: Any) -> list[str | None]:
            query = {
                "object_class": None,
                "prefix": "",
                "where": {},
                "after": None,
                "limit": 100,
                **changes,
            }
            return [
                entry.row.name for entry in await shard.read(ReadDirectory(**query))
            ]

        in_order = sorted(names)
        assert await listed() == in_order
        assert await listed(prefix="a") == ["a", "a%b", "ab"]
        assert await listed(prefix="a%") == ["a%b"]
        assert await listed(object_class="Other") == []
        assert await listed(where={odd: "1"}) == sorted(names[0::2])
        assert await listed(where={odd: "1", "none": "1"}) == []
        place = in_order[2]
        after = ("Thing", place, raw_id(names.index(place) + 1))
        assert await listed(after=after, limit=2) == in_order[3:5]


async def test_replies_and_events_are_kept_until_they_are_over(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        replies = [ReplyRow("x", b"1", 10), ReplyRow("y", b"2", 20)]
        events = [EventRow(seq, raw_id(1), "Thing", b"e") for seq in (1, 2, 3)]
        seal = seal_of(1, {}, replies=replies, events=events)
        await shard.commit(group_of(1, seal, Seal(num=0, delivered=(2,))))
        await shard.fold()

        assert await shard.read(ReadReplies(1)) == replies
        assert await shard.read(ExpireReplies(10)) == 1
        assert await shard.read(ReadReplies(1)) == replies[1:]
        assert await shard.read(ReadOutbox(0, 10)) == [events[0], events[2]]
        assert await shard.read(ReadOutbox(1, 10)) == [events[2]]

    async with open_shard(tmp_path) as shard:
        assert shard.opened.last_event == 3
        assert shard.opened.events_waiting == 2


async def test_an_alarm_row_comes_back_as_it_was(tmp_path: Path) -> None:
    alarm = AlarmRow(due_at_ms=5, scheduled_at_ms=3, retries=2, counted=1)
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, Seal(num=1, row=object_row(1), alarm=alarm)))
        await shard.fold()

        assert (await load_one(shard, 1)).alarm == alarm


async def test_clearing_a_large_object_is_folded_in_bounded_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "CHUNK_ROWS_MAX", 10)
    monkeypatch.setattr(shard_module, "CHUNK_ROWS_MAX", 10)
    async with open_shard(tmp_path) as shard:
        many: dict[str, bytes | None] = {f"{n:03}": b"v" for n in range(95)}
        await shard.commit(group_of(1, seal_of(1, many), seal_of(2, many)))
        await shard.fold()
        await shard.commit(group_of(3, Seal(num=1, cleared=True, keys={"x": b"y"})))
        changes: list[int] = []
        real = shard._transact

        async def transact(statements: list[fold.Statement]) -> int:
            before = shard._db.total_changes
            removed = await real(statements)
            changes.append(shard._db.total_changes - before)
            return removed

        monkeypatch.setattr(shard, "_transact", transact)
        await shard.fold()

        assert max(changes) <= 20, "each row, and the digest of its object"
        assert (await load_one(shard, 1)).keys == {"x": b"y"}
        assert len((await load_one(shard, 2)).keys) == 95


async def test_any_error_of_a_dropped_shard_is_one_of_ours(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        await shard.drop()

        with pytest.raises(StorageError):
            await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        with pytest.raises(StorageError):
            await load_one(shard, 1)


async def test_g13_a_read_that_fails_once_for_many_is_told_and_done_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_shard(tmp_path) as shard:
        for num in (1, 2):
            await shard.commit(group_of(num, seal_of(num, {"k": b"value"})))
        load_some = shard._load_some
        asked: list[int] = []

        async def fails_once(ids: list[bytes]) -> dict[bytes, Loaded]:
            asked.append(len(ids))
            if len(asked) == 1:
                error = sqlite3.DatabaseError("a read failed")
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
            return await load_some(ids)

        monkeypatch.setattr(shard, "_load_some", fails_once)
        await shard.fold()
        loaded = await shard.read(LoadObjects([raw_id(1), raw_id(2)]))

        assert asked == [2, 1, 1]
        assert [one.damage for one in loaded] == [None, None]
        assert "storage.read_singly" in caplog.text
