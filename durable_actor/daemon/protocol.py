"""The HTTP/1.1 parser of uvicorn, with the bounds it does not have by itself.

A connection that says nothing, or says its headers drop by drop, is closed after the
header deadline. Headers that are too large end the connection before they are kept.
The request target must be a path: an absolute address or an authority would name a host
that nobody compared. What cannot be parsed is answered with a problem document.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from durable_actor.daemon.problems import RETRY_AFTER_MS, Problem, refuse

_CROWDED = Problem(
    status=503,
    code="overloaded",
    detail="The daemon has as many connections as it may have.",
    hint="Use fewer connections, and keep them; http.connections_max is the limit.",
    overloaded=True,
    retry_after_ms=RETRY_AFTER_MS,
)


def bounded(**bounds: int) -> type[BoundedProtocol]:
    """Return a protocol with these bounds; uvicorn makes its instances itself."""
    assert set(bounds) <= set(vars(BoundedProtocol))
    return type("Protocol", (BoundedProtocol,), bounds)


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with a deadline and a size for what comes before the body."""

    head_timeout_ms = 5_000
    head_bytes_max = 8_192 + 8_192 + 1_024  # target, headers, and the start line
    connections_max = 10_000

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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class has it
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            self._refuse(_CROWDED)
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Call the deadline off."""
        self._head_is_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; give up on a head that grows too long."""
        if self._head_timer is None and self._is_idle():
            self._await_head()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self.head_bytes_max:
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
        body = problem.body(None)
        headers = problem.headers_to_send()
        headers |= {"Content-Length": str(len(body)), "Connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {problem.status} {problem.title}\r\n{lines}\r\n"
        self.transport.write(start.encode("latin-1") + body)
        self.transport.close()
