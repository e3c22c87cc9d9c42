"""A large object is read a page at a time, and what is in memory of it has a bound.

What is counted here are reads and bytes; how long they take is for the benchmarks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from durable_actor.codec import encode
from durable_actor.errors import CorruptionError, ObjectResetError, StorageLimitError
from durable_actor.storage import overlay as overlay_module
from durable_actor.storage import ports
from durable_actor.storage import shard as shard_module
from durable_actor.storage.facade import DurableObjectTransaction
from durable_actor.storage.kv import PAGE_KEYS_MAX, KeyValueLimits
from durable_actor.storage.ports import (
    ENTRY_BYTES,
    HYDRATE_BYTES_MAX,
    PAGE_BYTES_MAX,
    Group,
    KeyPage,
    Opened,
    Query,
    ReadRange,
    ShardDriver,
)
from durable_actor.storage.shard import Shard
from tests.support.owners import Disk, Owner
from tests.support.shards import group_of, load_one, open_shard, seal_of

A = TypeVar("A")
KEYS = 20_000
CACHE_BYTES_MAX = 64 * 1024


class CountingDriver:
    """Counts what is read, on the way to a driver."""

    def __init__(self, driver: ShardDriver) -> None:
        self._driver = driver
        self.reads = 0
        self.rows = 0
        self.rows_max = 0  # of one read

    @property
    def opened(self) -> Opened:
        return self._driver.opened

    async def commit(self, group: Group) -> None:
        await self._driver.commit(group)

    async def fold(self) -> None:
        await self._driver.fold()

    async def read(self, query: Query[A]) -> A:
        answer = await self._driver.read(query)
        rows = len(answer.rows) if isinstance(answer, KeyPage) else 1
        self.reads += 1
        self.rows += rows
        self.rows_max = max(self.rows_max, rows)
        return answer

    async def close(self) -> None:
        await self._driver.close()

    async def drop(self) -> None:
        await self._driver.drop()

    def forget(self) -> None:
        self.reads = self.rows = self.rows_max = 0


def name(number: int) -> str:
    return f"k{number:06}"


async def fill(disk: Disk, keys: int = KEYS) -> None:
    """Make object "a" with so many keys, through the log and the tables."""
    owner = await disk.activate()
    for first in range(0, keys, 128):
        owner.storage.put({name(n): n for n in range(first, min(first + 128, keys))})
        owner.end_turn()
    await owner.storage.sync()
    await disk.committer.fold()
    owner.overlay.break_off(ObjectResetError("evicted"))


def counted(owner: Owner) -> CountingDriver:
    """Count what an object reads from now on."""
    driver = owner.driver = CountingDriver(owner.driver)
    return driver


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "PARTIAL_CACHE_BYTES_MAX", CACHE_BYTES_MAX)


@pytest.fixture
async def big(disk: Disk, small_cache: None) -> AsyncIterator[Owner]:
    await fill(disk)
    owner = await disk.activate()
    assert not owner.overlay.complete
    yield owner


@pytest.fixture
def late_fold(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be folded unless a test asks for it."""
    monkeypatch.setattr(disk.committer, "_plan_fold", lambda: None)


# -- reading ------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_page_is_one_read_of_as_many_rows_as_it_has(
    big: Owner, reverse: bool
) -> None:
    driver = counted(big)
    for start in (0, 7_777, KEYS - 50):
        driver.forget()
        page = await big.storage.list(start=name(start), limit=50, reverse=reverse)
        expected = range(KEYS - 1, 0, -1) if reverse else range(start, KEYS)
        assert list(page.values()) == list(expected)[:50]
        assert (driver.reads, driver.rows) == (1, 50)


async def test_going_through_all_pages_reads_each_key_once(big: Owner) -> None:
    driver, last, seen = counted(big), "", 0
    while page := await big.storage.list(start_after=last, limit=1_000):
        last, seen = list(page)[-1], seen + len(page)
        assert big.overlay.size_bytes <= HYDRATE_BYTES_MAX

    assert seen == KEYS
    assert (driver.rows, driver.rows_max) == (KEYS, 1_000)


