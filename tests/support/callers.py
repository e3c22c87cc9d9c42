"""Many cheap HTTP callers: one connection each, one call at a time, on one event loop.

Fewer microseconds for a call than any client library, so that the daemon is what is
measured.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER_MS = re.compile(rb'"retry_after_ms": *(\d+)')
OK = 200


@dataclass(slots=True)
class Tally:
    """What came of the calls of some callers."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of those that succeeded
    lost: int = 0  # the connection broke before the answer
    timeouts: int = 0
    refusals_incomplete: int = 0  # without code, overloaded or retry_after_ms

    @property
    def good(self) -> int:
        """How many succeeded."""
        return self.statuses[OK]

    @property
    def shed(self) -> int:
        """How many were refused."""
        return self.statuses[429] + self.statuses[503]

    @property
    def failed(self) -> int:
        """How many ended any other way."""
        return self.statuses.total() - self.good - self.shed

    def p99_ms(self) -> float:
        """Return the time that one call in a hundred takes longer than."""
        found = sorted(self.seconds)
        return found[len(found) * 99 // 100] * 1_000 if found else 0.0


def request(url: str, token: str, path: str, body: object = None) -> bytes:
    """Return the bytes of a call; a GET if there is no body."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        f"Authorization: Bearer {token}",
    ]
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + _HEAD_END + data


class Caller(asyncio.Protocol):
    """One connection; calls again as soon as it is answered."""

    def __init__(
        self,
        tally: Tally,
        next_call: Callable[[], bytes | None],
        *,
        obeys: bool = True,
        pause_seconds: float = 0.0,
        timeout_seconds: float = 10.0,
    ) -> None:
        """Describe it.

        Args:
            tally: Where it notes what came of its calls.
            next_call: Returns the bytes to send; None ends it.
            obeys: Whether it stays away as long as a refusal says.
            pause_seconds: Between an answer and the next call.
            timeout_seconds: How long it waits for an answer.
        """
        self._tally = tally
        self._next_call = next_call
        self._obeys = obeys
        self._pause_seconds = pause_seconds
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._sent_at = 0.0
        self._waits = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.over: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._call()

    def _call(self) -> None:
        if self._transport.is_closing():
            return
        message = self._next_call()
        if message is None:
            self._transport.close()
            return
        self._sent_at = self._loop.time()
        self._waits = True
        # One timer for a connection, not for a call: it looks when the call was sent.
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_seconds, self._look)
        self._transport.write(message)

    def _look(self) -> None:
        self._timer = None
        if not self._waits:
            return
        left = self._sent_at + self._timeout_seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self._tally.timeouts += 1
        self._waits = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            return
        found = _LENGTH.search(self._buffer, 0, end)
        size = end + len(_HEAD_END) + (int(found[1]) if found else 0)
        if len(self._buffer) < size:
            return
        answer, self._buffer = self._buffer[:size], self._buffer[size:]
        self._waits = False
        status = int(answer[9:12])
        self._tally.statuses[status] += 1
        pause = self._pause_seconds
        if status == OK:
            self._tally.seconds.append(self._loop.time() - self._sent_at)
        else:
            told = _RETRY_AFTER_MS.search(answer, end)
            if told is None or b'"overloaded":true' not in answer:
                self._tally.refusals_incomplete += 1
            elif self._obeys:
                pause = int(told[1]) / 1_000
        if pause:
            self._loop.call_later(pause, self._call)
        else:
            self._call()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._waits:
            self._tally.lost += 1
        if not self.over.done():
            self.over.set_result(None)


async def call_from_many(
    url: str,
    connections: int,
    tally: Tally,
    next_call: Callable[[], bytes | None],
    *,
    obeys: bool = True,
    pause_seconds: float = 0.0,
    timeout_seconds: float = 10.0,
) -> None:
    """Call from so many connections until `next_call` ends each of them."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()

    async def one() -> None:
        assert parts.hostname is not None
        assert parts.port is not None
        while True:
            try:
                _, caller = await loop.create_connection(
                    lambda: Caller(
                        tally,
                        next_call,
                        obeys=obeys,
                        pause_seconds=pause_seconds,
                        timeout_seconds=timeout_seconds,
                    ),
                    parts.hostname,
                    parts.port,
                )
            except OSError:
                tally.lost += 1
                return
            await caller.over
            if next_call() is None:
                return
            # Refused and hung up on, as one connection too many: it comes again.
            await asyncio.sleep(pause_seconds or 0.1)

    await asyncio.gather(*(one() for _ in range(connections)))


async def ask(url: str, message: bytes, tally: Tally) -> bytes | None:
    """Call once over a connection of its own; return the body if it succeeded."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError:
        tally.lost += 1
        return None
    try:
        async with asyncio.timeout(60):
            writer.write(message)
            head = await reader.readuntil(_HEAD_END)
            found = _LENGTH.search(head)
            body = await reader.readexactly(int(found[1]) if found else 0)
    except TimeoutError:
        tally.timeouts += 1
        return None
    except (OSError, EOFError):
        tally.lost += 1
        return None
    finally:
        writer.close()
    status = int(head[9:12])
    tally.statuses[status] += 1
    return body if status == OK else None


async def call_once(url: str, message: bytes, tally: Tally) -> int:
    """Call once over a connection of its own; return the status, 0 if none came."""
    return OK if await ask(url, message, tally) is not None else 0
