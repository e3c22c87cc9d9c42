"""The rows of a statement, in every form, and after their turn."""

from __future__ import annotations

import gc

import pytest

from durable_actor.errors import SqlError
from durable_actor.storage.sql import cursor as cursors
from durable_actor.storage.sql.cursor import RawCursor, SqlCursor
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.surface import SqlStorage


@pytest.fixture
def filled(db: Database) -> Database:
    db.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
    db.exec("INSERT INTO t VALUES (1, 'x', 1.5), (2, 'y', NULL), (3, 'z', x'0102')")
    db.commit()
    return db


def test_rows_are_dicts_in_order(filled: Database) -> None:
    cursor = filled.exec("SELECT * FROM t ORDER BY id")

    assert cursor.columns == ["id", "a", "b"]
    assert cursor.next() == {"id": 1, "a": "x", "b": 1.5}
    assert cursor.to_list() == [
        {"id": 2, "a": "y", "b": None},
        {"id": 3, "a": "z", "b": b"\x01\x02"},
    ]
    assert cursor.to_list() == []
    assert cursor.next() is None
    assert cursor.next("end") == "end"
    assert cursor.columns == ["id", "a", "b"]


def test_iteration_and_raw_rows_move_on_together(filled: Database) -> None:
    cursor = filled.exec("SELECT id FROM t ORDER BY id")
    raw = cursor.raw()

    assert next(cursor) == {"id": 1}
    assert next(raw) == (2,)
    assert raw.to_list() == [(3,)]
    assert list(cursor) == []
    assert raw.columns == ["id"]


def test_of_columns_with_one_name_the_last_one_wins(filled: Database) -> None:
    assert filled.exec("SELECT 1 AS x, 2 AS x").one() == {"x": 2}
    cursor = filled.exec("SELECT 1 AS x, 2 AS x")
    assert cursor.columns == ["x", "x"]
    assert cursor.raw().to_list() == [(1, 2)]
    assert filled.exec("SELECT id, a AS alias, 1+1 FROM t").columns == [
        "id",
        "alias",
        "1+1",
    ]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT * FROM t WHERE id > 9", "but got no results."),
        ("DELETE FROM t WHERE id > 9", "but got no results."),
        ("SELECT * FROM t", "but got multiple results."),
    ],
)
def test_one_wants_exactly_one_row(filled: Database, query: str, text: str) -> None:
    with pytest.raises(SqlError) as caught:
        filled.exec(query).one()

    expected = f"Expected exactly one result from SQL query, {text}"
    assert str(caught.value) == expected


def test_rows_are_counted_as_they_are_read_and_written(filled: Database) -> None:
    insert = filled.exec("INSERT INTO t(a) VALUES (1), (2), (3)")
    select = filled.exec("SELECT id FROM t WHERE id < 4")
    before = (select.rows_read, select.rows_written)
    select.to_list()
    returning = filled.exec("INSERT INTO t(a) VALUES ('r') RETURNING id")
    update = filled.exec("UPDATE t SET b = 1 WHERE id <= 4")

    assert (insert.rows_read, insert.rows_written) == (3, 3)
    assert before == (1, 0)
    assert (select.rows_read, select.rows_written) == (3, 0)
    assert (returning.rows_read, returning.rows_written) == (1, 1)
    assert returning.to_list() == [{"id": 7}]
    assert (update.rowsRead, update.rowsWritten) == (4, 4)


def test_the_rows_of_a_statement_that_writes_are_there_at_once(
    filled: Database,
) -> None:
    cursor = filled.exec("DELETE FROM t RETURNING id")
    filled.commit()

    assert sorted(row["id"] for row in cursor) == [1, 2, 3]  # type: ignore[type-var]


def test_a_statement_can_run_twice_at_the_same_time(filled: Database) -> None:
    first = filled.exec("SELECT id FROM t ORDER BY id")
    first.next()
    second = filled.exec("SELECT id FROM t ORDER BY id")

    assert first.to_list() == [{"id": 2}, {"id": 3}]
    assert second.to_list() == [{"id": 1}, {"id": 2}, {"id": 3}]


