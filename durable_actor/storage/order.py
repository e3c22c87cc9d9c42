"""Order: the keys of a dict that changes, sorted when somebody asks.

Sorting all keys for every question would make a page of a large object cost as much as
the whole. What came and went since the last question is noted, and put in its place
then: one by one if it is little, all together otherwise.

Does not know what the keys lead to, nor who changes the dict.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator

# So many keys to one that changed: from there on, shifting the rest of a list is
# cheaper than going through all of it.
_KEYS_PER_CHANGE = 64


class KeyOrder:
    """The keys of one dict, in order."""

    __slots__ = ("_changed", "_entries", "_keys")

    def __init__(self, entries: Collection[str]) -> None:
        self._entries = entries
        self._keys = sorted(entries)
        self._changed: set[str] = set()

    def note(self, key: str) -> None:
        """Take note of a key that came or went."""
        self._changed.add(key)

    def between(
        self, start: str, end: str | None, *, reverse: bool = False
    ) -> Iterator[str]:
        """Return the keys in [start, end), to be used up before the next change."""
        self._settle()
        keys = self._keys
        low = bisect_left(keys, start) if start else 0
        high = len(keys) if end is None else bisect_left(keys, end)
        places = range(low, high)
        return map(keys.__getitem__, reversed(places) if reverse else places)

    def _settle(self) -> None:
        changed = self._changed
        if not changed:
            return
        self._changed = set()
        if len(changed) * _KEYS_PER_CHANGE <= len(self._keys):
            for key in changed:
                self._place(key)
            return
        kept = [key for key in self._keys if key not in changed]
        came = sorted(key for key in changed if key in self._entries)
        self._keys = sorted([*kept, *came])  # two runs; merged, not sorted anew

    def _place(self, key: str) -> None:
        keys = self._keys
        place = bisect_left(keys, key)
        is_listed = place < len(keys) and keys[place] == key
        if key in self._entries:
            if not is_listed:
                keys.insert(place, key)
        elif is_listed:
            del keys[place]
