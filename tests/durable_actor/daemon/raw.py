"""Raw bytes to a real server around a host that calls methods straight."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.listening import Listen, bind, hosts_of
from durable_actor.daemon.protocol import BoundedProtocol, bounded
from durable_actor.daemon.server import make_server
from tests.durable_actor.daemon.fakes import TOKEN, Web

PATIENCE_SECONDS = 5


@dataclass(frozen=True)
class Raw:
    """An open server, and how to talk to it without a client that knows better."""

    host: str
    port: int
    web: Web
    connections: Callable[[], int]

    @asynccontextmanager
    async def connect(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection, and drop it at the end of the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def send(self, *parts: bytes, close: bool = False) -> bytes:
        """Send raw bytes; return all that comes back until the server hangs up."""
        async with self.connect() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                if close:
                    writer.write_eof()
            return await end_of(reader)

    def head(
        self,
        *lines: str,
        start: str = "POST /v1/objects/Till/a/add",
        token: str | None = TOKEN,
    ) -> bytes:
        """Return the head of a request that would be accepted but for `lines`."""
        all_lines = [
            f"{start} HTTP/1.1",
            f"Host: {self.host}",
            *([] if token is None else [f"Authorization: Bearer {token}"]),
            "Content-Type: application/json",
            *lines,
            "",
            "",
        ]
        return "\r\n".join(all_lines).encode("latin-1")


@asynccontextmanager
async def open_raw(
    *,
    policy: GuardPolicy | None = None,
    listen: Listen | None = None,
    tls: ssl.SSLContext | None = None,
    idle_timeout_ms: int = 1_000,
    web: dict[str, Any] | None = None,
    **bounds: int,
) -> AsyncIterator[Raw]:
    """Serve `Till` with these bounds of the protocol."""
    listener = bind(listen or Listen(host="127.0.0.1", port=0))
    hosts = hosts_of(listener)
    policy = policy or GuardPolicy(token=TOKEN, hosts=hosts, body_bytes_max=100_000)
    application = Web(policy=replace(policy, hosts=hosts), **(web or {}))
    started = asyncio.Event()
    server = make_server(
        application.app,
        protocol=bounded(BoundedProtocol, **bounds),
        idle_timeout_ms=idle_timeout_ms,
        on_started=started.set,
        tls=tls,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await started.wait()
    name = listener.getsockname()
    is_path = isinstance(name, str | bytes)
    port = 0 if is_path else name[1]
    try:
        host = "localhost" if is_path else f"127.0.0.1:{port}"
        open_now = server.server_state.connections
        yield Raw(host, port, application, lambda: len(open_now))
    finally:
        server.should_exit = True
        await serving
        await application.http.aclose()


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """Return what still comes, once the server has hung up.

    Piece by piece: a reset takes away what has come and was not read.
    """
    pieces: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while piece := await reader.read(65_536):
                pieces.append(piece)
    return b"".join(pieces)


def statuses_of(answer: bytes) -> list[int]:
    """Return the status of each response in what came back."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
