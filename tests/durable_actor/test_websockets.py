"""Hibernatable WebSockets, on a host in the process of the test."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_actor import (
    Config,
    DurableObject,
    EncodeError,
    ReadyState,
    Request,
    Response,
    StorageFullError,
    StorageLimitError,
    WebSocket,
    WebSocketClosedError,
    WebSocketMisuseError,
    WebSocketPair,
    WebSocketRequestResponsePair,
)
from durable_actor.config import ObjectsConfig, WebSocketsConfig
from durable_actor.storage.facade import DurableObjectTransaction
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Room(DurableObject):
    """Does what a message says."""

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        self.constructions = 1
        if "scene" in env:
            known = [ws.deserialize_attachment() for ws in ctx.get_web_sockets()]
            env.scene.note(f"constructed with {known}")

    async def fetch(self, request: Request) -> Response:
        client, server = WebSocketPair()
        tags = request.query.split(",") if request.query else []
        self.ctx.accept_web_socket(server, tags=tags)
        server.serialize_attachment({"path": request.path})
        if request.path == "/lost":
            self.ctx.storage.put("accepted", True)
        return Response(None, status=101, web_socket=client)

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        if isinstance(message, bytes):
            ws.send(message[::-1])
            return
        word, _, rest = message.partition(" ")
        match word:
            case "echo":
                ws.send(rest)
            case "all":
                for other in self.ctx.get_web_sockets():
                    other.send(rest)
            case "others":
                for other in self.ctx.get_web_sockets():
                    if other != ws:
                        other.send(rest)
            case "tag":
                tag, _, text = rest.partition(" ")
                for other in self.ctx.get_web_sockets(tag):
                    other.send(text)
            case "tags":
                ws.send(json.dumps(self.ctx.get_tags(ws)))
            case "attachment":
                ws.send(json.dumps(ws.deserialize_attachment()))
            case "attach":
                ws.serialize_attachment(rest)
            case "put":
                self.ctx.storage.put("key", rest)
                ws.send(f"stored {rest}")
            case "transaction":
                await self.ctx.storage.transaction(self.in_transaction(ws))
            case "close":
                ws.close(4001, rest)
            case "abort":
                self.ctx.abort("enough")
            case "raise":
                raise ValueError(rest)
            case "wait":
                await self.env.scene.reach("wait")
                ws.send("waited")
            case "flood":
                for _ in range(10_000):
                    ws.send(rest)
            case "auto":
                pair = WebSocketRequestResponsePair("ping", "pong") if rest else None
                self.ctx.set_web_socket_auto_response(pair)
            case "auto-at":
                at = self.ctx.get_web_socket_auto_response_timestamp(ws)
                ws.send(str(at))
            case "timeout":
                self.ctx.set_hibernatable_web_socket_event_timeout("1 second")

    def in_transaction(self, ws: WebSocket) -> Any:
        async def run(txn: DurableObjectTransaction) -> None:
            txn.put("key", "inside")
            ws.send("inside")
            await self.env.scene.reach("transaction")

        return run

    async def web_socket_close(
        self, ws: WebSocket, code: int, reason: str, was_clean: bool
    ) -> None:
        if "scene" in self.env:
            left = len(self.ctx.get_web_sockets())
            state = ws.ready_state.name
            self.env.scene.note(f"close {code} {reason} {was_clean} {left} {state}")

    async def get(self, key: str) -> Any:
        return await self.ctx.storage.get(key)

    async def count(self) -> int:
        return len(self.ctx.get_web_sockets())

    async def say(self, text: str) -> None:
        for ws in self.ctx.get_web_sockets():
            ws.send(text)


class Classic(DurableObject):
    """Keeps its sockets in memory."""

    async def fetch(self, request: Request) -> Response:
        client, server = WebSocketPair()
        server.accept()
        server.send("hello")
        self.ctx.wait_until(self.echo(server))
        return Response(status=101, web_socket=client)

    async def echo(self, server: WebSocket) -> None:
        async for message in server:
            self.ctx.storage.put("last", message)
            server.send(message)
        server.close()


class Silent(DurableObject):
    """Has no handlers."""

    async def fetch(self, request: Request) -> Response:
        client, server = WebSocketPair()
        self.ctx.acceptWebSocket(server)
        return Response(status=101, web_socket=client)


class Spelled(DurableObject):
    """Cloudflare's spelling of the handlers."""

    async def fetch(self, request: Request) -> Response:
        client, server = WebSocketPair()
        self.ctx.acceptWebSocket(server, ["a"])
        return Response(status=101, web_socket=client)

    async def webSocketMessage(self, ws: WebSocket, message: str) -> None:
        ws.send(f"{message} {self.ctx.getTags(ws)}")


