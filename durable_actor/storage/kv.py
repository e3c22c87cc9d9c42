"""Ordered keys: what may be one, how ranges work, and reading them from a large object.

Keys are ordered by their UTF-8 bytes, which is the order of their code points. A prefix
is a range (S7): from the prefix to the next text that does not begin with it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from msgspec import UNSET, UnsetType

from durable_actor.errors import StorageLimitError
from durable_actor.storage.committer import Committer
from durable_actor.storage.fold import ObjectChange
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import (
    KeyPage,
    Loaded,
    ReadKeys,
    ReadRange,
    ShardDriver,
)

PAGE_KEYS_MAX = 1_000  # keys read from the disk at once
_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueLimits:
    """The sizes that keys, values and batches may have."""

    key_bytes_max: int = 2_048
    value_bytes_max: int = 2 * 1024 * 1024
    batch_entries_max: int = 128
    turn_bytes_max: int = 64 * 1024 * 1024  # of keys and values; one entry of the log
    list_bytes_max: int = 128 * 1024 * 1024  # of one answer; so much fits in a Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRange:
    """Keys in [start, end); `end` None is open. `limit` None is all of them."""

    start: str = ""
    end: str | None = None
    limit: int | None = None
    reverse: bool = False

    def has(self, key: str) -> bool:
        """Whether a key is in it, if it had no limit."""
        return self.start <= key and (self.end is None or key < self.end)


def check_key(key: object, limits: KeyValueLimits) -> str:
    """Return a key that may be stored.

    Raises:
        TypeError: Not text.
        StorageLimitError: Longer than the limit, or not valid Unicode.
    """
    if type(key) is not str:
        message = f"a key must be text, got {type(key).__name__}: {key!r}"
        raise TypeError(message)
    if key.isascii():
        size = len(key)
    else:
        try:
            size = len(key.encode())
        except UnicodeEncodeError as error:
            detail = f"not valid Unicode: {error.reason}"
            raise StorageLimitError("put", detail, key=ascii(key)) from None
    if size > limits.key_bytes_max:
        detail = (
            f"Keys cannot be larger than {limits.key_bytes_max} bytes."
            f" A key of size {size} was provided."
        )
        raise StorageLimitError("put", detail, key=key[:40] + "...")
    return key


def is_valid_text(text: str) -> bool:
    """Whether a text can be stored; lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_value(key: str, value: bytes, limits: KeyValueLimits) -> bytes:
    """Return a value that may be stored.

    Raises:
        StorageLimitError: Larger than the limit.
    """
    if len(value) > limits.value_bytes_max:
        detail = (
            f"Values cannot be larger than {limits.value_bytes_max} bytes."
            f" A value of size {len(value)} was provided."
        )
        raise StorageLimitError("put", detail, key=key)
    return value


def key_range(
    *,
    prefix: str | None,
    start: str | None,
    start_after: str | None,
    end: str | None,
    limit: int | None,
    reverse: bool,
) -> KeyRange:
    """Return the range that the options of `list` describe.

    Raises:
        TypeError: `start` together with `start_after`, or an option of a wrong type.
        ValueError: `limit` is not positive.
        StorageLimitError: A text that is not valid Unicode.
    """
    for name, text in (
        ("prefix", prefix),
        ("start", start),
        ("start_after", start_after),
        ("end", end),
    ):
        if text is None:
            continue
        if not isinstance(text, str):
            message = f"list: {name} must be text, got {type(text).__name__}"
            raise TypeError(message)
        if not is_valid_text(text):
            detail = f"{name} is not valid Unicode"
            raise StorageLimitError("list", detail, key=ascii(text))
    if start is not None and start_after is not None:
        message = "list() cannot be called with both start and start_after values."
        raise TypeError(message)
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            message = f"list: limit must be an int, got {type(limit).__name__}"
            raise TypeError(message)
        if limit <= 0:
            message = f"List limit must be positive. Got {limit}."
            raise ValueError(message)
    low = start or ""
    if start_after is not None:
        low = start_after + "\x00"  # the smallest text after it
    if prefix:
        low = max(low, prefix)
        beyond = after_prefix(prefix)
        if beyond is not None:
            end = beyond if end is None else min(end, beyond)
    return KeyRange(start=low, end=end, limit=limit, reverse=reverse)


