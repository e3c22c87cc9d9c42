"""Going back in time, over and over, and after a crash anywhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from durable_actor.errors import CorruptionError, StorageError
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.history import History, bookmark, bookmark_seq
from durable_actor.storage.sql.wal import PAGE_BYTES, WalSegment, wal_path

State = list[tuple[object, ...]]


class Life:
    """A database with a history, and what it held after each commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = Database.open(path, None)
        self.history = History(path)
        self.segments: dict[int, WalSegment] = {}
        self.states: dict[int, State] = {}
        self.seq = 0

    def commit(self, *statements: str) -> None:
        for statement in statements:
            self.db.exec(statement)
        state = look(self.db)
        segment = self.db.commit()
        assert segment is not None
        self.seq += 1
        self.states[self.seq] = state
        self.segments[self.seq] = segment
        assert self.history.append(segment, seq=self.seq, at_ms=self.seq * 1_000)

    def restore(self, seq: int) -> str:
        self.history.sync()
        self.db.close(self.db.position)
        self.seq += 1
        back = self.history.restore(
            bookmark(seq, seq * 1_000), seq=self.seq, at_ms=self.seq * 1_000
        )
        self.states[self.seq] = self.states.get(seq, [])
        self.db = Database.open(self.path, self.db.position)
        return back


def look(db: Database) -> State:
    if db.exec("SELECT * FROM sqlite_schema WHERE name = 't'").next() is None:
        return []
    return [tuple(row) for row in db.exec("SELECT id, v FROM t ORDER BY id").raw()]