async def test_a_prefix_reads_only_its_own_range(big: Owner) -> None:
    driver = counted(big)
    found = await big.storage.list(prefix="k0123")

    assert len(found) == 100
    assert (driver.reads, driver.rows) == (1, 100)


async def test_a_list_of_everything_is_read_in_bounded_pages(big: Owner) -> None:
    driver = counted(big)
    found = await big.storage.list()

    assert list(found.values()) == list(range(KEYS))
    assert driver.rows_max == PAGE_KEYS_MAX
    assert big.overlay.size_bytes <= HYDRATE_BYTES_MAX


async def test_a_list_that_does_not_fit_in_memory_is_refused_and_says_what_to_do(
    disk: Disk,
) -> None:
    await fill(disk)
    owner = await disk.activate()
    owner.limits = KeyValueLimits(list_bytes_max=3_000 * ENTRY_BYTES)
    owner.storage._limits = owner.limits
    driver = counted(owner)

    with pytest.raises(StorageLimitError, match=r"limit= and start_after="):
        await owner.storage.list()
    assert driver.rows <= 4_000
    assert len(await owner.storage.list(limit=1_000)) == 1_000


async def test_a_page_of_large_values_is_bounded_by_its_bytes(tmp_path: Path) -> None:
    value = bytes(PAGE_BYTES_MAX // 8)
    keys: dict[str, bytes | None] = {name(n): value for n in range(20)}
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, keys)))
        await shard.fold()

        first = await shard.read(ReadRange(1, "", None, 100, False))
        assert [key for key, _ in first.rows] == [name(n) for n in range(8)]
        assert first.ended_at == name(7)
        last = await shard.read(ReadRange(1, name(12), None, 100, False))
        assert (len(last.rows), last.ended_at) == (8, None)
        alone = await shard.read(ReadRange(1, "", None, 100, True, bytes_max=1))
        assert [key for key, _ in alone.rows] == [name(19)]


async def test_a_list_over_large_values_is_whole_and_in_order(disk: Disk) -> None:
    owner = await disk.activate()
    sizes = [10, 5_000, 1_000_000, 20, 1_500_000, 1_900_000, 3_000, 1_900_000, 1]
    for number, size in enumerate(sizes):
        owner.storage.put(name(number), bytes(size))
        await owner.storage.sync()
    await disk.committer.fold()
    owner = await disk.activate()

    for reverse in (False, True):
        found = await owner.storage.list(reverse=reverse)
        assert list(found) == sorted(found, reverse=reverse)
        assert [len(found[name(n)]) for n in range(len(sizes))] == sizes


async def test_a_page_is_not_slowed_by_what_is_not_folded(
    big: Owner, late_fold: None
) -> None:
    """Thousands of newer keys wait for the fold; a page looks at its own."""
    for first in range(0, KEYS, 128):
        big.storage.put({name(n) + "new": n for n in range(first, first + 128)})
        big.end_turn()
    await big.storage.sync()
    (change,) = big.committer.pending(big.id.raw)
    assert len(change.keys) >= KEYS
    looked_at = 0
    newest = overlay_module.Overlay.known

    def counting(overlay: overlay_module.Overlay, key: str) -> object:
        nonlocal looked_at
        looked_at += 1
        return newest(overlay, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay_module.Overlay, "known", counting)
        page = await big.storage.list(start=name(500), limit=10)
    assert list(page)[:2] == [name(500), name(500) + "new"]
    assert looked_at == 10


# -- the cache ------------------------------------------------------------------


async def test_an_object_that_grows_large_does_not_stay_in_memory_whole(
    disk: Disk, small_cache: None
) -> None:
    owner = await disk.activate()
    largest = 0
    for first in range(0, KEYS, 100):
        owner.storage.put({name(n): n for n in range(first, first + 100)})
        await owner.storage.sync()
        largest = max(largest, owner.overlay.size_bytes)

    assert largest <= 2 * CACHE_BYTES_MAX
    assert not owner.overlay.complete
    assert await owner.storage.get([name(0), name(KEYS - 1), "none"]) == {
        name(0): 0,
        name(KEYS - 1): KEYS - 1,
    }
    assert list(await owner.storage.list(limit=3)) == [name(n) for n in range(3)]


