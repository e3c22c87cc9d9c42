"""Objects with SQL: a database file for each, whose truth is the log of the shard.

Reading order: `wal` (the bytes that a commit appends, and how they come back after a
crash), `statements` (what user SQL may do), `database` (one open file), `cursor`
(results), `files` (all files of a data directory, a bounded number open), `surface`
(`ctx.storage.sql`) and `history` (going back to an earlier moment).
"""