@pytest.fixture
def life(path: Path) -> Life:
    life = Life(path)
    life.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    life.commit("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    for i in range(3, 40):
        life.db.exec(f"INSERT INTO t VALUES ({i}, printf('%.*c', 900, 'x'))")
    life.commit()
    life.db.checkpoint()
    life.commit("UPDATE t SET v = 'c' WHERE id = 1")
    life.commit("DELETE FROM t WHERE id > 5")
    life.db.checkpoint()
    life.commit("CREATE INDEX by_v ON t (v)", "INSERT INTO t VALUES (50, 'z')")
    return life


def test_every_moment_can_be_restored(life: Life) -> None:
    for seq in (1, 2, 3, 4, 5, 6, 3, 1, 6):
        life.restore(seq)

        assert look(life.db) == life.states[seq], seq
        assert life.db.exec("PRAGMA quick_check").raw().to_list() == [("ok",)]


def test_the_moment_before_anything_is_an_empty_database(life: Life) -> None:
    life.restore(0)

    assert life.db.exec("SELECT * FROM sqlite_schema").to_list() == []
    life.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    assert look(life.db) == []


def test_a_restore_is_undone_by_the_bookmark_it_returns(life: Life) -> None:
    before = look(life.db)

    back = life.restore(2)
    life.commit("INSERT INTO t VALUES (77, 'after')")
    after = life.seq
    life.restore(bookmark_seq(back))

    assert look(life.db) == before
    life.restore(after)
    assert look(life.db)[-1] == (77, "after")


def test_a_restore_that_a_crash_broke_off_is_asked_for_again(life: Life) -> None:
    life.history.sync()
    life.db.close(life.db.position)
    first = life.history.restore(bookmark(3, 3_000), seq=7, at_ms=7_000)
    life.path.write_bytes(b"half of it")
    wal_path(life.path).write_bytes(b"of another time")

    second = History(life.path).restore(bookmark(3, 3_000), seq=7, at_ms=9_999)

    assert first == second == bookmark(6, 6_000)
    assert not wal_path(life.path).exists()
    db = Database.open(life.path, life.db.position)
    assert look(db) == life.states[3]
    db.close(db.position)


def test_a_segment_is_appended_once(life: Life) -> None:
    size = life.history.size_bytes
    again = History(life.path)

    for seq, segment in life.segments.items():
        assert not again.append(segment, seq=seq, at_ms=seq)

    assert again.size_bytes == size
    assert again.current_bookmark == life.history.current_bookmark


def test_a_crash_anywhere_in_an_append_is_mended_by_repeating_the_fold(
    life: Life, tmp_path: Path
) -> None:
    redo = life.path.with_suffix(".redo")
    data = redo.read_bytes()
    ends = [record.end for record in life.history._records]
    for cut in {1, 10, ends[0], ends[1] + 5, ends[3] - 1, ends[4] + 700, ends[5] - 2}:
        for zeros in (0, 400):
            redo.write_bytes(data[:cut] + bytes(zeros))
            history = History(life.path)
            for seq, segment in life.segments.items():
                history.append(segment, seq=seq, at_ms=seq * 1_000)

            assert redo.read_bytes() == data, cut


def test_bookmarks_sort_in_time_order_and_are_found_by_time(life: Life) -> None:
    marks = [bookmark(seq, seq * 1_000) for seq in range(300)]

    assert marks == sorted(marks)
    assert life.history.bookmark_for_time(3_500) == marks[3]
    assert life.history.bookmark_for_time(3_000) == marks[3]
    assert life.history.bookmark_for_time(10**12) == marks[6]
    assert life.history.bookmark_for_time(5) == marks[0]
    assert life.history.current_bookmark == marks[6]


@pytest.mark.parametrize("text", ["", "x", "12-34", "0" * 29, 5, None])
def test_what_is_no_bookmark_is_refused(life: Life, text: object) -> None:
    with pytest.raises(StorageError, match="not a bookmark"):
        life.history.restore(text, seq=9, at_ms=0)  # type: ignore[arg-type]


def test_a_bookmark_of_the_future_is_refused(life: Life) -> None:
    with pytest.raises(StorageError, match="not within the history"):
        life.history.restore(bookmark(8, 8_000), seq=9, at_ms=9_000)
    assert look(life.db) == life.states[6]


@pytest.mark.parametrize("kept_records", [0, 1, 3, 5])
def test_trimming_moves_the_oldest_moments_into_the_base(
    life: Life, kept_records: int
) -> None:
    oldest = 6 - kept_records
    now_ms = 100_000
    moved = life.history.trim(now_ms, age_ms_max=now_ms - oldest * 1_000 - 500)

    assert moved == oldest
    assert History(life.path).current_bookmark == bookmark(6, 6_000)
    with pytest.raises(StorageError, match="not within the history"):
        life.history.restore(bookmark(oldest - 1, 0), seq=90, at_ms=0)
    with pytest.raises(StorageError, match="before it"):
        life.history.bookmark_for_time(oldest * 1_000 - 1)
    for seq in range(oldest, 7):
        life.restore(seq)
        assert look(life.db) == life.states[seq], seq


def test_trimming_keeps_the_history_within_its_bytes(life: Life) -> None:
    life.history.trim(0, bytes_max=5 * PAGE_BYTES)

    assert 0 < life.history.size_bytes <= 5 * PAGE_BYTES
    assert life.history.trim(0, bytes_max=5 * PAGE_BYTES) == 0
    life.commit("INSERT INTO t VALUES (60, 'more')")
    life.restore(6)
    assert look(life.db) == life.states[6]


def test_a_crash_between_the_two_files_of_a_trim_loses_nothing(life: Life) -> None:
    redo = life.path.with_suffix(".redo")
    before = redo.read_bytes()
    life.history.trim(100_000, age_ms_max=96_500)
    redo.write_bytes(before)

    life.history = History(life.path)

    for seq in range(3, 7):
        life.restore(seq)
        assert look(life.db) == life.states[seq], seq
    with pytest.raises(StorageError, match="not within the history"):
        life.history.restore(bookmark(2, 2_000), seq=90, at_ms=0)


def test_a_gap_in_the_history_is_reported(life: Life) -> None:
    redo = life.path.with_suffix(".redo")
    os.truncate(redo, life.history._records[1].end)
    history = History(life.path)
    segment = WalSegment(bytes(8), 4_152, life.segments[3].data)

    with pytest.raises(CorruptionError, match="the commit before 3 is missing"):
        history.append(segment, seq=3, at_ms=3_000)


def test_a_damaged_record_is_reported_before_the_database_is_touched(
    life: Life,
) -> None:
    redo = life.path.with_suffix(".redo")
    data = bytearray(redo.read_bytes())
    data[life.history._records[1].offset + 77] ^= 1
    redo.write_bytes(data)
    life.db.close(life.db.position)
    before = life.path.read_bytes()

    with pytest.raises(CorruptionError, match="the record 2 is damaged"):
        History(life.path).restore(bookmark(3, 3_000), seq=7, at_ms=7_000)

    assert life.path.read_bytes() == before


def damage(life: Life, record: int, place: str) -> bytes:
    """Change a bit of a record that was synced; return the file as it is then."""
    redo = life.path.with_suffix(".redo")
    data = bytearray(redo.read_bytes())
    start = life.history._records[record - 1].end if record else 0
    images = life.history._records[record].offset
    places = {"magic": 1, "number": 11, "count": 27, "images": images - start + 77}
    data[start + places[place]] ^= 64
    redo.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("place", ["magic", "number", "count", "images"])
@pytest.mark.parametrize("record", [0, 2, 5])
@pytest.mark.parametrize("is_new", [False, True], ids=["same_wal", "new_wal"])
def test_g11_no_byte_of_a_damaged_history_is_touched_and_its_damage_is_told(
    life: Life, record: int, place: str, is_new: bool
) -> None:
    redo = life.path.with_suffix(".redo")
    if is_new:
        life.db.checkpoint()
    before = damage(life, record, place)
    life.history = History(life.path)

    if place == "images" and record < 5:  # found when it is used
        life.commit("INSERT INTO t VALUES (80, 'later')")
    else:
        with pytest.raises(CorruptionError):
            life.commit("INSERT INTO t VALUES (80, 'later')")
        assert redo.read_bytes() == before
    before = redo.read_bytes()
    life.db.close(life.db.position)
    with pytest.raises(CorruptionError):
        life.history.restore(bookmark(0, 0), seq=9, at_ms=9_000)
    with pytest.raises(CorruptionError):
        History(life.path).restore(bookmark(0, 0), seq=9, at_ms=9_000)

    assert life.history.problem()
    assert redo.read_bytes()[: len(before)] == before


def test_g11_a_record_left_half_written_is_no_damage(life: Life) -> None:
    # The control: what the log still holds is written again, whatever was left of it.
    redo = life.path.with_suffix(".redo")
    data = redo.read_bytes()
    start = life.history._records[3].end
    holes = {"head": (0, 512), "image": (60, 4_000), "all": (0, len(data) - start)}
    for name, (hole, size) in holes.items():
        torn = bytearray(data)
        torn[start + hole : start + hole + size] = bytes(size)
        redo.write_bytes(torn)
        history = History(life.path)
        assert redo.read_bytes() == torn, "reading changes nothing"

        assert [
            history.append(segment, seq=seq, at_ms=seq * 1_000)
            for seq, segment in life.segments.items()
        ] == [False] * 4 + [True] * 2, name

        assert redo.read_bytes() == data, name


@pytest.mark.parametrize("is_asked_again", [True, False])
def test_a_return_that_was_left_half_written_is_asked_for_again(
    life: Life, is_asked_again: bool
) -> None:
    redo = life.path.with_suffix(".redo")
    before = redo.read_bytes()
    life.db.close(life.db.position)
    life.history.restore(bookmark(3, 3_000), seq=7, at_ms=7_000)
    torn = redo.read_bytes()[:-700]
    redo.write_bytes(torn)
    history = History(life.path)

    if is_asked_again:
        history.restore(bookmark(3, 3_000), seq=8, at_ms=9_999)  # with a new ticket
        db = Database.open(life.path, life.db.position)
        assert look(db) == life.states[3]
        db.close(db.position)
    else:
        with pytest.raises(CorruptionError, match="not whole"):
            history.restore(bookmark(2, 2_000), seq=8, at_ms=9_999)
        assert redo.read_bytes() == torn
    assert redo.read_bytes()[: len(before)] == before


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_base_is_reported(life: Life, damage: str) -> None:
    life.history.trim(100_000, age_ms_max=96_500)
    base = life.path.with_suffix(".base")
    data = base.read_bytes()
    base.write_bytes(data[:-9] if damage == "cut" else data[:-9] + b"?" + data[-8:])

    with pytest.raises(CorruptionError):
        History(life.path)


def test_a_deleted_history_begins_again(life: Life) -> None:
    life.history.delete()

    assert life.history.last_seq == 0
    assert not life.path.with_suffix(".redo").exists()
    shutil.rmtree(life.path.parent)
    assert History(life.path).current_bookmark == bookmark(0, 0)
