"""Folding: from the log's batches to rows of the tables.

Theory of operation
    A batch says what changed; a table row says what is. `merge` plays batches in order
    and keeps, for each object, only the newest of everything. `chunks` turns the result
    into statements, sorted so that neighbouring rows share pages, a bounded number of
    rows to a transaction so that no commit waits long behind one. Folding the same
    batches twice gives the same tables, so a crash between two chunks needs no repair:
    the log is folded again from its start.

    A statement carries many rows, because what costs is not the row but each time the
    storage thread has to win the interpreter lock back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from durable_actor.storage.batch import (
    AlarmRow,
    DatabaseTurn,
    EventRow,
    ObjectRow,
    ReplyRow,
    Seal,
    decode_batch,
)
from durable_actor.storage.integrity import fields_crc, value_crc
from durable_actor.storage.order import KeyOrder
from durable_actor.storage.sql.wal import WalPosition

CHUNK_ROWS_MAX = 512  # a chunk this size delays a commit by a few milliseconds
CHUNK_BYTES_MAX = 1024 * 1024  # so does one with values of this size together

Parameter: TypeAlias = int | str | bytes | None
Statement: TypeAlias = tuple[str, list[Parameter]]
_Row = TypeVar("_Row")


class ObjectChange:
    """The newest of everything that some seals say about one object."""

    __slots__ = (
        "_order",
        "alarm",
        "cleared",
        "deleted",
        "keys",
        "num",
        "position",
        "replies",
        "restore",
        "row",
    )

    def __init__(self) -> None:
        self.num = 0
        self.keys: dict[str, bytes | None] = {}
        self.cleared = False
        self.deleted = False
        self.row: ObjectRow | None = None
        self.alarm: AlarmRow | UnsetType | None = UNSET
        self.replies: list[ReplyRow] | None = None
        self.position: WalPosition | None = None  # where the database's WAL ends
        self.restore: str | None = None  # see DatabaseTurn
        self._order: KeyOrder | None = None

    def keys_between(
        self, start: str, end: str | None, *, reverse: bool = False
    ) -> Iterator[str]:
        """Return the keys in [start, end), in order; those that are gone, too."""
        if self._order is None:
            self._order = KeyOrder(self.keys)
        return self._order.between(start, end, reverse=reverse)

    def add(self, seal: Seal) -> None:
        """Play one later seal on top."""
        self.num = seal.num
        if seal.cleared or seal.deleted:
            self.cleared = True
            self.keys = dict(seal.keys)
            self._order = None
        elif seal.keys:
            self.keys.update(seal.keys)
            if self._order is not None:
                for key in seal.keys:
                    self._order.note(key)
        if seal.deleted:
            self.deleted = True
            self.row = None
            self.alarm = None
            self.replies = None
            self.position = None
            self.restore = None
        if seal.row is not None:
            self.row = seal.row
        if seal.alarm is not UNSET:
            self.alarm = seal.alarm
        if seal.replies:
            if self.replies is None:
                self.replies = []
            self.replies += seal.replies
        if seal.database is not None:
            self._add_database(seal.database)

    def _add_database(self, turn: DatabaseTurn) -> None:
        if turn.segment is not None:
            self.position = turn.segment.position
        if turn.restore is not None:
            self.restore = turn.restore

    def lay_over(self, later: ObjectChange) -> ObjectChange:
        """Return a new change: this one, then `later` on top."""
        result = ObjectChange()
        for change in (self, later):
            result.num = change.num
            if change.cleared:
                result.cleared = True
                result.keys = dict(change.keys)
            else:
                result.keys.update(change.keys)
            if change.deleted:
                result.deleted = True
                result.row, result.replies = None, None
                result.position, result.restore = None, None
            result.row = change.row if change.row is not None else result.row
            if change.alarm is not UNSET:
                result.alarm = change.alarm
            if change.replies:
                result.replies = [*(result.replies or ()), *change.replies]
            if change.position is not None:
                result.position = change.position
            if change.restore is not None:
                result.restore = change.restore
        return result


@dataclass(slots=True)
class Merged:
    """What the tables must say after some batches."""

    objects: dict[int, ObjectChange] = field(default_factory=dict)
    events: list[EventRow] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    # The turns of objects with a database, each with its ticket.
    databases: dict[int, list[tuple[int, DatabaseTurn]]] = field(default_factory=dict)
    # The ids of objects with a database that were deleted; before any turn above.
    deleted_databases: list[bytes] = field(default_factory=list)

    def play(self, batch: bytes, first_ticket: int = 0) -> None:
        """Play one later batch on top."""
        objects = self.objects
        for ticket, seal in enumerate(decode_batch(batch), first_ticket):
            if seal.deleted:
                self.databases.pop(seal.num, None)
                if seal.database is not None:
                    self.deleted_databases.append(seal.database.id)
            elif seal.database is not None:
                turns = self.databases.setdefault(seal.num, [])
                turns.append((ticket, seal.database))
            if seal.num:
                change = objects.get(seal.num)
                if change is None:
                    change = objects[seal.num] = ObjectChange()
                change.add(seal)
            self.events.extend(seal.events)
            self.delivered.extend(seal.delivered)


def merge(batches: Iterable[bytes]) -> Merged:
    """Play batches in order and return the newest of everything."""
    merged = Merged()
    for batch in batches:
        merged.play(batch)
    return merged


def chunks(merged: Merged) -> Iterator[list[Statement]]:
    """Yield the statements of one transaction after the other.

    A transaction that returns as many rows as a chunk may have is to be repeated: what
    it removes is bounded too.
    """
    nums = sorted(merged.objects)
    gone = [num for num in nums if merged.objects[num].deleted]
    cleared = [num for num in nums if merged.objects[num].cleared]
    for part in _parts(cleared):
        sql = (
            f"DELETE FROM kv WHERE rowid IN (SELECT rowid FROM kv WHERE object IN"
            f" ({_marks(part)}) LIMIT {CHUNK_ROWS_MAX}) RETURNING 1"
        )
        yield [(sql, [*part])]
    for part in _parts(gone):
        marks = _marks(part)
        yield [
            (f"DELETE FROM object WHERE num IN ({marks})", [*part]),
            (f"DELETE FROM alarm WHERE object IN ({marks})", [*part]),
            (f"DELETE FROM reply WHERE object IN ({marks})", [*part]),
            (f"DELETE FROM database WHERE object IN ({marks})", [*part]),
            (f"DELETE FROM digest WHERE object IN ({marks}) AND rows = 0", [*part]),
        ]
    yield from _key_chunks(merged, nums)
    yield from _row_chunks(merged, nums)
    yield from _alarm_chunks(merged, nums)
    yield from _reply_chunks(merged, nums)
    yield from _database_chunks(merged, nums)
    yield from _outbox_chunks(merged)


def _key_chunks(merged: Merged, nums: Sequence[int]) -> Iterator[list[Statement]]:
    dropped: list[tuple[int, str]] = []
    stored: list[tuple[int, str, bytes]] = []
    for num in nums:
        keys = merged.objects[num].keys
        for key in sorted(keys):
            value = keys[key]
            if value is None:
                dropped.append((num, key))
            else:
                stored.append((num, key, value))
    for drops in _parts(dropped):
        pairs = ",".join(["(?,?)"] * len(drops))
        sql = f"DELETE FROM kv WHERE (object, key) IN (VALUES {pairs})"
        yield [(sql, [item for pair in drops for item in pair])]
    for rows in _parts(stored, lambda row: len(row[2])):
        sql = (
            "INSERT INTO kv (object, key, value, crc) VALUES"
            f" {_tuples(4, len(rows))} ON CONFLICT (object, key)"
            " DO UPDATE SET value = excluded.value, crc = excluded.crc"
        )
        values: list[Parameter] = []
        for num, key, value in rows:
            values += (num, key, value, value_crc(num, key, value))
        yield [(sql, values)]


def _row_chunks(merged: Merged, nums: Sequence[int]) -> Iterator[list[Statement]]:
    lines = [(num, row) for num in nums if (row := merged.objects[num].row) is not None]
    for rows in _parts(lines):
        sql = (
            "INSERT INTO object (num, id, class, name, created_at_ms, used_at_ms,"
            f" attributes, crc) VALUES {_tuples(8, len(rows))} ON CONFLICT (num) DO"
            " UPDATE SET id = excluded.id, class = excluded.class,"
            " name = excluded.name, created_at_ms = excluded.created_at_ms,"
            " used_at_ms = excluded.used_at_ms, attributes = excluded.attributes,"
            " crc = excluded.crc"
        )
        values: list[Parameter] = []
        for num, row in rows:
            attributes = msgspec.json.encode(row.attributes).decode()
            line = (
                *(num, row.id, row.object_class, row.name),
                *(row.created_at_ms, row.used_at_ms, attributes),
            )
            values += (*line, fields_crc(*line))
        yield [(sql, values)]


def _alarm_chunks(merged: Merged, nums: Sequence[int]) -> Iterator[list[Statement]]:
    dropped = [num for num in nums if merged.objects[num].alarm is None]
    for part in _parts(dropped):
        yield [(f"DELETE FROM alarm WHERE object IN ({_marks(part)})", [*part])]
    alarms = [
        (num, alarm)
        for num in nums
        if isinstance(alarm := merged.objects[num].alarm, AlarmRow)
    ]
    for rows in _parts(alarms):
        sql = (
            "INSERT INTO alarm (object, due_at_ms, scheduled_at_ms, retries, counted,"
            f" crc) VALUES {_tuples(6, len(rows))} ON CONFLICT (object) DO UPDATE SET"
            " due_at_ms = excluded.due_at_ms, scheduled_at_ms ="
            " excluded.scheduled_at_ms, retries = excluded.retries,"
            " counted = excluded.counted, crc = excluded.crc"
        )
        values: list[Parameter] = []
        for num, alarm in rows:
            times = (num, alarm.due_at_ms, alarm.scheduled_at_ms)
            line = (*times, alarm.retries, alarm.counted)
            values += (*line, fields_crc(*line))
        yield [(sql, values)]


def _reply_chunks(merged: Merged, nums: Sequence[int]) -> Iterator[list[Statement]]:
    newest = {
        (num, reply.request_id): reply
        for num in nums
        for reply in merged.objects[num].replies or ()
    }
    dropped = [key for key, reply in newest.items() if not reply.reply]
    for drops in _parts(dropped):
        pairs = ",".join(["(?,?)"] * len(drops))
        sql = f"DELETE FROM reply WHERE (object, request) IN (VALUES {pairs})"
        yield [(sql, [item for pair in drops for item in pair])]
    replies = [(num, reply) for (num, _), reply in newest.items() if reply.reply]
    for rows in _parts(replies, lambda row: len(row[1].reply)):
        sql = (
            "INSERT INTO reply (object, request, reply, expires_at_ms, crc)"
            f" VALUES {_tuples(5, len(rows))} ON CONFLICT (object, request) DO UPDATE"
            " SET reply = excluded.reply, expires_at_ms = excluded.expires_at_ms,"
            " crc = excluded.crc"
        )
        values: list[Parameter] = []
        for num, reply in rows:
            line = (num, reply.request_id, reply.reply, reply.expires_at_ms)
            values += (*line, fields_crc(*line))
        yield [(sql, values)]


def _database_chunks(merged: Merged, nums: Sequence[int]) -> Iterator[list[Statement]]:
    changed = [
        (num, change)
        for num in nums
        if (change := merged.objects[num]).position is not None
        or change.restore is not None
    ]
    for rows in _parts(changed):
        sql = (
            "INSERT INTO database (object, generation, wal_end, wal_crc, crc, restore,"
            f" restore_crc) VALUES {_tuples(7, len(rows))} ON CONFLICT (object) DO"
            " UPDATE SET"
            " generation = ifnull(excluded.generation, generation),"
            " wal_end = ifnull(excluded.wal_end, wal_end),"
            " wal_crc = ifnull(excluded.wal_crc, wal_crc),"
            " crc = ifnull(excluded.crc, crc),"
            " restore = ifnull(excluded.restore, restore),"
            " restore_crc = ifnull(excluded.restore_crc, restore_crc)"
        )
        values: list[Parameter] = []
        for num, change in rows:
            values.append(num)
            if (position := change.position) is None:
                values += (None, None, None, None)
            else:
                place = (position.generation, position.end, position.crc)
                values += (*place, fields_crc(num, *place))
            restore = change.restore
            values.append(restore)
            values.append(None if restore is None else fields_crc(num, restore))
        yield [(sql, values)]


def _outbox_chunks(merged: Merged) -> Iterator[list[Statement]]:
    arrived = set(merged.delivered)
    waiting = [event for event in merged.events if event.seq not in arrived]
    for rows in _parts(waiting, lambda event: len(event.data)):
        sql = (
            "INSERT INTO outbox (seq, id, class, event, crc)"
            f" VALUES {_tuples(5, len(rows))} ON CONFLICT (seq) DO UPDATE SET"
            " id = excluded.id, class = excluded.class, event = excluded.event,"
            " crc = excluded.crc"
        )
        values: list[Parameter] = []
        for event in rows:
            line = (event.seq, event.id, event.object_class, event.data)
            values += (*line, fields_crc(*line))
        yield [(sql, values)]
    for part in _parts(merged.delivered):
        yield [(f"DELETE FROM outbox WHERE seq IN ({_marks(part)})", [*part])]


def _parts(
    rows: Sequence[_Row], weight: Callable[[_Row], int] | None = None
) -> Iterator[Sequence[_Row]]:
    """Cut rows where a chunk has enough of them, or enough bytes."""
    start, size_bytes = 0, 0
    for place, row in enumerate(rows):
        row_bytes = 0 if weight is None else weight(row)
        is_full = size_bytes + row_bytes > CHUNK_BYTES_MAX and place > start
        if is_full or place - start == CHUNK_ROWS_MAX:
            yield rows[start:place]
            start, size_bytes = place, 0
        size_bytes += row_bytes
    if start < len(rows):
        yield rows[start:]


def _marks(rows: Sequence[object]) -> str:
    return ",".join("?" * len(rows))


def _tuples(width: int, count: int) -> str:
    one = "(" + ",".join("?" * width) + ")"
    return ",".join([one] * count)
