"""One open database: turns, savepoints, keys, and how it is closed."""

from __future__ import annotations

import gc
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from durable_actor.errors import (
    CorruptionError,
    SqlError,
    StorageFailedError,
    StorageFullError,
    StorageLimitError,
)
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.statements import SqlLimits
from durable_actor.storage.sql.wal import create_database, wal_path
from tests.support.descriptors import open_descriptors

KEYS = {f"k{i:03}": bytes([i]) * 50 for i in range(200)}


def rows(db: Database, query: str, *bindings: object) -> list[tuple[object, ...]]:
    return [tuple(row) for row in db.exec(query, bindings).raw()]


def stored(path: Path) -> set[str]:
    """What a copy of the database file alone, without its WAL, has for tables."""
    copy = path.with_name("alone.db")
    shutil.copy(path, copy)
    db = sqlite3.connect(copy)
    try:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    finally:
        db.close()
        copy.unlink()
        wal_path(copy).unlink(missing_ok=True)


# -- turns ---------------------------------------------------------------------------


def test_a_turn_that_only_reads_returns_no_segment(db: Database) -> None:
    rows(db, "SELECT 1")

    assert not db.needs_end
    assert db.commit() is None
    assert db.position is None


def test_sql_and_keys_of_a_turn_are_in_one_segment(db: Database) -> None:
    db.exec("CREATE TABLE t (x)")
    db.write_keys({"a": b"1"})

    segment = db.commit()

    assert segment is not None
    assert db.position == segment.position
    assert not db.is_in_turn


def test_a_turn_that_changes_nothing_has_no_segment(
    db: Database,
) -> None:
    db.exec("CREATE TABLE t (x)")
    db.commit()
    db.exec("DELETE FROM t WHERE x = 5")

    assert db.commit() is None
    assert db.failure is None


def test_a_rolled_back_turn_leaves_nothing(db: Database) -> None:
    db.exec("CREATE TABLE t (x)")
    db.write_keys({"a": b"1"})

    db.rollback()

    assert rows(db, "SELECT name FROM sqlite_schema") == []
    assert db.load().keys == {}
    db.write_keys({"a": b"2"})
    db.commit()
    assert db.load().keys == {"a": b"2"}


def test_a_statement_that_fails_keeps_the_rest_of_its_turn(db: Database) -> None:
    db.exec("CREATE TABLE t (x UNIQUE)")
    db.exec("INSERT INTO t VALUES (1)")
    with pytest.raises(SqlError) as caught:
        db.exec("INSERT INTO t VALUES (2), (1)")
    db.commit()

    assert caught.value.sqlite_name == "SQLITE_CONSTRAINT_UNIQUE"
    assert rows(db, "SELECT x FROM t") == [(1,)]


