"""What arrives at the socket: raw bytes against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.listening import Listen, bind, hosts_of
from durable_actor.daemon.protocol import BoundedProtocol
from durable_actor.daemon.server import make_server
from tests.durable_actor.daemon.fakes import TOKEN, Web


class QuickProtocol(BoundedProtocol):
    head_timeout_ms = 150
    connections_max = 5


@dataclass(frozen=True)
class Served:
    port: int
    web: Web

    async def send(self, *parts: bytes, close: bool = False) -> bytes:
        """Send raw bytes and return all that comes back until the server hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            if close:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()

    def head(self, *lines: str, start: str = "POST /v1/objects/Till/a/add") -> bytes:
        """Return the head of a request that would be accepted but for `lines`."""
        all_lines = [
            f"{start} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {TOKEN}",
            "Content-Type: application/json",
            *lines,
            "",
            "",
        ]
        return "\r\n".join(all_lines).encode("latin-1")


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    listener = bind(Listen(host="127.0.0.1", port=0))
    web = Web(
        policy=GuardPolicy(
            token=TOKEN, hosts=hosts_of(listener), body_bytes_max=100_000
        )
    )
    started = asyncio.Event()
    server = make_server(
        web.app, protocol=QuickProtocol, idle_timeout_ms=1_000, on_started=started.set
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await started.wait()
    try:
        yield Served(listener.getsockname()[1], web)
    finally:
        server.should_exit = True
        await serving
        await web.http.aclose()


async def test_a_whole_request_is_answered(served: Served) -> None:
    body = b'{"args": [1]}'

    answer = await served.send(
        served.head(f"Content-Length: {len(body)}", "Connection: close"), body
    )

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'{"result":2}')
    assert b"\r\nserver:" not in answer.lower()


@pytest.mark.parametrize(
    "start",
    [
        "GET http://evil.example/metrics",
        "GET http://127.0.0.1/livez",
        "GET evil.example:80",
        "CONNECT evil.example:80",
        "OPTIONS *",
        "GET livez",
        "GET /\xe9",
        "GET /a b",
        "G@T /livez",
        "GET",
        "",
    ],
)
async def test_s4_a_target_that_is_no_path_is_refused(
    served: Served, start: str
) -> None:
    answer = await served.send(served.head(start=start), close=True)

    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("lines", [[], ["Host: a", "Host: b"]])
async def test_s4_a_request_has_exactly_one_host(
    served: Served, lines: list[str]
) -> None:
    head = "\r\n".join(["GET /livez HTTP/1.1", *lines, "", ""]).encode()

    answer = await served.send(head, close=True)

    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_s9_a_head_without_end_is_cut_off_before_it_is_kept(
    served: Served,
) -> None:
    start = f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nX: ".encode()

    answer = await served.send(start, b"x" * 18_000)

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_s9_a_head_that_is_complete_but_too_large_is_refused(
    served: Served,
) -> None:
    answer = await served.send(served.head("X: " + "x" * 9_000))

    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "parts",
    [[], [b"GET /livez HT"], [b"\r\n"], [b"GET /livez HTTP/1.1\r\nHost: x\r\n"]],
)
async def test_s10_a_head_that_does_not_come_is_not_waited_for(
    served: Served, parts: list[bytes]
) -> None:
    try:
        answer = await served.send(*parts)
    except ConnectionResetError:
        answer = b""

    assert answer == b""


async def test_s10_a_kept_connection_has_the_deadline_for_each_head(
    served: Served,
) -> None:
    request = served.head(start="GET /livez")
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

    for _ in range(3):
        writer.write(request)
        assert b"200 OK" in await reader.readuntil(b"}")
    writer.write(request[:20])
    try:
        rest = await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        rest = b""

    assert rest == b""
    writer.close()


async def test_s9_connections_beyond_the_limit_are_told_so(served: Served) -> None:
    kept = []
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(served.head(start="GET /livez"))
        await reader.readuntil(b"}")
        kept.append(writer)

    refused = await served.send()
    for writer in kept:
        writer.close()

    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after" in refused.lower()


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    body = b'{"args": [%d]}'
    requests = b"".join(
        served.head(f"Content-Length: {len(body % n)}") + body % n for n in range(3)
    )

    answer = await served.send(requests, close=False)

    assert [f'{{"result":{n + 1}}}'.encode() in answer for n in range(3)] == [True] * 3


async def test_a_refused_caller_can_read_the_answer_although_it_still_sends(
    served: Served,
) -> None:
    body = b"x" * 3_000_000
    head = served.head(f"Content-Length: {len(body)}")

    answer = await served.send(head, body)

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_s9_a_chunked_body_is_bounded_too(served: Served) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    answer = await served.send(
        served.head("Transfer-Encoding: chunked"), chunk, chunk, chunk, b"0\r\n\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert served.web.host.calls == []
