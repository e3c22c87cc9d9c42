"""Requests to an object's own `fetch`, through the daemon and the client library."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Message

from durable_actor import (
    BodyError,
    CallTimeoutError,
    DurableObject,
    MethodNotFoundError,
    Request,
    Response,
    TransportError,
    UnauthorizedError,
    WebSocketMisuseError,
    connect,
)
from durable_actor.daemon.guard import GuardPolicy
from tests.durable_actor.daemon.fakes import HOST, TOKEN, open_web
from tests.durable_actor.daemon.serving import Serving, open_serving

POLICY = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}))


class OutOfStockError(Exception):
    def __init__(self, sku: str) -> None:
        self.sku = sku
        super().__init__(f"no {sku}")


class Site(DurableObject):
    """Answers by the path."""

    async def fetch(self, request: Request) -> Response:
        match request.path.split("/"):
            case [_, "echo", *_]:
                return Response.json(
                    {
                        "method": request.method,
                        "url": request.url,
                        "headers": request.headers.pairs(),
                        "body": await request.text(),
                        "name": self.ctx.id.name,
                        "id": str(self.ctx.id),
                    },
                    status=203,
                    headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")],
                )
            case [_, "length"]:
                assert request.body is not None
                pieces = [len(piece) async for piece in request.body]
                return Response.json({"bytes": sum(pieces), "pieces": len(pieces)})
            case [_, "mirror"]:
                return Response(request.body)
            case [_, "endless"]:
                return Response(self.endless())
            case [_, "events"]:
                headers = {"Content-Type": "text/event-stream"}
                return Response(self.events(), headers=headers)
            case [_, "broken"]:
                return Response(self.broken())
            case [_, "empty"]:
                return Response(status=204)
            case [_, "fail"]:
                sku = "tea"
                raise OutOfStockError(sku)
            case [_, "wait"]:
                await asyncio.Event().wait()
            case [_, "missing"]:
                body = b'{"code": "not_found"}'
                headers = {"Content-Type": "application/problem+json"}
                return Response(body, status=404, headers=headers)
        return Response(f"path {request.path}")

    async def endless(self) -> AsyncIterator[str]:
        n = 0
        try:
            while True:
                yield f"{n}\n"
                n += 1
        finally:
            self.ctx.storage.put("sent", n)

    async def events(self) -> AsyncIterator[str]:
        yield "data: 1\n\n"
        await asyncio.Event().wait()

    async def broken(self) -> AsyncIterator[bytes]:
        yield b"begun"
        sku = "milk"
        raise OutOfStockError(sku)

    async def sent(self) -> int | None:
        value: int | None = await self.ctx.storage.get("sent")
        return value


class Mute(DurableObject):
    """Has no `fetch`."""


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with open_serving(tmp_path / "data", Site, Mute) as serving:
        yield serving


@pytest.fixture
async def http(serving: Serving) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {serving.token}"}
    transport = httpx2.AsyncHTTPTransport(trust_env=False)
    async with httpx2.AsyncClient(
        transport=transport, base_url=serving.url, headers=headers
    ) as http:
        yield http


@pytest.fixture
async def site(serving: Serving) -> AsyncIterator[Any]:
    async with connect(serving.url, token=serving.token) as client:
        yield client.namespace(Site).get_by_name("a/b ☃")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_the_rest_of_the_path_and_the_query_are_the_objects(
    http: httpx2.AsyncClient, serving: Serving, method: str
) -> None:
    body = None if method == "GET" else b"hello"
    answer = await http.request(
        method, "/objects/Site/a%2Fb/echo/x%2Fy/?q=%20&q=2", content=body
    )
    seen = answer.json()
    assert answer.status_code == 203
    assert seen["method"] == method
    assert seen["url"] == f"{serving.url}/echo/x%2Fy/?q=%20&q=2"
    assert seen["name"] == "a/b"
    assert seen["body"] == ("" if method == "GET" else "hello")
    assert answer.headers["x-object-id"] == seen["id"]
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("path", "seen"),
    [("", "/"), ("/", "/"), ("//", "//"), ("/..%2F", "/..%2F"), ("/%zz", "/%zz")],
)
async def test_a_path_may_end_with_the_name(
    http: httpx2.AsyncClient, path: str, seen: str
) -> None:
    request = httpx2.Request(
        "GET",
        http.base_url,
        headers=http.headers,
        extensions={"target": f"/objects/Site/a{path}".encode()},
    )
    answer = await http.send(request)
    assert answer.text == f"path {seen}"


async def test_the_daemons_token_is_not_shown_to_the_object(
    http: httpx2.AsyncClient, serving: Serving
) -> None:
    headers = {"X-Mine": "1", "X-Object-By": "name", "X-Timeout-Ms": "5000"}
    answer = await http.get("/objects/Site/a/echo", headers=headers)
    names = {name for name, _ in answer.json()["headers"]}
    assert serving.token not in answer.text
    assert "x-mine" in names
    assert names.isdisjoint({"authorization", "x-object-by", "x-timeout-ms"})


async def test_without_the_token_nobody_gets_to_the_object(serving: Serving) -> None:
    async with httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(trust_env=False), base_url=serving.url
    ) as http:
        answer = await http.get("/objects/Site/a/echo")
        assert answer.status_code == 401
    async with connect(serving.url, token="x" * 43) as client:
        site: Any = client.namespace(Site).get_by_name("a")
        with pytest.raises(UnauthorizedError):
            await site.fetch("/echo")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/objects/Nothing/a/x", 404, "unknown_class"),
        ("/objects/Mute/a/x", 404, "method_not_found"),
        ("/objects/Site", 404, "not_found"),
        ("/objects/Site/%ff/", 400, "invalid_id"),
        ("/v1/objects/Site/a/fetch", 404, "method_not_found"),
    ],
)
async def test_what_cannot_be_reached_is_a_problem(
    http: httpx2.AsyncClient, path: str, status: int, code: str
) -> None:
    method = "POST" if path.startswith("/v1") else "GET"
    answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "x-object-id" not in answer.headers


async def test_a_method_nobody_describes_is_a_405(http: httpx2.AsyncClient) -> None:
    answer = await http.request("PROPFIND", "/objects/Site/a/x")
    assert answer.status_code == 405
    assert "PATCH" in answer.headers["allow"]


async def test_an_exception_of_the_handler_is_a_problem(
    http: httpx2.AsyncClient,
) -> None:
    answer = await http.get("/objects/Site/a/fail")
    problem = answer.json()
    assert answer.status_code == 500
    assert problem["code"] == "handler_error"
    assert problem["error"] == {"type": "OutOfStockError", "message": "no tea"}


async def test_a_caller_may_say_how_long_it_waits(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/objects/Site/a/wait", headers={"X-Timeout-Ms": "20"})
    assert answer.status_code == 504


async def test_head_is_answered_without_a_body(http: httpx2.AsyncClient) -> None:
    answer = await http.head("/objects/Site/a/else")
    assert answer.status_code == 200
    assert answer.headers["content-length"] == str(len("path /else"))
    assert answer.content == b""
    answer = await http.get("/objects/Site/a/empty")
    assert answer.status_code == 204


async def test_a_large_body_arrives_in_pieces(http: httpx2.AsyncClient) -> None:
    size = 5 * 1024 * 1024
    answer = await http.post("/objects/Site/a/length", content=bytes(size))
    assert answer.json()["bytes"] == size
    assert answer.json()["pieces"] > 10


@asynccontextmanager
async def raw(
    serving: Serving, path: str, *lines: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the head of a POST, and go on by hand."""
    host, port = serving.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    token = f"Authorization: Bearer {serving.token}"
    head = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", token, *lines]
    writer.write("\r\n".join([*head, "", ""]).encode())
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_body_beyond_its_limit_is_refused(serving: Serving) -> None:
    length = f"Content-Length: {101 * 1024 * 1024}"
    async with raw(serving, "/objects/Site/a/length", length) as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


