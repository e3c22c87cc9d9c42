"""The bytes of a WAL: taken at a commit, brought back after a crash, cut and synced."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from durable_actor.errors import CorruptionError
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.wal import (
    FRAME_BYTES,
    HEADER_BYTES,
    PAGE_BYTES,
    WalPosition,
    WalSegment,
    aside_path,
    create_database,
    empty_database,
    frames_of,
    repair,
    replay,
    sync,
    wal_path,
)

State = list[tuple[int, str]]


def state_of(path: Path) -> State | None:
    """Look into a copy, as SQLite sees it; None if there is no table."""
    copy = path.parent / "look"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for one in (path, wal_path(path)):
        if one.exists():
            shutil.copy(one, copy / one.name)
    db = sqlite3.connect(copy / path.name)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT id, v FROM t ORDER BY id").fetchall()
    except sqlite3.OperationalError:
        return None
    finally:
        db.close()
        shutil.rmtree(copy)


class Past:
    """A database with everything it ever returned, and a copy of each moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = Database.open(path, None)
        self.segments: list[WalSegment] = []
        self.states: list[State | None] = [None]  # after so many commits
        self.copies: list[Path] = [self._copy(0)]
        self.checkpointed = 0  # commits that a checkpoint has made permanent
        self.permanent: list[int] = [0]  # the same, at each copy

    def commit(self, *statements: str) -> WalSegment:
        for statement in statements:
            self.db.exec(statement)
        rows = self.db.exec("SELECT id, v FROM t ORDER BY id").raw().to_list()
        segment = self.db.commit()
        assert segment is not None
        self.segments.append(segment)
        self.states.append(rows)  # type: ignore[arg-type]
        self.copies.append(self._copy(len(self.segments)))
        self.permanent.append(self.checkpointed)
        return segment

    def checkpoint(self) -> None:
        self.db.checkpoint()
        self.checkpointed = len(self.segments)

    def position(self, commits: int) -> WalPosition | None:
        return self.segments[commits - 1].position if commits else None

    def disk(self, commits: int) -> Path:
        """A fresh copy of the files as they were after so many commits."""
        target = self.path.parent / "disk"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.copies[commits], target)
        return target / self.path.name

    def _copy(self, commits: int) -> Path:
        copy = self.path.parent / f"copy{commits}"
        copy.mkdir()
        for one in (self.path, wal_path(self.path)):
            if one.exists():
                shutil.copy(one, copy / one.name)
        return copy


def eventful(path: Path) -> Past:
    """Two checkpoints, growth, shrinking, pages freed and used again, a new table."""
    past = Past(path)
    past.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    past.commit("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    many = (
        f"INSERT INTO t SELECT value, printf('%.*c', 900, 'x') FROM {_numbers(3, 60)}"
    )
    past.commit(many)
    past.checkpoint()
    past.commit("UPDATE t SET v = 'c' WHERE id = 1")
    past.commit("DELETE FROM t WHERE id > 10")
    past.commit("CREATE INDEX by_v ON t (v)", "INSERT INTO t VALUES (100, 'z')")
    past.checkpoint()
    past.commit("UPDATE t SET v = v || '!' WHERE id < 3")
    past.commit("DROP INDEX by_v", "INSERT INTO t VALUES (101, 'y')")
    return past


def _numbers(low: int, high: int) -> str:
    return (
        f"(WITH RECURSIVE n(value) AS (SELECT {low} UNION ALL SELECT value + 1 FROM n"
        f" WHERE value < {high}) SELECT value FROM n)"
    )


@pytest.fixture
def past(path: Path) -> Past:
    return eventful(path)


def test_the_empty_database_is_one_that_sqlite_accepts(path: Path) -> None:
    create_database(path)

    db = sqlite3.connect(path)

    assert db.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("PRAGMA page_count").fetchall() == [(1,)]
    assert db.execute("PRAGMA encoding").fetchall() == [("UTF-8",)]
    assert db.execute("PRAGMA auto_vacuum").fetchall() == [(0,)]
    db.close()
    assert len(empty_database()) == PAGE_BYTES


def test_files_and_folders_are_for_the_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        db = Database.open(path, None)
        db.write_keys({"a": b"1"})
        db.commit()
        modes = {
            one.name: one.stat().st_mode & 0o777
            for one in (path, wal_path(path), path.parent, path.parent.parent)
        }
        db.abandon()
    finally:
        os.umask(before)

    assert set(modes.values()) == {0o600, 0o700}
    assert modes[path.name] == modes[wal_path(path).name] == 0o600


