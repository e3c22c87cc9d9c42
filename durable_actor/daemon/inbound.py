"""Requests to an object's `fetch`, as they come in: a URL, headers, a body in pieces.

Does not pass on what is between the caller and the daemon: the daemon's token, the
headers of the connection, and the daemon's own headers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.types import Receive, Scope

from durable_actor.daemon import wire
from durable_actor.daemon.guard import TOKEN_SUBPROTOCOL, BodyRefusedError
from durable_actor.errors import BodyError
from durable_actor.fetch import Headers, Request

_WHOLE_BYTES_MAX: Final = 65_536  # a small body is read before the object is bothered
_LINGER_SECONDS: Final = 1.0
_BODYLESS: Final = frozenset({"GET", "HEAD"})
_CONNECTION_HEADERS: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding"}
    | {"proxy-authorization", "proxy-connection"}
)
_OWN_HEADERS: Final = frozenset(
    name.lower()
    for name in (
        "Authorization",
        wire.BY_HEADER,
        wire.ERRORS_HEADER,
        wire.TIMEOUT_HEADER,
    )
)
_PROTOCOLS: Final = "sec-websocket-protocol"


class InboundBody:
    """The body of a request, and what comes after it: that the caller leaves."""

    def __init__(self, receive: Receive, *, is_empty: bool) -> None:
        self._receive = receive
        self._complete = asyncio.Event()
        if is_empty:
            self._complete.set()

    @property
    def is_complete(self) -> bool:
        """Whether all of it has been read."""
        return self._complete.is_set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            BodyError: The caller left in between.
            BodyRefusedError: It is too large, or too slow.
        """
        while not self._complete.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BodyError("the caller left before the body was whole")
            if not message.get("more_body"):
                self._complete.set()
            if piece := message.get("body"):
                yield piece

    async def left(self) -> None:
        """Return when the caller has left; the body has to be read first."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def linger(self) -> None:
        """Read for a moment what is still coming, so that the answer can be read."""
        with contextlib.suppress(TimeoutError, BodyError, BodyRefusedError):
            async with asyncio.timeout(_LINGER_SECONDS):
                async for _ in self.pieces():
                    pass


async def read_request(
    scope: Scope, receive: Receive, rest: str
) -> tuple[Request, InboundBody]:
    """Return the request that an object gets, and the body behind it.

    Args:
        scope: Of the request, or of the WebSocket.
        receive: What the body comes from.
        rest: What follows the name of the object in the path, as it came.
    """
    headers = headers_of(scope)
    method = scope.get("method", "GET")
    is_http = scope["type"] == "http"  # else it is a handshake, and nothing follows
    length = int(headers.get("content-length", "0")) if is_http else 0
    is_empty = not is_http or (length == 0 and not _is_chunked(scope))
    body = InboundBody(receive, is_empty=is_empty)
    content: AsyncIterator[bytes] | bytes | None = None
    if method not in _BODYLESS and not is_empty:
        content = body.pieces()
        if 0 < length <= _WHOLE_BYTES_MAX:
            content = b"".join([piece async for piece in content])
    scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
    query = scope["query_string"].decode("ascii", "replace")
    url = f"{scheme}://{headers.get('host', 'localhost')}/{rest}"
    request = Request(
        url + f"?{query}" if query else url,
        method=method,
        headers=headers,
        body=content,
    )
    return request, body


def headers_of(scope: Scope) -> Headers:
    """Return the headers that are for the object."""
    headers = Headers()
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in _CONNECTION_HEADERS or name in _OWN_HEADERS:
            continue
        if name == _PROTOCOLS:
            value = ", ".join(protocols(value))
            if not value:
                continue
        headers.append(name, value)
    return headers


def protocols(offered: str) -> list[str]:
    """Return the subprotocols a caller offers, without the token."""
    names = [name.strip() for name in offered.split(",")]
    return [name for name in names if name and not name.startswith(TOKEN_SUBPROTOCOL)]


def _is_chunked(scope: Scope) -> bool:
    return any(name == b"transfer-encoding" for name, _ in scope["headers"])
