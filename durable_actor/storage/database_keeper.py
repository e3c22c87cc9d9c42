"""What a shard does for the databases of its objects: replay, fold, restore.

A turn of such an object is durable with its row of the log. Before the log forgets the
row, its pages are made durable where they belong, and are added to the object's
history. Runs where the shard runs, which may be another process than the object's, so
it never opens a database that may be open there.

All of it blocks, and is for a thread. One call at a time.
"""

from __future__ import annotations

import contextlib
import errno
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from durable_actor.errors import (
    CorruptionError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.log import get_logger
from durable_actor.storage.batch import DatabaseTurn
from durable_actor.storage.sql.files import database_path
from durable_actor.storage.sql.history import (
    RETAINED_BYTES_MAX,
    RETAINED_MS_MAX,
    History,
)
from durable_actor.storage.sql.wal import (
    WalPosition,
    adopt,
    delete_database,
    replay,
    sync,
    wal_path,
)

log = get_logger("durable_actor.storage")

_HISTORIES_MAX = 256  # whose records are remembered
_DAY_MS = 24 * 3_600_000
_SLACK = 1.25  # a history is cut when it is so much too large, as a cut copies a lot


class Keeper:
    """The files of all databases of a data directory, but for their connections."""

    def __init__(
        self,
        directory: Path,
        *,
        history_bytes_max: int = RETAINED_BYTES_MAX,
        history_ms_max: int = RETAINED_MS_MAX,
    ) -> None:
        self._directory = directory
        self._bytes_max = history_bytes_max
        self._age_ms_max = history_ms_max
        self._histories: OrderedDict[bytes, History] = OrderedDict()
        self._trimmed_at_ms: dict[bytes, int] = {}

    def replay(self, raw_id: bytes, turns: Sequence[DatabaseTurn]) -> None:
        """Bring what the log holds into the WAL, before anything is open.

        Raises:
            StorageFullError: The disk is full.
            StorageFailedError: Any other error of the disk.
        """
        segments = [turn.segment for turn in turns if turn.segment is not None]
        try:
            replay(self._path(raw_id), segments)
        except OSError as error:
            raise _failed("replay", error) from error

    def fold(self, raw_id: bytes, turns: Sequence[tuple[int, DatabaseTurn]]) -> None:
        """Make durable what the log is about to forget, and note it in the history.

        Args:
            raw_id: The object's id.
            turns: With their tickets, in order.

        A damaged history is reported and left alone: only its object asks for it, and
        the pages are where they belong.

        Raises:
            StorageFullError: The disk is full; may be repeated when there is space.
            StorageFailedError: Any other error of the disk.
        """
        try:
            sync(self._path(raw_id))
            history = self._history(raw_id)
            for ticket, turn in turns:
                if turn.segment is not None:
                    history.append(turn.segment, seq=ticket, at_ms=turn.at_ms)
            history.sync()
            self._trim(raw_id, history, now_ms=turns[-1][1].at_ms)
        except CorruptionError as error:
            log.error("database.history_damaged", id=raw_id.hex(), error=str(error))  # noqa: TRY400  # no fault of ours
        except OSError as error:
            raise _failed("fold", error) from error

    def adopt(self, raw_id: bytes, position: WalPosition) -> None:
        """Take over the database of an earlier release, which has no checksums."""
        try:
            adopt(self._path(raw_id), position)
        except OSError as error:
            raise _failed("adopt", error) from error

    def size_bytes(self, raw_id: bytes) -> int:
        """Return how much room an object's database takes, without its history."""
        path, size = self._path(raw_id), 0
        for one in (path, wal_path(path)):
            with contextlib.suppress(FileNotFoundError):
                size += one.stat().st_size
        return size

    def bookmark(self, raw_id: bytes, at_ms: int | None) -> str:
        """Return the bookmark of now, or of a time in epoch milliseconds.

        Raises:
            StorageError: The history does not reach back so far, or ends in damage.
        """
        history = self._history(raw_id)
        if history.has_rest:
            raise StorageError(
                "bookmark", f"the history is damaged: {history.problem()}"
            )
        if at_ms is None:
            return history.current_bookmark
        return history.bookmark_for_time(at_ms)

    def restore(self, raw_id: bytes, bookmark: str, *, seq: int, at_ms: int) -> str:
        """Take a database that is not open back; return a bookmark that undoes it.

        Raises:
            StorageError: No such moment in the history.
            CorruptionError: The history is damaged; nothing was changed.
        """
        try:
            return self._history(raw_id).restore(bookmark, seq=seq, at_ms=at_ms)
        except OSError as error:
            raise _failed("restore", error) from error

    def forget(self, raw_id: bytes) -> None:
        """The object was deleted: look at the files afresh if it comes back."""
        self._histories.pop(raw_id, None)
        self._trimmed_at_ms.pop(raw_id, None)

    def delete(self, raw_id: bytes) -> None:
        """Remove all files of an object that was deleted."""
        self.forget(raw_id)
        delete_files(self._directory, raw_id)

    def _path(self, raw_id: bytes) -> Path:
        return database_path(self._directory, raw_id)

    def _history(self, raw_id: bytes) -> History:
        history = self._histories.get(raw_id)
        if history is None:
            history = self._histories[raw_id] = History(self._path(raw_id))
        self._histories.move_to_end(raw_id)
        if len(self._histories) > _HISTORIES_MAX:
            oldest, _ = self._histories.popitem(last=False)
            self._trimmed_at_ms.pop(oldest, None)
        return history

    def _trim(self, raw_id: bytes, history: History, *, now_ms: int) -> None:
        is_large = history.size_bytes > self._bytes_max * _SLACK
        last_ms = self._trimmed_at_ms.setdefault(raw_id, now_ms)
        if is_large or now_ms - last_ms > min(_DAY_MS, self._age_ms_max):
            self._trimmed_at_ms[raw_id] = now_ms
            history.trim(now_ms, bytes_max=self._bytes_max, age_ms_max=self._age_ms_max)


def delete_files(directory: Path, raw_id: bytes) -> None:
    """Remove the database of an object that was deleted, and its past."""
    path = database_path(directory, raw_id)
    delete_database(path)
    for suffix in (".base", ".redo"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _failed(operation: str, error: OSError) -> StorageFullError | StorageFailedError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(operation, "the disk is full; free some space")
    return StorageFailedError(operation, f"{error.filename}: {error.strerror}")
