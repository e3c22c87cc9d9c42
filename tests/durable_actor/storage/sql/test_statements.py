"""What user SQL may do, and what it is told when it may not."""

from __future__ import annotations

import datetime as dt
import math
import time
from pathlib import Path

import pytest

from durable_actor.errors import SqlError, StorageError, StorageLimitError
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.statements import SqlLimits, parse

LIMITS = SqlLimits()


@pytest.fixture
def used(db: Database) -> Database:
    """A database with keys and a few tables, at the beginning of a turn."""
    db.write_keys({"secret": b"value"})
    db.exec(
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT UNIQUE);"
        "CREATE TABLE c (t REFERENCES t(id) ON DELETE CASCADE);"
        "INSERT INTO t(v) VALUES ('a'), ('b')"
    )
    db.commit()
    return db


ALLOWED = [
    "SELECT * FROM t",
    "VALUES (1), (2)",
    "WITH x AS (SELECT 1 AS y) SELECT y FROM x",
    "WITH x AS (SELECT 'q' AS y) INSERT INTO t(v) SELECT y FROM x",
    "INSERT INTO t(v) VALUES ('c') RETURNING id",
    "INSERT OR IGNORE INTO t(v) VALUES ('a')",
    "INSERT INTO t(v) VALUES ('a') ON CONFLICT (v) DO UPDATE SET v = excluded.v",
    "REPLACE INTO t(id, v) VALUES (1, 'z')",
    "UPDATE t SET v = 'y' WHERE id = 1",
    "DELETE FROM t WHERE id = 2",
    (
        "CREATE TABLE n (x) STRICT, WITHOUT ROWID".replace(
            "n (x)", "n (x INT PRIMARY KEY)"
        )
    ),
    "CREATE TABLE IF NOT EXISTS t (x)",
    "CREATE TABLE n AS SELECT * FROM t",
    "CREATE INDEX i ON t (v)",
    "CREATE UNIQUE INDEX i ON t (v) WHERE v > 'a'",
    "CREATE INDEX i ON t (lower(v))",
    "CREATE VIEW w AS SELECT v FROM t; SELECT * FROM w; DROP VIEW w",
    (
        "CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET v = CASE WHEN 1 THEN 'x'"
        " ELSE 'y' END WHERE id = new.id; DELETE FROM c; END;"
        " INSERT INTO t(v) VALUES ('i')"
    ),
    "DROP TABLE c; DROP TABLE t",
    "DROP TABLE IF EXISTS missing",
    "CREATE INDEX i ON t (v); DROP INDEX i",
    "CREATE TRIGGER g BEFORE DELETE ON t BEGIN SELECT 1; END; DROP TRIGGER g",
    "ALTER TABLE t RENAME TO u; SELECT * FROM u",
    "ALTER TABLE t RENAME COLUMN v TO w",
    "ALTER TABLE t ADD COLUMN n INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE t ADD COLUMN n CHECK (n > 0)",
    "ALTER TABLE c ADD COLUMN n; ALTER TABLE c DROP COLUMN n",
    "ANALYZE",
    "ANALYZE t",
    "REINDEX",
    "REINDEX t",
    "EXPLAIN SELECT * FROM t",
    "EXPLAIN QUERY PLAN SELECT * FROM t",
    "EXPLAIN QUERY PLAN DELETE FROM t",
    "EXPLAIN CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END",
    "SELECT sql FROM sqlite_master",
    "SELECT seq FROM sqlite_sequence",
    "SELECT * FROM json_each('[1, 2]')",
    "SELECT * FROM json_tree('{\"a\": 1}')",
    "SELECT json_extract('{}', '$.a'), '{\"a\": 1}' ->> 'a', date('now'), pi()",
    "SELECT count(*), max(id), group_concat(v) FROM t",
    "SELECT row_number() OVER (ORDER BY id), lag(id) OVER (ORDER BY id) FROM t",
    "SELECT v FROM t WHERE v LIKE 'a%' OR v GLOB 'b*'",
    "SELECT 1 UNION SELECT 2 EXCEPT SELECT 3",
    (
        "CREATE VIRTUAL TABLE f USING fts5(body, tokenize = 'porter');"
        "INSERT INTO f VALUES ('one two'), ('three');"
        "SELECT bm25(f), highlight(f, 0, '<', '>'), snippet(f, 0, '', '', '', 5) FROM f"
        " WHERE f MATCH 'two'; INSERT INTO f(f) VALUES ('optimize'); DELETE FROM f;"
        "CREATE VIRTUAL TABLE fv USING fts5vocab(f, 'row'); SELECT * FROM fv;"
        "DROP TABLE f"
    ),
    "PRAGMA table_info(t)",
    "PRAGMA table_xinfo('t')",
    "PRAGMA table_list",
    "PRAGMA index_list(t)",
    "PRAGMA index_info(sqlite_autoindex_t_1)",
    "PRAGMA foreign_key_list(c)",
    "PRAGMA foreign_key_check",
    "PRAGMA foreign_keys",
    "PRAGMA defer_foreign_keys = on",
    "PRAGMA quick_check",
    "PRAGMA optimize",
    "SELECT name FROM pragma_table_info('t')",
    "-- a comment\nSELECT 1 /* ; */ ; -- the end",
    "DROP TABLE c; CREATE TABLE c (x, y, PRIMARY KEY (x, y)) WITHOUT ROWID",
]


