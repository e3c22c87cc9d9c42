"""What the daemon may do with any bytes: answer them. Nothing else, and never a 5xx.

`connections` feeds the bytes to the protocol of one connection, in pieces; `envelopes`
makes them the body of a well-formed call, as JSON or exact. An exception that escapes,
a task that fails unseen, or a status from 500 on is a break (G18); but for what an
object's own method raised, and what the objects of `fakes` answer on purpose.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Coroutine
from functools import cache
from typing import Any

from starlette.types import Message, Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from durable_actor.daemon import wire
from durable_actor.daemon.protocol import BoundedProtocol
from tests.durable_actor.daemon.fakes import HOST, TOKEN, FakeRuns, Web

_STATUS = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)
_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_ON_PURPOSE = (b'"code":"handler_error"', b'"code":"storage_full"')
_EXACT_ERROR = wire.EXACT_ERROR.encode()  # of an object's method, always
_ROUNDS = 60  # of the loop; the objects of the fakes answer within a few
_METHODS = ("add", "order", "echo", "overloaded")
_PATHS = (
    *(f"/v1/objects/Till/a/{method}" for method in _METHODS),
    "/v1/workflows/pay/runs",
    "/v1/runs/pay/one/cancel",
)


class Unseen(list[str]):
    """Exceptions that nobody has seen."""

    def take(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note one; a handler of the loop."""
        del loop
        self.append(repr(context.get("exception") or context["message"]))


class Wire(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        super().__init__(
            {
                "peername": ("127.0.0.1", 1),
                "sockname": ("127.0.0.1", 2),
                "socket": _socket(),
            }
        )
        self.written = bytearray()
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def connections(data: bytes) -> None:
    """Any bytes on a connection."""
    _run(_connect(data))


def envelopes(data: bytes) -> None:
    """Any bytes as the body of a call: the first says which call, and in which form."""
    _run(_call(data))


def requests(data: bytes) -> None:
    """Any target and any headers, past the parser: a line each, then the body."""
    _run(_request(data))


async def _connect(data: bytes) -> None:
    loop, unseen = _hear()
    transport, state = Wire(), ServerState()
    protocol = BoundedProtocol(_config(), state, {}, loop)
    protocol.connection_made(transport)
    cut = data[0] % 64 if data else 0
    for piece in (data[1:cut], data[max(cut, 1) :]):
        if not transport.is_closing():
            protocol.data_received(piece)
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
            if not state.tasks:
                break
    protocol.connection_lost(None)
    await _end(state.tasks)
    _judge(bytes(transport.written), unseen)


async def _call(data: bytes) -> None:
    chosen = data[0] if data else 0
    media_type = wire.EXACT if chosen & 1 else wire.JSON
    path = _PATHS[(chosen >> 1) % len(_PATHS)]
    headers = [(b"content-type", media_type.encode())]
    await _ask("POST", path.encode(), b"", headers, data[1:])


async def _request(data: bytes) -> None:
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    if not re.fullmatch(rb"[A-Z]{1,20}", method) or not path.startswith(b"/"):
        return  # the parser lets no other through
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value.strip())):
            return  # nor those; see `connections`
        if name not in (b"host", b"authorization", b"content-length", b"expect"):
            headers.append((name, value.strip()))
    await _ask(method.decode(), path, query, headers, body)


async def _ask(
    method: str,
    path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    _, unseen = _hear()
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [
            (b"host", HOST.encode()),
            (b"authorization", f"Bearer {TOKEN}".encode()),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    incoming: list[Message] = [{"type": "http.request", "body": body}]
    answer = bytearray()

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.extend(b"HTTP/1.1 %d \r\n" % message["status"])
            answer.extend(dict(message["headers"]).get(b"content-type", b""))
        answer.extend(message.get("body", b""))

    task = asyncio.ensure_future(_web().app(scope, receive, send))
    for _ in range(_ROUNDS):
        if task.done():
            break
        await asyncio.sleep(0)
    if task.done():
        task.result()
        assert answer, "there was no answer"
    await _end({task})
    _judge(bytes(answer), unseen)


def _judge(written: bytes, unseen: Unseen) -> None:
    assert not unseen, f"nobody saw {unseen}"
    for status in _STATUS.findall(written):
        codes = (*_ON_PURPOSE, _EXACT_ERROR)
        if int(status) >= 500 and not any(code in written for code in codes):
            raise AssertionError(f"answered {written[:600]!r}")


def _hear() -> tuple[asyncio.AbstractEventLoop, Unseen]:
    loop, unseen = asyncio.get_running_loop(), Unseen()
    loop.set_exception_handler(unseen.take)
    return loop, unseen


async def _end(tasks: set[asyncio.Task[Any]] | set[asyncio.Future[None]]) -> None:
    for task in list(tasks):
        task.cancel()
    for _ in range(_ROUNDS):
        if all(task.done() for task in tasks):
            return
        await asyncio.sleep(0)


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def _run(work: Coroutine[Any, Any, None]) -> None:
    _runner().run(work)


def close() -> None:
    """Close the event loop that the targets share."""
    if _runner.cache_info().currsize:
        _runner().close()
        _runner.cache_clear()
        _socket().close()
        _socket.cache_clear()
        _web.cache_clear()
        _config.cache_clear()


@cache
def _socket() -> socket.socket:
    """Return a socket that is connected to nobody; it is only looked at."""
    return socket.socket()


@cache
def _web() -> Web:
    return Web(runs=[FakeRuns("pay")])


@cache
def _config() -> Config:
    config = Config(
        _web().app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
    )
    config.load()
    return config