async def test_reading_many_keys_in_a_transaction_keeps_to_the_bound(
    big: Owner,
) -> None:
    async def read_all(transaction: DurableObjectTransaction) -> int:
        transaction.put("written", 1)
        transaction.delete(name(3))
        largest = 0
        for first in range(0, KEYS, 100):
            found = await transaction.get([name(n) for n in range(first, first + 100)])
            assert len(found) == 100 - (first == 0)
            largest = max(largest, big.overlay.size_bytes)
        assert await transaction.get("written") == 1
        assert await transaction.get(name(3)) is None
        return largest

    assert await big.storage.transaction(read_all) <= 2 * CACHE_BYTES_MAX


async def test_deleting_keys_one_by_one_keeps_to_the_bound(big: Owner) -> None:
    for first in range(0, KEYS - 1_000, 100):
        big.storage.delete([name(n) for n in range(first, first + 100)])
        await big.storage.sync()
        assert big.overlay.size_bytes <= max(2 * CACHE_BYTES_MAX, HYDRATE_BYTES_MAX)

    assert len(await big.storage.list()) == 1_000


async def test_what_was_deleted_is_not_read_again_while_it_is_on_disk(
    disk: Disk, small_cache: None
) -> None:
    await fill(disk, 100)
    owner = await disk.activate()
    assert owner.overlay.complete
    owner.storage.delete(name(7))
    owner.storage.put({name(n): "x" * 1_000 for n in range(20, 120)})
    owner.end_turn()  # too large now, and nothing of it is durable

    assert await owner.storage.get(name(7)) is None
    await owner.storage.sync()
    owner.storage.put("one", "more")
    owner.end_turn()
    assert not owner.overlay.complete
    assert await owner.storage.get(name(7)) is None
    assert name(7) not in await owner.storage.list(limit=30)


async def test_an_object_that_deleted_everything_knows_so_until_it_is_durable(
    big: Owner,
) -> None:
    big.storage.delete_all()
    big.storage.put({name(n): "x" * 1_000 for n in range(100)})
    big.end_turn()
    big.storage.put("more", 1)
    big.end_turn()

    assert await big.storage.get(name(101)) is None
    assert len(await big.storage.list()) == 101


async def test_the_bytes_of_all_objects_are_one_sum(
    disk: Disk, small_cache: None
) -> None:
    committer = disk.committer
    value = encode(bytes(900))
    resident: list[Owner] = []
    for number in range(50):
        owner = await disk.activate(f"object {number}")
        resident.append(owner)
        for key in range(100):
            owner.overlay.put(name(key), value)
        await owner.storage.sync()
        owner.overlay.put("last", b"1")
        await owner.storage.sync()
        assert owner.overlay.size_bytes <= CACHE_BYTES_MAX
        known_bytes = sum(owner.overlay.size_bytes for owner in resident)
        assert committer.cached_bytes == known_bytes
    for owner in resident:
        owner.overlay.break_off(ObjectResetError("evicted"))
    assert committer.cached_bytes == 0


# -- being read while something happens -------------------------------------------


async def test_a_key_in_memory_is_not_dropped_under_a_read_that_wants_it(
    big: Owner,
) -> None:
    """Two reads at once; the end of one makes room, the other still has its keys."""
    storage = big.storage
    storage.put(name(0), "in memory")
    await storage.sync()
    for first in range(1_000, 1_500, 100):
        await storage.get([name(n) for n in range(first, first + 100)])
    both = asyncio.ensure_future(storage.get([name(0), name(9_000)]))
    others = [
        asyncio.ensure_future(storage.get([name(n) for n in range(k, k + 120)]))
        for k in range(2_000, 4_000, 120)
    ]
    await asyncio.sleep(0)

    assert await both == {name(0): "in memory", name(9_000): 9_000}
    await asyncio.gather(*others)