@pytest.mark.parametrize("query", ALLOWED)
def test_an_ordinary_statement_runs(used: Database, query: str) -> None:
    used.exec(query).to_list()
    used.commit()

    assert used.load().keys == {"secret": b"value"}


REFUSED = [
    "ATTACH ':memory:' AS other",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO '/tmp/stolen.db'",
    "SELECT load_extension('x')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('/tmp/x', 'y')",
    "SELECT edit('x')",
    "SELECT sqlite_rename_table(1, 2, 3, 4, 5, 6, 7)",
    "CREATE TEMP TABLE x (y)",
    "CREATE TEMPORARY TABLE x (y)",
    "CREATE TABLE temp.x (y)",
    "CREATE TEMP VIEW x AS SELECT 1",
    "CREATE VIEW temp.x AS SELECT 1",
    "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
    "CREATE TRIGGER temp.x AFTER INSERT ON t BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE x USING fts3(y)",
    "CREATE VIRTUAL TABLE x USING fts4(y)",
    "CREATE VIRTUAL TABLE x USING rtree(a, b, c)",
    "CREATE VIRTUAL TABLE x USING dbstat",
    "CREATE VIRTUAL TABLE temp.x USING fts5(y)",
    "CREATE VIRTUAL TABLE _cf_x USING fts5(y)",
    "SELECT * FROM dbstat",
    "SELECT sql FROM sqlite_stmt",
    "SELECT * FROM sqlite_dbpage",
    "SELECT * FROM bytecode('SELECT 1')",
    "SELECT * FROM _cf_KV",
    "SELECT count(*) FROM _CF_kv",
    "SELECT value FROM main._cf_KV",
    "INSERT INTO _cf_KV VALUES ('a', x'00', 0)",
    "UPDATE _cf_KV SET value = x'00'",
    "DELETE FROM _cf_KV",
    "DROP TABLE _cf_KV",
    "CREATE TABLE _cf_mine (x)",
    'CREATE TABLE "_CF_mine" (x)',
    "CREATE TABLE _cf_copy AS SELECT 1",
    "CREATE TABLE x (y REFERENCES _cf_KV(key))",
    "CREATE TABLE x (y REFERENCES '_cf_KV'(key))",
    "CREATE TABLE x AS SELECT * FROM _cf_KV",
    "CREATE VIEW _cf_v AS SELECT 1",
    "CREATE VIEW x AS SELECT * FROM _cf_KV; SELECT * FROM x",
    "CREATE INDEX x ON _cf_KV (value)",
    "CREATE INDEX _cf_i ON t (v)",
    "CREATE TRIGGER x AFTER INSERT ON _cf_KV BEGIN SELECT 1; END",
    "CREATE TRIGGER _cf_x AFTER INSERT ON t BEGIN SELECT 1; END",
    (
        "CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM _cf_KV; END;"
        "INSERT INTO t(v) VALUES ('x')"
    ),
    "ALTER TABLE _cf_KV RENAME TO mine",
    "ALTER TABLE main._cf_KV RENAME TO mine",
    "ALTER TABLE _cf_KV ADD COLUMN x",
    "ALTER TABLE _cf_KV DROP COLUMN crc",
    "ALTER TABLE _cf_KV RENAME COLUMN value TO v",
    "ALTER TABLE t RENAME TO _cf_x",
    "ALTER TABLE t RENAME TO '_cf_x'",
    "ALTER TABLE t RENAME TO [_cf_x]",
    "ALTER TABLE t RENAME TO sqlite_x",
    "SELECT * FROM sqlite_stat4",
    "CREATE TRIGGER IF NOT EXISTS 'temp'.x AFTER INSERT ON t BEGIN SELECT 1; END",
    "INSERT INTO sqlite_master VALUES (1, 2, 3, 4, 5)",
    "UPDATE sqlite_master SET sql = ''",
    "DELETE FROM sqlite_schema",
    "UPDATE sqlite_sequence SET seq = 0",
    "DROP TABLE sqlite_sequence",
    "CREATE TABLE sqlite_x (y)",
    (
        "CREATE VIRTUAL TABLE x USING fts5(value, content = '_cf_KV');"
        "INSERT INTO x(x) VALUES ('rebuild')"
    ),
    "PRAGMA journal_mode",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA locking_mode = NORMAL",
    "PRAGMA user_version",
    "PRAGMA user_version = 5",
    "PRAGMA writable_schema = ON",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA page_size = 512",
    "PRAGMA page_count(3)",
    "PRAGMA max_page_count = 99999999",
    "PRAGMA wal_checkpoint",
    "PRAGMA synchronous = OFF",
    "PRAGMA schema_version = 9",
    "PRAGMA trusted_schema = ON",
    "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA table_info(_cf_KV)",
    "PRAGMA compile_options",
    "PRAGMA database_list",
    "PRAGMA incremental_vacuum",
    "PRAGMA hard_heap_limit = 1",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_journal_mode",
    "LOAD EXTENSION x",
    ".read /etc/passwd",
    "selec 1",
]


