"""The tables of a shard.

The log is the truth of what was committed last; the other tables are folded from it.
Every table is STRICT. `kv` is an ordinary rowid table: without rowid, an appended row
cost three to four times as much.
"""

from __future__ import annotations

FORMAT = 1

CREATE = (
    """CREATE TABLE IF NOT EXISTS meta (
        key TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS log (
        seq INTEGER PRIMARY KEY,
        first_ticket INTEGER NOT NULL,
        last_ticket INTEGER NOT NULL,
        batch BLOB NOT NULL,
        crc INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS object (
        num INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        class TEXT NOT NULL,
        name TEXT,
        created_at_ms INTEGER NOT NULL,
        used_at_ms INTEGER NOT NULL,
        attributes TEXT NOT NULL
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
        counted INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS alarm_by_due ON alarm (due_at_ms)",
    """CREATE TABLE IF NOT EXISTS outbox (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL,
        class TEXT NOT NULL,
        event BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS reply (
        object INTEGER NOT NULL,
        request TEXT NOT NULL,
        reply BLOB NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        UNIQUE (object, request)
    ) STRICT""",
    # Where the WAL of an object's own database ends, as far as it was folded.
    """CREATE TABLE IF NOT EXISTS database (
        object INTEGER PRIMARY KEY,
        generation BLOB,
        wal_end INTEGER,
        wal_crc INTEGER,
        restore TEXT
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS reply_by_expiry ON reply (expires_at_ms)",
)