def after_prefix(prefix: str) -> str | None:
    """Return the smallest text after every text with this prefix, if any."""
    stem = prefix.rstrip(chr(_LAST_CODE_POINT))
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    if following in _SURROGATES:
        following = _SURROGATES.stop
    return stem[:-1] + chr(following)


class LargeObject:
    """Reads from an object that is only partly in memory.

    What the tables say is overlaid with what is durable but not folded, then with what
    this activation has written. Nothing here costs more because the object is larger.
    """

    __slots__ = ("_committer", "_driver", "_overlay", "_raw_id")

    def __init__(
        self, committer: Committer, driver: ShardDriver, overlay: Overlay, raw_id: bytes
    ) -> None:
        self._committer = committer
        self._driver = driver
        self._overlay = overlay
        self._raw_id = raw_id

    async def fetch(
        self, keys: Iterable[str], *, keeps: bool = True
    ) -> dict[str, bytes]:
        """Return the values of those keys that exist.

        Args:
            keys: Which.
            keeps: Whether to bring them into the cache.
        """
        wanted = list(keys)
        overlay = self._overlay
        if not keeps:
            return await self._peek(wanted)
        overlay.pin(wanted)
        try:
            # A rollback may make the cache forget what was known a moment ago.
            while missing := [key for key in wanted if overlay.lookup(key) is UNSET]:
                overlay.remember(await self._read(missing))
            values = {key: overlay.lookup(key) for key in wanted}
        finally:
            overlay.unpin(wanted)
        overlay.shrink()
        return {key: value for key, value in values.items() if isinstance(value, bytes)}

    async def _peek(self, keys: list[str]) -> dict[str, bytes]:
        found: dict[str, bytes | None] = {}
        while missing := [
            key
            for key in keys
            if key not in found and self._overlay.lookup(key) is UNSET
        ]:
            found.update(await self._read(missing))
        for key in keys:
            value = self._overlay.lookup(key)  # what is known here is newer
            if value is not UNSET:
                found[key] = value
        return {key: value for key, value in found.items() if value is not None}

    def durable_now(self, keys: Iterable[str]) -> dict[str, bool]:
        """Return which keys exist, for those that the tables are behind with."""
        found: dict[str, bool] = {}
        for key in keys:
            value = _newest(key, self._pending())
            if value is not UNSET:
                found[key] = value is not None
        return found

    async def stored(self, keys: Sequence[str]) -> set[str]:
        """Return which of these keys the tables have."""
        if not keys:
            return set()
        query = ReadKeys(self._overlay.num, list(keys))
        stored = await self._driver.read(query)
        return set(stored)

    async def _read(self, keys: list[str]) -> dict[str, bytes | None]:
        before = self._pending()
        query = ReadKeys(self._overlay.num, keys)
        stored = await self._driver.read(query)
        changes = _together(before, self._pending())
        found: dict[str, bytes | None] = {}
        for key in keys:
            value = _newest(key, changes)
            found[key] = stored.get(key) if value is UNSET else value
        return found

    async def pages(self, wanted: KeyRange) -> AsyncGenerator[dict[str, bytes], None]:
        """Yield the keys of a range with their values, in order, a page at a time."""
        start, end, room = wanted.start, wanted.end, wanted.limit
        while True:
            count = PAGE_KEYS_MAX if room is None else min(room, PAGE_KEYS_MAX)
            before = self._pending()
            query = ReadRange(self._overlay.num, start, end, count, wanted.reverse)
            nothing: list[str] = []
            self._overlay.pin(nothing)
            try:
                page = await self._driver.read(query)
            finally:
                self._overlay.unpin(nothing)
            # The page answers for everything up to its last key, or to the end.
            ended_at = None if self._overlay.complete else page.ended_at
            low, high = start, end
            if ended_at is not None and wanted.reverse:
                low = ended_at
            elif ended_at is not None:
                high = ended_at + "\x00"
            part = KeyRange(start=low, end=high, limit=room, reverse=wanted.reverse)
            found = self._merge(part, page, _together(before, self._pending()))
            yield found
            if room is not None:
                room -= len(found)
            if ended_at is None or room == 0:
                return
            if wanted.reverse:
                end = low
            else:
                start = high or ""

    def _pending(self) -> tuple[ObjectChange, ...]:
        return self._committer.pending(self._raw_id)

    def _merge(
        self, part: KeyRange, page: KeyPage, changes: Sequence[ObjectChange]
    ) -> dict[str, bytes]:
        """Return the keys of one part of a range, from the newest that is known."""
        overlay, reverse = self._overlay, part.reverse
        if overlay.complete:  # everything was deleted while the disk was asked
            changes, page = (), KeyPage([])
        rows = dict(page.rows)
        sources: list[Iterable[str]] = [rows]
        layers: list[Overlay | ObjectChange] = [overlay, *changes]
        for layer in layers:
            keys = layer.keys_between(part.start, part.end, reverse=reverse)
            sources.append(keys)
        found: dict[str, bytes] = {}
        for key in _distinct(merge(*sources, reverse=reverse)):
            value = overlay.known(key)
            if value is UNSET:
                value = _newest(key, changes)
            if value is UNSET:
                value = rows.get(key)
            if isinstance(value, bytes):
                found[key] = value
                if len(found) == part.limit:
                    break
        return found


