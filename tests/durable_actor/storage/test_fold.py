"""Folding gives the tables that playing the seals one by one would give."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from durable_actor.storage import fold
from durable_actor.storage.batch import (
    AlarmRow,
    EventRow,
    ObjectRow,
    ReplyRow,
    Seal,
    encode_batch,
)
from durable_actor.storage.integrity import value_crc
from durable_actor.storage.schema import CREATE

Tables = dict[str, dict[Any, Any]]


def object_row(raw: int, used_at_ms: int = 0, **attributes: str) -> ObjectRow:
    return ObjectRow(
        id=bytes([raw]) * 32,
        object_class="Thing",
        name=f"thing {raw}",
        created_at_ms=raw,
        used_at_ms=used_at_ms,
        attributes=attributes,
    )


class Model:
    """The tables as plain dicts, played seal by seal."""

    def __init__(self) -> None:
        self.tables: Tables = {
            name: {} for name in ("object", "kv", "alarm", "outbox", "reply")
        }

    def play(self, seal: Seal) -> None:
        objects, kv = self.tables["object"], self.tables["kv"]
        alarms, replies = self.tables["alarm"], self.tables["reply"]
        if seal.cleared or seal.deleted:
            for place in [place for place in kv if place[0] == seal.num]:
                del kv[place]
        if seal.deleted:
            objects.pop(seal.num, None)
            alarms.pop(seal.num, None)
            for place in [place for place in replies if place[0] == seal.num]:
                del replies[place]
        for key, value in seal.keys.items():
            if value is None:
                kv.pop((seal.num, key), None)
            else:
                kv[seal.num, key] = (value, value_crc(seal.num, key, value))
        if seal.row is not None:
            objects[seal.num] = seal.row
        if seal.alarm is None:
            alarms.pop(seal.num, None)
        elif seal.alarm is not UNSET:
            alarms[seal.num] = seal.alarm
        for reply in seal.replies:
            replies[seal.num, reply.request_id] = reply
            if not reply.reply:
                del replies[seal.num, reply.request_id]
        for event in seal.events:
            self.tables["outbox"][event.seq] = event
        for seq in seal.delivered:
            self.tables["outbox"].pop(seq, None)


class Disk:
    """The tables in SQLite, folded chunk by chunk."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in CREATE:
            self.db.execute(statement)

    def fold(self, log: Iterable[bytes], crash_after: int | None = None) -> bool:
        """Fold; did it get to the end?"""
        for number, statements in enumerate(fold.chunks(fold.merge(log))):
            if number == crash_after:
                return False
            returned = fold.CHUNK_ROWS_MAX
            while returned == fold.CHUNK_ROWS_MAX:
                self.db.execute("BEGIN")
                returned = sum(
                    len(self.db.execute(sql, parameters).fetchall())
                    for sql, parameters in statements
                )
                self.db.execute("COMMIT")
        return True

    @property
    def tables(self) -> Tables:
        return {
            "object": {
                row[0]: ObjectRow(
                    row[1],
                    row[2],
                    row[3],
                    row[4],
                    row[5],
                    msgspec.json.decode(row[6], type=dict[str, str]),
                )
                for row in self._rows("object", 7)
            },
            "kv": {row[:2]: row[2:] for row in self._rows("kv", 4)},
            "alarm": {row[0]: AlarmRow(*row[1:]) for row in self._rows("alarm", 5)},
            "outbox": {row[0]: EventRow(*row) for row in self._rows("outbox", 4)},
            "reply": {
                (row[0], row[1]): ReplyRow(*row[1:]) for row in self._rows("reply", 4)
            },
        }

    def _rows(self, table: str, columns: int) -> list[tuple[Any, ...]]:
        """Return the rows of a table without their checksums."""
        rows = self.db.execute(f"SELECT * FROM {table}")
        return [row[:columns] for row in rows]


# What a turn may write. Which object number it is written under, and the places in the
# outbox, are filled in by `seals`, as the committer would.
turns = st.fixed_dictionaries(
    {
        "object": st.integers(1, 3),
        "keys": st.dictionaries(
            st.sampled_from("abcdef"), st.none() | st.binary(min_size=1, max_size=3)
        ),
        "cleared": st.booleans(),
        "deleted": st.sampled_from([False, False, False, True]),
        "alarm": st.just(UNSET)
        | st.none()
        | st.builds(AlarmRow, st.integers(1, 9), st.integers(1, 9)),
        "events": st.integers(0, 2),
        "replies": st.lists(
            st.builds(
                ReplyRow,
                st.sampled_from("xyz"),
                st.binary(max_size=2),
                st.integers(1, 9),
            ),
            max_size=2,
        ),
        "delivers": st.booleans(),
    }
)


