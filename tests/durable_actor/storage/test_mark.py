"""The mark tells a shard that was rolled back, and never accuses one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from durable_actor.errors import CorruptionError
from durable_actor.maintenance.copies import accept_rolled_back
from durable_actor.storage import shard as shard_module
from durable_actor.storage.mark import Mark, MarkWriter, mark_path, read_mark
from durable_actor.storage.store import SHARD_NAME
from tests.support.shards import group_of, load_one, open_shard, seal_of


async def commit(directory: Path, ticket: int, value: bytes) -> None:
    """Commit one turn, and close the shard in order."""
    async with open_shard(directory) as shard:
        await shard.commit(group_of(ticket, seal_of(1, {"a": value})))
        await shard.close()


async def roll_back(directory: Path) -> None:
    """Leave the shard as it was before its newest commit."""
    await commit(directory, 1, b"old")
    shard = directory / SHARD_NAME
    shutil.copyfile(shard, directory / "old")
    await commit(directory, 2, b"new")
    shutil.copyfile(directory / "old", shard)


async def test_g11_a_shard_that_was_rolled_back_is_refused(tmp_path: Path) -> None:
    await roll_back(tmp_path)
    before = (tmp_path / SHARD_NAME).read_bytes()

    with pytest.raises(CorruptionError, match="rolled back") as refused:
        async with open_shard(tmp_path):
            pass

    assert "Restore a backup" in str(refused.value)
    assert "accept-rollback" in str(refused.value)
    assert (tmp_path / SHARD_NAME).read_bytes() == before


async def test_g11_without_its_mark_a_rolled_back_shard_looks_well(
    tmp_path: Path,
) -> None:
    """The control: SQLite itself sees nothing, and neither do the checksums."""
    await roll_back(tmp_path)
    mark_path(tmp_path / SHARD_NAME).unlink()

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"old"}


async def test_g11_a_shard_without_its_wal_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": b"1"})))
        directory.mkdir()
        for name in (SHARD_NAME, "shard-00.mark"):
            shutil.copyfile(tmp_path / name, directory / name)

    with pytest.raises(CorruptionError, match="rolled back"):
        async with open_shard(directory):
            pass


async def test_g11_another_shard_with_as_many_rows_is_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for directory, value in ((ours, b"ours"), (theirs, b"theirs")):
        directory.mkdir()
        await commit(directory, 1, value)
    shutil.copyfile(theirs / SHARD_NAME, ours / SHARD_NAME)

    with pytest.raises(CorruptionError):
        async with open_shard(ours):
            pass


async def test_what_is_missing_can_be_accepted(tmp_path: Path) -> None:
    await roll_back(tmp_path)

    accept_rolled_back(tmp_path)

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"old"}
        await shard.commit(group_of(2, seal_of(1, {"a": b"newer"})))
        await shard.close()
    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"newer"}


async def test_a_mark_that_is_behind_or_damaged_accuses_nobody(tmp_path: Path) -> None:
    """A power cut leaves any of the states that the file has been in, or a torn one."""
    path = mark_path(tmp_path / SHARD_NAME)
    states: list[bytes] = [b"", bytes(1024)]
    for ticket in range(1, 5):
        await commit(tmp_path, ticket, b"%d" % ticket)
        states.append(path.read_bytes())
    torn = [
        one[:cut] + two[cut:] for one in states for two in states for cut in (9, 20)
    ]

    for state in states + torn:
        path.write_bytes(state)
        async with open_shard(tmp_path) as shard:
            assert (await load_one(shard, 1)).keys == {"a": b"4"}


def test_the_slots_are_written_in_turn_and_the_newest_whole_one_counts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mark"
    writer = MarkWriter(path)
    writer.write(Mark(1, 11))
    writer.write(Mark(2, 22))
    writer.close()
    assert read_mark(path) == Mark(2, 22)

    data = bytearray(path.read_bytes())
    data[5] ^= 1  # the slot of the newest
    path.write_bytes(data)

    assert read_mark(path) == Mark(1, 11)


async def test_a_full_disk_at_the_mark_unsays_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(MarkWriter):
        def _open(self) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_module, "MarkWriter", Full)

    await commit(tmp_path, 1, b"1")

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1"}
