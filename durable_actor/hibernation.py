"""Hibernation: the sockets of an object that stay open while it is not in memory.

They belong to the host, and outlive activations. What arrives at one becomes an event
of the object; what its auto-response answers does not.

Does not know activations, mailboxes or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from durable_actor.errors import WebSocketMisuseError
from durable_actor.websockets import (
    BROKEN,
    DEFAULT_BOUNDS,
    TRY_AGAIN_LATER,
    Close,
    End,
    Event,
    Gate,
    Message,
    SocketBounds,
    WebSocket,
    WebSocketRequestResponsePair,
    end_of,
)

TAGS_MAX: Final = 10  # Durable Objects' own limit, as are the next two
TAG_CHARACTERS_MAX: Final = 256
EVENT_TIMEOUT_MS_MAX: Final = 604_800_000  # a week


class HibernatingSockets:
    """The hibernatable sockets of one object.

    They belong to the host, and outlive activations.

    Args:
        deliver: Makes an event of what arrived at an end; tells whether it was taken.
        gate: The object's output gate, or none while it is not in memory.
        now_ms: The host's clock.
        bounds: Of each socket, and of their number.
    """

    def __init__(
        self,
        deliver: Callable[[End, Event], bool],
        gate: Gate,
        now_ms: Callable[[], int],
        bounds: SocketBounds = DEFAULT_BOUNDS,
    ) -> None:
        self._deliver = deliver
        self._gate = gate
        self._now_ms = now_ms
        self._bounds = bounds
        self._ends: dict[End, None] = {}  # in the order they were accepted
        self.auto_response: WebSocketRequestResponsePair | None = None
        self.event_timeout_ms: int | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def accept(self, socket: WebSocket, tags: Iterable[str]) -> None:
        """Take an end; what arrives there becomes events.

        Raises:
            WebSocketMisuseError: It was accepted before, or the tags are too many.
        """
        end = end_of(socket)
        if end.is_accepted:
            message = (
                "Cannot call `acceptWebSocket()` if the WebSocket was already accepted"
                " via `accept()`"
            )
            raise WebSocketMisuseError(message)
        distinct = _check_tags(tags)
        if len(self._ends) >= self._bounds.sockets_max:
            message = (
                f"only {self._bounds.sockets_max} websockets can be accepted on a"
                " single Durable Object instance"
            )
            raise WebSocketMisuseError(message)
        end.is_accepted = True
        end.tags = distinct
        end.bounds = end.peer.bounds = self._bounds
        end.gate = self._gate
        self._ends[end] = None
        end.listener = lambda event: self._arrived(end, event)
        for event in end.take_arrived():
            self._arrived(end, event)

    def with_tag(self, tag: str | None) -> list[End]:
        """Return the sockets that have a tag, or all, in the order of acceptance."""
        return [end for end in self._ends if tag is None or tag in (end.tags or ())]

    def forget(self, end: End) -> None:
        """Let go of a socket; nothing of it becomes an event any more."""
        self._ends.pop(end, None)
        end.listener = _ignore

    def close_all(self, code: int, reason: str) -> None:
        """Close every socket, without an event: the object is gone, or is going."""
        ends, self._ends = self._ends, {}
        for end in ends:
            end.listener = _ignore
            end.peer_has_closed = True
            end.close(Close(code, reason))

    def _arrived(self, end: End, event: Event) -> None:
        pair = self.auto_response
        if pair is not None and event == Message(pair.request):
            end.auto_responded_at_ms = self._now_ms()
            if not end.has_closed:
                end.send(pair.response)
            return
        end.under_way += 1
        if self._deliver(end, event):
            return
        end.handled()
        if isinstance(event, Message):
            self.forget(end)
            end.peer_has_closed = True
            end.close(Close(TRY_AGAIN_LATER, "the object has too much to do"))
        else:
            self.ended(end, event)

    def ended(self, end: End, event: Event) -> None:
        """Finish the closing handshake, once the object has been told."""
        if not end.has_closed:
            code = event.code if isinstance(event, Close) else BROKEN
            end.close(Close(code, event.reason if isinstance(event, Close) else ""))
        self.forget(end)


def _ignore(event: Event) -> None:
    """Take no notice: the socket is closed."""


def _check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        message = f"tags are a list of texts, not the text {tags!r:.80}"
        raise WebSocketMisuseError(message)
    distinct = tuple(dict.fromkeys(tags))
    if len(distinct) > TAGS_MAX:
        message = f"a Hibernatable WebSocket cannot have more than {TAGS_MAX} tags"
        raise WebSocketMisuseError(message)
    for tag in distinct:
        if not isinstance(tag, str):
            message = f"a tag is a text, not {tag!r:.80}"
            raise WebSocketMisuseError(message)
        if len(tag) > TAG_CHARACTERS_MAX:
            message = (
                f'"{tag}" is longer than the max tag length'
                f" ({TAG_CHARACTERS_MAX} characters)."
            )
            raise WebSocketMisuseError(message)
    return distinct