def test_a_segment_is_what_the_commit_appended(past: Past) -> None:
    wal = wal_path(past.path).read_bytes()
    first, second = past.segments[-2:]

    assert first.offset == 0
    assert second.offset == len(first.data)
    assert wal.startswith(first.data + second.data)
    assert all(first.data[16:24] == part.generation for part in (first, second))
    assert all(
        [f.database_pages > 0 for f in frames_of(one)][-1] for one in past.segments
    )


def test_a_checkpoint_makes_the_wal_begin_anew(past: Past) -> None:
    begins = [i for i, one in enumerate(past.segments) if one.offset == 0]

    assert begins == [0, 3, 6]
    assert len({one.generation for one in past.segments}) == 3


def test_an_older_wal_behind_the_new_one_is_no_part_of_a_segment(past: Past) -> None:
    # The third commit made a WAL of many pages; the later ones are shorter.
    assert len(past.segments[6].data) < wal_path(past.path).stat().st_size


def test_repair_brings_back_every_durable_moment_of_every_crash(past: Past) -> None:
    """kill -9 after each commit, with each durable position that was possible then."""
    looked = 0
    for commits in range(len(past.copies)):
        for durable in range(past.permanent[commits], commits + 1):
            disk = past.disk(commits)

            repair(disk, past.position(durable))

            assert state_of(disk) == past.states[durable], (commits, durable)
            looked += 1
    assert looked > 20


def test_without_repair_what_was_never_durable_shows(past: Past) -> None:
    """The control of the test above."""
    disk = past.disk(2)

    assert state_of(disk) == past.states[2] != past.states[1]


def test_repair_may_be_repeated(past: Past) -> None:
    disk = past.disk(5)
    repair(disk, past.position(4))
    before = wal_path(disk).read_bytes()

    repair(disk, past.position(4))

    assert wal_path(disk).read_bytes() == before


def test_what_was_never_durable_at_all_is_removed(past: Past) -> None:
    disk = past.disk(2)

    repair(disk, None)

    assert not disk.exists()
    assert not wal_path(disk).exists()


def test_the_next_generation_after_a_checkpoint_goes_if_it_is_not_durable(
    past: Past,
) -> None:
    disk = past.disk(4)  # one commit after the first checkpoint

    repair(disk, past.position(3))

    assert not wal_path(disk).exists()
    assert state_of(disk) == past.states[3]


def test_a_wal_that_lacks_durable_bytes_is_reported(past: Past) -> None:
    disk = past.disk(2)
    position = past.position(2)
    assert position is not None
    os.truncate(wal_path(disk), position.end - 1)

    with pytest.raises(CorruptionError, match=f"of {position.end} that are durable"):
        repair(disk, position)


@pytest.mark.parametrize("where", [20, 40, 60, HEADER_BYTES + FRAME_BYTES + 500])
def test_a_changed_bit_of_a_durable_frame_is_reported(past: Past, where: int) -> None:
    disk = past.disk(2)
    data = bytearray(wal_path(disk).read_bytes())
    data[where] ^= 4
    wal_path(disk).write_bytes(data)

    with pytest.raises(CorruptionError):
        repair(disk, past.position(2))


def test_a_position_that_is_no_end_of_a_commit_is_reported(past: Past) -> None:
    disk = past.disk(3)
    position = past.position(3)
    assert position is not None
    wrong = WalPosition(position.generation, position.end - FRAME_BYTES)

    with pytest.raises(CorruptionError, match="not the end of a commit"):
        repair(disk, wrong)


def test_a_missing_database_is_reported(past: Past) -> None:
    disk = past.disk(8)
    disk.unlink()

    with pytest.raises(CorruptionError, match="missing"):
        repair(disk, past.position(8))

    wal_path(disk).unlink()
    with pytest.raises(CorruptionError, match="missing"):
        repair(disk, past.position(8))


@pytest.mark.parametrize("left", [None, b"", bytes(PAGE_BYTES)])
def test_a_first_page_that_a_power_cut_took_is_written_again(
    past: Past, left: bytes | None
) -> None:
    """A database that never had a checkpoint is all in its WAL."""
    disk = past.disk(2)
    if left is None:
        disk.unlink()
    else:
        disk.write_bytes(left)

    repair(disk, past.position(2))

    assert state_of(disk) == past.states[2]


