"""WebSockets as an object holds them: pairs of ends, tags, attachments.

Theory of operation
    A `WebSocketPair` has two ends; what is sent at one arrives at the other. The object
    keeps one and returns the other in its response. Whoever gets that one, a caller in
    this process or the daemon with a connection behind it, is the client.

    `ctx.accept_web_socket` makes the object's end *hibernatable* (see `hibernation`):
    what arrives there becomes an event of the object, and wakes it. A
    `WebSocket` is only a handle: each activation gets its own, and two handles of one
    end are equal.

Promises
    Messages arrive in the order they were sent, and the close after them.
    What an object sends leaves through its output gate.
    What waits at an end is bounded; a reader that is too slow loses the connection.

Does not know activations, mailboxes, HTTP or frames.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, TypeAlias

from durable_actor import codec
from durable_actor.clock import to_datetime
from durable_actor.errors import (
    StorageLimitError,
    WebSocketClosedError,
    WebSocketMisuseError,
)

ATTACHMENT_BYTES_MAX: Final = 16_384  # Durable Objects' own limit, as is the next
AUTO_RESPONSE_BYTES_MAX: Final = 2_048
REASON_BYTES_MAX: Final = 123  # what a close frame has room for
UNDER_WAY_MAX: Final = (
    16  # messages of one socket in the mailbox before its reader waits
)

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
NO_STATUS: Final = 1005
LOST: Final = 1006
TOO_LARGE: Final = 1009
BROKEN: Final = 1011
TRY_AGAIN_LATER: Final = 1013
_CODE_MIN, _CODE_MAX = 1000, 4999
_UNSENDABLE_CODES = frozenset({1004, NO_STATUS, LOST, 1015})
_LOST_REASON = "WebSocket disconnected without sending Close frame."

Gate: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs an effect once what it rests on is durable."""


class ReadyState(IntEnum):
    """How far a WebSocket has come; the numbers are those of the browser's."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class Message:
    """Something was sent."""

    data: str | bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The other side sends nothing more."""

    code: int
    reason: str = ""
    was_clean: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """The connection broke its rules, and is over."""

    detail: str


Event: TypeAlias = Message | Close | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketBounds:
    """How large a message may be, and how much may wait for a slow reader."""

    message_bytes_max: int = 1_048_576
    queue_messages_max: int = 1_024
    queue_bytes_max: int = 4 * 1_048_576
    sockets_max: int = 32_768  # of one object


DEFAULT_BOUNDS: Final = SocketBounds()


