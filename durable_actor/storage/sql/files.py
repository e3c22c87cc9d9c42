"""The database files of a data directory, and which of them are open.

Theory of operation
    An object that is awake has an `SqlFile`. Its database is opened when it is first
    used. When more are open than allowed, those used longest ago are closed, if they
    are idle: no turn has begun, and all that was committed is durable and folded. To
    close one costs two syncs; to open it again, a millisecond. A database that is not
    idle stays open, so for a moment more may be open than allowed; `is_over` then tells
    the owner that a fold would help.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from durable_actor.errors import SqlError, StorageError, StorageFailedError
from durable_actor.log import get_logger
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.statements import SqlLimits
from durable_actor.storage.sql.wal import WalPosition, delete_database

OBJECTS_FOLDER = "objects"
ID_BYTES = 32
OPEN_MAX = 256  # three descriptors each

log = get_logger("durable_actor.storage")


def database_path(directory: Path, raw_id: bytes) -> Path:
    """Return where an object's database lies in a data directory.

    Raises:
        ValueError: Not an id of 32 bytes.
    """
    if len(raw_id) != ID_BYTES:
        message = f"an id has {ID_BYTES} bytes, got {len(raw_id)}"
        raise ValueError(message)
    name = raw_id.hex()
    return directory / OBJECTS_FOLDER / name[:2] / f"{name}.db"


class SqlFiles:
    """The databases of one host; at most `open_max` of them open while idle."""

    def __init__(
        self,
        directory: Path,
        *,
        open_max: int = OPEN_MAX,
        limits: SqlLimits | None = None,
    ) -> None:
        if open_max < 1:
            message = f"open_max must be at least 1, got {open_max}"
            raise ValueError(message)
        self.directory = directory
        self.limits = limits or SqlLimits()
        self._open_max = open_max
        # Told of a write or sync that failed where nobody waits (G13).
        self.on_failure: Callable[[StorageFailedError], None] = lambda _: None
        # Invariant: the files whose database is open, the one used last at the end.
        self._open: OrderedDict[Path, SqlFile] = OrderedDict()

    def file(self, raw_id: bytes, durable: WalPosition | None) -> SqlFile:
        """Return an object's file, for one activation. Opens nothing yet.

        Args:
            raw_id: The object's id, 32 bytes.
            durable: The end of its last durable segment; None: it never had one.

        Raises:
            SqlError: An earlier activation has not let go of it.
        """
        path = database_path(self.directory, raw_id)
        if path in self._open:
            detail = f"{path.name} is still open for an earlier activation"
            raise SqlError("open", detail)
        return SqlFile(self, path, durable)

    @property
    def open_count(self) -> int:
        """How many databases are open."""
        return len(self._open)

    @property
    def is_over(self) -> bool:
        """Whether more are open than allowed, because too few of them are idle."""
        return len(self._open) > self._open_max

    @property
    def has_room(self) -> bool:
        """Whether one more may be opened."""
        return len(self._open) < self._open_max

    def make_room(self) -> None:
        """Close idle ones, those used longest ago first, until one may be opened."""
        for file in list(self._open.values()):
            if self.has_room:
                break
            if file.is_idle:
                file.release()

    def is_open(self, raw_id: bytes) -> bool:
        """Whether an object's database is open."""
        return database_path(self.directory, raw_id) in self._open

    def settled(
        self, raw_id: bytes, position: WalPosition, *, checkpoint_bytes: int
    ) -> int:
        """Note that an object's pages are durable and folded, up to a position.

        If it is idle and its WAL is larger than `checkpoint_bytes`, checkpoint it.

        Returns:
            How many bytes of WAL could not be copied, because it is not idle.
        """
        file = self._open.get(database_path(self.directory, raw_id))
        if file is None:
            return 0
        file.settled(position)
        try:
            is_copied = file.checkpoint_beyond(checkpoint_bytes)
        except StorageError as error:
            # Everything is in the WAL still.
            self.not_checkpointed(file, error)
            return 0
        database = file.opened
        return 0 if is_copied or database is None else database.wal_bytes

    def close_idle(self) -> None:
        """Close all that are idle, for the end of the host, after the last fold."""
        for file in list(self._open.values()):
            if file.is_idle:
                file.release()

    def abandon_all(self) -> None:
        """Let go of every open database without a checkpoint, as in a crash."""
        for file in list(self._open.values()):
            file.abandon()

    def not_checkpointed(self, file: SqlFile, error: StorageError) -> None:
        """Tell of a checkpoint that failed, and of a failing disk. For `SqlFile`."""
        log.warning("sql.not_checkpointed", file=file.path.name, error=str(error))
        if isinstance(error, StorageFailedError):
            self.on_failure(error)

    def note_use(self, file: SqlFile) -> None:
        """Put a file at the end of the line. For `SqlFile`."""
        self._open.move_to_end(file.path)

    def note_open(self, file: SqlFile) -> None:
        """Make room for a file that is about to be opened. For `SqlFile`."""
        if file.path in self._open:
            detail = f"{file.path.name} is still open for an earlier activation"
            raise SqlError("open", detail)
        self.make_room()
        self._open[file.path] = file

    def note_closed(self, file: SqlFile) -> None:
        """Forget a file that is no longer open. For `SqlFile`."""
        if self._open.get(file.path) is file:
            del self._open[file.path]


