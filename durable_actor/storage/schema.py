"""The tables of a shard, and how those of an earlier format become them.

The log is the truth of what was committed last; the other tables are folded from it.
Every table is STRICT. `kv` is an ordinary rowid table: without rowid, an appended row
cost three to four times as much.

Theory of operation
    Every row carries the checksum of its fields, so a changed row is seen by whoever
    reads it. A row that is gone is seen by `digest`: it has, for each object, how many
    keys there are and the sum of their checksums, in whatever order they came; and the
    same for each other table, under the number of `TABLES`. Triggers keep it, so it
    changes with the row, in the same statement, whichever statement that is.
    `INSERT OR REPLACE` fires no trigger for the row it replaces, and is not used.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from functools import cache

FORMAT = 2

# The tables that are counted whole, each with its number in `digest`.
TABLES = {"object": -1, "alarm": -2, "outbox": -3, "reply": -4, "database": -5}
META_KEYS = (
    "epoch",
    "format",
    "folded_seq",
    "folded_ticket",
    "folded_crc",
    "last_num",
    "last_event",
)
_SUMS = {"database": "ifnull({row}.crc, 0) + ifnull({row}.restore_crc, 0)"}


def _trigger(table: str, event: str, action: str) -> str:
    return (
        f"CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} AFTER {event} ON {table}"
        f" BEGIN {action}; END"
    )


def _triggers(table: str) -> Iterator[str]:
    total = _SUMS.get(table, "{row}.crc")
    new, old = total.format(row="NEW"), total.format(row="OLD")
    num = str(TABLES[table]) if table in TABLES else "{row}.object"
    of_new, of_old = num.format(row="NEW"), num.format(row="OLD")
    yield _trigger(
        table,
        "INSERT",
        f"INSERT INTO digest VALUES ({of_new}, 1, {new}) ON CONFLICT (object)"
        " DO UPDATE SET rows = rows + 1, total = total + excluded.total",
    )
    yield _trigger(
        table,
        "UPDATE",
        f"UPDATE digest SET total = total + {new} - ({old}) WHERE object = {of_new}",
    )
    yield _trigger(
        table,
        "DELETE",
        f"UPDATE digest SET rows = rows - 1, total = total - ({old})"
        f" WHERE object = {of_old}",
    )


CREATE = (
    """CREATE TABLE IF NOT EXISTS meta (
        key TEXT PRIMARY KEY,
        value INTEGER NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS log (
        seq INTEGER PRIMARY KEY,
        first_ticket INTEGER NOT NULL,
        last_ticket INTEGER NOT NULL,
        batch BLOB NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS digest (
        object INTEGER PRIMARY KEY,
        rows INTEGER NOT NULL,
        total INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS object (
        num INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        class TEXT NOT NULL,
        name TEXT,
        created_at_ms INTEGER NOT NULL,
        used_at_ms INTEGER NOT NULL,
        attributes TEXT NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    """CREATE INDEX IF NOT EXISTS object_by_name
        ON object (class, ifnull(name, ''), id)""",
    """CREATE TABLE IF NOT EXISTS kv (
        object INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        crc INTEGER NOT NULL,
        UNIQUE (object, key)
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS alarm (
        object INTEGER PRIMARY KEY,
        due_at_ms INTEGER NOT NULL,
        scheduled_at_ms INTEGER NOT NULL,
        retries INTEGER NOT NULL,
        counted INTEGER NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS alarm_by_due ON alarm (due_at_ms)",
    """CREATE TABLE IF NOT EXISTS outbox (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL,
        class TEXT NOT NULL,
        event BLOB NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS reply (
        object INTEGER NOT NULL,
        request TEXT NOT NULL,
        reply BLOB NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        UNIQUE (object, request)
    ) STRICT""",
    # Where the WAL of an object's own database ends, as far as it was folded.
    """CREATE TABLE IF NOT EXISTS database (
        object INTEGER PRIMARY KEY,
        generation BLOB,
        wal_end INTEGER,
        wal_crc INTEGER,
        crc INTEGER,
        restore TEXT,
        restore_crc INTEGER
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS reply_by_expiry ON reply (expires_at_ms)",
    *(sql for table in ("kv", *TABLES) for sql in _triggers(table)),
)

# What a table of format 1 had, in the order of its columns; the checksum is new.
_FIELDS_OF_1 = {
    "meta": "key, value",
    "object": "num, id, class, name, created_at_ms, used_at_ms, attributes",
    "alarm": "object, due_at_ms, scheduled_at_ms, retries, counted",
    "outbox": "seq, id, class, event",
    "reply": "object, request, reply, expires_at_ms",
}
_DATABASE_FROM_1 = (
    "object, generation, wal_end, wal_crc, CASE WHEN generation IS NOT NULL THEN"
    " fields_crc(object, generation, wal_end, wal_crc) END, restore,"
    " CASE WHEN restore IS NOT NULL THEN fields_crc(object, restore) END"
)
_INDEXES_OF_1 = ("object_by_name", "alarm_by_due", "reply_by_expiry")


def migration_from_1(tables: Collection[str]) -> Iterator[str]:
    """Yield the statements that bring format 1 to this one, for one transaction.

    They call `fields_crc`, which the connection must know as an SQL function. `tables`
    are those that are there: a first start may have broken off before it had made all.
    """
    old = [table for table in (*_FIELDS_OF_1, "database") if table in tables]
    for index in _INDEXES_OF_1:
        yield f"DROP INDEX IF EXISTS {index}"
    for table in old:
        yield f"ALTER TABLE {table} RENAME TO old_{table}"
    yield from CREATE
    for table in old:
        chosen = _DATABASE_FROM_1
        if table in _FIELDS_OF_1:
            fields = _FIELDS_OF_1[table]
            chosen = f"{fields}, fields_crc({fields})"
        yield f"INSERT INTO {table} SELECT {chosen} FROM old_{table}"
    for table in old:
        yield f"DROP TABLE old_{table}"
    yield (
        "INSERT INTO digest SELECT object, count(*), sum(crc) FROM kv GROUP BY object"
    )


@cache
def expected_schema() -> Mapping[str, str]:
    """Return the text of every table, index and trigger, by its name."""
    with closing(sqlite3.connect(":memory:")) as db:
        for sql in CREATE:
            db.execute(sql)
        return dict(db.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOTNULL"))
