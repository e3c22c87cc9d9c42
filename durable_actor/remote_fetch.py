"""Remote fetch: a request to an object of a daemon, and its response, over HTTP.

For the client library. The body of the request is sent as it is made, that of the
response is read as it is asked for; a small one is read at once, so that the connection
is free again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Final, Self

from durable_actor.daemon import wire
from durable_actor.errors import WebSocketMisuseError
from durable_actor.fetch import Request, Response, stream_of, with_body
from durable_actor.ids import ObjectId

_WHOLE_BYTES_MAX: Final = 65_536  # a small answer is read at once
# What belongs to the connection, or to the client itself.
_LEFT_OUT: Final = frozenset(
    {"authorization", "connection", "content-length", "host", "transfer-encoding"}
)


class Pieces(AsyncIterator[bytes]):
    """The body of an answer; holds its connection until it is read or closed.

    Args:
        source: The pieces.
        close: Lets go of the connection.
        telling: Tells failures of the connection as ours.
    """

    def __init__(
        self,
        source: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        telling: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._source = source
        self._close = close
        self._telling = telling

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            with self._telling():
                return await anext(self._source)
        except BaseException:
            await self._close()
            raise

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._close()


def path_of(target: ObjectId, request: Request) -> str:
    """Return where the daemon finds this of the object."""
    name = str(target) if target.name is None else wire.segment(target.name)
    path = f"/objects/{wire.segment(target.namespace)}/{name}{request.path}"
    return f"{path}?{request.query}" if request.query else path


def headers_of(
    target: ObjectId, request: Request, timeout_ms: int | None
) -> list[tuple[str, str]]:
    """Return the headers to send.

    Raises:
        WebSocketMisuseError: It asks for a WebSocket.
    """
    if "upgrade" in request.headers:
        message = (
            "a client opens no WebSocket; connect any WebSocket client to the daemon's"
            " /objects/{class}/{name}/..."
        )
        raise WebSocketMisuseError(message)
    headers = [
        (name, value)
        for name, value in request.headers.pairs()
        if name not in _LEFT_OUT
    ]
    headers.append((wire.ERRORS_HEADER, "exact"))
    if target.name is None:
        headers.append((wire.BY_HEADER, "id"))
    if timeout_ms is not None:
        headers.append((wire.TIMEOUT_HEADER, str(timeout_ms)))
    return headers


async def content_of(request: Request) -> bytes | AsyncIterator[bytes]:
    """Return the body to send."""
    stream = stream_of(request)
    return await request.bytes() if stream is None else stream


async def response_of(
    status: int, headers: list[tuple[str, str]], pieces: Pieces
) -> Response:
    """Return the response of an answer."""
    kept = [(name, value) for name, value in headers if _is_the_objects(name)]
    response = Response(status=status, headers=kept)
    with_body(response, pieces)
    length = response.headers.get("content-length")
    if length is not None and int(length) <= _WHOLE_BYTES_MAX:
        await response.bytes()
    return response


def _is_the_objects(name: str) -> bool:
    lower = name.lower()
    return lower not in ("connection", "date", "transfer-encoding")