@pytest.mark.parametrize("query", REFUSED)
def test_s8_a_statement_that_is_not_on_a_list_is_refused(
    used: Database, query: str
) -> None:
    with pytest.raises(SqlError):
        used.exec(query).to_list()

    assert used.failure is None
    used.rollback()
    assert used.load().keys == {"secret": b"value"}
    assert not Path("/tmp/stolen.db").exists()


@pytest.mark.parametrize(
    "query",
    [
        "BEGIN",
        "BEGIN IMMEDIATE",
        "begin transaction",
        "COMMIT",
        "END",
        "ROLLBACK",
        "ROLLBACK TO x",
        "SAVEPOINT x",
        "RELEASE x",
        "SELECT 1; COMMIT",
        "/* hidden */ COMMIT",
    ],
)
def test_transactions_are_pointed_to_where_they_are(used: Database, query: str) -> None:
    with pytest.raises(SqlError, match=r"transaction\(\) or transaction_sync\(\)"):
        used.exec(query)
    used.exec("INSERT INTO t(v) VALUES ('c')")
    with pytest.raises(SqlError, match=r"transaction\(\) or transaction_sync\(\)"):
        used.exec(query)

    assert used.is_in_turn


@pytest.mark.parametrize(
    "query",
    [
        "INSERT OR ROLLBACK INTO t(v) VALUES ('a')",
        "CREATE TABLE x (y UNIQUE ON CONFLICT ROLLBACK)",
        "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT RAISE(ROLLBACK, 'x'); END",
    ],
)
def test_s8_no_statement_can_undo_the_turn(used: Database, query: str) -> None:
    with pytest.raises(SqlError, match="undo the whole turn"):
        used.exec(query)


def test_s8_our_own_statements_cannot_be_run_from_the_cache(used: Database) -> None:
    """A compiled statement is kept under its text, and not authorized again."""
    used.read_keys(["secret"])
    used.begin()
    for text in ("BEGIN IMMEDIATE", "COMMIT"):
        with pytest.raises(SqlError):
            used.exec(text)
    with pytest.raises(SqlError):
        used.exec("SELECT key, value, crc FROM _cf_KV WHERE key IN (?)", ["secret"])


def test_a_statement_made_ready_earlier_is_authorized_again(used: Database) -> None:
    """After a change of the schema SQLite compiles it again."""
    used.exec("CREATE VIEW w AS SELECT v AS x FROM t")
    used.exec("SELECT x FROM w").to_list()
    used.exec("DROP VIEW w; CREATE VIEW w AS SELECT value AS x FROM _cf_KV")

    with pytest.raises(SqlError, match="_cf_kv"):
        used.exec("SELECT x FROM w").to_list()


def test_the_refusal_says_what_was_refused(used: Database) -> None:
    with pytest.raises(SqlError) as caught:
        used.exec("SELECT * FROM _cf_KV")

    assert str(caught.value) == "not authorized: table _cf_kv: SQLITE_AUTH"
    assert caught.value.query == "SELECT * FROM _cf_KV"
    assert caught.value.sqlite_name == "SQLITE_AUTH"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("selec 1", 'near "selec": syntax error: SQLITE_ERROR'),
        ("SELECT * FROM nope", "no such table: nope: SQLITE_ERROR"),
        ("SELECT zz FROM t", "no such column: zz: SQLITE_ERROR"),
        ("SELECT nofunc(1)", "no such function: nofunc: SQLITE_ERROR"),
        ("CREATE TABLE t (x)", "table t already exists: SQLITE_ERROR"),
        (
            "INSERT INTO t(v) VALUES ('a')",
            "UNIQUE constraint failed: t.v: SQLITE_CONSTRAINT_UNIQUE",
        ),
        ("", "SQL code did not contain a statement."),
        ("-- nothing", "SQL code did not contain a statement."),
        (" ; ; ", "SQL code did not contain a statement."),
    ],
)
def test_an_error_has_the_text_of_the_original(
    used: Database, query: str, text: str
) -> None:
    with pytest.raises(SqlError) as caught:
        used.exec(query)

    assert str(caught.value) == text


