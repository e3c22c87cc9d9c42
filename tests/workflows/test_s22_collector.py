"""S22: the tracker asks the configured address only; waits and reads so much only."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from durable_actor import OutboxEvent
from workflows.errors import TrackerError
from workflows.http_tracker import ANSWER_BYTES_MAX, HttpBatchTracker

EVENTS = [OutboxEvent(seq=1, object_id="x", data={"seq": 1})]


@dataclass
class Peer:
    """A server that answers every connection with the same bytes, then as told."""

    answer: bytes = b""
    repeat: bytes = b""  # sent again and again, until nobody reads
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    sent: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/in"

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await writer.drain()
            while self.repeat:
                writer.write(self.repeat)
                await writer.drain()
                self.sent += len(self.repeat)
                await asyncio.sleep(0)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def open_peer(peer: Peer) -> AsyncIterator[Peer]:
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    async with server:
        yield peer


async def deliver(url: str, timeout: str = "5 seconds") -> None:
    tracker = HttpBatchTracker(url, timeout=timeout)
    try:
        await tracker.deliver(EVENTS)
    finally:
        await tracker.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_s22_a_redirect_leads_nowhere(status: int) -> None:
    async with open_peer(Peer()) as inside, open_peer(Peer()) as collector:
        for location in (inside.url, f"//127.0.0.1:{inside.port}/", "/other"):
            collector.answer = (
                f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\n"
                "Content-Length: 0\r\n\r\n"
            ).encode()
            with pytest.raises(TrackerError) as caught:
                await deliver(collector.url)
            assert caught.value.status == status
        assert inside.heads == []
        assert len(collector.heads) == 3


async def test_s22_no_proxy_of_the_environment_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = Peer(b"HTTP/1.1 204 OK\r\n\r\n")
    async with open_peer(Peer()) as proxy, open_peer(good) as collector:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        await deliver(collector.url)
        assert (len(proxy.heads), len(collector.heads)) == (0, 1)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"],
)
async def test_s22_an_answer_that_stops_half_way_is_given_up(answer: bytes) -> None:
    async with open_peer(Peer(answer)) as collector:
        with pytest.raises(TrackerError, match="no answer within"):
            await deliver(collector.url, timeout="50 ms")


async def test_s22_of_an_endless_answer_little_is_read() -> None:
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with open_peer(Peer(head, chunk)) as collector:
        await deliver(collector.url)
        assert ANSWER_BYTES_MAX < collector.sent < 20_000_000


async def test_s22_an_endless_head_is_given_up() -> None:
    head = Peer(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 10_000 + b"\r\n")
    async with open_peer(head) as collector:
        with pytest.raises(TrackerError):
            await deliver(collector.url)
        assert collector.sent < 20_000_000


async def test_s22_a_compressed_answer_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}"
    async with open_peer(Peer(head.encode() + b"\r\n\r\n" + bomb)) as collector:
        await deliver(collector.url)


async def test_s22_what_an_address_has_of_secrets_is_in_no_error() -> None:
    refusing = Peer(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    async with open_peer(refusing) as collector:
        port = collector.port
        with pytest.raises(TrackerError) as caught:
            await deliver(f"http://user:canary@127.0.0.1:{port}/in?key=canary")

    assert "canary" not in str(caught.value)
    assert str(caught.value) == f"http://127.0.0.1:{port}/in: answered 500"
    assert collector.heads[0].startswith(b"POST /in?key=canary ")
