"""Random programs of SQL and keys, with crashes at any point, against a model.

A shard is played by a few lists: the log (segments that are not folded), what is
durable, and what is folded. A crash keeps the files (kill), or of what was not synced
only what a power cut leaves. Then the log is replayed and the file repaired, and what
it shows must be what the model had when the last durable commit was made; and what its
history gives back, what the model had then.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_actor.storage.sql import wal
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import database_path
from durable_actor.storage.sql.history import History, bookmark
from durable_actor.storage.sql.wal import WalPosition, WalSegment, wal_path

Model = tuple[tuple[tuple[int, bytes], ...], tuple[tuple[str, bytes], ...]]


@dataclass
class World:
    """One object, its shard, and what should be true of both."""

    path: Path
    repairs: bool = True
    rows: dict[int, bytes] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    # One entry for each commit since the beginning; index 0: nothing.
    models: list[Model] = field(default_factory=list)
    segments: list[WalSegment | None] = field(default_factory=list)
    durable: int = 0
    folded: int = 0
    synced: bytes = b""  # the WAL as it was at the last fold

    def __post_init__(self) -> None:
        self.models.append(self.model())
        self.segments.append(None)
        self.db = Database.open(self.path, None)
        self.history = History(self.path)

    def model(self) -> Model:
        return tuple(sorted(self.rows.items())), tuple(sorted(self.keys.items()))

    def shown(self) -> Model:
        if not self.db.exec("SELECT 1 FROM sqlite_schema WHERE name = 't'").to_list():
            return (), tuple(sorted(self.db.load().keys.items()))
        found = self.db.exec("SELECT id, v FROM t ORDER BY id").raw().to_list()
        assert self.db.exec("PRAGMA quick_check").raw().to_list() == [("ok",)]
        rows = cast("list[tuple[int, bytes]]", found)
        return tuple(rows), tuple(sorted(self.db.load().keys.items()))

    def position(self, commits: int) -> WalPosition | None:
        for segment in reversed(self.segments[: commits + 1]):
            if segment is not None:
                return segment.position
        return None

    # -- what may happen -----------------------------------------------------

    def write(self, seed: int) -> None:
        source = random.Random(seed)
        self.db.exec("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)")
        for _ in range(source.choice((1, 3, 30))):
            row = source.randrange(60)
            kind = source.random()
            if kind < 0.6:
                value = source.randbytes(source.choice((5, 800, 9_000)))
                self.db.exec("INSERT OR REPLACE INTO t VALUES (?, ?)", [row, value])
                self.rows[row] = value
            elif kind < 0.7:
                self.db.exec("DELETE FROM t WHERE id > ?", [row])
                self.rows = {k: v for k, v in self.rows.items() if k <= row}
            elif kind < 0.85:
                changes = {f"k{row}": source.randbytes(20), f"k{row + 1}": None}
                self.db.write_keys(changes)
                self.keys[f"k{row}"] = changes[f"k{row}"] or b""
                self.keys.pop(f"k{row + 1}", None)
            else:
                self.roll_back_part(row)

    def roll_back_part(self, row: int) -> None:
        self.db.begin_savepoint()
        self.db.exec("DELETE FROM t WHERE id <> ?", [row])
        self.db.write_keys({"k1": b"never"})
        self.db.rollback_savepoint()

    def turn(self, seed: int) -> None:
        self.write(seed)
        self.commit()

    def clear(self) -> None:
        self.db.clear()
        self.rows, self.keys = {}, {}

    def commit(self) -> None:
        segment = self.db.commit()
        if segment is not None:
            self.segments.append(segment)
            self.models.append(self.model())

    def become_durable(self, share: float) -> None:
        last = len(self.segments) - 1
        self.durable += round((last - self.durable) * share)

    def fold(self) -> None:
        wal.sync(self.path)
        # A fold that a crash broke off is done again from its beginning.
        for seq in range(max(1, self.folded - 3), self.durable + 1):
            segment = self.segments[seq]
            assert segment is not None
            self.history.append(segment, seq=seq, at_ms=seq)
        self.history.sync()
        self.folded = self.durable
        live = wal_path(self.path)
        self.synced = live.read_bytes() if live.exists() else b""

    def settle(self) -> bool:
        self.commit()
        self.become_durable(1)
        self.fold()
        return True

    def checkpoint(self) -> None:
        self.settle()
        self.db.checkpoint()

    def reopen(self) -> None:
        self.settle()
        position = self.position(self.durable)
        assert position == self.db.position
        self.db.close(position)
        self.synced = b""
        self.db = Database.open(self.path, position)

    def reset(self) -> None:
        """The activation breaks; what is not durable is gone."""
        self.db.abandon()
        self.come_back()

    def kill(self) -> None:
        kept = [(p, p.read_bytes()) for p in self.path.parent.iterdir()]
        self.db.abandon()
        for path, data in kept:
            path.write_bytes(data)
        self.come_back()

    def cut_power(self, seed: int) -> None:
        source = random.Random(seed)
        live = wal_path(self.path)
        data = live.read_bytes() if live.exists() else b""
        self.db.abandon()
        # Of the blocks written since the last sync, any may have reached the disk.
        blocks = []
        for place in range(0, len(data), 512):
            old = self.synced[place : place + 512].ljust(512, b"\0")
            new = data[place : place + 512]
            blocks.append(new if source.random() < 0.6 else old[: len(new)])
        size = source.randint(min(len(self.synced), len(data)), len(data))
        if live.exists():
            # A header is synced before any frame that follows it.
            torn = b"".join(blocks)[:size]
            live.write_bytes(data[:32] + torn[32:] if len(torn) > 32 else torn)
        self.come_back()

    def come_back(self) -> None:
        if self.repairs:
            live = [s for s in self.segments[self.folded + 1 : self.durable + 1] if s]
            wal.replay(self.path, live)
            self.db = Database.open(self.path, self.position(self.durable))
        else:
            position = self.position(self.durable)
            with pytest.MonkeyPatch.context() as patch:
                name = "durable_actor.storage.sql.database.repair"
                patch.setattr(name, lambda path, position: None)
                self.db = Database.open(self.path, position)
        del self.segments[self.durable + 1 :]
        del self.models[self.durable + 1 :]
        self.rows, self.keys = dict(self.models[-1][0]), dict(self.models[-1][1])
        assert self.shown() == self.models[-1]
        self.fold()

    def trim(self, seed: int) -> None:
        self.history.trim(0, bytes_max=random.Random(seed).randrange(200_000))

    def go_back(self, seed: int) -> None:
        """Restore every fourth moment that is left, from a copy of the history."""
        oldest = self.history._base_seq
        for seq in range(oldest, self.folded + 1):
            if (seq + seed) % 4:
                continue
            copy = self.path.with_name("copy.db")
            for suffix in (".base", ".redo"):
                if self.path.with_suffix(suffix).exists():
                    shutil.copy(self.path.with_suffix(suffix), copy.with_suffix(suffix))
            at = bookmark(seq, 0)
            History(copy).restore(at, seq=10**6, at_ms=0)
            db = sqlite3.connect(copy)
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
            rows, keys = self.models[seq]
            found = (
                db.execute("SELECT id, v FROM t ORDER BY id") if "t" in tables else ()
            )
            assert tuple(found) == rows
            kept = "SELECT key, value FROM _cf_KV ORDER BY key"
            assert tuple(db.execute(kept) if "_cf_KV" in tables else ()) == keys
            db.close()
            for suffix in (".db", ".base", ".redo"):
                copy.with_suffix(suffix).unlink(missing_ok=True)


SEEDS = st.integers(0, 10_000)
STEPS = st.one_of(
    *[st.tuples(st.just("turn"), SEEDS)] * 5,
    st.tuples(st.just("write"), SEEDS),
    st.tuples(st.just("commit")),
    *[st.tuples(st.just("become_durable"), st.sampled_from((0.5, 1.0)))] * 2,
    st.tuples(st.just("fold")),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("clear")),
    st.tuples(st.just("reset")),
    st.tuples(st.just("trim"), SEEDS),
    st.tuples(st.just("go_back"), st.integers(0, 3)),
    st.tuples(st.just("kill")),
    st.tuples(st.just("cut_power"), SEEDS),
)


def run(steps: list[tuple[object, ...]], *, repairs: bool = True) -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "data").mkdir()
    world = World(database_path(folder / "data", bytes(range(32))), repairs=repairs)
    try:
        for name, *arguments in [*steps, ("kill",), ("go_back", 0)]:
            getattr(world, str(name))(*arguments)
    finally:
        world.db.abandon()
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(st.lists(STEPS, min_size=10, max_size=40))
def test_whatever_happens_what_is_durable_is_there_and_nothing_else(
    steps: list[tuple[object, ...]],
) -> None:
    run(steps)


def test_without_replay_and_repair_programs_fail() -> None:
    """The control: the same kind of program, and a file opened as it lies there."""
    failed = 0
    for seed in range(8):
        source = random.Random(seed)
        steps: list[tuple[object, ...]] = []
        for _ in range(12):
            steps.append(("turn", source.randrange(10_000)))
            steps.append(("become_durable", source.choice((0.5, 1.0))))
            steps.append(source.choice([("fold",), ("kill",), ("cut_power", seed)]))
        run(steps)
        try:
            run(steps, repairs=False)
        except Exception:  # noqa: BLE001  # in whatever way
            failed += 1

    assert failed > 4
