"""Pace: how many requests begin in one round of the event loop, and whose.

Theory of operation
    When hundreds of connections have sent a request, a round of the loop that answers
    all of them takes as long as all of them together, and whoever asks for `/livez` or
    wants to drain comes to his turn no sooner. So a few begin in each round and the
    others wait; health and operators do not (S11). It costs little: a round is a
    hundredth of the work in it.

    There is a line for each object, and the lines take turns, so a crowd at one object
    waits for itself and nobody else waits for the crowd (G19). Whoever comes to a line
    whose oldest has waited too long is refused at once, as the answer would come when
    its caller has given up.

Does not know requests: only that they begin, and at which object.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

BEGIN_MAX = 16  # about five milliseconds of work
_WAIT_SECONDS_MAX = 5.0  # half of what patient callers wait

Waiting = tuple[asyncio.Future[None], float]  # and since when, by the loop


class Pace:
    """Lets requests begin, a few in each round."""

    def __init__(self, begin_max: int = BEGIN_MAX) -> None:
        self._begin_max = begin_max
        self._begun = 0  # in this round
        # Invariant: no line is empty. The one whose turn is next is the first.
        self._lines: OrderedDict[bytes, deque[Waiting]] = OrderedDict()
        # Invariant: a callback is planned if anything has begun, or anyone waits.
        self._is_planned = False

    @property
    def is_free(self) -> bool:
        """Whether the next one begins at once."""
        return self._begun < self._begin_max and not self._lines

    def is_late(self, line: bytes) -> bool:
        """Whether the oldest in a line has waited too long; then nobody else should."""
        waiting = self._lines.get(line)
        if waiting is None:
            return False
        now = asyncio.get_running_loop().time()
        return now - waiting[0][1] > _WAIT_SECONDS_MAX

    async def turn(self, line: bytes) -> None:
        """Return when it is this one's turn to begin."""
        if self.is_free:
            self._begun += 1
            self._plan()
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._lines.setdefault(line, deque()).append((turn, loop.time()))
        await turn

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._next_round)

    def _next_round(self) -> None:
        self._is_planned = False
        self._begun = 0
        while self._lines and self._begun < self._begin_max:
            line, waiting = self._lines.popitem(last=False)
            turn, _ = waiting.popleft()
            if waiting:
                self._lines[line] = waiting  # behind all others
            if not turn.done():  # else it has left
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            self._plan()