async def test_bodies_stream_both_ways_at_once(serving: Serving) -> None:
    chunked = "Transfer-Encoding: chunked"
    async with raw(serving, "/objects/Site/a/mirror", chunked) as (reader, writer):
        writer.write(b"3\r\none\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"one\r\n") == b"3\r\none\r\n"
        writer.write(b"3\r\ntwo\r\n")
        assert await reader.readuntil(b"two\r\n") == b"3\r\ntwo\r\n"
        writer.write(b"0\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"


async def test_a_client_streams_what_it_sends(site: Any) -> None:
    async def numbers() -> AsyncIterator[bytes]:
        for n in range(100):
            yield b"%d," % n

    response = await site.fetch("/mirror", method="POST", body=numbers())
    assert (await response.text()).count(",") == 100


async def test_a_caller_that_leaves_ends_the_stream(site: Any) -> None:
    response = await site.fetch("/endless")
    pieces = response.body
    assert (await anext(pieces)).startswith(b"0\n")
    await response.aclose()
    async with asyncio.timeout(10):
        while await site.sent() is None:
            pass  # the daemon has not seen it yet


async def test_a_stream_of_events_ends_when_the_daemon_drains(
    serving: Serving, site: Any
) -> None:
    response = await site.fetch("/events")
    pieces = response.body
    assert await anext(pieces) == b"data: 1\n\n"
    await serving.traffic.drain()
    assert [piece async for piece in pieces] == []
    assert await serving.host.drain()


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (replace(POLICY, fetch_body_bytes_max=100_000), 413),
        (replace(POLICY, body_timeout_ms=20), 408),
    ],
)
async def test_a_body_that_is_read_in_pieces_is_bounded_too(
    policy: GuardPolicy, status: int
) -> None:
    class Reader(DurableObject):
        async def fetch(self, request: Request) -> Response:
            return Response(str(len(await request.bytes())))

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"
        if status == 413:
            yield bytes(100_000)
        else:
            await asyncio.Event().wait()

    async with open_web(policy=policy) as web:
        web.host._classes["Till"] = Reader
        arriving = body()
        sent: list[Message] = []

        async def receive() -> Message:
            piece = await anext(arriving, None)
            if piece is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        head = {"host": HOST, "authorization": f"Bearer {TOKEN}"}
        scope = {
            "type": "http",
            "method": "POST",
            "scheme": "http",
            "raw_path": b"/objects/Till/a/",
            "query_string": b"",
            "headers": [
                *((name.encode(), value.encode()) for name, value in head.items()),
                (b"transfer-encoding", b"chunked"),
            ],
        }
        await web.app(scope, receive, send)
    assert sent[0]["status"] == status


