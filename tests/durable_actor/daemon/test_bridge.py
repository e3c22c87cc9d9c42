"""Real WebSockets to a host in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from durable_actor import (
    DurableObject,
    Request,
    Response,
    StorageFullError,
    WebSocket,
    WebSocketPair,
)
from durable_actor.websockets import UNDER_WAY_MAX
from tests.durable_actor.daemon.serving import Serving, open_serving
from tests.support.drivers import take_over
from tests.support.scene import Scene

scene = Scene()


class Desk(DurableObject):
    """Writes down what comes."""

    async def fetch(self, request: Request) -> Response:
        if request.path == "/refuse":
            return Response("not today", status=403, headers={"X-Why": "closed"})
        if request.path == "/store":
            self.ctx.storage.put("joined", True)
        client, server = WebSocketPair()
        if request.path == "/classic":
            server.accept()
            self.ctx.wait_until(self.echo(server))
        else:
            self.ctx.accept_web_socket(server)
        return Response(status=101, web_socket=client, headers={"X-Desk": "1"})

    async def echo(self, server: WebSocket) -> None:
        async for message in server:
            server.send(message)

    async def web_socket_message(self, ws: WebSocket, message: str) -> None:
        if message == "wait":
            await scene.reach("wait")
        self.ctx.storage.put("message", message)
        ws.send(f"wrote {message[:20]}")

    async def get(self, key: str) -> Any:
        return await self.ctx.storage.get(key)

    async def sockets(self) -> int:
        return len(self.ctx.get_web_sockets())


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with open_serving(tmp_path / "data", Desk) as serving:
        yield serving


def sit_down(serving: Serving, path: str = "/", **options: Any) -> connect:
    address = serving.url.replace("http", "ws") + f"/objects/Desk/a{path}"
    headers = {"Authorization": f"Bearer {serving.token}"}
    return connect(address, additional_headers=headers, proxy=None, **options)


def desk(serving: Serving) -> Desk:
    return serving.host.namespace(Desk).get_by_name("a")


async def ask(client: ClientConnection, message: str) -> str | bytes:
    await client.send(message)
    return await client.recv()


async def test_what_was_said_after_a_write_is_not_seen_before_it_is_durable(
    serving: Serving,
) -> None:
    async with sit_down(serving) as client:
        assert client.response is not None
        assert client.response.headers["x-desk"] == "1"
        disk = take_over(serving.host)
        disk.pause()
        await client.send("one")
        receiving = asyncio.ensure_future(client.recv())
        # Answered by the daemon itself: so whatever was to come would be here.
        await (await client.ping())
        await (await client.ping())
        assert not receiving.done()
        disk.resume()
        assert await receiving == "wrote one"


async def test_what_was_said_after_a_write_that_fails_is_never_seen(
    serving: Serving,
) -> None:
    async with sit_down(serving) as client:
        take_over(serving.host).failures.append(StorageFullError("commit"))
        await client.send("one")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1011
        assert await desk(serving).get("message") is None


async def test_a_handshake_whose_write_fails_is_refused(serving: Serving) -> None:
    assert await desk(serving).sockets() == 0
    take_over(serving.host).failures.append(StorageFullError("commit"))
    with pytest.raises(InvalidStatus) as caught:
        async with sit_down(serving, "/store"):
            pass
    assert caught.value.response.status_code == 507
    assert await desk(serving).sockets() == 0


async def test_an_object_may_refuse_a_handshake_in_its_own_words(
    serving: Serving,
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with sit_down(serving, "/refuse"):
            pass
    response = caught.value.response
    assert (response.status_code, response.body) == (403, b"not today")
    assert response.headers["x-why"] == "closed"


async def test_a_client_that_sends_faster_than_its_object_handles_is_not_read(
    serving: Serving,
) -> None:
    async with sit_down(serving, close_timeout=0.1) as client:
        await client.send("wait")

        async def send_many() -> None:
            for _ in range(2_000):
                await client.send("x" * 50_000)

        sending = asyncio.ensure_future(send_many())
        while serving.host.stats().objects_waiting_events < UNDER_WAY_MAX - 1:
            await asyncio.sleep(0)
        assert not sending.done()
        sending.cancel()
        await asyncio.wait([sending])
        assert serving.host.stats().objects_waiting_events < UNDER_WAY_MAX
        scene.open("wait")
        assert await client.recv() == "wrote wait"


async def test_an_end_that_is_not_hibernatable_is_served_too(serving: Serving) -> None:
    async with sit_down(serving, "/classic") as client:
        assert await ask(client, "hello") == "hello"
        assert not await serving.host.evict(
            serving.host.namespace(Desk).id_from_name("a")
        )


async def test_a_connection_that_is_open_is_no_request_under_way(
    serving: Serving,
) -> None:
    async with sit_down(serving) as client:
        assert await ask(client, "hello") == "wrote hello"
        assert serving.traffic.in_flight == 0


async def test_a_draining_daemon_ends_what_would_go_on_for_ever(
    serving: Serving,
) -> None:
    async with sit_down(serving) as sleeping, sit_down(serving, "/classic") as classic:
        assert await ask(sleeping, "hello") == "wrote hello"
        assert await ask(classic, "hello") == "hello"
        await serving.traffic.drain()
        assert await serving.host.drain()
        for client in (sleeping, classic):
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 1001


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("POST", ["Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"]),
        ("GET", []),
        ("GET", ["Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"]),
        ("GET", ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]),
        ("GET", ["X: " + "x" * 20_000]),
        ("GET", ["X: " + "x" * 9_000]),
        ("GET", ["X: x"] * 200),
        ("GET" + " /" + "x" * 9_000 + " HTTP/1.1\r\nX: GET", []),
    ],
)
async def test_a_handshake_that_is_none_is_refused(
    serving: Serving, method: str, lines: list[str]
) -> None:
    host, port = serving.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = [
        f"{method} /objects/Desk/a/ HTTP/1.1",
        f"Host: {host}:{port}",
        f"Authorization: Bearer {serving.token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        *lines,
    ]
    writer.write("\r\n".join([*head, "", ""]).encode())
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 4")
    assert await desk(serving).sockets() == 0
    writer.close()
    await writer.wait_closed()
