"""The databases of a host's objects: made when they are used, closed when idle.

Only for classes with `storage="sqlite"`. What SQL and keys of a turn changed travels in
the object's seal; see `storage.sql`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from durable_actor.clock import Clock
from durable_actor.descriptors import PER_DATABASE
from durable_actor.errors import (
    CorruptionError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger
from durable_actor.storage.batch import Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.database_keeper import delete_files
from durable_actor.storage.database_overlay import DatabaseOverlay
from durable_actor.storage.kv import KeyRange
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import (
    DeleteDatabase,
    KeyPage,
    Loaded,
    ReadBookmark,
    RestoreDatabase,
    ShardDriver,
)
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import SqlFiles
from durable_actor.storage.sql.statements import SqlLimits
from durable_actor.storage.sql.wal import WalPosition

# A repair reads the WAL and checks it, on the event loop: a millisecond for this much.
_CHECKPOINT_BYTES = 1024 * 1024
# What always writes is never idle, and its WAL would grow without end. Beyond this it
# has to pause for a fold, which takes some tens of milliseconds.
_REST_BYTES = 8 * 1024 * 1024

_ROOM_SECONDS = 10.0  # as long as an event may wait in a mailbox
_LOOK_SECONDS = 0.005

log = get_logger("durable_actor.storage")


class Databases:
    """All databases of one data directory."""

    def __init__(
        self,
        directory: Path,
        *,
        open_max: int,
        limits: SqlLimits,
        list_bytes_max: int,
    ) -> None:
        self._list_bytes_max = list_bytes_max
        self.open_max = open_max
        # Absolute, whatever the working directory becomes: a database that is not found
        # could not be moved aside when it has to be abandoned.
        self._directory = directory.absolute()
        self._files = SqlFiles(self._directory, open_max=open_max, limits=limits)
        self._committer: Committer
        self._driver: ShardDriver
        self._clock: Clock
        self._rest: Callable[[bytes], None]
        # Of whom somebody wants to read the files. Invariant: whoever is opened or
        # deleted is taken out before anything happens to them.
        self._unopened: set[bytes] = set()
        self._room_line = asyncio.Lock()  # those who wait for room
        self._removals: dict[bytes, set[asyncio.Future[None]]] = {}  # under way

    def start(
        self,
        committer: Committer,
        driver: ShardDriver,
        clock: Clock,
        *,
        rest: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """Begin to work with an open shard.

        Args:
            committer: The shard's.
            driver: The shard.
            clock: The host's.
            rest: Asks an object to pause until everything it wrote is folded.
        """
        self._committer, self._driver, self._clock = committer, driver, clock
        self._rest = rest
        self._files.on_failure = committer.fail

    async def overlay(
        self, object_id: ObjectId, object_class: str, loaded: Loaded
    ) -> DatabaseOverlay:
        """Return the storage of one activation, restored if it asked for that.

        Raises:
            CorruptionError: Durable bytes are missing or changed.
            StorageError: The object was stored by a class without a database.
        """
        raw_id = object_id.raw
        self._unopened.discard(raw_id)
        if loaded.keys or not loaded.complete:
            detail = (
                f"{object_class} now has a database, but this object's keys were stored"
                " without one; register the class under another name and copy them"
            )
            raise StorageError("open", detail)
        if loaded.position is None:
            await self._make_way(raw_id)  # nothing was ever written, or all is deleted
        elif loaded.restore:
            await self._restore(raw_id, loaded.restore)
        await self.wait_for_room()
        file = self._files.file(raw_id, loaded.position)
        keys, complete = dict[str, bytes](), True
        if loaded.position is not None:
            try:
                found = file.database.load()
            except BaseException:
                file.abandon()
                raise
            if found.damage is not None:
                file.abandon()
                raise CorruptionError(f"{file.path}: {found.damage}")
            keys, complete = found.keys, found.complete
        stored = Loaded(
            num=loaded.num,
            row=loaded.row,
            alarm=loaded.alarm,
            complete=complete,
            keys=keys,
            position=loaded.position,
        )
        overlay = DatabaseOverlay(
            self._committer,
            object_id,
            object_class,
            stored,
            file,
            list_bytes_max=self._list_bytes_max,
        )
        if loaded.restore:
            overlay.restore_at_next_start("")  # done
        return overlay

    @property
    def descriptors_to_come(self) -> int:
        """How many descriptors databases may take that are not open yet."""
        return max(self.open_max - self._files.open_count, 0) * PER_DATABASE

    async def wait_for_room(self) -> None:
        """Return when there is room for one more open database (G16).

        What is open can be closed once it is at rest, and what it wrote is folded.

        Raises:
            StorageError: Too many are at work, and have been for ten seconds.
        """
        if self._files.has_room:
            return
        self._files.make_room()
        if self._files.has_room:
            return
        try:
            # First come, first served.
            async with asyncio.timeout(_ROOM_SECONDS), self._room_line:
                while not self._files.has_room:
                    with contextlib.suppress(StorageError):
                        await self._committer.fold()
                    self._files.make_room()
                    if not self._files.has_room:
                        await asyncio.sleep(_LOOK_SECONDS)  # none has ended its turn
        except TimeoutError:
            detail = f"{self._files.open_count} databases are open, and all at work"
            error = StorageError("open", detail)
            error.outcome, error.retryable = "not_executed", True
            error.overloaded = True
            raise error from None

    async def ready(self, overlay: Overlay | None) -> None:
        """Return when an object's database is open, or there is room for it.

        Raises:
            StorageError: There is none, as in `wait_for_room`; nothing has run.
        """
        if isinstance(overlay, DatabaseOverlay) and not overlay.is_open:
            await self.wait_for_room()

    def mark_unopened(self, raw_id: bytes) -> None:
        """Begin to note whether an object is opened or deleted; see `read_page`."""
        self._unopened.add(raw_id)

    def read_page(
        self,
        raw_id: bytes,
        position: WalPosition,
        wanted: KeyRange,
        *,
        bytes_max: int,
    ) -> KeyPage | None:
        """Return some keys of an object that is not in memory.

        Its files stay as they are.

        Args:
            raw_id: The object's id.
            position: As it was loaded after `mark_unopened`.
            wanted: Which keys, with a limit, and not in reverse.
            bytes_max: Of the values of a page.

        Returns:
            The page; None if it was opened or deleted since it was marked.

        Raises:
            CorruptionError: Durable bytes are missing or changed.
            StorageError: It cannot be opened.
        """
        if raw_id not in self._unopened:
            return None
        self._unopened.discard(raw_id)
        file = self._files.file(raw_id, position)
        try:
            return page_of(file.database, wanted, bytes_max=bytes_max)
        finally:
            file.abandon()  # no checkpoint, no sync

    async def bookmark(self, object_id: ObjectId, at_ms: int | None = None) -> str:
        """Return the bookmark of what is durable now, or was at a time.

        Raises:
            StorageError: The history does not reach back so far.
        """
        await self._committer.fold()
        return await self._driver.read(ReadBookmark(object_id.raw, at_ms))

    def folded(self, raw_id: bytes, position: WalPosition) -> None:
        """Note that an object's pages are where they belong, up to a position."""
        left_bytes = self._files.settled(
            raw_id, position, checkpoint_bytes=_CHECKPOINT_BYTES
        )
        if left_bytes > _REST_BYTES:
            self._rest(raw_id)

    async def deleted(self, raw_id: bytes) -> None:
        """Remove the files of an object whose deletion is durable."""
        self._unopened.discard(raw_id)
        await self._remove(raw_id)

    def close(self) -> None:
        """Close what is open, after the last fold."""
        self._files.close_idle()
        self._files.abandon_all()

    def drop(self) -> None:
        """Let go of what is open, as a crash would."""
        self._files.abandon_all()

    async def _make_way(self, raw_id: bytes) -> None:
        """Remove what an object of this id has left behind that was deleted."""
        while raw_id in self._removals:
            # Once they are gone, no removal may come that was meant for them.
            await asyncio.wait(self._removals[raw_id])
        if any(change.deleted for change in self._committer.pending(raw_id)):
            # Its last turns may be on their way into its history, even now.
            await self._remove(raw_id)
        else:
            delete_files(self._directory, raw_id)

    async def _remove(self, raw_id: bytes) -> None:
        """Remove an object's files, to the end even if nobody waits for it."""
        removal = asyncio.ensure_future(self._driver.read(DeleteDatabase(raw_id)))
        self._removals.setdefault(raw_id, set()).add(removal)

        def removed(_: asyncio.Future[None]) -> None:
            self._removals[raw_id].discard(removal)
            if not self._removals[raw_id]:
                del self._removals[raw_id]

        removal.add_done_callback(removed)
        await asyncio.shield(removal)

    async def _restore(self, raw_id: bytes, bookmark: str) -> None:
        # A seal of nobody: its ticket is the number of the restored state, and must not
        # be used again after a crash.
        ticket = self._committer.seal(Seal(num=0))
        await self._committer.wait(ticket)
        now_ms = self._clock.now_ms()
        try:
            await self._driver.read(RestoreDatabase(raw_id, bookmark, ticket, now_ms))
            self._committer.watches.reread(raw_id, ticket)
        except (CorruptionError, StorageFullError, StorageFailedError):
            raise  # it may be possible another time
        except StorageError as error:
            # It was within the history when it was asked for. The object goes on as it
            # is, rather than never again.
            reason = str(error)
            log.warning("object.not_restored", id=raw_id.hex(), reason=reason)


def page_of(database: Database, wanted: KeyRange, *, bytes_max: int) -> KeyPage:
    """Return the first keys of a range that has a limit and is not in reverse."""
    assert wanted.limit is not None
    assert not wanted.reverse
    rows, ended_at = database.read_page(
        wanted.start, wanted.end, limit=wanted.limit, bytes_max=bytes_max
    )
    return KeyPage(rows, ended_at)