def seals(turns: Iterable[dict[str, Any]]) -> list[Seal]:
    nums: dict[int, int] = {}
    last_num, last_event = 0, 0
    waiting: list[int] = []
    result = []
    for number, turn in enumerate(turns):
        raw = turn["object"]
        row = None
        if raw not in nums:
            last_num += 1
            nums[raw] = last_num
            row = object_row(raw, number, turn=str(number))
        if turn["deleted"]:
            result.append(Seal(num=nums.pop(raw), deleted=True))
            continue
        events = []
        for _ in range(turn["events"]):
            last_event += 1
            events.append(EventRow(last_event, bytes([raw]) * 32, "Thing", b"event"))
            waiting.append(last_event)
        result.append(
            Seal(
                num=nums[raw],
                keys=turn["keys"],
                cleared=turn["cleared"],
                row=row,
                alarm=turn["alarm"],
                events=tuple(events),
                replies=tuple(turn["replies"]),
            )
        )
        if turn["delivers"] and waiting:
            result.append(Seal(num=0, delivered=(waiting.pop(0),)))
    return result


@settings(max_examples=120)
@given(
    turns=st.lists(turns, max_size=25),
    plan=st.lists(st.tuples(st.integers(1, 8), st.none() | st.integers(0, 6))),
)
def test_any_turns_folded_in_any_parts_with_any_crashes_give_the_same_tables(
    turns: list[dict[str, Any]], plan: list[tuple[int, int | None]]
) -> None:
    """`plan`: after so many seals a fold, which crashes before that chunk, or does not.

    After a crash the log is whole, so the next fold begins at its start.
    """
    model, disk = Model(), Disk()
    log: list[bytes] = []
    left = seals(turns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "CHUNK_ROWS_MAX", 2)
        for count, crash_after in [*plan, (len(left), None)]:
            part, left = left[:count], left[count:]
            for seal in part:
                model.play(seal)
            if part:
                log.append(encode_batch(part))
            if disk.fold(log, crash_after):
                log = []
                assert disk.tables == model.tables
    assert disk.tables == model.tables


@settings(max_examples=50)
@given(turns=st.lists(turns, max_size=20))
def test_folding_twice_is_the_same_as_once(turns: list[dict[str, Any]]) -> None:
    disk = Disk()
    log = [encode_batch([seal]) for seal in seals(turns)]

    disk.fold(log)
    once = disk.tables
    disk.fold(log)

    assert disk.tables == once


@settings(max_examples=50)
@given(turns=st.lists(turns, max_size=20), cut=st.integers(0, 20))
def test_a_change_laid_over_another_is_the_change_of_both(
    turns: list[dict[str, Any]], cut: int
) -> None:
    for num in (1, 2, 3, 4):
        mine = [seal for seal in seals(turns) if seal.num == num]
        whole, earlier, later = (fold.ObjectChange() for _ in range(3))
        for place, seal in enumerate(mine):
            whole.add(seal)
            (earlier if place < cut else later).add(seal)
        both = earlier.lay_over(later)

        for name in ("alarm", "cleared", "deleted", "keys", "row"):
            assert getattr(both, name) == getattr(whole, name), name
        assert (both.replies or []) == (whole.replies or [])


def test_no_transaction_holds_more_rows_than_the_bound() -> None:
    many = range(2 * fold.CHUNK_ROWS_MAX + 1)
    log = [
        encode_batch(
            [
                Seal(num=1, keys={f"{n:05}": b"v" for n in many}, row=object_row(1)),
                Seal(num=2, keys={f"{n:05}": None for n in many}),
                *(Seal(num=3 + n, alarm=AlarmRow(1, 1), cleared=True) for n in many),
            ]
        )
    ]
    disk = Disk()

    for statements in fold.chunks(fold.merge(log)):
        rows = 0
        for sql, parameters in statements:
            disk.db.execute(sql, parameters)
            # Without the sums that triggers keep, one for each row at most.
            rows += disk.db.execute("SELECT changes()").fetchone()[0]
        assert rows <= fold.CHUNK_ROWS_MAX

    assert len(disk.tables["kv"]) == len(many)
    assert len(disk.tables["alarm"]) == len(many)
