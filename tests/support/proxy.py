"""A proxy between a client and a daemon that loses, breaks, delays and doubles.

It takes one HTTP request after the other from a connection, and for each asks what is
to happen to it. What a fault does to the request is exact: `drop` carries it out and
loses the answer, `refuse` never forwards it, `double` carries it out twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "none",
    "refuse",  # closed before anything was forwarded
    "drop",  # carried out; closed instead of answered
    "reset",  # the same, with a reset
    "cut",  # carried out; half of the answer
    "late",  # carried out; answered once `release` is called
    "double",  # carried out twice; the second answer is the one told
    "echo",  # answered; carried out once more afterwards, behind the caller's back
]


_ARRIVALS = 10  # rounds of the loop from a connection that is accepted to its task


class Proxy:
    """Listens on a port of its own; `url` is its address."""

    def __init__(self, url: str, choose: Callable[[], Fault]) -> None:
        target = urlsplit(url)
        self._target = (target.hostname, target.port)
        self._netloc = target.netloc
        self._choose = choose
        self._released = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self.url = ""
        self.seen: Counter[Fault] = Counter()
        self.requests: list[bytes] = []  # their heads, as they came

    def release(self) -> None:
        """Let the late answers go."""
        self._released.set()

    async def take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection of the client."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # Cancelled only by `close`, and asyncio complains of cancelled callbacks.
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                while await self._take_one(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            await _close(writer)

    async def _take_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        request = await _read_message(reader)
        self.requests.append(request.partition(b"\r\n\r\n")[0])
        fault = self._choose()
        self.seen[fault] += 1
        if fault == "refuse":
            return False
        answer = await self._forward(request)
        if fault == "double":
            answer = await self._forward(request)
        match fault:
            case "drop":
                return False
            case "reset":
                linger = struct.pack("ii", 1, 0)
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
            case "cut":
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
                return False
            case "late":
                await self._released.wait()
        writer.write(answer)
        await writer.drain()
        if fault == "echo":
            await self._forward(request)
        return True

    async def _forward(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [
            b"Host: " + self._netloc.encode() if _name(line) == b"host" else line
            for line in head.split(b"\r\n")
        ]
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            return await _read_message(reader)
        finally:
            await _close(writer)

    async def close(self) -> None:
        """End every connection."""
        for _ in range(_ARRIVALS):  # those that were accepted a moment ago
            await asyncio.sleep(0)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@asynccontextmanager
async def open_proxy(
    url: str, choose: Callable[[], Fault] = lambda: "none"
) -> AsyncIterator[Proxy]:
    """Put a proxy before the daemon at `url`."""
    proxy = Proxy(url, choose)
    server = await asyncio.start_server(proxy.take, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n"):
        if _name(line) == b"content-length":
            size = int(line.partition(b":")[2])
    return head + await reader.readexactly(size)


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].strip().lower()
