"""Bridge: between a connection that speaks WebSocket and the end an object gave out.

The connection is the server's (frames, pings, the closing handshake); here messages go
across, in both directions, one at a time. A caller that sends faster than its object
handles is not read; one that reads slower than its object sends loses the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from starlette.types import Receive, Send

from durable_actor.websockets import (
    BROKEN,
    GOING_AWAY,
    LOST,
    NO_STATUS,
    NORMAL,
    Close,
    End,
    Failure,
    Message,
    WebSocket,
    end_of,
    lost,
)

_CLOSING_SECONDS: Final = 15.0  # the server gives up waiting after ten
_GOING_AWAY: Final = Close(GOING_AWAY, "the daemon is going away")
_SENDABLE: Final = {NO_STATUS: NORMAL, LOST: BROKEN}


class Bridge:
    """One connection and one end.

    Args:
        socket: What the object gave out in its response.
        headers: Of the answer that accepts the handshake.
        subprotocol: The one chosen, if any.
    """

    def __init__(
        self,
        socket: WebSocket,
        headers: list[tuple[bytes, bytes]],
        subprotocol: str | None,
    ) -> None:
        self._end: End = end_of(socket)
        self._end.is_wired = True
        self._headers = headers
        self._subprotocol = subprotocol

    async def run(self, receive: Receive, send: Send) -> None:
        """Carry messages until both sides have closed, or one is lost."""
        end = self._end
        writing: asyncio.Task[None] | None = None
        last: Close | Failure = lost()
        try:
            await send(
                {
                    "type": "websocket.accept",
                    "headers": self._headers,
                    "subprotocol": self._subprotocol,
                }
            )
            writing = asyncio.create_task(self._write(send), name="websocket")
            last = await self._read(receive, writing)
        finally:
            if not end.has_closed:
                end.close(last)
            if writing is not None:
                writing.cancel()
                await asyncio.wait([writing])
                if not writing.cancelled():
                    writing.exception()  # the connection is gone; so is the news

    def go_away(self) -> None:
        """Close both sides: the daemon is about to end."""
        if not self._end.peer_has_closed:
            self._end.arrive(_GOING_AWAY)
        if not self._end.has_closed:
            self._end.close(_GOING_AWAY)

    async def _read(
        self, receive: Receive, writing: asyncio.Task[None]
    ) -> Close | Failure:
        """Take what comes; return how it ended."""
        end = self._end
        while True:
            message = await self._next(receive, writing)
            if message is None:
                return lost()
            match message:
                case {"type": "websocket.receive"}:
                    text = message.get("text")
                    if not end.has_closed:
                        end.send(message["bytes"] if text is None else text)
                        await end.peer.room()
                case {"type": "websocket.disconnect"}:
                    return _last(message)

    async def _next(
        self, receive: Receive, writing: asyncio.Task[None]
    ) -> MutableMapping[str, Any] | None:
        """Return what comes next; None if the close is not answered in time."""
        receiving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait(
                {receiving, writing}, return_when=asyncio.FIRST_COMPLETED
            )
            if not receiving.done():
                # The close is sent; what is missing is the answer to it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSING_SECONDS):
                        return await asyncio.shield(receiving)
                return None
            return receiving.result()
        finally:
            receiving.cancel()

    async def _write(self, send: Send) -> None:
        """Send what the object sends, and at last that it has closed."""
        while True:
            match await self._end.next():
                case Message(data):
                    kind = "text" if isinstance(data, str) else "bytes"
                    await send({"type": "websocket.send", kind: data})
                case Close(code, reason):
                    code = _SENDABLE.get(code, code)
                    await send(
                        {"type": "websocket.close", "code": code, "reason": reason}
                    )
                    return
                case Failure():
                    return


def hang_up(socket: WebSocket) -> None:
    """Let go of an end that nobody is going to use."""
    end = end_of(socket)
    end.is_wired = True
    end.close(Close(BROKEN, "the caller did not ask for it", was_clean=False))


def _last(message: Mapping[str, Any]) -> Close | Failure:
    """Return how the connection ended, as the server tells it."""
    reason = message.get("reason") or ""
    if message.get("is_failure"):
        return Failure(reason or f"closed with {message['code']}")
    if not message.get("was_clean", "reason" in message):
        return lost()
    return Close(message["code"], reason)