async def read_durable(
    committer: Committer,
    driver: ShardDriver,
    raw_id: bytes,
    wanted: KeyRange,
    *,
    loaded: Loaded,
    bytes_max: int,
) -> KeyPage:
    """Return the first page of a range, as it is durable now; nothing is activated.

    All of the page was there at the same moment. It ends after `limit` keys, or after
    the one that brings the values to `bytes_max`. It is empty only if nothing follows.

    Args:
        committer: What knows what is durable but not folded.
        driver: Where the tables are.
        raw_id: The object's id.
        wanted: Which keys, with a limit, and not in reverse.
        loaded: The object, as the committer loads it.
        bytes_max: Of the values of a page.
    """
    limit = wanted.limit
    assert limit is not None
    assert not wanted.reverse
    if loaded.complete:
        keys = (key for key in sorted(loaded.keys) if wanted.has(key))
        rows = ((key, loaded.keys[key]) for key in keys)
        return _page(rows, limit, bytes_max, ended_at=None)
    start = wanted.start
    while True:
        before = committer.pending(raw_id)
        query = ReadRange(
            loaded.num, start, wanted.end, limit, reverse=False, bytes_max=bytes_max
        )
        stored = await driver.read(query)
        changes = _together(before, committer.pending(raw_id))
        # The tables answer for everything up to its last key, or to the end.
        ended_at = stored.ended_at
        part = KeyRange(
            start=start, end=wanted.end if ended_at is None else ended_at + "\x00"
        )
        durable = _durable_rows(part, dict(stored.rows), changes)
        page = _page(durable, limit, bytes_max, ended_at=ended_at)
        if page.rows or ended_at is None:
            return page
        start = ended_at + "\x00"  # all of these were deleted a moment ago


def _durable_rows(
    part: KeyRange, stored: dict[str, bytes], changes: Sequence[ObjectChange]
) -> Iterator[tuple[str, bytes]]:
    """Yield what the tables have of a range in order, with changes on top."""
    changed = [change.keys_between(part.start, part.end) for change in changes]
    for key in _distinct(merge(stored, *changed)):
        value = _newest(key, changes)
        if value is UNSET:
            value = stored.get(key)
        if isinstance(value, bytes):
            yield key, value


def _page(
    rows: Iterable[tuple[str, bytes]],
    limit: int,
    bytes_max: int,
    *,
    ended_at: str | None,
) -> KeyPage:
    """Return the first of these rows; those up to `ended_at` are all of them."""
    page: list[tuple[str, bytes]] = []
    room_bytes = bytes_max
    for key, value in rows:
        if len(page) == limit or room_bytes <= 0:
            return KeyPage(page, page[-1][0])
        page.append((key, value))
        room_bytes -= len(value)
    return KeyPage(page, ended_at)


def _newest(key: str, changes: Sequence[ObjectChange]) -> bytes | UnsetType | None:
    """Return what the newest change says of a key, UNSET if none says anything."""
    for change in reversed(changes):
        if key in change.keys:
            return change.keys[key]
        if change.cleared:
            return None
    return UNSET


def _together(
    before: Sequence[ObjectChange], after: Sequence[ObjectChange]
) -> list[ObjectChange]:
    """Return what was pending before and after a read, oldest first."""
    return [*before, *(one for one in after if all(one is not b for b in before))]


def _distinct(keys: Iterable[str]) -> Iterator[str]:
    last: str | None = None
    for key in keys:
        if key != last:
            yield key
        last = key