class End:
    """One end of a pair: what has arrived at it, and who takes it."""

    __slots__ = (
        "_arrived",
        "_arrived_bytes",
        "_room",
        "_waiter",
        "attachment",
        "auto_responded_at_ms",
        "bounds",
        "gate",
        "has_closed",
        "is_accepted",
        "is_wired",
        "listener",
        "on_closed",
        "peer",
        "peer_has_closed",
        "tags",
        "under_way",
    )

    def __init__(self) -> None:
        self.peer: End
        self.bounds = DEFAULT_BOUNDS
        self.gate: Gate | None = None  # None: nothing has to be durable first
        self.is_accepted = False
        self.is_wired = False  # a connection answers a close, not this end by itself
        self.tags: tuple[str, ...] | None = None  # None: not hibernatable
        self.attachment: bytes | None = None
        self.auto_responded_at_ms: int | None = None
        self.has_closed = False
        self.peer_has_closed = False
        self.under_way = 0  # events of this end that the object has not handled yet
        self.listener: Callable[[Event], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self._arrived: deque[Event] = deque()
        self._arrived_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def ready_state(self) -> ReadyState:
        """How far the closing is."""
        closed = self.has_closed + self.peer_has_closed
        return (ReadyState.OPEN, ReadyState.CLOSING, ReadyState.CLOSED)[closed]

    def let_out(self, effect: Callable[[], None]) -> None:
        """Run an effect once what it rests on is durable."""
        if self.gate is None:
            effect()
        else:
            self.gate(effect)

    def send(self, data: str | bytes) -> None:
        """Let a message arrive at the other end."""
        self.peer.arrive(Message(data))

    def close(self, last: Close | Failure) -> None:
        """Say that nothing more comes from here."""
        self.has_closed = True
        self.peer.arrive(last)
        self._tell_closed()

    def arrive(self, event: Event) -> None:
        """Take what the other end, or the connection behind it, says."""
        if self.peer_has_closed:
            return
        if not isinstance(event, Message):
            self.peer_has_closed = True
            self._tell_closed()
        if self.listener is not None:
            self.listener(event)
            return
        if isinstance(event, Message):
            self._arrived_bytes += len(event.data)
        self._arrived.append(event)
        if (
            len(self._arrived) > self.bounds.queue_messages_max
            or self._arrived_bytes > self.bounds.queue_bytes_max
        ):
            self._overflow()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if isinstance(event, Close) and not self.has_closed and not self.is_wired:
            self.close(Close(event.code, event.reason))

    def take_arrived(self) -> list[Event]:
        """Empty what waits here, for a listener that comes later."""
        arrived, self._arrived, self._arrived_bytes = list(self._arrived), deque(), 0
        return arrived

    async def next(self) -> Event:
        """Return what arrived first, once something has."""
        while not self._arrived:
            if self._waiter is not None and not self._waiter.done():
                message = "somebody else waits for this WebSocket already"
                raise WebSocketMisuseError(message)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._arrived[0]
        if isinstance(event, Message):
            self._arrived_bytes -= len(event.data)
            self._arrived.popleft()
        return event  # an end stays, for whoever asks again

    async def room(self) -> None:
        """Return once the object has handled enough of what came here."""
        while self.under_way >= UNDER_WAY_MAX and not self.has_closed:
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room])

    def handled(self) -> None:
        """Note that the object is through with one event of this end."""
        self.under_way -= 1
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _overflow(self) -> None:
        """Give a reader up that is too slow; both sides hear of it."""
        self._arrived.clear()
        self._arrived_bytes = 0
        reason = "the reader is too slow"
        self._arrived.append(Close(TRY_AGAIN_LATER, reason, was_clean=False))
        self.peer_has_closed = self.has_closed = True
        self.peer.has_closed = True
        self.peer.arrive(Close(TRY_AGAIN_LATER, reason, was_clean=False))
        self._tell_closed()

    def _tell_closed(self) -> None:
        self._make_room()
        if self.has_closed and self.peer_has_closed and self.on_closed is not None:
            on_closed, self.on_closed = self.on_closed, None
            on_closed()


class WebSocket:
    """One end of a WebSocket, as its holder sees it.

    Two handles of the same end are equal. An end that is not hibernatable is read with
    `receive`, or with `async for`.
    """

    __slots__ = ("__weakref__", "_end")

    def __init__(self, end: End) -> None:
        self._end = end

    @property
    def ready_state(self) -> ReadyState:
        """How far it has come: open, closing or closed."""
        return self._end.ready_state

    def accept(self) -> None:
        """Use this end in memory: the object is not evicted before it is closed.

        Raises:
            WebSocketMisuseError: It is hibernatable.
        """
        if self._end.tags is not None:
            message = (
                "Can't accept() WebSocket that was already used with"
                " `acceptWebSocket()`."
            )
            raise WebSocketMisuseError(message)
        self._end.is_accepted = True

    def send(self, message: str | bytes) -> None:
        """Send a message: text, or bytes. It acts at once; there is no need to await.

        It leaves when everything this object wrote before is durable. Once the other
        side has closed, nothing is sent.

        Raises:
            WebSocketMisuseError: This end was closed, or not accepted before.
            StorageLimitError: The message is too large.
        """
        end = self._end
        self._check_accepted()
        if end.has_closed and end.peer_has_closed:
            return  # gone meanwhile
        if end.has_closed:
            text = "Can't call WebSocket send() after close()."
            raise WebSocketMisuseError(text)
        data = message if isinstance(message, str) else _as_bytes(message)
        size = len(data.encode()) if isinstance(data, str) else len(data)
        if size > end.bounds.message_bytes_max:
            detail = f"{size} bytes; at most {end.bounds.message_bytes_max} are allowed"
            raise StorageLimitError("send", detail)
        end.let_out(lambda: end.send(data))

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Close this end; messages sent before still arrive.

        Raises:
            ValueError: Not a code or reason that a close frame can carry.
        """
        if code is None:
            code = NORMAL
        elif not _CODE_MIN <= code <= _CODE_MAX or code in _UNSENDABLE_CODES:
            message = f"Invalid WebSocket close code: {code}."
            raise ValueError(message)
        if len(reason.encode()) > REASON_BYTES_MAX:
            message = f"a close reason has at most {REASON_BYTES_MAX} bytes of UTF-8"
            raise ValueError(message)
        self._check_accepted()
        end = self._end
        if end.has_closed:
            return
        end.has_closed = True
        end.let_out(lambda: end.close(Close(code, reason)))

    async def receive(self) -> str | bytes:
        """Return the next message.

        Raises:
            WebSocketClosedError: No more comes; says why.
            WebSocketMisuseError: It is hibernatable; its messages are events.
        """
        if self._end.tags is not None:
            message = (
                "the messages of a hibernatable WebSocket are events; write"
                " `async def web_socket_message(self, ws, message)`"
            )
            raise WebSocketMisuseError(message)
        self._end.is_accepted = True
        match await self._end.next():
            case Message(data):
                return data
            case Close(code, reason, was_clean):
                raise WebSocketClosedError(code, reason, was_clean=was_clean)
            case Failure(detail):
                raise WebSocketClosedError(LOST, detail, was_clean=False)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Yield messages until the other side closes, or is lost."""
        while True:
            try:
                yield await self.receive()
            except WebSocketClosedError:
                return

    def serialize_attachment(self, value: Any) -> None:
        """Keep a value with the socket, for as long as it is open.

        Raises:
            EncodeError: The value cannot be kept exactly.
            StorageLimitError: It takes more than 16,384 bytes.
        """
        data = codec.encode(value)
        if len(data) > ATTACHMENT_BYTES_MAX:
            detail = (
                "A WebSocket 'attachment' cannot be larger than"
                f" {ATTACHMENT_BYTES_MAX} bytes. 'attachment' was {len(data)} bytes."
            )
            raise StorageLimitError("serialize_attachment", detail)
        self._end.attachment = data

    def deserialize_attachment(self) -> Any:
        """Return what was kept last, or None."""
        data = self._end.attachment
        return None if data is None else codec.decode(data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WebSocket):
            return NotImplemented
        return self._end is other._end

    def __hash__(self) -> int:
        return hash(self._end)

    def __repr__(self) -> str:
        return f"WebSocket({self.ready_state.name.lower()})"

    def _check_accepted(self) -> None:
        if not self._end.is_accepted:
            message = (
                "You must call one of accept() or ctx.accept_web_socket() on this"
                " WebSocket before sending messages."
            )
            raise WebSocketMisuseError(message)

    serializeAttachment = serialize_attachment
    deserializeAttachment = deserialize_attachment
    readyState = property(lambda self: self.ready_state)


