"""Which database files there are, and how many of them are open."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_actor.errors import SqlError, StorageError
from durable_actor.storage.sql.files import SqlFile, SqlFiles, database_path
from durable_actor.storage.sql.wal import WalPosition, wal_path
from tests.support.descriptors import open_descriptors


def raw_id(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def files(tmp_path: Path) -> SqlFiles:
    return SqlFiles(tmp_path, open_max=2)


def write(file: SqlFile, value: bytes) -> WalPosition | None:
    file.database.write_keys({"a": value})
    file.database.commit()
    return file.database.position


def test_a_path_comes_from_the_id_alone(tmp_path: Path) -> None:
    path = database_path(tmp_path, bytes(range(32)))

    assert path == tmp_path / "objects" / "00" / (bytes(range(32)).hex() + ".db")
    with pytest.raises(ValueError, match="32 bytes"):
        database_path(tmp_path, b"../../etc/passwd")


def test_the_one_used_longest_ago_is_closed_when_it_is_idle(files: SqlFiles) -> None:
    one, two, three = (files.file(raw_id(i), None) for i in range(3))
    for file in (one, two):
        file.settled(write(file, b"1"))
    one.database.load()  # now `two` is the oldest

    write(three, b"1")

    assert files.open_count == 2
    assert two.opened is None
    assert not wal_path(two.path).exists()
    assert one.opened is not None


def test_a_closed_database_is_opened_again_by_its_next_use(files: SqlFiles) -> None:
    handles = [files.file(raw_id(i), None) for i in range(8)]
    for turn in range(3):
        for file in handles:
            if turn:
                assert file.database.load().keys == {"a": b"%d" % (turn - 1)}
            file.settled(write(file, b"%d" % turn))

    assert files.open_count == 2


def test_what_is_not_idle_stays_open(files: SqlFiles) -> None:
    writing, undurable, reading = (files.file(raw_id(i), None) for i in range(3))
    writing.database.write_keys({"a": b"1"})
    write(undurable, b"1")
    reading.database.exec("SELECT 1")
    cursor = reading.database.exec("SELECT value FROM json_each('[1, 2]')")

    last = files.file(raw_id(9), None)
    write(last, b"1")

    assert files.open_count == 4
    assert files.is_over
    assert not any(file.is_idle for file in (writing, undurable, reading))
    del cursor
    writing.database.commit()
    for file in (writing, undurable, reading, last):
        file.settled(file.database.position)
    write(files.file(raw_id(10), None), b"1")
    assert files.open_count == 2
    assert not files.is_over


def test_a_second_activation_waits_for_the_first_one(files: SqlFiles) -> None:
    first = files.file(raw_id(1), None)
    later = files.file(raw_id(1), None)
    write(first, b"1")

    with pytest.raises(SqlError, match="earlier activation"):
        files.file(raw_id(1), None)
    with pytest.raises(SqlError, match="earlier activation"):
        later.database.load()

    first.abandon()
    assert later.database.load().keys == {}


def test_an_abandoned_file_is_not_opened_again_by_its_activation(
    files: SqlFiles,
) -> None:
    file = files.file(raw_id(1), None)
    position = write(file, b"1")
    file.abandon()

    with pytest.raises(StorageError, match="reset"):
        file.database.load()
    assert files.file(raw_id(1), position).database.load().keys == {"a": b"1"}


def test_the_end_of_a_host_closes_what_is_idle_and_abandons_the_rest(
    files: SqlFiles,
) -> None:
    idle, busy = files.file(raw_id(1), None), files.file(raw_id(2), None)
    idle.settled(write(idle, b"1"))
    write(busy, b"1")

    files.close_idle()
    files.abandon_all()

    assert files.open_count == 0
    assert not wal_path(idle.path).exists()
    assert wal_path(busy.path).exists()


def test_a_wal_beyond_its_bound_is_checkpointed_when_it_is_settled(
    files: SqlFiles,
) -> None:
    file = files.file(raw_id(1), None)
    position = write(file, bytes(10_000))

    assert not file.checkpoint_beyond(8_192)
    file.settled(position)
    assert file.checkpoint_beyond(8_192)
    assert not file.checkpoint_beyond(1 << 20)

    file.database.write_keys({"b": b""})
    segment = file.database.commit()
    assert segment is not None
    assert segment.offset == 0


def test_releasing_what_is_not_idle_ends_it_for_its_activation(
    files: SqlFiles,
) -> None:
    file = files.file(raw_id(1), None)
    position = write(file, b"1")

    file.release()
    file.release()

    with pytest.raises(StorageError, match="reset"):
        file.database.load()
    again = files.file(raw_id(1), position)
    assert again.database.load().keys == {"a": b"1"}


def test_an_open_database_takes_three_descriptors(
    files: SqlFiles, tmp_path: Path
) -> None:
    file = files.file(raw_id(1), None)
    write(file, b"1")

    assert open_descriptors(tmp_path) == 3
    file.abandon()
    assert open_descriptors(tmp_path) == 0
