"""Data directories with something of everything, for tests of what lies on the disk.

`python -m tests.support.relics FILE` packs one, for `tests/data/format-N.tar.gz`: the
format is that of this release, so it is run once, before the next one changes it.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from durable_actor import Config, DurableObject, EventSink, OutboxEvent
from durable_actor.config import StorageConfig
from durable_actor.testing import open_test_host

SMALL = Config(storage=StorageConfig(wal_grow_bytes=16 * 1024))


class Away:
    """A sink that takes nothing, so that events stay in the outbox."""

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        raise ConnectionError("away")


class Shelf(DurableObject):
    """Keeps keys, an alarm, events and replies in the shard."""

    event_sink: ClassVar[EventSink | None] = Away()

    async def fill(self, count: int, size_bytes: int = 60) -> int:
        for number in range(count):
            self.ctx.storage.put(f"book {number:03}", {"text": "x" * size_bytes})
        self.ctx.storage.set_alarm(1_900_000_000_000)
        self.ctx.emit({"filled": count})
        return count

    async def drop(self, number: int) -> None:
        self.ctx.storage.delete(f"book {number:03}")

    async def alarm(self) -> None:
        self.ctx.storage.put("rang", True)


class Ledger(DurableObject, storage="sqlite"):
    """Keeps rows and keys in a database of its own."""

    async def enter(self, count: int) -> int:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS line (id INTEGER PRIMARY KEY, text TEXT)")
        for number in range(count):
            sql.exec("INSERT INTO line (text) VALUES (?)", f"line {number}" * 5)
        self.ctx.storage.put("entered", count)
        return count

    async def count(self) -> int:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS line (id INTEGER PRIMARY KEY, text TEXT)")
        lines = sql.exec("SELECT count(*) AS lines FROM line").one()["lines"]
        assert isinstance(lines, int)
        return lines


async def fill(directory: Path, *, killed: bool) -> None:
    """Fill a data directory, and close it in order or leave it as a kill would."""
    live = directory.with_name(f"{directory.name}-live") if killed else directory
    async with open_test_host(live, classes=[Shelf, Ledger], config=SMALL) as test:
        shelves = test.host.namespace(Shelf)
        ledgers = test.host.namespace(Ledger)
        await shelves.get_by_name("a", request_id="r1").fill(12)
        await shelves.get_by_name("b").fill(3)
        await shelves.get_by_name("b").drop(1)
        await shelves.get_by_name("large").fill(4, 3_000)
        await shelves.get_by_name("full").fill(150, 90)
        await ledgers.get_by_name("closed").enter(20)
        await test.host.committer.fold()  # so that closing leaves no WAL behind
        if killed:
            # Closed in order, and filled again: the tables, the database, and behind
            # them what only the log and the WAL know.
            await test.host.close()
            await test.start()
            ledgers = test.host.namespace(Ledger)
            shelves = test.host.namespace(Shelf)
            await ledgers.get_by_name("closed").enter(2)
            await ledgers.get_by_name("open").enter(5)
            await test.host.committer.fold()
            await ledgers.get_by_name("open").enter(1)
            await shelves.get_by_name("c", request_id="r2").fill(5)
            await shelves.get_by_name("a").drop(2)
            shutil.copytree(live, directory)
    if killed:
        shutil.rmtree(live)


def pack(archive: Path, *, killed: bool) -> None:
    """Write a filled data directory into an archive."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "data"
        asyncio.run(fill(directory, killed=killed))
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(directory, arcname="data")


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack an archive into a directory; return the data directory."""
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory / "data"


if __name__ == "__main__":
    pack(Path(sys.argv[1]), killed="--killed" in sys.argv[2:])
