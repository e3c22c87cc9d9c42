"""The connection to one object's database, and the statements that run on it.

SQLite checkpoints when a connection is closed, in whatever way: by us, by the garbage
collector, at the end of the process. `Link.abandon` is the way to close one so that it
does not: the database is moved away from its name for that moment, and SQLite leaves a
database alone that is not where it was. A statement that is still open would keep the
connection, and close it at its own end, so a link knows all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from durable_actor.errors import StorageError, StorageFailedError
from durable_actor.storage.sql.cursor import Row
from durable_actor.storage.sql.statements import (
    Guard,
    SqlValue,
    Statement,
    refusal,
)
from durable_actor.storage.sql.wal import (
    WalPosition,
    WalTail,
    aside_path,
    wal_path,
)

_STATEMENTS_KEPT = 64  # compiled


class Link:
    """The connection, and everything that must be closed before it.

    Must not refer to the database, whose finalizer keeps it alive.
    """

    def __init__(self, path: Path, position: WalPosition | None) -> None:
        """Connect to a database that was repaired.

        Raises:
            StorageFailedError: It cannot be opened.
        """
        self._path = path
        self._pid = os.getpid()
        self._raw: set[sqlite3.Cursor] = set()
        # Until SQLite has read the database, it takes one that was moved for an empty
        # one, and removes its WAL.
        self.has_read = False
        self.guard = Guard()
        self.tail = WalTail(path, position)
        try:
            self.connection = sqlite3.connect(
                path,
                isolation_level=None,
                check_same_thread=False,
                timeout=0,
                cached_statements=_STATEMENTS_KEPT,
            )
        except sqlite3.Error as error:
            raise StorageFailedError("open", f"{path}: {error}") from error

    def new_cursor(self) -> sqlite3.Cursor:
        """Return a cursor that is closed with the connection, whoever still has it."""
        raw = self.connection.cursor()
        self._raw.add(raw)
        return raw

    def drop_cursor(self, raw: sqlite3.Cursor) -> None:
        """Close a cursor."""
        if raw in self._raw and os.getpid() == self._pid:
            self._raw.discard(raw)
            raw.close()

    def close(self) -> None:
        """Close the connection; SQLite checkpoints, and removes the WAL."""
        self._close_cursors()
        self.connection.close()

    def abandon(self) -> None:
        """Close the connection so that SQLite leaves the WAL and the database alone."""
        if os.getpid() != self._pid:
            # A child of the process that has it open: closing would write.
            self._keep_open()
            return
        self._close_cursors()
        aside = aside_path(self._path)
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            self.connection.close()  # it has been moved already, or deleted
            return
        except OSError:
            self._keep_open()  # nobody can open it in this process any more, but safe
            return
        try:
            with self._wal_moved_aside():
                self.connection.close()
        finally:
            aside.rename(self._path)

    @contextlib.contextmanager
    def _wal_moved_aside(self) -> Iterator[None]:
        if self.has_read:
            yield
            return
        wal = wal_path(self._path)
        try:
            wal.rename(aside_path(wal))
        except FileNotFoundError:
            yield
            return
        try:
            yield
        finally:
            aside_path(wal).rename(wal)

    def _keep_open(self) -> None:
        """Let nothing close the connection for as long as the process lives."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))

    def _close_cursors(self) -> None:
        for raw in self._raw:
            raw.close()
        self._raw.clear()
        self.tail.close()


class RunningStatement:
    """One user statement; the rows of a cursor."""

    def __init__(
        self,
        link: Link,
        statement: Statement,
        *,
        check: Callable[[], None],
        translate: Callable[[sqlite3.Error, str], StorageError],
    ) -> None:
        """Prepare to run it.

        Args:
            link: The connection.
            statement: What to run.
            check: Raises if the database cannot be used any more.
            translate: Returns the error to raise for one of SQLite's.
        """
        self._link = link
        self._statement = statement
        self._check = check
        self._translate = translate
        self._raw: sqlite3.Cursor | None = link.new_cursor()
        self.columns: tuple[str, ...] = ()

    def start(
        self,
        values: dict[str, SqlValue] | tuple[SqlValue, ...],
        budget_seconds: float,
    ) -> None:
        """Compile it, bind the values, and run it to its first row."""
        raw = self._raw
        assert raw is not None, "start after close"
        self._watch(budget_seconds)
        try:
            raw.execute(self._statement.sql, values)
        except sqlite3.Error as error:
            raise self._translate(error, self._statement.sql) from error
        except sqlite3.Warning as error:  # it sees two statements where we saw one
            raise refusal(str(error), self._statement.sql) from error
        finally:
            self._unwatch()
        self.columns = tuple(column[0] for column in raw.description or ())

    def fetch(self, budget_seconds: float) -> Row | None:
        """Return the next row, None after the last one."""
        if self._raw is None:
            return None
        self._check()
        self._watch(budget_seconds)
        try:
            row: Row | None = self._raw.fetchone()
        except sqlite3.Error as error:
            raise self._translate(error, self._statement.sql) from error
        finally:
            self._unwatch()
        return row

    def close(self) -> None:
        """Let the statement go."""
        raw, self._raw = self._raw, None
        if raw is not None:
            self._link.drop_cursor(raw)

    def _watch(self, budget_seconds: float) -> None:
        guard = self._link.guard
        guard.statement = self._statement
        guard.refused = None
        guard.deadline = time.monotonic() + budget_seconds

    def _unwatch(self) -> None:
        guard = self._link.guard
        guard.deadline = math.inf
        guard.statement = None