async def join(test: TestHost, path: str = "/", cls: type[Any] = Room) -> WebSocket:
    room: Any = test.host.namespace(cls).get_by_name("a")
    response = await room.fetch(path, headers={"Upgrade": "websocket"})
    assert response.status == 101
    socket: WebSocket = response.web_socket
    socket.accept()
    return socket


def room(test: TestHost) -> Room:
    return test.host.namespace(Room).get_by_name("a")


async def ask(socket: WebSocket, message: str | bytes) -> str | bytes:
    socket.send(message)
    return await socket.receive()


async def closed(socket: WebSocket) -> WebSocketClosedError:
    with pytest.raises(WebSocketClosedError) as caught:
        while True:
            await socket.receive()
    return caught.value


async def test_messages_go_both_ways_in_order() -> None:
    async with open_test_host() as test:
        socket = await join(test)
        for n in range(100):
            socket.send(f"echo {n}")
        assert [await socket.receive() for _ in range(100)] == [
            str(n) for n in range(100)
        ]
        assert await ask(socket, b"\x00\x01") == b"\x01\x00"


async def test_a_message_is_broadcast_to_all_to_others_or_to_a_tag() -> None:
    async with open_test_host() as test:
        a, b, c = await join(test, "/?red,blue"), await join(test, "/?blue"), None
        c = await join(test)
        a.send("all 1")
        assert [await ws.receive() for ws in (a, b, c)] == ["1", "1", "1"]
        b.send("others 2")
        assert [await ws.receive() for ws in (a, c)] == ["2", "2"]
        c.send("tag blue 3")
        assert [await ws.receive() for ws in (a, b)] == ["3", "3"]
        c.send("tag red 4")
        assert await a.receive() == "4"
        assert await ask(a, "tags") == '["red", "blue"]'
        assert await ask(c, "echo last") == "last"


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_a_socket_stays_open_while_its_object_is_not_in_memory(
    driver: Any,
) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}, driver=driver) as test:
        socket = await join(test, "/first?red")
        assert await ask(socket, "echo one") == "one"
        await test.advance("1 minute")
        assert test.host.stats().objects_resident == 0
        assert socket.ready_state is ReadyState.OPEN
        assert await ask(socket, "attachment") == '{"path": "/first"}'
        assert await ask(socket, "tags") == '["red"]'
        assert scene.log == [
            "constructed with []",
            "constructed with [{'path': '/first'}]",
        ]
        socket.send("attach other")
        await test.advance("1 minute")
        assert test.host.stats().objects_resident == 0
        await room(test).say("woken by a call")
        assert await socket.receive() == "woken by a call"
        assert scene.log[-1] == "constructed with ['other']"


async def test_an_auto_response_does_not_wake_the_object() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        socket = await join(test)
        socket.send("auto on")
        assert await ask(socket, "auto-at") == "None"
        await test.advance("1 minute")
        at = datetime.fromtimestamp(test.clock.now_ms() / 1_000, UTC)
        assert await ask(socket, "ping") == "pong"
        await test.settle()
        assert test.host.stats().objects_resident == 0
        assert len(scene.log) == 1
        assert await ask(socket, "auto-at") == str(at)
        socket.send("auto")
        socket.send("ping")
        assert await ask(socket, "echo not answered by itself any more")


async def test_a_message_leaves_when_what_was_written_before_it_is_durable() -> None:
    async with open_test_host() as test:
        socket = await join(test)
        disk = take_over(test.host)
        disk.pause()
        socket.send("put 1")
        receiving = asyncio.ensure_future(socket.receive())
        await test.settle()
        assert not receiving.done()
        disk.resume()
        assert await receiving == "stored 1"


async def test_a_message_whose_commit_fails_is_never_seen() -> None:
    async with open_test_host() as test:
        socket = await join(test)
        take_over(test.host).failures.append(StorageFullError("commit"))
        socket.send("put 1")
        error = await closed(socket)
        assert (error.status, error.reason) == (1011, "the object was reset")
        assert await room(test).get("key") is None
        assert await room(test).count() == 0


async def test_a_message_of_a_transaction_leaves_when_that_is_over() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        socket = await join(test)
        socket.send("transaction")
        receiving = asyncio.ensure_future(socket.receive())
        await test.settle()
        assert "transaction" in scene.log
        assert not receiving.done()
        scene.open("transaction")
        assert await receiving == "inside"


async def test_a_reset_object_loses_its_sockets() -> None:
    async with open_test_host() as test:
        sockets = [await join(test) for _ in range(2)]
        sockets[0].send("abort")
        for socket in sockets:
            assert (await closed(socket)).status == 1011
        assert await room(test).count() == 0
        assert await ask(await join(test), "echo again") == "again"