def test_replay_and_repair_survive_a_power_cut_at_every_moment(past: Past) -> None:
    """After each commit, each fold before it, and each durable moment between.

    Of the WAL's bytes behind the fold the disk keeps all, none, half, zeros, or what
    was there before.
    """
    looked = 0
    for commits in range(1, len(past.copies)):
        low = past.permanent[commits]
        for folded in range(low, commits + 1):
            for durable in range(folded, commits + 1):
                for kept in ("all", "none", "half", "zeros", "old"):
                    disk = past.disk(commits)
                    _cut_power(past, disk, folded, kept)

                    replay(disk, past.segments[folded:durable])
                    repair(disk, past.position(durable))

                    where = (commits, folded, durable, kept)
                    assert state_of(disk) == past.states[durable], where
                    looked += 1
    assert looked > 100


def _cut_power(past: Past, disk: Path, folded: int, kept: str) -> None:
    wal = wal_path(disk)
    data = wal.read_bytes()
    position = past.position(folded)
    synced = 0
    if position is not None and data[16:24] == position.generation:
        synced = position.end
    if kept == "none":
        data = data[:synced]
    elif kept == "half":
        data = data[: (synced + len(data)) // 2]
    elif kept == "old":  # as the file was at the fold, none of the later writes
        before = wal_path(past.copies[folded] / disk.name)
        data = before.read_bytes() if before.exists() else b""
    elif kept == "zeros":
        data = data[:synced] + bytes(len(data) - synced)
    wal.write_bytes(data)
    if not data:
        wal.unlink()
    if not folded:
        disk.unlink()  # not even its name was synced


def test_replay_may_be_broken_off_anywhere_and_repeated(past: Past) -> None:
    for stopped in range(len(past.segments) + 1):
        disk = past.disk(8)
        wal_path(disk).unlink()
        disk.unlink()
        # The log of an object whose first checkpoint came after its third commit.
        disk.write_bytes((past.copies[4] / disk.name).read_bytes())
        replay(disk, past.segments[3 : 3 + stopped])

        replay(disk, past.segments[3:6])
        repair(disk, past.position(6))

        assert state_of(disk) == past.states[6]


def test_replay_leaves_out_a_generation_that_is_in_the_database(past: Past) -> None:
    disk = past.disk(7)
    before = wal_path(disk).read_bytes()

    assert replay(disk, past.segments[4:6]) == 0

    assert wal_path(disk).read_bytes() == before


def test_replay_beside_a_database_closed_in_order_does_nothing(past: Past) -> None:
    past.db.close(past.db.position)

    assert replay(past.path, past.segments[-1:]) == 0
    assert state_of(past.path) == past.states[-1]


def test_replay_leaves_a_gap_for_repair_to_report(past: Past) -> None:
    disk = past.disk(1)
    replay(disk, past.segments[:1])

    assert replay(disk, past.segments[2:3]) == 1
    with pytest.raises(CorruptionError, match="does not match"):
        repair(disk, past.segments[2].position)


def test_replay_of_nothing_does_nothing(path: Path) -> None:
    assert replay(path, []) == 0
    assert not path.parent.exists()


def test_sync_takes_a_wal_that_is_there_and_one_that_is_not(past: Past) -> None:
    sync(past.path)
    past.db.close(past.db.position)
    sync(past.path)
    sync(past.path.parent.parent / "ff" / past.path.name)


def test_a_crash_while_a_connection_was_abandoned_is_undone(past: Past) -> None:
    disk = past.disk(5)
    disk.rename(aside_path(disk))

    repair(disk, past.position(4))

    assert state_of(disk) == past.states[4]


def test_two_databases_of_one_name_are_reported(past: Past) -> None:
    disk = past.disk(5)
    shutil.copy(disk, aside_path(disk))

    with pytest.raises(CorruptionError, match="both exist"):
        repair(disk, past.position(4))


def test_frames_that_are_not_whole_are_reported() -> None:
    with pytest.raises(CorruptionError, match="whole frames"):
        list(frames_of(WalSegment(bytes(8), 4096, b"x" * 100)))


def test_a_commit_that_is_not_all_there_is_reported(path: Path) -> None:
    db = Database.open(path, None)
    db.write_keys({"a": b"1"})
    db.commit()
    db.write_keys({"a": b"2"})
    real = db._tail._read_commit

    def cut(generation: bytes, start: int) -> bytes | None:
        wal = wal_path(path)
        with wal.open("r+b") as file:
            file.seek(start + 4)
            file.write(struct.pack(">I", 0))  # no longer the last of its commit
        return real(generation, start)

    db._tail._read_commit = cut  # type: ignore[method-assign]
    with pytest.raises(Exception, match="do not end with a commit"):
        db.commit()
    assert db.failure is not None
    db.abandon()
