"""WebSockets that outlive their object in memory, and the rules of their use."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from durable_actor.errors import WebSocketClosedError
from durable_actor.fetch import Request, Response
from durable_actor.testing import open_test_host
from durable_actor.websockets import (
    WebSocket,
    WebSocketPair,
    WebSocketRequestResponsePair,
)
from tests.parity.cases import differs, same
from tests.parity.objects import Probe
from tests.parity.translate import Refusal, differences, outcome, to_python
from tests.support.scene import Scene

LIMIT_BYTES = 16_384


class Talking(Probe, concurrency="gated"):
    """Notes what happens to its sockets, and answers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        sockets = self.ctx.get_web_sockets()
        attached = [ws.deserialize_attachment() for ws in sockets]
        self._note(f"ctor sockets={len(sockets)} att={_json(attached)}")

    async def fetch(self, request: Request) -> Response:
        client, server = WebSocketPair()
        tags = [tag for tag in request.headers.get("tags", "").split(",") if tag]
        self.ctx.accept_web_socket(server, tags)
        server.serialize_attachment({"u": request.headers["user"], "at": 1})
        return Response(None, status=101, web_socket=client)

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        text = message if isinstance(message, str) else f"binary{len(message)}"
        self._note(
            f"msg {text} ctor={type(self).lives}"
            f" att={_json(ws.deserialize_attachment())}"
            f" tags={_json(self.ctx.get_tags(ws))}"
        )
        match text:
            case "all":
                for other in self.ctx.get_web_sockets():
                    other.send("bcast")
            case "tagged":
                for other in self.ctx.get_web_sockets("red"):
                    other.send("red!")
            case "throw":
                message = "in a handler"
                raise RuntimeError(message)
            case "close":
                ws.close(4001, "srv")
            case "autots":
                answered = self.ctx.get_web_socket_auto_response_timestamp(ws)
                ws.send("ts:" + ("none" if answered is None else "<Date>"))
            case _:
                ws.send(f"echo:{len(message) if isinstance(message, bytes) else text}")

    async def web_socket_close(
        self, ws: WebSocket, code: int, reason: str, was_clean: bool
    ) -> None:
        left = len(self.ctx.get_web_sockets())
        clean = str(was_clean).lower()
        self._note(f"close {code} {reason} {clean} left={left} rs={ws.ready_state:d}")

    async def open_sockets(self) -> int:
        return len(self.ctx.get_web_sockets())

    async def answer_alone(self, *pair: str) -> list[str] | None:
        self.ctx.set_web_socket_auto_response(
            WebSocketRequestResponsePair(*pair) if pair else None
        )
        found = self.ctx.get_web_socket_auto_response()
        return None if found is None else [found.request, found.response]

    async def misuse(self) -> dict[str, Any]:
        ctx = self.ctx
        _, used = WebSocketPair()
        used.accept()
        _, kept = WebSocketPair()
        ours = {
            "acceptedFirst": await outcome(lambda: ctx.accept_web_socket(used)),
            "tags11": await outcome(
                lambda: ctx.accept_web_socket(kept, [str(i) for i in range(11)])
            ),
            "tagLong": await outcome(lambda: ctx.accept_web_socket(kept, ["x" * 257])),
        }
        ctx.accept_web_socket(kept)

        def attach(value: Any) -> Any:
            kept.serialize_attachment(value)
            return kept.deserialize_attachment()

        def timeout() -> list[int | None]:
            ctx.set_hibernatable_web_socket_event_timeout(1_000)
            first = ctx.get_hibernatable_web_socket_event_timeout()
            ctx.set_hibernatable_web_socket_event_timeout(None)
            return [first, ctx.get_hibernatable_web_socket_event_timeout()]

        return {
            **ours,
            "twice": await outcome(lambda: ctx.accept_web_socket(kept)),
            "attNone": await outcome(kept.deserialize_attachment),
            "attBig": await outcome(lambda: attach("x" * 20_000)),
            "att2048": await outcome(lambda: len(attach("x" * 2_000))),
            "attFn": await outcome(lambda: attach(lambda: 1)),
            "getTagsNonHib": await outcome(lambda: ctx.get_tags(WebSocketPair()[1])),
            "autoBig": await outcome(
                lambda: WebSocketRequestResponsePair("x" * 2_049, "y")
            ),
            "timeoutSet": await outcome(timeout),
            "timeoutBig": await outcome(
                lambda: ctx.set_hibernatable_web_socket_event_timeout(604_800_001)
            ),
        }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class Listener:
    """The client's side: a connection, and what came over it."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        socket.accept()
        self.got: list[str] = []
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        try:
            while True:
                self.got.append(str(await self.socket.receive()))
        except WebSocketClosedError as closed:
            clean = str(closed.was_clean).lower()
            self.got.append(f"close {closed.status} {closed.reason} {clean}")

    async def over(self) -> None:
        """Stop listening, whether the connection is closed or not."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _connect(stub: Any, user: str, tags: str = "") -> Listener:
    response = await stub.fetch("/", headers={"user": user, "tags": tags})
    return Listener(response.web_socket)


