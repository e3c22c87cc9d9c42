"""Event streams: changes of an object's state as Server-Sent Events, and back.

One event is one change, with its ticket as the event's id. Its data is JSON:
`{"ticket", "changed", "deleted", "cleared"}`, where the values of `changed` are shown
as JSON, or, for the client library, as base64 of exactly the bytes that are stored. A
comment now and then tells both sides that the other is there.

    event: change       something changed
    event: deleted      the object is gone, and with it the stream
    event: closed       the daemon ends the stream; the data says why, as a problem does
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import msgspec

MEDIA_TYPE: Final = "text/event-stream"
HEARTBEAT: Final = b": still here\n\n"
HEARTBEAT_SECONDS: Final = 15.0
SILENCE_SECONDS: Final = 60.0  # some heartbeats were lost: nobody is there any more
EXACT_VALUES: Final = "exact"
_END: Final = b"\n\n"


class ChangeData(msgspec.Struct, frozen=True, kw_only=True):
    """The data of one change; `changed` as the caller asked for it."""

    ticket: int
    changed: dict[str, msgspec.Raw]
    deleted: list[str]
    cleared: bool


class ExactChange(msgspec.Struct, frozen=True, kw_only=True):
    """The same, for who reads the stored bytes."""

    ticket: int
    changed: dict[str, bytes]
    deleted: list[str] = []
    cleared: bool = False


class ClosedData(msgspec.Struct, frozen=True, kw_only=True):
    """Why the daemon ended the stream."""

    code: str
    detail: str


class Event(msgspec.Struct, frozen=True):
    """One event as it came."""

    name: str
    data: bytes


def write_event(name: str, data: object, ticket: int | None = None) -> bytes:
    """Return the bytes of one event."""
    head = "" if ticket is None else f"id: {ticket}\n"
    # JSON of msgspec is one line.
    return f"{head}event: {name}\ndata: ".encode() + msgspec.json.encode(data) + _END


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event | None]:
    """Yield events as they come; None for what only says that someone is there."""
    rest = bytearray()
    searched = 0
    async for chunk in chunks:
        rest += chunk
        while (end := rest.find(_END, searched)) >= 0:
            block = bytes(rest[:end])
            del rest[: end + len(_END)]
            searched = 0
            yield _event(block)
        searched = max(len(rest) - 1, 0)


def _event(block: bytes) -> Event | None:
    name, data = "", b""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b": ")
        if field == b"event":
            name = value.decode()
        elif field == b"data":
            data = value
    return Event(name, data) if name else None
