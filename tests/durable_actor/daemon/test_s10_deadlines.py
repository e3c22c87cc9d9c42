"""S10: no connection is older than its deadline, whatever it does not do.

The deadlines are short here; those of the daemon are in the configuration, and a test
below holds them. What is waited for is that the server hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from durable_actor.config import HttpConfig
from durable_actor.daemon.guard import Guard, GuardPolicy
from durable_actor.daemon.tls import make_context
from tests.durable_actor.daemon.certificates import Certificates
from tests.durable_actor.daemon.fakes import HOST, TOKEN
from tests.durable_actor.daemon.raw import Raw, end_of, open_raw, statuses_of

QUICK = GuardPolicy(
    token=TOKEN, hosts=frozenset({HOST}), body_bytes_max=9_000_000, body_timeout_ms=150
)


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    async with open_raw(policy=QUICK, head_timeout_ms=150, write_timeout_ms=150) as raw:
        yield raw


def test_s10_the_deadlines_are_those_that_were_promised() -> None:
    http = HttpConfig()

    assert http.header_timeout_ms == 5_000
    assert http.body_timeout_ms == 30_000
    assert http.idle_timeout_ms == 75_000
    assert http.write_timeout_ms == 30_000


async def drip(writer: asyncio.StreamWriter, text: bytes) -> None:
    """Send byte by byte, until it is all sent or the other side is gone."""
    with contextlib.suppress(ConnectionError):
        for byte in text:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)


async def test_s10_a_head_that_drips_is_not_waited_for(raw: Raw) -> None:
    began = time.monotonic()
    endless = raw.head(start="GET /livez")[:-2] + b"X: " + b"x" * 10_000
    async with raw.connect() as (reader, writer):
        dripping = asyncio.create_task(drip(writer, endless))
        assert await end_of(reader) == b""
        dripping.cancel()

    assert time.monotonic() - began < 1.15  # the deadline, and a second


async def test_s10_a_connection_that_says_nothing_is_closed(raw: Raw) -> None:
    assert await raw.send() == b""


@pytest.mark.parametrize(
    "framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"]
)
async def test_s10_a_body_that_drips_is_a_408(raw: Raw, framing: str) -> None:
    async with raw.connect() as (reader, writer):
        writer.write(raw.head(framing))
        dripping = asyncio.create_task(drip(writer, b"1\r\nx\r\n" * 1_000))
        answer = await end_of(reader)
        dripping.cancel()

    assert statuses_of(answer) == [408]
    assert b"connection: close" in answer
    assert raw.web.host.calls == []


@pytest.mark.parametrize(("rate", "is_enough"), [(2_000, True), (500, False)])
async def test_s10_a_body_that_an_object_reads_comes_at_a_kilobyte_a_second_or_not(
    rate: int, monkeypatch: pytest.MonkeyPatch, *, is_enough: bool
) -> None:
    policy = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}), body_timeout_ms=2_000)
    loop = asyncio.get_running_loop()
    real, elapsed, pieces = loop.time, 0.0, 0
    monkeypatch.setattr(loop, "time", lambda: real() + elapsed)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await Response()(scope, receive, send)

    async def receive() -> Message:
        nonlocal elapsed, pieces
        elapsed += 1.0
        for _ in range(3):  # so that a deadline that has passed is noticed
            await asyncio.sleep(0)
        pieces += 1
        return {
            "type": "http.request",
            "body": b"x" * rate,
            "more_body": pieces < 100,
        }

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/objects/Till/a/",
        "query_string": b"",
        "headers": [
            (b"host", HOST.encode()),
            (b"authorization", f"Bearer {TOKEN}".encode()),
        ],
    }
    await Guard(app, policy)(scope, receive, send)

    assert sent[0]["status"] == (200 if is_enough else 408)
    assert (pieces == 100) is is_enough


async def test_s10_an_idle_connection_is_closed() -> None:
    async with open_raw(idle_timeout_ms=1, head_timeout_ms=9_000) as raw:
        answer = await raw.send(raw.head(start="GET /livez"))

    assert statuses_of(answer) == [200]


async def ask_for_much(raw: Raw, writer: asyncio.StreamWriter) -> int:
    """Ask for an answer that no buffer holds, and return its size."""
    body = b'{"args":["' + b"x" * 8_000_000 + b'"]}'
    start = "POST /v1/objects/Till/a/echo"
    writer.write(raw.head(f"Content-Length: {len(body)}", start=start) + body)
    await writer.drain()
    await raw.web.host.called.wait()
    return len(body)


async def test_s10_a_caller_that_takes_nothing_of_its_answer_is_given_up(
    raw: Raw,
) -> None:
    async with raw.connect() as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        size = await ask_for_much(raw, writer)
        while raw.connections():
            await asyncio.sleep(0.01)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        answer = await end_of(reader)

    assert len(answer) < size


async def test_s10_a_caller_that_takes_its_answer_slowly_gets_it(raw: Raw) -> None:
    async with raw.connect() as (reader, writer):
        size = await ask_for_much(raw, writer)
        taken = 0
        while taken < size:
            piece = await reader.read(200_000)
            assert piece
            taken += len(piece)
            await asyncio.sleep(0.01)  # 400 ms in all, and the deadline is 150


async def test_s10_a_handshake_of_tls_has_the_deadline_of_a_head(
    certificates: Certificates,
) -> None:
    tls = make_context(
        HttpConfig(
            tls_certificate_file=str(certificates.server),
            tls_key_file=str(certificates.server_key),
        )
    )
    async with open_raw(tls=tls, head_timeout_ms=150) as raw:
        assert await raw.send() == b""
        assert await raw.send(b"\x16\x03\x01") == b""


async def test_s10_slow_callers_hold_up_nobody_else(raw: Raw) -> None:
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(raw.connect()) for _ in range(200)]
        for _, writer in slow:
            writer.write(b"GET /livez HTTP/1.1\r\n")
        began = time.monotonic()
        for _ in range(20):
            answer = await raw.send(raw.head("Connection: close", start="GET /livez"))
            assert statuses_of(answer) == [200]
        assert time.monotonic() - began < 2
        for reader, _ in slow:
            assert await end_of(reader) == b""
