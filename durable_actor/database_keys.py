"""The keys of objects that have them in a database of their own, read from outside.

Theory of operation
    Nobody is activated for it. Of an object in memory the database is open: its turn is
    ended, the page is read through the same connection, and handed out once what was
    read is durable. No transaction may be open at that moment, so the reader takes its
    place in the line of those who want to begin one. The files of an object that is not
    in memory are opened for one page, on the event loop like every database, and let go
    as they were found.

Promises
    Nothing is shown that is not durable, and all of a page was there at one moment.

Does not know about watches, or how keys are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from durable_actor.activation import Activation
from durable_actor.databases import Databases, page_of
from durable_actor.errors import CorruptionError, StorageFullError
from durable_actor.residents import Residents
from durable_actor.storage.committer import Committer
from durable_actor.storage.database_overlay import DatabaseOverlay
from durable_actor.storage.kv import KeyRange, key_range
from durable_actor.storage.overlay import settle
from durable_actor.storage.ports import PAGE_BYTES_MAX, KeyPage

_PAGE_KEYS = 1_000  # of an object whose whole state is wanted


class DatabaseKeys:
    """Reads the keys of the objects of one host, if their class has a database."""

    def __init__(
        self, residents: Residents, databases: Databases, committer: Committer
    ) -> None:
        self._residents = residents
        self._databases = databases
        self._committer = committer

    async def page(self, raw_id: bytes, wanted: KeyRange, bytes_max: int) -> KeyPage:
        """Return the first page of a range, as it is durable now.

        It ends after `limit` keys, or after the one that brings the values to
        `bytes_max`. While the object has a transaction open, it waits for its end.

        Args:
            raw_id: The object's id, 32 bytes.
            wanted: Which keys, with a limit, and not in reverse.
            bytes_max: Of the values of a page.

        Raises:
            CorruptionError: The disk holds something else than was written.
            StorageError: The disk failed.
        """
        while True:
            activation = self._residents.at(raw_id)
            if activation is None:
                page = await self._page_on_disk(raw_id, wanted, bytes_max)
            elif activation.overlay is None:
                await asyncio.wait(activation.pending_tasks)  # it is being loaded
                continue
            else:
                page = await self._page_in_memory(activation, wanted, bytes_max)
            if page is not None:
                return page

    async def state(self, raw_id: bytes, prefix: str) -> Mapping[str, bytes]:
        """Return every key with a prefix; what becomes durable meanwhile may miss.

        Raises:
            CorruptionError: The disk holds something else than was written.
            StorageError: The disk failed.
        """
        state: dict[str, bytes] = {}
        ended_at: str | None = None
        while True:
            wanted = key_range(
                prefix=prefix,
                start=None,
                start_after=ended_at,
                end=None,
                limit=_PAGE_KEYS,
                reverse=False,
            )
            page = await self.page(raw_id, wanted, PAGE_BYTES_MAX)
            state.update(page.rows)
            ended_at = page.ended_at
            if ended_at is None:
                return state

    async def _page_in_memory(
        self,
        activation: Activation,
        wanted: KeyRange,
        bytes_max: int,
    ) -> KeyPage | None:
        overlay = activation.overlay
        assert isinstance(overlay, DatabaseOverlay), "an object without a database"
        async with overlay.transaction_lock():
            if overlay.reset is not None:
                return None  # it left memory while this waited
            activation.end_turn()
            page = page_of(overlay.database, wanted, bytes_max=bytes_max)
        try:
            await self._committer.wait(overlay.ticket)
        except StorageFullError:
            return None  # what was read never was; what is durable can be read
        return page

    async def _page_on_disk(
        self, raw_id: bytes, wanted: KeyRange, bytes_max: int
    ) -> KeyPage | None:
        databases, committer = self._databases, self._committer
        # An activation that broke may have left seals behind that are not settled yet.
        await settle(committer, self._residents.last_ticket(raw_id))
        databases.mark_unopened(raw_id)
        loaded = await committer.load(raw_id)
        if loaded.damage is not None:
            raise CorruptionError(loaded.damage, object_id=raw_id.hex())
        if loaded.position is None:
            return KeyPage([])  # it never wrote to its database, or is gone
        return databases.read_page(raw_id, loaded.position, wanted, bytes_max=bytes_max)
