"""S23: a WebSocket is let in like a request, and has bounds for all that comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from durable_actor.config import WebSocketsConfig
from durable_actor.daemon.listening import Listen, bind
from durable_actor.daemon.protocol import (
    BoundedProtocol,
    BoundedWebSocketProtocol,
    bounded,
)
from durable_actor.daemon.server import make_server
from tests.durable_actor.daemon.fakes import TOKEN
from tests.durable_actor.daemon.raw import Raw, open_raw, statuses_of

HANDSHAKE = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    async with open_raw() as raw:
        yield raw


async def test_s23_a_handshake_wants_the_token_wherever_it_leads(raw: Raw) -> None:
    paths = {route.path for route in raw.web.routes.table}
    bodies = set()
    for path in paths:
        for lines in (
            [],
            ["Authorization: Bearer wrong"],
            ["Authorization: Bearer "],
            [f"Authorization: Bearer {TOKEN.upper()}"],
            [f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"],
            ["Sec-WebSocket-Protocol: bearer.wrong"],
            [f"Sec-WebSocket-Protocol: bearer.{TOKEN}, bearer.{TOKEN}"],
        ):
            start = f"GET {path.replace('{', '').replace('}', '')}"
            head = raw.head(*HANDSHAKE, *lines, start=start, token=None)
            answer = await raw.send(head)
            expected = [400] if path in ("/livez", "/readyz") else [401]
            assert statuses_of(answer) == expected, (path, lines)
            if expected == [401]:
                bodies.add(answer.partition(b"\r\n\r\n")[2])

    assert len(bodies) == 1
    assert raw.web.host.calls == []


async def test_s23_a_page_cannot_open_one(raw: Raw) -> None:
    for lines in (
        ["Origin: https://evil.example"],
        ["Origin: null"],
        [f"Origin: http://{raw.host}"],
    ):
        head = raw.head(*HANDSHAKE, *lines, start="GET /objects/Till/a/")
        assert statuses_of(await raw.send(head)) == [403], lines
    head = raw.head(*HANDSHAKE, start="GET /objects/Till/a/")
    foreign = head.replace(raw.host.encode(), b"evil.example")
    assert statuses_of(await raw.send(foreign)) == [403]
    assert raw.web.host.calls == []


@dataclass
class Echo:
    """A server that says back how long each message is."""

    url: str = ""
    received: list[int] = field(default_factory=list)
    open: list[BoundedWebSocketProtocol] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            if message["type"] == "websocket.receive":
                said = message.get("bytes") or (message.get("text") or "").encode()
                self.received.append(len(said))
                await send({"type": "websocket.send", "text": str(len(said))})


@asynccontextmanager
async def open_echo(
    sockets: WebSocketsConfig | None = None, *, fragments: int = 1_024
) -> AsyncIterator[Echo]:
    echo = Echo()

    class Noted(BoundedWebSocketProtocol):
        fragments_max = fragments

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            echo.open.append(self)

    listener = bind(Listen(host="127.0.0.1", port=0))
    started = asyncio.Event()
    server = make_server(
        echo,
        protocol=bounded(BoundedProtocol),
        socket_protocol=Noted,
        sockets=sockets or WebSocketsConfig(),
        idle_timeout_ms=1_000,
        on_started=started.set,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await started.wait()
    echo.url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    try:
        yield echo
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("is_fragmented", [False, True])
async def test_s23_a_message_may_be_as_large_as_the_limit(
    *, is_fragmented: bool
) -> None:
    async with open_echo(WebSocketsConfig(message_bytes_max=1_000)) as echo:
        for size in (999, 1_000):
            async with connect(echo.url, proxy=None) as client:
                text = "x" * size
                parts = [text[:400], text[400:800], text[800:]]
                await client.send(parts if is_fragmented else text)
                assert await client.recv() == str(size)
        async with connect(echo.url, proxy=None) as client:
            await client.send(["x" * 1_000, "x"] if is_fragmented else "x" * 1_001)
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009

    assert echo.received == [999, 1_000]


async def test_s23_a_message_may_have_so_many_fragments_even_if_they_are_empty() -> (
    None
):
    async with open_echo(fragments=10) as echo:
        for count in (9, 10):
            async with connect(echo.url, proxy=None) as client:
                await client.send([""] * (count - 1))  # the last, empty one is added
                assert await client.recv() == "0"
        async with connect(echo.url, proxy=None) as client:
            with pytest.raises(ConnectionClosed) as caught:
                await client.send([""] * 1_000)
                await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009

    assert echo.received == [0, 0]


async def open_raw_socket(
    echo: Echo,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(echo.url.rpartition(":")[2].rstrip("/"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = ["GET / HTTP/1.1", f"Host: 127.0.0.1:{port}", *HANDSHAKE, "", ""]
    writer.write("\r\n".join(lines).encode())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_s23_who_does_not_answer_a_ping_is_gone() -> None:
    quick = WebSocketsConfig(ping_interval_ms=30, ping_timeout_ms=30)
    async with open_echo(quick) as echo:
        reader, writer = await open_raw_socket(echo)
        rest = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert rest.startswith(b"\x89")  # the ping
    assert len(rest) < 100


async def test_s23_who_answers_pings_stays() -> None:
    """The control of the test above."""
    quick = WebSocketsConfig(ping_interval_ms=30, ping_timeout_ms=3_000)
    async with open_echo(quick) as echo, connect(echo.url, proxy=None) as client:
        [server_side] = echo.open
        while server_side.last_ping_rtt == 0:
            await asyncio.sleep(0)
        await client.send("x")
        assert await client.recv() == "1"


def ping() -> bytes:
    return Frame(Opcode.PING, os.urandom(125)).serialize(mask=True)


async def test_s23_pongs_do_not_pile_up_for_who_does_not_read() -> None:
    async with open_echo() as echo:
        reader, writer = await open_raw_socket(echo)
        [server_side] = echo.open
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        flood = b"".join(ping() for _ in range(2_000))
        sent = 0
        while sent < 24_000_000:
            writer.write(flood)
            await writer.drain()
            sent += len(flood)
        waiting = server_side.transport.get_write_buffer_size()
        assert not server_side.writable.is_set()
        assert waiting < 1_000_000
        writer.transport.abort()
