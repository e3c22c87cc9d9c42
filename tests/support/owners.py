"""One object's storage without its activation: load, write, end turns, evict, crash."""

from __future__ import annotations

from pathlib import Path

from durable_actor.errors import ObjectResetError, StorageError
from durable_actor.ids import IdSpace
from durable_actor.storage.batch import EventRow
from durable_actor.storage.committer import Committer
from durable_actor.storage.facade import DurableObjectStorage
from durable_actor.storage.kv import KeyValueLimits, LargeObject
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import Loaded, ShardDriver
from durable_actor.storage.shard import Shard
from durable_actor.testing import ManualClock
from tests.support.shards import shard_options


class Owner:
    """What `StorageOwner` asks for. Turns end when the test says so."""

    def __init__(
        self, committer: Committer, driver: ShardDriver, loaded: Loaded, name: str
    ) -> None:
        self.id = IdSpace("Thing").from_name(name)
        self.committer = committer
        self.driver = driver
        self.clock = ManualClock()
        self.limits = KeyValueLimits()
        self.has_alarm_handler = True
        self.holds = 0  # of the input gate
        self.writes = 0  # how often a turn's end was asked for
        self.overlay = Overlay(committer, self.id, "Thing", loaded)
        self.storage = DurableObjectStorage(self.overlay, self)

    async def bookmark(self, at_ms: int | None) -> str:
        raise NotImplementedError(at_ms)

    def wrote(self, *, is_confirmed: bool = True) -> None:
        del is_confirmed
        self.writes += 1

    def end_turn(self) -> int:
        return self.overlay.seal(self.clock)

    async def wait_durable(self, ticket: int) -> None:
        await self.committer.wait(ticket)

    def large_object(self) -> LargeObject:
        return LargeObject(self.committer, self.driver, self.overlay, self.id.raw)

    def hold_input(self) -> None:
        self.holds += 1

    def release_input(self) -> None:
        assert self.holds > 0
        self.holds -= 1


class Disk:
    """A directory with a shard, opened and crashed as often as a test likes."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.options = shard_options(directory, wal_grow_bytes=0, **changes)
        self.shard: Shard
        self.committer: Committer
        self.failures: list[StorageError] = []
        self.events: list[EventRow] = []

    async def open(self) -> None:
        self.shard = await Shard.open(self.options)
        self.committer = Committer(
            self.shard,
            on_failure=lambda error, _: self.failures.append(error),
            on_events=self.events.extend,
        )

    async def activate(self, name: str = "a") -> Owner:
        """Load an object; what it held before must be settled."""
        object_id = IdSpace("Thing").from_name(name)
        loaded = await self.committer.load(object_id.raw)
        return Owner(self.committer, self.shard, loaded, name)

    async def crash(self) -> None:
        """Close without folding or flushing."""
        await self.committer.drop()

    async def close(self) -> None:
        await self.committer.close()


def broken() -> ObjectResetError:
    """Return what a reset object says."""
    return ObjectResetError("reset by the test")