def test_writing_while_a_cursor_is_open_is_possible(filled: Database) -> None:
    cursor = filled.exec("SELECT id FROM t ORDER BY id LIMIT 2")
    cursor.next()
    filled.exec("UPDATE t SET a = 'w'")

    assert cursor.to_list() == [{"id": 2}]


def test_a_cursor_goes_on_with_the_rows_of_its_own_turn(filled: Database) -> None:
    cursor = filled.exec("SELECT id FROM t ORDER BY id")
    cursor.next()
    assert filled.needs_end
    filled.commit()
    assert not filled.needs_end
    filled.exec("DELETE FROM t")
    filled.commit()

    assert cursor.to_list() == [{"id": 2}, {"id": 3}]
    assert cursor.rows_read == 3


def test_a_rollback_does_not_change_what_a_cursor_saw(filled: Database) -> None:
    filled.begin_savepoint()
    filled.exec("INSERT INTO t VALUES (4, 'n', 0)")
    cursor = filled.exec("SELECT id FROM t ORDER BY id")
    filled.rollback_savepoint()

    assert len(cursor.to_list()) == 4
    cursor = filled.exec("SELECT id FROM t ORDER BY id")
    filled.rollback()
    assert len(cursor.to_list()) == 3


def test_a_long_rest_is_closed_with_its_turn_and_says_so(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursors, "KEPT_ROWS_MAX", 1)
    cursor = filled.exec("SELECT id FROM t ORDER BY id")
    filled.commit()

    assert cursor.next() == {"id": 1}
    assert cursor.next() == {"id": 2}
    with pytest.raises(SqlError, match="not read to its end in its turn"):
        cursor.to_list()


def test_an_error_in_the_rest_is_told_to_whoever_reads_on(filled: Database) -> None:
    filled.exec("INSERT INTO t(a) VALUES (1), (2)")
    smallest = -(2**63)
    cursor = filled.exec(
        "SELECT abs(CASE id WHEN 5 THEN ? ELSE id END) FROM t", [smallest]
    )

    assert filled.commit() is not None

    assert cursor.next() is not None
    with pytest.raises(SqlError, match="integer overflow"):
        cursor.to_list()
    assert filled.failure is None


def test_a_cursor_nobody_has_any_more_holds_nothing_open(filled: Database) -> None:
    filled.exec("SELECT id FROM t").next()
    gc.collect()

    assert not filled.needs_end
    assert not filled._link._raw


def test_a_cursor_outlives_its_database_with_an_error(filled: Database) -> None:
    cursor = filled.exec("SELECT id FROM t")
    cursor.next()
    filled.abandon()

    with pytest.raises(SqlError, match="closed"):
        cursor.to_list()
    with pytest.raises(SqlError, match="closed"):
        filled.exec("SELECT 1")


def test_the_camel_case_names_are_the_same() -> None:
    for cls, camel, snake in (
        (SqlCursor, "toArray", "to_list"),
        (SqlCursor, "columnNames", "columns"),
        (SqlCursor, "column_names", "columns"),
        (SqlCursor, "rowsRead", "rows_read"),
        (SqlCursor, "rowsWritten", "rows_written"),
        (RawCursor, "toArray", "to_list"),
        (RawCursor, "columnNames", "columns"),
        (SqlStorage, "databaseSize", "database_size"),
    ):
        assert getattr(cls, camel) is getattr(cls, snake)


def test_the_surface_tells_its_owner_of_reads_and_writes(db: Database) -> None:
    calls: list[str] = []
    sql = SqlStorage(
        lambda: db,
        wrote=lambda: calls.append("wrote"),
        used=lambda: calls.append("used"),
    )

    size = sql.database_size
    sql.exec("SELECT 1").one()
    sql.exec("CREATE TABLE t (x)")
    with pytest.raises(SqlError):
        sql.exec("INSERT INTO nope VALUES (?)", 1)

    assert (size, sql.databaseSize > size) == (4_096, True)
    assert calls == ["used", "used", "wrote", "used", "wrote"]
