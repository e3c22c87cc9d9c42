"""Log lines that could come in floods, let through one at a time."""

from __future__ import annotations

import asyncio

_SECONDS = 10.0  # seldom enough for any log, often enough to show that it goes on


class Seldom:
    """Lets one line through in a while, and counts those it kept back."""

    __slots__ = ("_kept_back", "_quiet_until", "_seconds")

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._quiet_until = 0.0  # by the loop's clock
        self._kept_back = 0

    def kept_back(self) -> int | None:
        """Return how many lines were kept back, if one may be written now; else None.

        Call it once for each line, in the loop.
        """
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until:
            self._kept_back += 1
            return None
        count, self._kept_back = self._kept_back, 0
        self._quiet_until = now + self._seconds
        return count
