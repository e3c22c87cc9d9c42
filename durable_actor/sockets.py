"""Sockets: the hibernatable WebSockets of a host, and the events they become.

They belong to the host, by object: the object may leave memory while its sockets stay
open, and what arrives wakes it. An auto-response does not.

Promises
    What arrives at one socket becomes events in that order, through the mailbox.
    A socket whose event finds no room is closed with 1013.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from durable_actor.clock import Clock, deadline
from durable_actor.entrypoints import Method
from durable_actor.errors import (
    DurableActorError,
    ObjectResetError,
    WebSocketClosedError,
)
from durable_actor.hibernation import HibernatingSockets
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger
from durable_actor.mailbox import Envelope
from durable_actor.websockets import (
    LOST,
    Close,
    End,
    Event,
    Failure,
    Message,
    SocketBounds,
    WebSocket,
)

log = get_logger("durable_actor.objects")


class Objects(Protocol):
    """What sockets need from the host."""

    @property
    def clock(self) -> Clock:
        """Its clock."""
        ...

    def socket_handler(self, object_id: ObjectId, name: str) -> Method | None:
        """Return the handler that the object's class has for this, if it has one."""
        ...

    def deliver_event(
        self, object_id: ObjectId, envelope: Envelope, *, may_overlap: bool
    ) -> None:
        """Put an event in the object's mailbox, waking it if need be."""
        ...

    def let_out(self, object_id: ObjectId, effect: Callable[[], None]) -> None:
        """Run an effect once what the object wrote before is durable."""
        ...


class Sockets:
    """Every hibernatable socket of a host."""

    def __init__(self, objects: Objects, bounds: SocketBounds) -> None:
        self._objects = objects
        self._bounds = bounds
        self._by_object: dict[bytes, HibernatingSockets] = {}

    def __len__(self) -> int:
        return sum(len(sockets) for sockets in self._by_object.values())

    def of(self, object_id: ObjectId) -> HibernatingSockets:
        """Return the sockets of an object."""
        sockets = self._by_object.get(object_id.raw)
        if sockets is None:
            objects = self._objects
            sockets = HibernatingSockets(
                lambda end, event: self._deliver(object_id, end, event),
                lambda effect: objects.let_out(object_id, effect),
                objects.clock.now_ms,
                self._bounds,
            )
            self._by_object[object_id.raw] = sockets
        return sockets

    def let_go(self, object_id: ObjectId) -> None:
        """Forget about an object that left memory, unless it has sockets."""
        sockets = self._by_object.get(object_id.raw)
        if sockets is not None and not sockets:
            del self._by_object[object_id.raw]

    def close(self, object_id: ObjectId, code: int, reason: str) -> None:
        """Close the sockets of an object; it hears nothing of it."""
        sockets = self._by_object.pop(object_id.raw, None)
        if sockets is not None:
            sockets.close_all(code, reason)

    def close_all(self, code: int, reason: str) -> None:
        """Close every socket; no object hears of it."""
        by_object, self._by_object = self._by_object, {}
        for sockets in by_object.values():
            sockets.close_all(code, reason)

    def _deliver(self, object_id: ObjectId, end: End, event: Event) -> bool:
        """Make an event of what arrived; False if the mailbox has no room for it."""
        sockets = self.of(object_id)
        name, arguments = _call_of(event)
        handler = self._objects.socket_handler(object_id, name)
        if handler is None:
            _handled(sockets, end, event)
            return True
        function = handler.function
        clock = self._objects.clock

        async def handle(instance: Any, *arguments: Any) -> None:
            timeout_ms = sockets.event_timeout_ms
            if timeout_ms is None:
                await function(instance, WebSocket(end), *arguments)
                return
            async with deadline(clock, timeout_ms):
                await function(instance, WebSocket(end), *arguments)

        def done(reply: asyncio.Future[Any]) -> None:
            error = None if reply.cancelled() else reply.exception()
            if error is not None and not isinstance(error, ObjectResetError):
                log.warning(
                    "object.web_socket_failed",
                    object=repr(object_id),
                    handler=name,
                    error=f"{type(error).__name__}: {error}",
                )
            _handled(sockets, end, event)

        # The end is not among the arguments: they are measured.
        envelope = Envelope(name, handle, arguments, {})
        envelope.reply.add_done_callback(done)
        try:
            self._objects.deliver_event(
                object_id, envelope, may_overlap=handler.interleaves
            )
        except DurableActorError as error:
            envelope.reply.remove_done_callback(done)
            envelope.reply.cancel()
            log.warning(
                "object.web_socket_refused", object=repr(object_id), error=str(error)
            )
            return False
        return True


def _call_of(event: Event) -> tuple[str, tuple[Any, ...]]:
    """Return the handler of an event, and what it gets beside the socket."""
    match event:
        case Message(data):
            return "web_socket_message", (data,)
        case Close(code, reason, was_clean):
            return "web_socket_close", (code, reason, was_clean)
        case Failure(detail):
            error = WebSocketClosedError(LOST, detail, was_clean=False)
            return "web_socket_error", (error,)


def _handled(sockets: HibernatingSockets, end: End, event: Event) -> None:
    end.handled()
    if not isinstance(event, Message):
        sockets.ended(end, event)