async def test_a_stream_that_breaks_off_does_not_look_complete(site: Any) -> None:
    response = await site.fetch("/broken")
    with pytest.raises((TransportError, BodyError)):
        await response.bytes()


async def test_a_client_cannot_tell_that_the_object_is_remote(site: Any) -> None:
    request = Request(
        "/echo/a?b=c", method="POST", headers=[("X", "1"), ("X", "2")], body="text"
    )
    response = await site.fetch(request)
    seen = await response.json()
    assert response.status == 203
    assert response.headers.get_set_cookie() == ["a=1", "b=2"]
    assert seen["name"] == "a/b ☃"
    assert seen["method"] == "POST"
    assert seen["body"] == "text"
    assert seen["url"].endswith("/echo/a?b=c")
    assert [value for name, value in seen["headers"] if name == "x"] == ["1", "2"]
    with pytest.raises(OutOfStockError) as caught:
        await site.fetch("/fail")
    assert caught.value.sku == "tea"


async def test_a_client_tells_an_objects_404_from_the_daemons(site: Any) -> None:
    response = await site.fetch("/missing")
    assert response.status == 404
    assert json.loads(await response.text()) == {"code": "not_found"}


async def test_a_client_finds_an_object_by_its_id(serving: Serving) -> None:
    async with connect(serving.url, token=serving.token) as client:
        namespace = client.namespace(Site)
        target = namespace.new_unique_id()
        site: Any = namespace.get(target)
        assert (await (await site.fetch("/echo")).json())["id"] == str(target)


async def test_a_clients_request_may_fail_as_an_embedded_one_does(
    serving: Serving,
) -> None:
    async with connect(serving.url, token=serving.token) as client:
        mute: Any = client.namespace(Mute).get_by_name("a")
        with pytest.raises(MethodNotFoundError, match="async def fetch"):
            await mute.fetch("/")
        slow: Any = client.namespace(Site).get_by_name("a", timeout=20)
        with pytest.raises(CallTimeoutError):
            await slow.fetch("/wait")
        with pytest.raises(WebSocketMisuseError, match="WebSocket client"):
            await mute.fetch("/", headers={"Upgrade": "websocket"})