def test_a_deferred_constraint_that_fails_at_the_commit_fails_the_turn(
    db: Database,
) -> None:
    db.exec("CREATE TABLE p (id INTEGER PRIMARY KEY)")
    db.exec("CREATE TABLE c (p REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
    db.commit()
    before = db.position
    db.exec("INSERT INTO c VALUES (7)")

    with pytest.raises(SqlError, match="FOREIGN KEY constraint failed"):
        db.commit()

    assert db.position == before
    with pytest.raises(StorageFailedError):
        db.exec("SELECT 1")


def test_a_turn_that_sqlite_undid_breaks_the_database(path: Path) -> None:
    limits = SqlLimits(statement_ms_max=20)
    db = Database.open(path, None, limits)
    db.exec("CREATE TABLE t (x)")
    with pytest.raises(StorageLimitError, match="longer than 20 ms") as caught:
        db.exec(
            "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1"
            " FROM n) SELECT x FROM n"
        )

    assert "undid the whole turn" in caught.value.__notes__[0]
    with pytest.raises(StorageFailedError):
        db.commit()
    position = db.position
    db.abandon()
    assert position is None


def test_a_closed_database_says_so(db: Database) -> None:
    db.abandon()

    with pytest.raises(SqlError, match="closed"):
        db.exec("SELECT 1")
    db.abandon()
    db.close(None)


# -- savepoints ----------------------------------------------------------------------


def test_a_savepoint_that_is_released_keeps_what_it_wrote(db: Database) -> None:
    db.exec("CREATE TABLE t (x)")
    db.begin_savepoint()
    db.exec("INSERT INTO t VALUES (1)")
    db.release_savepoint()

    assert rows(db, "SELECT x FROM t") == [(1,)]


def test_a_savepoint_that_is_rolled_back_takes_sql_and_keys_with_it(
    db: Database,
) -> None:
    db.exec("CREATE TABLE t (x)")
    db.exec("INSERT INTO t VALUES (1)")
    db.begin_savepoint()
    db.exec("INSERT INTO t VALUES (2)")
    db.write_keys({"a": b"1"})
    db.rollback_savepoint()

    assert rows(db, "SELECT x FROM t") == [(1,)]
    assert db.load().keys == {}


def test_savepoints_nest(db: Database) -> None:
    db.exec("CREATE TABLE t (x)")
    db.begin_savepoint()
    db.exec("INSERT INTO t VALUES (1)")
    db.begin_savepoint()
    db.exec("INSERT INTO t VALUES (2)")
    db.rollback_savepoint()
    db.exec("INSERT INTO t VALUES (3)")
    db.release_savepoint()
    db.commit()

    assert rows(db, "SELECT x FROM t") == [(1,), (3,)]


# -- keys ----------------------------------------------------------------------------


def test_keys_are_read_one_by_one_in_ranges_and_all_together(db: Database) -> None:
    db.write_keys(KEYS)
    db.write_keys({"k001": None, "k002": b"new", "absent": None})
    expected = {**KEYS, "k002": b"new"}
    del expected["k001"]

    assert db.load() == db.load(200, 1 << 20)
    assert db.load().keys == expected
    assert db.load().complete
    assert db.read_keys([*KEYS, "nope"]) == expected
    assert [k for k, _ in db.read_range("k003", "k006")] == ["k003", "k004", "k005"]
    assert [k for k, _ in db.read_range("k197", limit=2)] == ["k197", "k198"]
    assert [k for k, _ in db.read_range("", "k004", limit=2, reverse=True)] == [
        "k003",
        "k002",
    ]


def test_keys_are_in_the_order_of_their_bytes(db: Database) -> None:
    keys = ["", "a", "a\x00", "é", "\ufffd", "😀", "Z"]
    db.write_keys(dict.fromkeys(keys, b""))

    assert [k for k, _ in db.read_range()] == sorted(keys, key=str.encode)


def test_a_large_object_is_not_loaded_whole(db: Database) -> None:
    db.write_keys(KEYS)

    few = db.load(keys_max=10)
    small = db.load(bytes_max=540)

    assert (len(few.keys), few.complete) == (10, False)
    assert (len(small.keys), small.complete) == (10, False)


def test_before_the_first_write_there_are_no_keys(db: Database) -> None:
    assert db.load().complete
    assert db.read_keys(["a"]) == {}
    assert db.read_range() == []


def test_a_key_whose_checksum_does_not_match_is_reported(
    db: Database, path: Path
) -> None:
    db.write_keys({"a": b"right", "b": b"x"})
    db._run("UPDATE _cf_KV SET value = CAST('wrong' AS BLOB) WHERE key = 'a'")

    assert "'a'" in (db.load().damage or "")
    with pytest.raises(CorruptionError, match="'a'"):
        db.read_keys(["a"])
    assert db.read_keys(["b"]) == {"b": b"x"}


def test_values_may_be_as_large_as_the_limit(db: Database) -> None:
    db.write_keys({"k" * 2_048: bytes(2 * 1024 * 1024)})
    db.commit()

    assert len(db.load(bytes_max=1 << 30).keys["k" * 2_048]) == 2 * 1024 * 1024


def test_clear_drops_everything_the_user_made(db: Database) -> None:
    db.exec(
        "CREATE TABLE p (id INTEGER PRIMARY KEY AUTOINCREMENT);"
        "CREATE TABLE c (p REFERENCES p(id));"
        "CREATE INDEX i ON c (p);"
        "CREATE VIEW v AS SELECT * FROM c;"
        "CREATE TRIGGER tr AFTER INSERT ON c BEGIN SELECT 1; END;"
        'CREATE TABLE "odd "" name" (x);'
        "CREATE VIRTUAL TABLE f USING fts5(body);"
        "INSERT INTO p VALUES (1); INSERT INTO c VALUES (1); INSERT INTO f VALUES ('a')"
    )
    db.write_keys({"a": b"1"})
    db.commit()

    db.clear()
    db.commit()

    left = rows(db, "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite%'")
    assert left == [("_cf_KV",)]
    assert db.load().keys == {}
    assert db.exec("PRAGMA foreign_keys").one() == {"foreign_keys": 1}


# -- closing --------------------------------------------------------------------------


def test_a_settled_database_is_closed_without_a_wal(db: Database, path: Path) -> None:
    db.exec("CREATE TABLE t (x)")
    db.commit()

    db.close(db.position)

    assert not wal_path(path).exists()
    assert "t" in stored(path)


@pytest.mark.parametrize("size", [1, 40, 400])
@pytest.mark.parametrize("folded", [False, True])
def test_pages_that_are_not_durable_never_reach_the_database(
    path: Path, size: int, *, folded: bool
) -> None:
    """Few and many pages, after and without a checkpoint, growing and shrinking."""
    db = Database.open(path, None)
    db.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    db.exec("CREATE TABLE u (v)")
    db.commit()
    if folded:
        db.checkpoint()
    durable = db.position
    before = path.read_bytes()
    for i in range(size):
        db.exec("INSERT INTO t(v) VALUES (randomblob(3000))")
        if i % 7 == 0:
            db.commit()
    db.exec("DROP TABLE u")
    db.commit()
    open_cursor = db.exec("SELECT * FROM t")
    assert db.position != durable

    db.close(durable)

    assert path.read_bytes() == before
    del open_cursor
    gc.collect()
    assert path.read_bytes() == before
    again = Database.open(path, durable)
    assert rows(again, "SELECT count(*) FROM t, (SELECT count(*) FROM u)") == [(0,)]
    again.abandon()


def test_closing_in_sqlites_own_way_would_write_them(path: Path) -> None:
    """The control of the test above."""
    db = Database.open(path, None)
    before = path.read_bytes()
    db.exec("CREATE TABLE t (x)")
    db.commit()

    db._link.connection.close()

    assert path.read_bytes() != before
    db.abandon()


def test_what_became_durable_after_all_is_still_in_the_wal(path: Path) -> None:
    db = Database.open(path, None)
    db.exec("CREATE TABLE t (x)")
    db.commit()
    db.abandon()

    again = Database.open(path, db.position)

    assert rows(again, "SELECT name FROM sqlite_schema WHERE name = 't'") == [("t",)]
    again.abandon()


def test_a_database_that_is_dropped_is_abandoned(path: Path) -> None:
    def use() -> None:
        db = Database.open(path, None)
        db.exec("CREATE TABLE t (x)")
        db.commit()
        db.exec("INSERT INTO t VALUES (1), (2)")
        cursor = db.exec("SELECT x FROM t")
        cursor.next()
        db.circle = cursor  # type: ignore[attr-defined]  # only the collector ends it

    create_database(path)
    empty = path.read_bytes()
    use()
    gc.collect()

    assert path.read_bytes() == empty
    assert wal_path(path).exists()
    assert open_descriptors(path.parent) == 0


def test_a_database_that_cannot_be_moved_aside_stays_open_for_good(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database.open(path, None)
    db.exec("CREATE TABLE t (x)")
    db.commit()
    before = path.read_bytes()

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        db.abandon()
    position = db.position
    del db
    gc.collect()

    assert path.read_bytes() == before
    with pytest.raises(StorageFailedError, match="locked"):
        Database.open(path, position)


PROGRAM = """
import os, sys
from pathlib import Path
from durable_actor.storage.sql.database import Database
from tests.support.descriptors import open_descriptors

db = Database.open(Path(sys.argv[1]), None)
db.exec("CREATE TABLE t (x)")
db.commit()
db.exec("INSERT INTO t VALUES (1), (2)")
cursor = db.exec("SELECT x FROM t")
cursor.next()
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise RuntimeError",
        "keep = [db]; db.me = keep; del db",
        "import builtins; builtins.keep = db",
        # A child takes copies of everything, and ends in the ordinary way.
        "if os.fork() == 0: sys.exit(0)\nos.wait()\nassert db.commit()\nos._exit(0)",
        "if os.fork() == 0: del db, cursor; sys.exit(0)\nos.wait()\nos._exit(0)",
    ],
)
def test_a_process_that_ends_leaves_the_database_alone(path: Path, end: str) -> None:
    program = textwrap.dedent(PROGRAM) + end
    subprocess.run(
        [sys.executable, "-c", program, str(path)], check=False, capture_output=True
    )

    assert stored(path) == set()
    assert wal_path(path).stat().st_size > 4_096
    assert sorted(one.name for one in path.parent.iterdir()) == [
        path.name,
        wal_path(path).name,
    ]


def test_nobody_else_can_open_it_meanwhile(db: Database, path: Path) -> None:
    other = sqlite3.connect(path, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM sqlite_schema")
    other.close()


def test_a_checkpoint_within_a_turn_is_our_mistake(db: Database) -> None:
    db.begin()

    with pytest.raises(AssertionError):
        db.checkpoint()


def test_a_checkpoint_goes_on_beside_a_cursor_that_was_left(db: Database) -> None:
    db.exec("CREATE TABLE t (x)")
    db.exec("INSERT INTO t VALUES (1), (2), (3)")
    db.commit()
    cursor = db.exec("SELECT x FROM t")

    db.checkpoint()
    db.exec("INSERT INTO t VALUES (4)")
    segment = db.commit()

    assert segment is not None
    assert segment.offset == 0
    assert [row["x"] for row in cursor] == [1, 2, 3]


def test_a_database_at_its_limit_says_so_and_keeps_the_turn(path: Path) -> None:
    db = Database.open(path, None, SqlLimits(database_bytes_max=40 * 4_096))
    db.exec("CREATE TABLE t (x)")
    with pytest.raises(StorageLimitError, match="the limit is 163840"):
        for _ in range(100):
            db.exec("INSERT INTO t VALUES (zeroblob(3000))")
    with pytest.raises(StorageLimitError):
        db.write_keys({"a": b"1"})
    db.commit()

    assert 20 < rows(db, "SELECT count(*) FROM t")[0][0] < 40  # type: ignore[operator]
    db.write_keys({"a": None})
    db.exec("DELETE FROM t")
    db.exec("INSERT INTO t VALUES (1)")
    db.commit()
    db.abandon()


def test_a_turn_too_large_for_the_log_is_not_kept(path: Path) -> None:
    db = Database.open(path, None, SqlLimits(turn_bytes_max=100_000))
    db.exec("CREATE TABLE t (x)")
    db.commit()
    durable = db.position
    db.exec("INSERT INTO t VALUES (zeroblob(100000))")

    with pytest.raises(StorageLimitError, match="the limit is 100000"):
        db.commit()

    assert db.position == durable
    db.abandon()
    again = Database.open(path, durable)
    assert rows(again, "SELECT count(*) FROM t") == [(0,)]
    again.abandon()


def test_one_statement_far_over_the_limit_breaks_the_database(path: Path) -> None:
    db = Database.open(path, None, SqlLimits(database_bytes_max=40 * 4_096))
    db.exec("CREATE TABLE t (x)")
    with pytest.raises(StorageLimitError, match="the limit is 163840"):
        for _ in range(10):
            db.exec("INSERT INTO t VALUES (zeroblob(2000000))")
            db.exec("DELETE FROM t WHERE 0; UPDATE t SET x = zeroblob(2000001)")
    db.abandon()


def test_a_full_disk_is_told_apart_from_a_full_database(small_disk: Path) -> None:
    (small_disk / "d").mkdir()
    path = small_disk / "d" / "objects" / "00" / f"{'00' * 32}.db"
    db = Database.open(path, None)
    db.exec("CREATE TABLE t (x)")
    db.commit()
    durable = db.position
    db.exec("INSERT INTO t VALUES (zeroblob(1900000))")
    db.exec("INSERT INTO t VALUES (zeroblob(1900000))")
    with pytest.raises(StorageFullError):
        db.commit()

    assert db.position == durable
    db.abandon()
    again = Database.open(path, durable)
    assert rows(again, "SELECT count(*) FROM t") == [(0,)]
    again.exec("INSERT INTO t VALUES (1)")
    assert again.commit() is not None
    again.abandon()


def test_a_file_that_is_no_database_is_reported(path: Path) -> None:
    db = Database.open(path, None)
    db.exec("CREATE TABLE t (x)")
    db.commit()
    db.close(db.position)
    data = bytearray(path.read_bytes())
    data[100:200] = b"\xff" * 100
    path.write_bytes(data)

    with pytest.raises((CorruptionError, StorageFailedError)):
        Database.open(path, db.position).exec("SELECT * FROM t")