def _talking() -> type[Talking]:
    class Fresh(Talking):
        lives = 0

    return Fresh


@differs(
    "ws.hibernatable", "a closing that both sides finished is not followed by an error"
)
async def test_sockets_are_told_apart_by_tags_and_attachments(observed: Any) -> None:
    scene, cls = Scene(), _talking()
    async with open_test_host(env={"scene": scene}) as test:
        stub: Any = test.host.namespace(cls).get_by_name("a")
        a = await _connect(stub, "A", "red,blue")
        b = await _connect(stub, "B")
        for who, message in (
            (a, "hi"),
            (b, b"\x01\x02\x03"),
            (a, "all"),
            (a, "tagged"),
            (b, "throw"),
            (b, "still"),
        ):
            who.socket.send(message)
            await test.settle()
        mid = await stub.open_sockets()
        b.socket.send("close")
        await test.settle()
        a.socket.close(4002, "bye")
        await test.settle()
        ours = {
            "aGot": a.got,
            "bGot": b.got,
            "mid": mid,
            "log": scene.log,
            "end": await stub.open_sockets(),
        }
        await a.over()
        await b.over()
    assert differences(ours, observed) == {"bGot"}
    *seen, lost = observed["bGot"]
    assert ours["bGot"] == seen
    assert "Network connection lost" in lost


@same("ws.hibernation")
async def test_a_socket_stays_open_while_its_object_is_not_there(observed: Any) -> None:
    scene, cls = Scene(), _talking()
    async with open_test_host(env={"scene": scene}) as test:
        client = await _connect(test.host.namespace(cls).get_by_name("a"), "A", "red")
        client.socket.send("one")
        await test.advance(15_000)
        assert test.host.stats().objects_resident == 0
        client.socket.send("two")
        await test.settle()
        ours = {"got": client.got, "ctor": cls.lives, "log": scene.log}
        await client.over()
    assert differences(ours, observed) == set()


@same("ws.autoResponse")
async def test_an_answer_may_be_given_without_the_object(observed: Any) -> None:
    scene, cls = Scene(), _talking()
    async with open_test_host(env={"scene": scene}) as test:
        stub: Any = test.host.namespace(cls).get_by_name("a")
        client = await _connect(stub, "A")
        ours: dict[str, Any] = {"set": await stub.answer_alone("ping", "pong")}
        await test.advance(15_000)
        assert test.host.stats().objects_resident == 0
        client.socket.send("ping")
        await test.settle()
        ours["noWakeLog"] = scene.log[:]
        client.socket.send("autots")
        await test.settle()
        ours["un"] = await stub.answer_alone()
        client.socket.send("ping")
        await test.settle()
        asleep = len(ours["noWakeLog"])
        ours |= {"got": client.got, "ctor": cls.lives, "log": scene.log[asleep:]}
        await client.over()
    assert differences(ours, observed) == set()


@same("ws.errors")
async def test_misuse_is_refused(observed: Any) -> None:
    async with open_test_host(env={"scene": Scene()}) as test:
        ours = await test.host.namespace(_talking()).get_by_name("a").misuse()
    assert differences(ours, observed) == {"attBig"}
    # The encodings differ in size by a few bytes; the limit does not.
    seen = to_python(observed["attBig"])
    assert isinstance(seen, Refusal)
    shape = f"A WebSocket 'attachment' cannot be larger than {LIMIT_BYTES} bytes."
    assert seen.message.startswith(shape)
    assert shape in str(ours["attBig"])
