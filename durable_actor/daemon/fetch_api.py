"""`/objects/{class}/{name}/...`: requests to an object's own `fetch`, and WebSockets.

The rest of the path and the query are the object's, and so is the answer: its status,
its headers, its body, streamed both ways. Only a refusal of the daemon, or a failure of
the object, is a problem document; the object's answers carry its id, `X-Object-Id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from durable_actor import codec
from durable_actor.daemon import wire
from durable_actor.daemon.addresses import class_of, target_of
from durable_actor.daemon.bridge import Bridge, hang_up
from durable_actor.daemon.guard import BodyRefusedError
from durable_actor.daemon.inbound import InboundBody, protocols, read_request
from durable_actor.daemon.loader import Served
from durable_actor.daemon.ports import ObjectHost
from durable_actor.daemon.problems import ExactBodyError, HandlerError, refuse
from durable_actor.daemon.routing import Incoming, Route, timeout_ms_of
from durable_actor.fetch import Response as ObjectResponse
from durable_actor.fetch import stream_of
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger
from durable_actor.rpc import CallOptions

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_LOOKING: Final = ("GET", "OPTIONS")  # HEAD is GET without its body
PATH: Final = "/objects/{class}/{name}/{path}"
_EVENTS: Final = "text/event-stream"
SUBPROTOCOL: Final = (
    "durable-actor"  # chosen if the token came as one, and nothing else
)
_CONNECTION_HEADERS: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "upgrade", "trailer"}
    | {"content-length", "date", wire.OBJECT_HEADER.lower()}
)

log = get_logger("durable_actor.daemon")


class FetchApi:
    """Handlers over a host and the classes it serves."""

    def __init__(self, host: ObjectHost, served: Served, *, debug: bool) -> None:
        self._host = host
        self._served = served
        self._debug = debug
        self._is_ending = asyncio.Event()

    def end(self) -> None:
        """End the streams of events; they have no end of their own."""
        self._is_ending.set()

    def routes(self) -> list[Route]:
        """Return the routes of this part: one path, any of the usual methods."""
        return [
            Route(
                method=method,
                path=PATH,
                takes_rest=True,
                name=f"fetchObject{method.capitalize()}",
                summary=f"{method} whatever the object's own `fetch` answers.",
                handler=self.fetch,
                verb="read" if method in _LOOKING else "write",
                headers={
                    wire.BY_HEADER: "What {name} is: `name` (the default) or `id`.",
                    wire.TIMEOUT_HEADER: "How long to wait for the head of the answer.",
                },
                response_media_type="*/*",
                response=object,
                errors=(404, 408, 409, 429, 504, 507),
            )
            for method in METHODS
        ]

    async def fetch(self, incoming: Incoming) -> Response:
        """Let the object answer."""
        target = self._target(incoming)
        options = CallOptions(timeout_ms=timeout_ms_of(incoming))
        request, body = await read_request(
            incoming.scope, incoming.receive, incoming.names["path"]
        )
        try:
            response = await self._host.fetch(target, request, options)
        except BodyRefusedError:
            raise  # the guard answers
        except Exception as error:
            raise self._failure(error, incoming) from error
        if response.web_socket is not None:
            hang_up(response.web_socket)
            raise refuse(
                "bad_request",
                "The object answers this with a WebSocket.",
                "Ask for one: send the headers of a WebSocket handshake.",
            )
        return ObjectAnswer(response, target, body, self._is_ending)

    async def open_socket(
        self, incoming: Incoming
    ) -> tuple[Bridge | None, Response | None]:
        """Ask the object for a WebSocket; it may answer otherwise."""
        target = self._target(incoming)
        options = CallOptions(timeout_ms=timeout_ms_of(incoming))
        scope = incoming.scope
        request, body = await read_request(
            scope, incoming.receive, incoming.names["path"]
        )
        try:
            response = await self._host.fetch(target, request, options)
        except Exception as error:
            raise self._failure(error, incoming) from error
        if response.web_socket is None:
            return None, ObjectAnswer(response, target, body, self._is_ending)
        headers = answer_headers(response, target)
        chosen = response.headers.get("sec-websocket-protocol")
        offered = protocols(request.headers.get("sec-websocket-protocol", ""))
        if chosen is None and SUBPROTOCOL in offered:
            chosen = SUBPROTOCOL
        return Bridge(response.web_socket, headers, chosen), None

    def _target(self, incoming: Incoming) -> ObjectId:
        served = class_of(self._served, incoming.names["class"])
        by = incoming.header(wire.BY_HEADER) or "name"
        return target_of(served, incoming, by=by)

    def _failure(self, error: Exception, incoming: Incoming) -> Exception:
        failure = HandlerError(error)
        if incoming.header(wire.ERRORS_HEADER) != "exact":
            return failure
        body = codec.dumps_error(error, include_traceback=self._debug)
        return ExactBodyError(error, body)


class ObjectAnswer(Response):
    """What an object answered, sent as it comes."""

    def __init__(
        self,
        response: ObjectResponse,
        target: ObjectId,
        body: InboundBody,
        is_ending: asyncio.Event,
    ) -> None:
        self.status_code = response.status
        self._response = response
        self._target = target
        self._body = body
        self._is_ending = is_ending
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, then the body; end it when the caller leaves."""
        del receive  # the body has it
        response = self._response
        prefix = "websocket.http." if scope["type"] == "websocket" else "http."
        is_head = scope.get("method") == "HEAD"
        stream = stream_of(response)
        headers = answer_headers(response, self._target)
        content = b"" if stream is not None else await response.bytes()
        if stream is None and response.status not in (204, 304):
            length = response.headers.get("content-length") if is_head else None
            headers.append((b"content-length", (length or str(len(content))).encode()))
        if not self._body.is_complete:
            headers.append((b"connection", b"close"))
        start = {
            "type": prefix + "response.start",
            "status": response.status,
            "headers": headers,
        }
        await send(start)
        if stream is not None and not is_head:
            if not await self._send_stream(stream, prefix, send):
                return  # unfinished: the connection is closed, and the caller notices
        elif content and not is_head:
            message = {"type": prefix + "response.body", "body": content}
            await send({**message, "more_body": True})
        if stream is not None:
            await response.aclose()
        if not self._body.is_complete:
            await self._body.linger()
        await send({"type": prefix + "response.body", "body": b""})

    async def _send_stream(
        self, stream: AsyncIterator[bytes], prefix: str, send: Send
    ) -> bool:
        """Send the pieces as they are made; tell whether all of them were."""
        leaving = asyncio.create_task(self._body.left(), name="caller")
        sending = asyncio.create_task(_send_pieces(stream, prefix, send), name="answer")
        tasks = {leaving, sending}
        media_type = self._response.headers.get("content-type", "")
        if media_type.startswith(_EVENTS):
            tasks.add(asyncio.create_task(self._until_ending(), name="drain"))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._response.aclose()
        if sending.cancelled():
            return self._is_ending.is_set() and leaving.cancelled()
        error = sending.exception()
        if error is not None:
            log.warning("answer.broke_off", error=f"{type(error).__name__}: {error}")
        return error is None

    async def _until_ending(self) -> None:
        await self._is_ending.wait()


async def _send_pieces(stream: AsyncIterator[bytes], prefix: str, send: Send) -> None:
    async for piece in stream:
        message = {"type": prefix + "response.body", "body": piece}
        await send({**message, "more_body": True})


def answer_headers(
    response: ObjectResponse, target: ObjectId
) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer, without those of the connection."""
    headers = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.pairs()
        if name not in _CONNECTION_HEADERS and not name.startswith("sec-websocket-")
    ]
    return [*headers, (wire.OBJECT_HEADER.lower().encode(), str(target).encode())]