# -- bindings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        (None, "null", None),
        (True, "integer", 1),
        (False, "integer", 0),
        (2**63 - 1, "integer", 2**63 - 1),
        (-(2**63), "integer", -(2**63)),
        (1.5, "real", 1.5),
        (math.inf, "real", math.inf),
        (math.nan, "null", None),
        ("é\x00z", "text", "é\x00z"),
        (b"\x00\x01", "blob", b"\x00\x01"),
        (bytearray(b"ab"), "blob", b"ab"),
        (memoryview(b"ab"), "blob", b"ab"),
    ],
)
def test_a_value_is_bound_as_it_is(
    db: Database, value: object, kind: str, stored: object
) -> None:
    row = db.exec("SELECT ? AS v, typeof(?1) AS k", [value]).one()

    assert row == {"v": stored, "k": kind}


@pytest.mark.parametrize("value", [dt.datetime(2026, 1, 1), [1], {}, object(), 1j, {1}])
def test_a_value_sql_has_no_type_for_is_refused_by_its_position(
    db: Database, value: object
) -> None:
    with pytest.raises(TypeError, match=r"binding 2 is .*Convert it"):
        db.exec("SELECT ?, ?", [1, value])


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**5_000], ids=[1, 2, 3])
def test_an_int_beyond_64_bits_is_named(db: Database, value: int) -> None:
    with pytest.raises(StorageLimitError, match=r"binding 1: .* 64 bits"):
        db.exec("SELECT ?", [value])


def test_text_that_is_no_unicode_is_refused(db: Database) -> None:
    with pytest.raises(SqlError, match="not valid Unicode"):
        db.exec("SELECT ?", ["\ud800"])
    with pytest.raises(SqlError, match="not valid Unicode"):
        db.exec("SELECT '\ud800'")


@pytest.mark.parametrize(
    ("query", "bindings"),
    [
        ("SELECT ?", []),
        ("SELECT ?", [1, 2]),
        ("SELECT 1", [1]),
        ("SELECT ?2", [1]),
        ("SELECT :a, :b", [1]),
        ("CREATE TABLE made (x); SELECT ?", []),
    ],
)
def test_the_wrong_number_of_bindings_is_found_before_anything_runs(
    db: Database, query: str, bindings: list[object]
) -> None:
    with pytest.raises(SqlError) as caught:
        db.exec(query, bindings)

    assert str(caught.value) == "Wrong number of parameter bindings for SQL query."
    assert not db.is_in_turn


def test_only_the_last_statement_takes_bindings(db: Database) -> None:
    assert db.exec("SELECT 1; SELECT ? AS x", [5]).to_list() == [{"x": 5}]
    with pytest.raises(SqlError, match="only the last statement can have parameters"):
        db.exec("SELECT ?; SELECT 1", [5])