async def test_a_deleted_object_loses_its_sockets_even_while_it_sleeps() -> None:
    async with open_test_host() as test:
        socket = await join(test)
        assert await ask(socket, "put 1") == "stored 1"
        await test.advance("1 minute")
        assert await test.host.delete(test.host.namespace(Room).id_from_name("a"))
        error = await closed(socket)
        assert (error.status, error.reason) == (1011, "the object was deleted")


async def test_a_handler_that_raises_keeps_its_socket() -> None:
    async with open_test_host() as test:
        socket = await join(test)
        socket.send("raise something")
        assert await ask(socket, "echo still") == "still"


async def test_a_close_by_the_client_is_an_event() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        socket = await join(test)
        socket.send("echo before")
        socket.close(4002, "bye")
        with pytest.raises(WebSocketMisuseError, match="after close"):
            socket.send("after")
        error = await closed(socket)
        assert (error.status, error.reason, error.was_clean) == (4002, "bye", True)
        assert scene.log[-1] == "close 4002 bye True 1 CLOSING"
        assert await room(test).count() == 0
        assert socket.ready_state is ReadyState.CLOSED


async def test_a_close_by_the_object_is_answered_and_told() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        socket = await join(test)
        socket.send("close srv")
        error = await closed(socket)
        assert (error.status, error.reason, error.was_clean) == (4001, "srv", True)
        await test.settle()
        assert scene.log[-1] == "close 4001 srv True 1 CLOSED"
        assert await room(test).count() == 0


async def test_events_of_a_socket_wait_for_their_turn() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        socket = await join(test)
        socket.send("wait")
        socket.send("echo then")
        await test.settle()
        assert scene.log[-1] == "wait"
        calling = asyncio.ensure_future(room(test).count())
        await test.settle()
        assert not calling.done()
        scene.open("wait")
        assert await socket.receive() == "waited"
        assert await socket.receive() == "then"
        assert await calling == 1


async def test_a_client_that_reads_too_slowly_is_given_up() -> None:
    config = Config(web_sockets=WebSocketsConfig(queue_messages_max=10))
    async with open_test_host(config=config) as test:
        socket, other = await join(test), await join(test)
        socket.send("flood x")
        error = await closed(socket)
        assert (error.status, error.was_clean) == (1013, False)
        await test.settle()
        assert await room(test).count() == 1
        assert await ask(other, "echo here") == "here"


async def test_a_client_that_sends_too_fast_is_given_up() -> None:
    scene = Scene()
    config = Config(objects=ObjectsConfig(mailbox_events_max=5))
    async with open_test_host(config=config, env={"scene": scene}) as test:
        socket = await join(test)
        for _ in range(100):
            socket.send("wait")
        assert (await closed(socket)).status == 1013
        scene.open("wait")
        await test.settle()
        assert await room(test).count() == 0


async def test_a_message_has_a_bound() -> None:
    config = Config(web_sockets=WebSocketsConfig(message_bytes_max=10))
    async with open_test_host(config=config) as test:
        socket = await join(test)
        assert await ask(socket, "echo 12345") == "12345"
        with pytest.raises(StorageLimitError, match="11 bytes"):
            socket.send("☃" * 3 + "12")


async def test_a_closing_host_closes_its_sockets() -> None:
    async with open_test_host() as test:
        socket = await join(test)
        await test.host.drain()
        error = await closed(socket)
        assert (error.status, error.reason) == (1001, "the host is closing")


async def test_what_arrives_without_a_handler_wakes_nobody() -> None:
    async with open_test_host() as test:
        socket = await join(test, cls=Silent)
        await test.advance("1 minute")
        socket.send("anyone?")
        socket.close()
        assert (await closed(socket)).status == 1000
        await test.settle()
        assert test.host.stats().objects_resident == 0


async def test_the_handlers_may_have_cloudflares_spelling() -> None:
    async with open_test_host() as test:
        socket = await join(test, cls=Spelled)
        assert await ask(socket, "hi") == "hi ['a']"


async def test_an_end_that_is_not_hibernatable_keeps_its_object_in_memory() -> None:
    async with open_test_host() as test:
        socket = await join(test, cls=Classic)
        assert await socket.receive() == "hello"
        await test.advance("5 minutes")
        assert test.host.stats().objects_resident == 1
        disk = take_over(test.host)
        disk.pause()
        socket.send("gated")
        receiving = asyncio.ensure_future(socket.receive())
        await test.settle()
        assert not receiving.done()
        disk.resume()
        assert await receiving == "gated"
        socket.close(1000, "done")
        assert (await closed(socket)).status == 1000
        await test.advance("5 minutes")
        assert test.host.stats().objects_resident == 0


async def test_a_caller_that_left_before_the_answer_leaves_no_socket() -> None:
    async with open_test_host() as test:
        stub: Any = room(test)
        assert await stub.count() == 0
        disk = take_over(test.host)
        disk.pause()
        joining = asyncio.ensure_future(stub.fetch("/lost"))
        await test.settle()
        joining.cancel()
        disk.resume()
        await test.settle()
        assert await stub.count() == 0


