"""The HTTP/1.1 parser of uvicorn, with the bounds it does not have by itself.

A connection that says nothing, or says its headers drop by drop, is closed after the
header deadline. Headers that are too large end the connection before they are kept.
The request target must be a path: an absolute address or an authority would name a host
that nobody compared. What cannot be parsed is answered with a problem document.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar, cast

from uvicorn._types import ASGIReceiveEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol,
)
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame

from durable_actor.daemon.listening import is_foreign
from durable_actor.daemon.problems import RETRY_AFTER_MS, Problem, refuse

_CROWDED = Problem(
    status=503,
    code="overloaded",
    detail="The daemon has as many connections as it may have.",
    hint="Use fewer connections, and keep them; http.connections_max is the limit.",
    overloaded=True,
    retry_after_ms=RETRY_AFTER_MS,
)

_FOREIGN = refuse(
    "forbidden",
    "This socket is for the user who runs the daemon.",
    "Run as that user.",
).problem

# The parser of handshakes gives up at 8,192 and 128, and says nothing.
_HANDSHAKE_LINE_BYTES_MAX = 8_000
_HANDSHAKE_HEADERS_MAX = 120

_BYTES_PER_SECOND_MIN = 1_024  # of an answer; who takes less is given up

P = TypeVar("P", bound=asyncio.Protocol)


def bounded(kind: type[P], **bounds: int) -> type[P]:
    """Return a protocol with these bounds; uvicorn makes its instances itself."""
    assert set(bounds) <= set(vars(kind))
    return type(kind.__name__, (kind,), bounds)


class Patience:
    """Gives up a reader that takes too little of what waits for it.

    Not one that is merely slow: an answer of many megabytes takes its time.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        timeout_ms: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transport = transport
        self._seconds = timeout_ms / 1_000
        self._loop = loop
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Expect the reader to take what waits now, at some rate at least."""
        self.end()
        self._unsent = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """Expect nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        taken = self._unsent - self._transport.get_write_buffer_size()
        if taken < self._seconds * _BYTES_PER_SECOND_MIN:
            self._transport.abort()
        else:
            self.begin()


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with a deadline and a size for what comes before the body."""

    head_timeout_ms = 5_000
    head_bytes_max = 8_192 + 8_192 + 1_024  # target, headers, and the start line
    connections_max = 10_000
    write_timeout_ms = 30_000

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Invariant: self._head_timer is not None or a request is being answered, or the
        # keep-alive timer of the base class runs: no connection is without a deadline.
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        self._head_bytes = 0
        self._patience: Patience | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class has it
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._patience = Patience(transport, self.write_timeout_ms, self.loop)
        if is_foreign(transport.get_extra_info("socket")):
            self._refuse(_FOREIGN)
            return
        if len(self.connections) > self.connections_max:
            self._refuse(_CROWDED)
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Call the deadlines off."""
        self._head_is_over()
        if self._patience is not None:
            self._patience.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Expect the caller to take some of its answer."""
        super().pause_writing()
        if self._patience is not None:
            self._patience.begin()

    def resume_writing(self) -> None:
        """Expect nothing more."""
        super().resume_writing()
        if self._patience is not None:
            self._patience.end()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to a protocol that knows WebSocket."""
        self._head_is_over()
        lines = [len(name) + len(value) for name, value in self.headers]
        longest = max(len(self.url), *lines)
        if longest > _HANDSHAKE_LINE_BYTES_MAX or len(lines) > _HANDSHAKE_HEADERS_MAX:
            self._refuse(
                refuse(
                    "headers_too_large",
                    f"The handshake has {len(lines)} headers, and a line of {longest}"
                    f" bytes; at most {_HANDSHAKE_HEADERS_MAX}, and"
                    f" {_HANDSHAKE_LINE_BYTES_MAX} bytes, are allowed.",
                    "Send fewer and shorter headers.",
                ).problem
            )
            return
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; give up on a head that grows too long."""
        if self._head_timer is None and self._is_idle():
            self._await_head()
        # What is neither head nor body is framing: sizes of chunks, and trailers.
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self.head_bytes_max:
            self._refuse(
                refuse(
                    "headers_too_large",
                    f"The head of the request has more than {self.head_bytes_max}"
                    " bytes.",
                    "Send fewer and shorter headers.",
                ).problem
            )

    def on_message_begin(self) -> None:
        """Begin a request; the deadline runs from its first byte."""
        super().on_message_begin()
        self._is_in_head = True
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is none, and whoever is before us has not seen it.

        The list of headers has been handed on by then, so one that was added would
        count: a token or a host that came after the body.
        """
        if self._is_in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._head_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Hand the request on, if its target is a path."""
        self._head_is_over()
        if not self.url.startswith(b"/"):
            message = "the request target is not a path"
            raise ValueError(message)  # the parser reports it as a malformed request
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and hang up."""
        self._refuse(refuse("bad_request", msg, "Send well-formed HTTP/1.1.").problem)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing of packages to install: the guard refuses the request."""

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None until the first request
        return cycle is None or cycle.response_complete

    def _await_head(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(
            self.head_timeout_ms / 1_000, self._head_is_late
        )

    def _head_is_over(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(_whole_answer(problem.spread()))
        self.transport.close()


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket, as uvicorn speaks it, with an end that always comes.

    What its application hears of the end is what the client did: its close, or none.
    """

    write_timeout_ms = 30_000
    fragments_max = 1_024

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience: Patience | None = None
        self._closing_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a connection."""
        super().connection_made(transport)
        self._patience = Patience(self.transport, self.write_timeout_ms, self.loop)

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next message; the end only once it is known how it ended."""
        while True:
            message = await super().receive()
            if message["type"] != "websocket.disconnect":
                return message
            answer = self.conn.close_rcvd
            failure = self.conn.parser_exc
            if self.close_sent and not (answer or failure or self.disconnected):
                continue  # uvicorn's note of our own close; the answer is to come
            told: Any = {"type": "websocket.disconnect", "was_clean": bool(answer)}
            if answer is not None:
                told |= {"code": answer.code, "reason": answer.reason}
            elif failure is not None:
                told |= {"code": 1006, "reason": str(failure), "is_failure": True}
            else:
                told |= {"code": 1006, "reason": ""}
            return cast("ASGIReceiveEvent", told)

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment; too many of them cost memory, even if they are empty."""
        if self.close_sent:
            return
        if len(self.frames) >= self.fragments_max:
            self.frames = []
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer, unless the client takes no answers: those would pile up here."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_parser_exception(self) -> None:
        """Close with the reason; a handshake that is none is answered with 400."""
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
            return
        problem = refuse("bad_request", "This is no WebSocket handshake.").problem
        self.transport.write(_whole_answer(problem))
        self.transport.close()

    def pause_writing(self) -> None:
        """Expect the client to take some of what was sent."""
        super().pause_writing()
        if self._patience is not None:
            self._patience.begin()

    def resume_writing(self) -> None:
        """Expect nothing more."""
        super().resume_writing()
        if self._patience is not None:
            self._patience.end()

    def keepalive_timeout(self) -> None:
        """Hang up on a client that does not answer pings, also if it takes nothing."""
        super().keepalive_timeout()
        self.transport.abort()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Wait only so long for what is still to be sent."""
        super().on_task_complete(task)
        if not self.disconnected and self._closing_timer is None:
            self._closing_timer = self.loop.call_later(
                self.close_timeout, self.transport.abort
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Call the deadlines off."""
        if self._patience is not None:
            self._patience.end()
        if self._closing_timer is not None:
            self._closing_timer.cancel()
        super().connection_lost(exc)


def _whole_answer(problem: Problem) -> bytes:
    """Return the last answer of a connection."""
    body = problem.body(None)
    headers = problem.headers_to_send()
    headers |= {"Content-Length": str(len(body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    start = f"HTTP/1.1 {problem.status} {problem.title}\r\n{lines}\r\n"
    return start.encode("latin-1") + body