@pytest.mark.parametrize(
    ("query", "bindings", "row"),
    [
        ("SELECT ?2 AS a, ?1 AS b", [1, 2], {"a": 2, "b": 1}),
        ("SELECT :x AS a, :y AS b, :x AS c", [1, 2], {"a": 1, "b": 2, "c": 1}),
        ("SELECT @x AS a, $y AS b", [1, 2], {"a": 1, "b": 2}),
        ("SELECT :x AS a, @x AS b", [1, 2], {"a": 1, "b": 2}),
        ("SELECT #x AS a, @y AS b", [1, 2], {"a": 1, "b": 2}),
        ("SELECT '?' AS a, \"?\" AS b -- ?", [], {"a": "?", "b": "?"}),
        ("SELECT ? AS a /* ? */", [1], {"a": 1}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameters_are_numbered_as_sqlite_does(
    db: Database, query: str, bindings: list[object], row: dict[str, object]
) -> None:
    assert db.exec(query, bindings).one() == row


# -- splitting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("SELECT 1", 1),
        ("SELECT 1;;SELECT 2;", 2),
        ("SELECT ';'; SELECT \";\"; SELECT [;]; SELECT `;`", 4),
        ("SELECT 'it''s; fine'; SELECT 2", 2),
        ("SELECT 1 -- ;\n; SELECT 2 /* ; */", 2),
        ("CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; END; SELECT 3", 2),
        ("CREATE TRIGGER a DELETE ON t BEGIN SELECT CASE 1 END; END; SELECT 3", 2),
        ("CREATE TRIGGER a INSERT ON t BEGIN SELECT new.end; END ; SELECT 3", 2),
        ("CREATE TRIGGER a INSERT ON t BEGIN SELECT new.begin; END; SELECT 3", 2),
        ('CREATE TRIGGER a INSERT ON t BEGIN DELETE FROM "end"; END; SELECT 3', 2),
        ("CREATE TEMP TRIGGER a DELETE ON t BEGIN VALUES (1); END; SELECT 3", 2),
        ("SELECT CASE 1 WHEN 1 THEN 2 END; SELECT 2", 2),
        ("SELECT 'never closed; SELECT 2", 2),
    ],
)
def test_a_query_is_split_where_its_statements_end(query: str, count: int) -> None:
    assert len(parse(query, LIMITS)) == count


def test_a_long_query_is_split_in_linear_time() -> None:
    query = "SELECT '" + ";" * 90_000 + "'"
    started = time.perf_counter()

    assert len(parse(query, LIMITS)) == 1
    assert len(parse(";'" * 49_000, LIMITS)) > 0

    assert time.perf_counter() - started < 2


def test_a_query_that_is_no_text_is_refused(db: Database) -> None:
    with pytest.raises(TypeError, match="must be text, got int: 5"):
        db.exec(5)  # type: ignore[arg-type]
    with pytest.raises(SqlError, match="NUL"):
        db.exec("SELECT 1\0")


# -- limits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "bindings", "text"),
    [
        ("SELECT '" + "x" * 100_000 + "'", [], "too long: 100009 bytes.* 100000"),
        (
            "SELECT " + "(" + ",".join("?" * 101) + ")",
            [1] * 101,
            "101, the limit is 100",
        ),
        (
            "CREATE TABLE w (" + ",".join(f"c{i}" for i in range(101)) + ")",
            [],
            "too many columns on w: the limit is 100",
        ),
        ("SELECT 'a' LIKE '" + "%" * 51 + "'", [], "too complex: the limit is 50"),
        ("SELECT ?", ["x" * 2_097_153], "2097153 bytes, the limit is 2097152"),
        ("SELECT randomblob(3000000)", [], "too big: the limit is 2097152 bytes"),
    ],
)
def test_a_limit_says_what_it_is(
    db: Database, query: str, bindings: list[object], text: str
) -> None:
    with pytest.raises(StorageLimitError, match=text):
        db.exec(query, bindings).to_list()

    assert db.failure is None


def test_values_and_statements_at_their_limit_are_fine(db: Database) -> None:
    db.exec("CREATE TABLE w (" + ",".join(f"c{i}" for i in range(100)) + ")")
    db.exec("CREATE TABLE v (x)")
    db.exec("INSERT INTO v VALUES (?)", ["x" * 2_097_152])
    padding = 100_000 - len("SELECT ''")
    db.exec("SELECT '" + "x" * padding + "'")

    assert db.exec("SELECT length(x) AS n FROM v").one() == {"n": 2_097_152}


def test_s8_a_statement_that_runs_too_long_is_stopped(path: Path) -> None:
    db = Database.open(path, None, SqlLimits(statement_ms_max=50))
    started = time.monotonic()
    with pytest.raises(StorageLimitError, match="longer than 50 ms"):
        db.exec(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
            " SELECT count(*) FROM n"
        )

    assert time.monotonic() - started < 2
    assert db.exec("SELECT 1 AS x").one() == {"x": 1}
    db.abandon()


def test_the_time_between_rows_is_not_the_statements(path: Path) -> None:
    db = Database.open(path, None, SqlLimits(statement_ms_max=50))
    cursor = db.exec("SELECT value FROM json_each('[1, 2, 3]')")
    over = time.monotonic() + 0.1
    while time.monotonic() < over:
        pass

    assert len(cursor.to_list()) == 3
    db.abandon()


def test_the_row_itself_may_be_what_takes_too_long(path: Path) -> None:
    db = Database.open(path, None, SqlLimits(statement_ms_max=50))
    cursor = db.exec(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
        " SELECT x FROM n WHERE x < 4 OR x > 1000000000"
    )
    assert cursor.next() == {"x": 1}

    with pytest.raises(StorageError, match="longer than 50 ms"):
        cursor.to_list()
    db.abandon()