class WebSocketPair(Sequence[WebSocket]):
    """Two ends that talk to each other: `client, server = WebSocketPair()`."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        client, server = End(), End()
        client.peer, server.peer = server, client
        self._ends = (WebSocket(client), WebSocket(server))

    def __getitem__(self, index: Any) -> Any:
        return self._ends[index]

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[WebSocket]:
        return iter(self._ends)


class WebSocketRequestResponsePair:
    """A message, and what is answered to it without waking the object."""

    __slots__ = ("request", "response")

    def __init__(self, request: str, response: str) -> None:
        self.request = _short_text("Request", request)
        self.response = _short_text("Response", response)

    def __repr__(self) -> str:
        return f"WebSocketRequestResponsePair({self.request!r}, {self.response!r})"


def tags_of(socket: WebSocket) -> list[str]:
    """Return the tags of a hibernatable socket.

    Raises:
        WebSocketMisuseError: It is not hibernatable.
    """
    tags = socket._end.tags  # noqa: SLF001  # of this module
    if tags is None:
        message = (
            "you must call 'acceptWebSocket()' before attempting to access the tags of"
            " a WebSocket."
        )
        raise WebSocketMisuseError(message)
    return list(tags)


def auto_responded_at(socket: WebSocket) -> datetime | None:
    """Return when a socket was last answered without its object."""
    at_ms = socket._end.auto_responded_at_ms  # noqa: SLF001  # of this module
    return None if at_ms is None else to_datetime(at_ms)


def end_of(socket: WebSocket) -> End:
    """Return what a handle stands for."""
    return socket._end  # noqa: SLF001  # of this module


def lost() -> Close:
    """Return what is said of a connection that ended without a word."""
    return Close(LOST, _LOST_REASON, was_clean=False)


def _short_text(what: str, text: str) -> str:
    size = len(text.encode())
    if size > AUTO_RESPONSE_BYTES_MAX:
        message = (
            f"{what} cannot be larger than {AUTO_RESPONSE_BYTES_MAX} bytes."
            f" A {what.lower()} of size {size} was provided."
        )
        raise ValueError(message)
    return text


def _as_bytes(message: object) -> bytes:
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    text = f"a message is text or bytes, not {type(message).__name__}"
    raise TypeError(text)