async def test_an_event_has_only_as_long_as_the_object_gives_it() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        socket = await join(test)
        socket.send("timeout")
        socket.send("wait")
        await test.advance("2 seconds")
        assert await ask(socket, "echo next") == "next"


class Misuser(DurableObject):
    """Uses the interface against its rules; tells what it is told."""

    async def try_all(self) -> dict[str, str]:
        ctx = self.ctx
        accepted_first, twice, plain = (WebSocketPair()[1] for _ in range(3))
        accepted_first.accept()
        ctx.accept_web_socket(twice, [])
        long = "x" * 257
        attempts: dict[str, Any] = {
            "acceptedFirst": lambda: ctx.accept_web_socket(accepted_first),
            "twice": lambda: ctx.accept_web_socket(twice),
            "acceptedAfter": lambda: twice.accept(),
            "tags11": lambda: ctx.accept_web_socket(plain, map(str, range(11))),
            "tagLong": lambda: ctx.accept_web_socket(plain, [long]),
            "tagsText": lambda: ctx.accept_web_socket(plain, "ab"),
            "attBig": lambda: twice.serialize_attachment("x" * 20_000),
            "attFn": lambda: twice.serialize_attachment(lambda: 1),
            "getTagsNonHib": lambda: ctx.get_tags(plain),
            "autoBig": lambda: WebSocketRequestResponsePair("x" * 2_049, ""),
            "timeoutBig": lambda: ctx.set_hibernatable_web_socket_event_timeout(
                604_800_001
            ),
            "unaccepted": lambda: plain.send("x"),
            "code": lambda: twice.close(1005),
            "reason": lambda: twice.close(4000, "x" * 124),
            "type": lambda: twice.send(1),
        }
        told = {}
        for name, attempt in attempts.items():
            try:
                attempt()
            except Exception as error:  # noqa: BLE001  # it is what is told
                told[name] = f"{type(error).__name__}: {error}"
        return told

    async def allowed(self) -> list[Any]:
        server = WebSocketPair()[1]
        before = server.deserialize_attachment()
        self.ctx.accept_web_socket(server, ["a", "a", "b", *["x" * 256]])
        server.serialize_attachment(("x" * 2_000, {1}))
        self.ctx.set_web_socket_auto_response(WebSocketRequestResponsePair("a", "b"))
        pair = self.ctx.get_web_socket_auto_response()
        self.ctx.set_hibernatable_web_socket_event_timeout(1_000)
        timeout = self.ctx.get_hibernatable_web_socket_event_timeout()
        self.ctx.set_hibernatable_web_socket_event_timeout()
        return [
            before,
            self.ctx.get_tags(server),
            server.deserialize_attachment() == ("x" * 2_000, {1}),
            None if pair is None else (pair.request, pair.response),
            timeout,
            self.ctx.get_hibernatable_web_socket_event_timeout(),
        ]


async def test_misuse_is_told_in_cloudflares_words() -> None:
    async with open_test_host() as test:
        told = await test.host.namespace(Misuser).get_by_name("a").try_all()
        for name, words in {
            "acceptedFirst": "Cannot call `acceptWebSocket()` if the WebSocket was"
            " already accepted via `accept()`",
            "twice": "already accepted via `accept()`",
            "acceptedAfter": "acceptWebSocket",
            "tags11": "a Hibernatable WebSocket cannot have more than 10 tags",
            "tagLong": "is longer than the max tag length (256 characters).",
            "tagsText": "tags are a list",
            "attBig": "A WebSocket 'attachment' cannot be larger than 16384 bytes.",
            "attFn": EncodeError.__name__,
            "getTagsNonHib": "you must call 'acceptWebSocket()' before attempting to"
            " access the tags of a WebSocket.",
            "autoBig": "ValueError: Request cannot be larger than 2048 bytes. A request"
            " of size 2049 was provided.",
            "timeoutBig": "Event timeout should not exceed 604800000 ms.",
            "unaccepted": "before sending messages",
            "code": "Invalid WebSocket close code: 1005.",
            "reason": "123 bytes",
            "type": "text or bytes",
        }.items():
            assert words in told[name], name


async def test_what_the_interface_allows_it_keeps() -> None:
    async with open_test_host() as test:
        found = await test.host.namespace(Misuser).get_by_name("a").allowed()
        assert found == [None, ["a", "b", "x" * 256], True, ("a", "b"), 1_000, None]


def test_a_response_with_a_socket_has_status_101() -> None:
    client, _ = WebSocketPair()
    with pytest.raises(ValueError, match="status code 101"):
        Response(web_socket=client)
