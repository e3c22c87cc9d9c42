"""`ctx.storage.sql`: what user code sees of its database.

Follows https://developers.cloudflare.com/durable-objects/api/sql-storage/ in names and
behaviour, in snake_case, with the camelCase names as aliases.
"""

from __future__ import annotations

from collections.abc import Callable

from durable_actor.storage.sql.cursor import SqlCursor
from durable_actor.storage.sql.database import Database


class SqlStorage:
    """Runs SQL in the object's own database, synchronously.

    All statements of a turn commit together with its keys and its alarm, and nothing
    the object says leaves before that is durable.
    """

    __slots__ = ("_check_write", "_database", "_used", "_wrote")

    def __init__(
        self,
        database: Callable[[], Database],
        *,
        wrote: Callable[[], None] = lambda: None,
        used: Callable[[], None] = lambda: None,
        check_write: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the surface of one activation.

        Args:
            database: Returns the open database; raises if the object was reset.
            wrote: Called after a statement that may have written, also if it failed:
                the turn has to end with a commit.
            used: Called after every statement, since a read depends on earlier seals.
            check_write: Called before a query that may write; raises to refuse it.
        """
        self._check_write = check_write
        self._database = database
        self._wrote = wrote
        self._used = used

    def exec(self, query: str, *bindings: object) -> SqlCursor:
        """Run the statements of a query, in order; return the rows of the last one.

        Statements are separated by `;`. The bindings (None, bool, int of 64 bits,
        float, str, bytes) belong to the last one; the others run to their end.

        Raises:
            SqlError: A statement was refused or failed. What earlier statements did in
                this turn stays; put `transaction_sync()` around what belongs together.
            StorageLimitError: A statement, a value, the time or the database is over
                its limit.
            TypeError: A binding of a type that SQL does not have.
        """
        database = self._database()
        try:
            return database.exec(query, bindings, check_write=self._check_write)
        finally:
            self._used()
            if database.needs_end:
                self._wrote()

    @property
    def database_size(self) -> int:
        """The size of the database in bytes."""
        return self._database().size_bytes

    databaseSize = database_size