class SqlFile:
    """One activation's database, opened when it is used and closed when idle."""

    def __init__(
        self, files: SqlFiles, path: Path, durable: WalPosition | None
    ) -> None:
        self.path = path
        self._files = files
        self._database: Database | None = None
        # Invariant: everything up to here is durable, and folded.
        self._settled = durable
        self._is_abandoned = False

    @property
    def database(self) -> Database:
        """The open database.

        Raises:
            CorruptionError: Durable bytes are missing or changed.
            StorageError: It cannot be opened, or the activation has let go of it.
        """
        if self._database is None:
            self._database = self._open()
        else:
            self._files.note_use(self)
        return self._database

    @property
    def opened(self) -> Database | None:
        """The database if it is open, without opening it."""
        return self._database

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed and opened again without anyone noticing."""
        database = self._database
        return (
            database is not None
            and database.failure is None
            and not database.needs_end
            and database.position == self._settled
        )

    def settled(self, position: WalPosition | None) -> None:
        """Note that everything up to a position is durable and folded."""
        self._settled = position

    def checkpoint_beyond(self, wal_bytes: int) -> bool:
        """Checkpoint if the WAL is larger than this and it is idle; say whether."""
        database = self._database
        if database is None or not self.is_idle or database.wal_bytes <= wal_bytes:
            return False
        database.checkpoint()
        return True

    def release(self) -> None:
        """Close it if it is idle, and open it at the next use; else abandon it."""
        database = self._database
        if database is None:
            return
        if not self.is_idle:
            self.abandon()
            return
        self._database = None
        self._files.note_closed(self)
        try:
            database.close(self._settled)
        except StorageError as error:
            # It was abandoned instead, which loses nothing. Whoever made room for
            # another object has no use for this error.
            self._files.not_checkpointed(self, error)
        self._remove_if_empty(database)

    def abandon(self) -> None:
        """Let go of it for good: the activation is broken. Leaves the WAL as it is."""
        self._is_abandoned = True
        database, self._database = self._database, None
        self._files.note_closed(self)
        if database is not None:
            database.abandon()
            self._remove_if_empty(database)

    def _remove_if_empty(self, database: Database) -> None:
        """Leave no file behind for an object that has only read."""
        if self._settled is None and database.position is None:
            delete_database(self.path)

    def _open(self) -> Database:
        if self._is_abandoned:
            raise SqlError("open", "the object was reset; its database is closed")
        self._files.note_open(self)
        try:
            return Database.open(self.path, self._settled, self._files.limits)
        except BaseException:
            self._files.note_closed(self)
            raise
