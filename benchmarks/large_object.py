"""What does an operation on an object of a million keys cost, next to a thousand?

Two objects in one directory: one of 1,000 keys, and one of 1,000,000 (100,000 with
`--quick`, where a million would take longer to make than all else to measure). The
same work is done on both in turn, on keys that are not in memory: each round begins
with a new activation.

    get    one key, read from the disk
    page   `list` from somewhere in the middle, with a limit of 100
    put    20 keys in one turn, until it is durable
    fold   bringing those puts into the tables, later and beside other work
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Answer, Scale, data_directory, take_turns
from durable_actor import DurableObject, Host
from durable_actor.codec import encode
from durable_actor.ids import IdSpace
from durable_actor.storage.batch import ObjectRow, Seal, encode_batch
from durable_actor.storage.integrity import prepare_directory
from durable_actor.storage.ports import Group, ShardOptions
from durable_actor.storage.shard import Shard
from durable_actor.storage.store import SHARD_NAME

KEYS = 1_000_000
KEYS_QUICK = 100_000
BASELINE_KEYS = 1_000
_FROM = 600  # behind the keys that an activation brings along
_GETS = 200
_PAGES = 20
_PAGE_KEYS = 100
_TURNS = 10
_TURN_KEYS = 20
_GROUP_KEYS = 20_000


class Shelf(DurableObject):
    """Many keys in one object; its methods tell how many microseconds they took."""

    async def get(self, keys: Sequence[str]) -> float:
        """Return what one key costs that is read by itself."""
        started = time.perf_counter()
        for key in keys:
            assert await self.ctx.storage.get(key) is not None
        return (time.perf_counter() - started) * 1e6 / len(keys)

    async def page(self, keys: Sequence[str]) -> float:
        """Return what a page costs that begins at a key."""
        started = time.perf_counter()
        for key in keys:
            page = await self.ctx.storage.list(start=key, limit=_PAGE_KEYS)
            assert len(page) == _PAGE_KEYS
        return (time.perf_counter() - started) * 1e6 / len(keys)

    async def put(self, turns: Sequence[Sequence[str]]) -> float:
        """Return what a turn of puts costs until it is durable."""
        started = time.perf_counter()
        for keys in turns:
            self.ctx.storage.put(dict.fromkeys(keys, 1))
            await self.ctx.storage.sync()
        return (time.perf_counter() - started) * 1e6 / len(turns)


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return the medians of both objects, in microseconds."""
    keys = KEYS_QUICK if scale.is_quick else KEYS
    rng = random.Random(0)
    with data_directory() as folder:
        await fill(folder / "data", keys)
        async with Host(folder / "data", classes=[Shelf]) as host:
            work = _Work(host, rng)
            return {
                f"large_object_{what}_vs_1000_keys": await take_turns(
                    scale,
                    "us",
                    lambda what=what: work.of(what, keys),  # type: ignore[misc]
                    lambda what=what: work.of(what, BASELINE_KEYS),  # type: ignore[misc]
                )
                for what in ("get", "page", "put", "fold")
            }


class _Work:
    """One round of each kind, on the object of so many keys."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self._host = host
        self._rng = rng

    async def of(self, what: str, keys: int) -> float:
        """Return the cost of one operation, in microseconds."""
        host, rng = self._host, self._rng
        await host.committer.fold()
        shelves = host.namespace(Shelf)
        shelf, object_id = (
            shelves.get_by_name(str(keys)),
            shelves.id_from_name(str(keys)),
        )
        await shelf.get([_name(0)])  # it may have been let go of
        await host.evict(object_id)
        if what == "get":
            some = rng.sample(range(_FROM, keys), _GETS)
            return await shelf.get([_name(number) for number in some])
        if what == "page":
            some = [rng.randrange(_FROM, keys - _PAGE_KEYS) for _ in range(_PAGES)]
            return await shelf.page([_name(number) for number in some])
        some = rng.sample(range(keys), _TURNS * _TURN_KEYS)
        names = [_name(number) for number in some]
        turns = [names[n : n + _TURN_KEYS] for n in range(0, len(names), _TURN_KEYS)]
        put_us = await shelf.put(turns)
        if what == "put":
            return put_us
        started = time.perf_counter()
        await host.committer.fold()
        return (time.perf_counter() - started) * 1e6 / len(names)


async def fill(directory: Path, keys: int) -> None:
    """Write both objects, through the log and its fold as a host would."""
    prepare_directory(directory)
    path = str(directory / SHARD_NAME)
    # Nothing crashes here, so nothing has to be synced before the end.
    shard = await Shard.open(ShardOptions(path=path, synchronous="OFF"))
    ids = IdSpace(Shelf.__name__)
    ticket = 0
    for num, count in ((1, BASELINE_KEYS), (2, keys)):
        row = ObjectRow(ids.from_name(str(count)).raw, Shelf.__name__, str(count), 0, 0)
        for first in range(0, count, _GROUP_KEYS):
            some = range(first, min(first + _GROUP_KEYS, count))
            values = {_name(number): encode(number) for number in some}
            ticket += 1
            batch = encode_batch([Seal(num=num, keys={**values}, row=row)])
            await shard.commit(Group(ticket, ticket, batch))
            await shard.fold()
    await shard.close()


def _name(number: int) -> str:
    return f"key-{number:07}"
