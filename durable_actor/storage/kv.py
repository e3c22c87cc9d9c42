"""Ordered keys: what may be one, how ranges work, and reading them from a large object.

Keys are ordered by their UTF-8 bytes, which is the order of their code points. A prefix
is a range (S7): from the prefix to the next text that does not begin with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec import UNSET

from durable_actor.errors import StorageLimitError
from durable_actor.storage.committer import Committer
from durable_actor.storage.fold import ObjectChange
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import ReadKeys, ReadRange, ShardDriver

PAGE_KEYS_MAX = 1_000  # keys read from the disk at once
_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueLimits:
    """The sizes that keys, values and batches may have."""

    key_bytes_max: int = 2_048
    value_bytes_max: int = 2 * 1024 * 1024
    batch_entries_max: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRange:
    """Keys in [start, end); `end` None is open. `limit` None is all of them."""

    start: str = ""
    end: str | None = None
    limit: int | None = None
    reverse: bool = False


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
        message = "list: give start or start_after, not both"
        raise TypeError(message)
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            message = f"list: limit must be an int, got {type(limit).__name__}"
            raise TypeError(message)
        if limit <= 0:
            message = f"list: limit must be positive, got {limit}"
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
    this activation has written.
    """

    __slots__ = ("_committer", "_driver", "_overlay", "_raw_id")

    def __init__(
        self, committer: Committer, driver: ShardDriver, overlay: Overlay, raw_id: bytes
    ) -> None:
        self._committer = committer
        self._driver = driver
        self._overlay = overlay
        self._raw_id = raw_id

    def pending(self) -> ObjectChange | None:
        """Return what is durable now and may not be in the tables yet."""
        return self._committer.pending(self._raw_id)

    async def fetch(self, keys: Iterable[str]) -> None:
        """Bring these keys into the cache, as present or as absent."""
        wanted = list(keys)
        missing = [key for key in wanted if self._overlay.lookup(key) is UNSET]
        found = await self._read(missing, self.pending())
        _lay_over(found, self.pending())
        self._overlay.shrink(keep=wanted)
        self._overlay.remember(found)

    async def stored(
        self, keys: Iterable[str], pending: ObjectChange | None
    ) -> list[str]:
        """Return which of these keys were durable when `pending` was taken."""
        found = await self._read(list(keys), pending)
        return [key for key, value in found.items() if value is not None]

    async def _read(
        self, keys: list[str], pending: ObjectChange | None
    ) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = dict.fromkeys(keys)
        query = ReadKeys(self._overlay.num, keys)
        stored = await self._driver.read(query)
        found.update(stored)
        _lay_over(found, pending)
        return found

    async def scan(self, wanted: KeyRange) -> dict[str, bytes]:
        """Return the keys of a range with their values, in order."""
        result: dict[str, bytes] = {}
        start, end = wanted.start, wanted.end
        while True:
            missing = None if wanted.limit is None else wanted.limit - len(result)
            page_max = PAGE_KEYS_MAX if missing is None else min(missing, PAGE_KEYS_MAX)
            before = self.pending()
            rows = await self._driver.read(
                ReadRange(self._overlay.num, start, end, page_max + 1, wanted.reverse)
            )
            # The page answers for everything up to its last key, or to the end.
            is_last = len(rows) <= page_max
            low, high = start, end
            if not is_last and wanted.reverse:
                low = rows[-1][0]
            elif not is_last:
                high = rows[-1][0] + "\x00"
            page = self._merge(dict(rows), before, low, high)
            for key in sorted(page, reverse=wanted.reverse):
                if wanted.limit is not None and len(result) >= wanted.limit:
                    return result
                result[key] = page[key]
            if is_last or (wanted.limit is not None and len(result) >= wanted.limit):
                return result
            if wanted.reverse:
                end = low
            else:
                start = high or ""

    def _merge(
        self,
        rows: Mapping[str, bytes],
        before: ObjectChange | None,
        low: str,
        high: str | None,
    ) -> dict[str, bytes]:
        page: dict[str, bytes | None] = dict(rows)
        for change in (before, self.pending()):
            if change is None:
                continue
            if change.cleared:
                page = {}
            for key, value in change.keys.items():
                if key >= low and (high is None or key < high):
                    page[key] = value
        for key in self._overlay.keys_between(low, high):
            page[key] = self._overlay.known(key)
        return {key: value for key, value in page.items() if value is not None}


def _lay_over(found: dict[str, bytes | None], change: ObjectChange | None) -> None:
    """Bring what the tables said of some keys up to date."""
    if change is not None:
        for key in found:
            if key in change.keys:
                found[key] = change.keys[key]
            elif change.cleared:
                found[key] = None
