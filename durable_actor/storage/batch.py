"""What is written: seals, gathered into the batch of one group commit.

A seal is one turn's writes of one object, an atomic unit. A batch is the bytes of all
seals of a group; as one row of the log it is on disk or it is not, so nothing here can
be half done.

None of these can be part of a cycle, so the garbage collector need not look at them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

from durable_actor.errors import DecodeError
from durable_actor.storage.sql.wal import WalSegment

# Field names as they are stored: one letter, since every seal repeats them.
_SHORT = {
    "num": "o",
    "keys": "k",
    "cleared": "c",
    "deleted": "d",
    "row": "r",
    "alarm": "a",
    "events": "e",
    "replies": "p",
    "delivered": "x",
    "database": "q",
}


class AlarmRow(Struct, frozen=True, array_like=True, gc=False):
    """An object's alarm: when to fire, what it was set for, and how often it failed."""

    due_at_ms: int
    scheduled_at_ms: int
    retries: int = 0  # all tries after the first, whatever ended them
    counted: int = 0  # those that the handler is to blame for


class ObjectRow(Struct, frozen=True, array_like=True, gc=False):
    """An object's line in the directory."""

    id: bytes
    object_class: str
    name: str | None
    created_at_ms: int
    used_at_ms: int
    attributes: dict[str, str] = {}


class ReplyRow(Struct, frozen=True, array_like=True, gc=False):
    """The kept answer to one request identity."""

    request_id: str
    reply: bytes  # empty: it is dropped
    expires_at_ms: int


class EventRow(Struct, frozen=True, array_like=True, gc=False):
    """One event on its way to the sink of its class."""

    seq: int  # place in the shard's outbox
    id: bytes
    object_class: str
    data: bytes


class DatabaseTurn(Struct, frozen=True, array_like=True, gc=False):
    """What a turn did in the object's own database, if its class has one."""

    id: bytes
    at_ms: int
    segment: WalSegment | None = None  # the pages it changed
    # The bookmark to go back to when the object next starts; "" for none after all.
    restore: str | None = None


class Seal(Struct, omit_defaults=True, rename=_SHORT, gc=False):
    """One turn's writes of one object; all of it becomes durable, or nothing.

    `cleared` comes before `keys`: what the object held is gone, then the keys follow.
    A value of None deletes its key.
    """

    num: int
    keys: dict[str, bytes | None] = {}
    cleared: bool = False
    deleted: bool = False  # the object itself goes, its directory line too
    row: ObjectRow | None = None
    alarm: AlarmRow | UnsetType | None = UNSET
    events: tuple[EventRow, ...] = ()
    replies: tuple[ReplyRow, ...] = ()
    delivered: tuple[int, ...] = ()  # places in the outbox that have arrived
    database: DatabaseTurn | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Seal])


def encode_batch(seals: Sequence[Seal]) -> bytes:
    """Return the bytes of one group."""
    return _encoder.encode(seals)


def decode_batch(batch: bytes) -> list[Seal]:
    """Return the seals of one group.

    Raises:
        DecodeError: Not a batch; the log is damaged or of another format.
    """
    try:
        return _decoder.decode(batch)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"a row of the log is not a batch: {error}"
        raise DecodeError(message) from error
