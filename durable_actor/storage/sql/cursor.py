"""The rows of one statement, read as they are asked for.

A cursor reads while its turn lasts. When the turn ends, what is left of it is taken
into memory, up to a bound, so that a loop that awaits between two rows goes on with the
rows of its own turn and never sees later ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol, TypeVar

from durable_actor.storage.sql.statements import SqlValue, refusal

D = TypeVar("D")
Row = tuple[SqlValue, ...]

KEPT_ROWS_MAX = 10_000  # of one cursor, when its turn ends
KEPT_BYTES_MAX = 4 * 1024 * 1024


class Rows(Protocol):
    """Where a cursor's rows come from."""

    def fetch(self, budget_seconds: float) -> Row | None:
        """Return the next row, None after the last one."""
        ...

    def close(self) -> None:
        """Let the statement go; may be called again."""
        ...


class SqlCursor:
    """The result of one `exec`: an iterator over dicts, one for each row.

    `rows_read` counts the rows handed out so far: one from the beginning if there is
    any, and for a statement that writes at least the rows it wrote. `rows_written`
    counts the rows that it inserted, updated and deleted, those of its triggers too.
    Neither counts what SQLite only looked at: it does not tell.
    """

    __slots__ = (
        "__weakref__",
        "_budget_seconds",
        "_closed",
        "_columns",
        "_handed_out",
        "_kept",
        "_query",
        "_rows",
        "_written",
    )

    def __init__(
        self,
        columns: tuple[str, ...],
        rows: Rows | None,
        kept: list[Row],
        *,
        query: str,
        rows_written: int,
        budget_seconds: float,
    ) -> None:
        """Take over a statement: `rows` still to be read, behind those in `kept`."""
        self._columns = columns
        self._rows = rows
        self._kept = deque(kept)
        self._query = query
        self._handed_out = 0
        self._written = rows_written
        self._budget_seconds = budget_seconds
        self._closed: str | None = None

    def __iter__(self) -> Iterator[dict[str, SqlValue]]:
        return self

    def __next__(self) -> dict[str, SqlValue]:
        row = self._next_row()
        if row is None:
            raise StopIteration
        return dict(zip(self._columns, row, strict=True))

    def next(self, default: D | None = None) -> dict[str, SqlValue] | D | None:
        """Return the next row as a dict; `default` after the last one."""
        row = self._next_row()
        return default if row is None else dict(zip(self._columns, row, strict=True))

    def one(self) -> dict[str, SqlValue]:
        """Return the only row.

        Raises:
            SqlError: There is no row, or more than one.
        """
        row = self._next_row()
        if row is None:
            detail = "Expected exactly one result from SQL query, but got no results."
            raise refusal(detail, self._query)
        if self._next_row() is not None:
            self._end()
            detail = (
                "Expected exactly one result from SQL query, but got multiple results."
            )
            raise refusal(detail, self._query)
        return dict(zip(self._columns, row, strict=True))

    def to_list(self) -> list[dict[str, SqlValue]]:
        """Return the rows that are left. Of columns with one name the last one wins."""
        return list(self)

    def raw(self) -> RawCursor:
        """Return the same rows as tuples, in which no column is lost."""
        return RawCursor(self)

    @property
    def columns(self) -> list[str]:
        """The names of the columns, as the statement gives them."""
        return list(self._columns)

    @property
    def rows_read(self) -> int:
        """How many rows came from the database so far; see the class."""
        return max(self._handed_out, self._written, 1 if self._kept else 0)

    @property
    def rows_written(self) -> int:
        """How many rows were inserted, updated and deleted; see the class."""
        return self._written

    column_names = columnNames = columns
    rowsRead = rows_read
    rowsWritten = rows_written
    toArray = to_list

    def keep(self) -> None:
        """Take what is left into memory, because the turn ends."""
        if self._rows is None:
            return
        size = 0
        try:
            while (row := self._fetch()) is not None:
                self._kept.append(row)
                size += sum(
                    len(item) if isinstance(item, str | bytes) else 8 for item in row
                )
                if len(self._kept) > KEPT_ROWS_MAX or size > KEPT_BYTES_MAX:
                    self._closed = (
                        f"the cursor was not read to its end in its turn, and more than"
                        f" {KEPT_ROWS_MAX} rows or {KEPT_BYTES_MAX} bytes were left;"
                        " read it before the next await, or in parts with LIMIT"
                    )
                    self._end()
        except Exception as error:  # noqa: BLE001  # told to whoever reads on
            self._closed = f"the rest could not be read when the turn ended: {error}"
            self._end()

    def _next_row(self) -> Row | None:
        row: Row | None
        if self._kept:
            row = self._kept.popleft()
        elif self._closed is not None:
            raise refusal(self._closed, self._query)
        else:
            row = self._fetch()
        if row is not None:
            self._handed_out += 1
        return row

    def _fetch(self) -> Row | None:
        if self._rows is None:
            return None
        started = time.monotonic()
        try:
            row = self._rows.fetch(self._budget_seconds)
        except BaseException:
            self._end()
            raise
        self._budget_seconds -= time.monotonic() - started
        if row is None:
            self._end()
        return row

    def _end(self) -> None:
        rows, self._rows = self._rows, None
        if rows is not None:
            rows.close()

    def __del__(self) -> None:
        # A statement that nobody reads must not hold the database open.
        self._end()


class RawCursor:
    """The rows of a cursor as tuples. Both move on together."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: SqlCursor) -> None:
        self._cursor = cursor

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        row = self._cursor._next_row()  # noqa: SLF001  # the same cursor, seen otherwise
        if row is None:
            raise StopIteration
        return row

    def to_list(self) -> list[Row]:
        """Return the rows that are left."""
        return list(self)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self._cursor.columns

    column_names = columnNames = columns
    toArray = to_list
