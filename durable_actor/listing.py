"""Listing: from a question about objects, alarms or keys to a page of them.

Promises
    A page shows everything that was durable when it was asked for. With a full disk a
    page of objects or alarms shows what was folded before, as reads go on.
    Nothing is activated, and no class is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from durable_actor.codec.readable import stored_to_json
from durable_actor.directory import (
    AlarmEntry,
    AlarmPage,
    ObjectEntry,
    ObjectPage,
    StoredKey,
    StoredPage,
    make_alarm_cursor,
    make_cursor,
    make_key_cursor,
    open_alarm_cursor,
    open_cursor,
    open_key_cursor,
)
from durable_actor.errors import (
    CorruptionError,
    DecodeError,
    StorageFullError,
)
from durable_actor.storage.committer import Committer
from durable_actor.storage.kv import KeyRange, key_range, read_durable
from durable_actor.storage.ports import (
    KeyPage,
    ListAlarms,
    ReadDirectory,
    ShardDriver,
)

# raw id, which keys, bound of their values in bytes -> the first page of them
ReadPage = Callable[[bytes, KeyRange, int], Awaitable[KeyPage]]

_LIMIT_MAX = 1_000
_PAGE_BYTES_MAX = 1024 * 1024  # of stored values; made readable on the event loop


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
    _check_limit(limit)
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


async def read_alarms(
    committer: Committer,
    driver: ShardDriver,
    object_class: str | None,
    *,
    before_ms: int | None,
    limit: int,
    cursor: str | None,
) -> AlarmPage:
    """Return one page of alarms; see `Host.alarms`.

    Raises:
        ValueError: A wrong limit or cursor.
    """
    _check_limit(limit)
    with contextlib.suppress(StorageFullError):
        await committer.fold()
    after = open_alarm_cursor(cursor)
    found = await driver.read(ListAlarms(object_class, before_ms, after, limit + 1))
    page = found[:limit]
    entries = [
        AlarmEntry(
            object_class=entry.object_class,
            name=entry.name,
            id=entry.id.hex(),
            due_at_ms=entry.alarm.due_at_ms,
            scheduled_at_ms=entry.alarm.scheduled_at_ms,
            retries=entry.alarm.retries,
        )
        for entry in page
    ]
    if len(found) <= limit:
        return AlarmPage(alarms=entries, cursor=None)
    last = page[-1]
    return AlarmPage(
        alarms=entries, cursor=make_alarm_cursor(last.alarm.due_at_ms, last.num)
    )


async def read_stored(
    committer: Committer,
    driver: ShardDriver,
    raw_id: bytes,
    *,
    prefix: str,
    limit: int,
    cursor: str | None,
    read_database: ReadPage,
) -> StoredPage:
    """Return one page of what an object has stored; see `Host.stored_keys`.

    `read_database` is asked for the keys of an object that has a database of its own.

    Raises:
        ValueError: A wrong limit or cursor.
        CorruptionError: The disk holds something else than was written.
    """
    _check_limit(limit)
    wanted = key_range(
        prefix=prefix,
        start=None,
        start_after=open_key_cursor(cursor),
        end=None,
        limit=limit,
        reverse=False,
    )
    loaded = await committer.load(raw_id)
    if loaded.damage is not None:
        raise CorruptionError(loaded.damage, object_id=raw_id.hex())
    if loaded.position is None:
        page = await read_durable(
            committer, driver, raw_id, wanted, loaded=loaded, bytes_max=_PAGE_BYTES_MAX
        )
    else:
        page = await read_database(raw_id, wanted, _PAGE_BYTES_MAX)
    return StoredPage(
        exists=bool(loaded.num),
        keys=[_stored_key(key, data) for key, data in page.rows],
        cursor=None if page.ended_at is None else make_key_cursor(page.ended_at),
    )


def _stored_key(key: str, data: bytes) -> StoredKey:
    try:
        value, unreadable = stored_to_json(data), None
    except DecodeError as error:
        value, unreadable = None, str(error)  # the others can be shown all the same
    return StoredKey(key=key, value=value, size_bytes=len(data), unreadable=unreadable)


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= _LIMIT_MAX:
        message = f"limit must be between 1 and {_LIMIT_MAX}, got {limit}"
        raise ValueError(message)
