"""Listing: from a question about objects to a page of the directory.

Promises
    A page shows every object whose first write was durable when it was asked for, save
    with a full disk: then it shows what was folded before, as reads go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from durable_actor.directory import ObjectEntry, ObjectPage, make_cursor, open_cursor
from durable_actor.errors import StorageFullError
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import ReadDirectory, ShardDriver

_LIMIT_MAX = 1_000


async def read_page(
    committer: Committer,
    driver: ShardDriver,
    object_class: str | None,
    *,
    prefix: str,
    where: Mapping[str, str],
    limit: int,
    cursor: str | None,
) -> ObjectPage:
    """Return one page of the directory; see `Host.list_objects`.

    Raises:
        ValueError: A wrong limit or cursor.
    """
    if not 1 <= limit <= _LIMIT_MAX:
        message = f"limit must be between 1 and {_LIMIT_MAX}, got {limit}"
        raise ValueError(message)
    with contextlib.suppress(StorageFullError):
        await committer.fold()
    # One more than asked for tells whether there is another page.
    rows = await driver.read(
        ReadDirectory(object_class, prefix, dict(where), open_cursor(cursor), limit + 1)
    )
    entries = [
        ObjectEntry(
            object_class=entry.row.object_class,
            name=entry.row.name,
            id=entry.row.id.hex(),
            created_at_ms=entry.row.created_at_ms,
            used_at_ms=entry.row.used_at_ms,
            size_bytes=entry.size_bytes,
            alarm_at_ms=entry.alarm_at_ms,
            attributes=entry.row.attributes,
        )
        for entry in rows[:limit]
    ]
    more = len(rows) > limit
    return ObjectPage(
        objects=entries, cursor=make_cursor(entries[-1]) if more else None
    )
