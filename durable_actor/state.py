"""`DurableObjectState`: the `ctx` an object is given.

It is a face: everything it does is done by the activation behind it, which it knows
only as the `Owner` protocol.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn, Protocol, TypeVar

from durable_actor.clock import Clock, Duration, duration_ms
from durable_actor.errors import WebSocketMisuseError
from durable_actor.hibernation import EVENT_TIMEOUT_MS_MAX, HibernatingSockets
from durable_actor.ids import ObjectId
from durable_actor.storage.facade import DurableObjectStorage
from durable_actor.websockets import (
    WebSocket,
    WebSocketRequestResponsePair,
    auto_responded_at,
    tags_of,
)

T = TypeVar("T")


class Owner(Protocol):
    """What the state needs from the activation it belongs to."""

    @property
    def clock(self) -> Clock:
        """The host's clock."""
        ...

    @property
    def random(self) -> random.Random:
        """The host's source of randomness."""
        ...

    @property
    def sockets(self) -> HibernatingSockets:
        """The hibernatable sockets of the object."""
        ...

    def block_concurrency_while(
        self, callback: Callable[[], Awaitable[T]]
    ) -> asyncio.Future[T]:
        """Run `callback` with every other event held back."""
        ...

    def wait_until(self, awaitable: Awaitable[T]) -> asyncio.Future[T]:
        """Run something in the background."""
        ...

    def abort(self, reason: str | None) -> NoReturn:
        """Throw the activation away."""
        ...

    def emit(self, event: Mapping[str, object]) -> None:
        """Put an event in the outbox."""
        ...

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Publish a few texts in the directory."""
        ...


class DurableObjectState:
    """What an object may ask of the runtime.

    https://developers.cloudflare.com/durable-objects/api/state/
    """

    __slots__ = ("_owner", "env", "id", "storage")

    def __init__(
        self,
        owner: Owner,
        id: ObjectId,  # noqa: A002  # Cloudflare's name of the attribute
        storage: DurableObjectStorage,
        env: Any,
    ) -> None:
        self._owner = owner
        self.id = id
        self.storage = storage
        self.env = env

    @property
    def clock(self) -> Clock:
        """The host's clock; use it instead of `time`, so that tests can move it."""
        return self._owner.clock

    @property
    def random(self) -> random.Random:
        """The host's source of randomness."""
        return self._owner.random

    def block_concurrency_while(
        self, callback: Callable[[], Awaitable[T]]
    ) -> asyncio.Future[T]:
        """Run `callback` with every other event held back; its result can be awaited.

        It starts at once. In a constructor do not await it (a constructor cannot): the
        first event waits for it. If the callback fails or takes more than 30 seconds,
        the object is reset: its writes since then are lost, every caller gets
        `ObjectResetError`, and no code that waits for the callback goes on.

        Raises:
            ObjectResetError: Nested more than 64 deep; the object is reset.
        """
        return self._owner.block_concurrency_while(callback)

    def wait_until(self, awaitable: Awaitable[T]) -> asyncio.Future[T]:
        """Run something in the background; the object stays alive until it is done."""
        return self._owner.wait_until(awaitable)

    def abort(self, reason: str | BaseException | None = None) -> NoReturn:
        """Throw this activation away. Writes of this turn are lost, earlier ones stay.

        Every caller in flight or queued gets `ObjectResetError`; the next event starts
        a fresh activation from the disk.
        """
        if isinstance(reason, BaseException):
            reason = f"{type(reason).__name__}: {reason}"
        self._owner.abort(None if reason is None else str(reason))

    def emit(self, event: Mapping[str, object]) -> None:
        """Hand an event to the class's `event_sink`, in the same commit as this turn.

        Delivered at least once, in order per object. Dropped, and counted, only when
        the outbox is full.
        """
        self._owner.emit(event)

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Publish up to 16 small texts about this object, to be searched by.

        Replaces what was published before; committed with this turn.
        """
        self._owner.set_attributes(attributes)

    def accept_web_socket(self, ws: WebSocket, tags: Iterable[str] = ()) -> None:
        """Take one end of a pair; it stays open while the object is not in memory.

        What arrives there becomes events: `web_socket_message(self, ws, message)`,
        `web_socket_close(self, ws, code, reason, was_clean)` and
        `web_socket_error(self, ws, error)`.

        Args:
            ws: The end that is not returned in the response.
            tags: Up to 10 texts of up to 256 characters, to find it by.

        Raises:
            WebSocketMisuseError: It was accepted before, or the tags are too many.
        """
        self._owner.sockets.accept(ws, tags)

    def get_web_sockets(self, tag: str | None = None) -> list[WebSocket]:
        """Return the accepted sockets that are open, or those of them with a tag."""
        return [WebSocket(end) for end in self._owner.sockets.with_tag(tag)]

    def get_tags(self, ws: WebSocket) -> list[str]:
        """Return the tags that a socket was accepted with.

        Raises:
            WebSocketMisuseError: It was not accepted with `accept_web_socket`.
        """
        return tags_of(ws)

    def set_web_socket_auto_response(
        self, pair: WebSocketRequestResponsePair | None = None
    ) -> None:
        """Answer one message with another, without waking the object; None ends it."""
        self._owner.sockets.auto_response = pair

    def get_web_socket_auto_response(self) -> WebSocketRequestResponsePair | None:
        """Return what `set_web_socket_auto_response` was given last."""
        return self._owner.sockets.auto_response

    def get_web_socket_auto_response_timestamp(self, ws: WebSocket) -> datetime | None:
        """Return when a socket was last answered without the object, or None."""
        return auto_responded_at(ws)

    def set_hibernatable_web_socket_event_timeout(
        self, timeout: Duration | None = None
    ) -> None:
        """Give each event of a socket so long; None: as long as it takes.

        Raises:
            WebSocketMisuseError: More than a week.
        """
        timeout_ms = None if timeout is None else duration_ms(timeout)
        if timeout_ms is not None and timeout_ms > EVENT_TIMEOUT_MS_MAX:
            message = f"Event timeout should not exceed {EVENT_TIMEOUT_MS_MAX} ms."
            raise WebSocketMisuseError(message)
        self._owner.sockets.event_timeout_ms = timeout_ms or None

    def get_hibernatable_web_socket_event_timeout(self) -> int | None:
        """Return the time in milliseconds that each event of a socket has."""
        return self._owner.sockets.event_timeout_ms

    blockConcurrencyWhile = block_concurrency_while
    waitUntil = wait_until
    acceptWebSocket = accept_web_socket
    getWebSockets = get_web_sockets
    getTags = get_tags
    setWebSocketAutoResponse = set_web_socket_auto_response
    getWebSocketAutoResponse = get_web_socket_auto_response
    getWebSocketAutoResponseTimestamp = get_web_socket_auto_response_timestamp
    setHibernatableWebSocketEventTimeout = set_hibernatable_web_socket_event_timeout
    getHibernatableWebSocketEventTimeout = get_hibernatable_web_socket_event_timeout