async def test_a_key_that_a_rollback_forgets_is_read_again_for_whoever_wants_it(
    big: Owner,
) -> None:
    """It was known when the read began, as the transaction beside it had written it."""
    written, undo = asyncio.Event(), asyncio.Event()

    async def write_and_undo(transaction: DurableObjectTransaction) -> None:
        transaction.put(name(9_000), "never")
        written.set()
        await undo.wait()
        transaction.rollback()

    transaction = asyncio.ensure_future(big.storage.transaction(write_and_undo))
    await written.wait()
    reading = asyncio.ensure_future(big.storage.get([name(9_000), name(9_001)]))
    await asyncio.sleep(0)
    undo.set()
    await transaction

    assert await reading == {name(9_000): 9_000, name(9_001): 9_001}


async def test_everything_deleted_in_the_middle_of_a_list_is_gone_from_it(
    big: Owner,
) -> None:
    listing = asyncio.ensure_future(big.storage.list())
    await asyncio.sleep(0)
    big.storage.delete_all()
    big.storage.put("new", 1)

    assert await listing == {"new": 1}


async def test_whether_a_key_was_there_does_not_change_when_its_deletion_is_durable(
    big: Owner,
) -> None:
    """Something else of the object is not folded yet; the deletion joins it."""
    big.storage.put("other", 1)
    await big.storage.sync()
    existed = big.storage.delete(name(9_000))
    await big.committer.wait(big.end_turn())

    assert await existed is True


# -- loading --------------------------------------------------------------------


async def test_an_object_is_loaded_whole_only_within_the_bound_of_bytes(
    tmp_path: Path,
) -> None:
    value = bytes(10_000)
    fit = HYDRATE_BYTES_MAX // (len(value) + ENTRY_BYTES + len(name(0)))
    small: dict[str, bytes | None] = {name(n): value for n in range(fit)}
    large = {**small, name(fit): value}
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, small), seal_of(2, large)))
        await shard.fold()

        whole, part = await load_one(shard, 1), await load_one(shard, 2)
        assert (whole.complete, whole.keys) == (True, small)
        assert (part.complete, part.keys) == (False, small)


async def test_the_bound_of_bytes_is_an_option(tmp_path: Path) -> None:
    async with open_shard(tmp_path, hydrate_bytes_max=1_000) as shard:
        await shard.commit(group_of(1, seal_of(1, {"a": bytes(900), "b": b""})))
        await shard.fold()
        assert (await load_one(shard, 1)).keys == {}


async def test_what_is_not_folded_does_not_load_an_object_whole(
    disk: Disk, late_fold: None
) -> None:
    owner = await disk.activate()
    for first in range(0, KEYS, 100):
        owner.storage.put({name(n): n for n in range(first, first + 100)})
        owner.end_turn()
    await owner.storage.sync()

    owner = await disk.activate()
    assert not owner.overlay.complete
    assert owner.overlay.size_bytes <= HYDRATE_BYTES_MAX
    assert await owner.storage.get(name(KEYS - 1)) == KEYS - 1
    assert list(await owner.storage.list(limit=2, reverse=True)) == [
        name(KEYS - 1),
        name(KEYS - 2),
    ]


async def test_a_checksum_is_checked_however_large_the_value(tmp_path: Path) -> None:
    sizes = (10, shard_module._INLINE_BYTES_MAX + 1, ports.PAGE_BYTES_MAX // 4)
    keys: dict[str, bytes | None] = {str(size): bytes(size) for size in sizes}
    async with open_shard(tmp_path) as shard:
        await shard.commit(group_of(1, seal_of(1, keys)))
        await shard.fold()
        for size in sizes:
            await _spoil(shard, str(size))
            with pytest.raises(CorruptionError):
                await shard.read(ReadRange(1, str(size), str(size) + "!", 9, False))


async def _spoil(shard: Shard, key: str) -> None:
    await shard._all("UPDATE kv SET crc = crc + 1 WHERE key = ?", [key])
