"""Keys in a database of their own, read and watched from outside the object."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from durable_actor import (
    Config,
    CorruptionError,
    DurableObject,
    ObjectId,
    StorageFullError,
)
from durable_actor.config import SqlConfig
from durable_actor.storage.sql.files import database_path
from durable_actor.storage.watches import DELETIONS_MAX
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Cart(DurableObject, storage="sqlite"):
    async def put(self, entries: dict[str, Any]) -> None:
        self.ctx.storage.put(entries)

    async def put_many(self, count: int) -> None:
        for n in range(count):
            self.ctx.storage.put(f"k{n:05}", n)

    async def delete_range(self, first: int, last: int) -> None:
        for n in range(first, last):
            await self.ctx.storage.delete(f"k{n:05}")

    async def put_in_transaction(self, key: str) -> None:
        async def body(txn: Any) -> None:
            txn.put(key, "inside")
            self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS t (n)")
            await self.env.entered_or_left()
            txn.put(key, "at the end")

        await self.ctx.storage.transaction(body)

    async def bookmark(self) -> str:
        return await self.ctx.storage.get_current_bookmark()

    async def go_back(self, bookmark: str) -> None:
        await self.ctx.storage.on_next_session_restore_bookmark(bookmark)
        self.ctx.abort("restart")


def cart(test: TestHost, name: str = "a") -> Cart:
    return test.host.namespace(Cart).get_by_name(name)


def cart_id(test: TestHost, name: str = "a") -> ObjectId:
    return test.host.namespace(Cart).id_from_name(name)


async def shown(test: TestHost, name: str = "a", **options: Any) -> dict[str, Any]:
    page = await test.host.stored_keys(cart_id(test, name), **options)
    return {stored.key: stored.value for stored in page.keys}


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_keys_of_an_object_that_sleeps_are_shown_and_nobody_wakes(
    tmp_path: Path,
) -> None:
    async with open_test_host(tmp_path) as test:
        await cart(test).put({"a": 1, "b": 2})
        assert await test.host.evict(cart_id(test))
        assert await shown(test) == {"a": 1, "b": 2}
        assert not test.host.stats().objects_resident
        await cart(test).put({"c": 3})
        assert await shown(test, prefix="c") == {"c": 3}


async def test_a_page_of_a_sleeping_object_leaves_its_files_as_they_were(
    tmp_path: Path,
) -> None:
    async with open_test_host(tmp_path) as test:
        await cart(test).put({"a": 1})
        await test.host.drop()  # its WAL is not checkpointed
        folder = database_path(tmp_path, cart_id(test).raw).parent

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    async with open_test_host(tmp_path) as test:
        before = files()
        assert any(name.endswith("-wal") for name in before)
        assert await shown(test) == {"a": 1}
        assert files() == before


async def test_frames_that_never_became_durable_are_not_shown(tmp_path: Path) -> None:
    async with open_test_host(tmp_path) as test:
        await cart(test).put({"a": 1})
        take_over(test.host).pause()
        call = asyncio.ensure_future(cart(test).put({"a": "lost", "b": 2}))
        await steps(20)
        await test.host.drop()
        await results([call])
    async with open_test_host(tmp_path) as test:
        assert await shown(test) == {"a": 1}
        await cart(test).put({"c": 3})
        assert await shown(test) == {"a": 1, "c": 3}


async def test_what_is_read_in_memory_is_shown_once_it_is_durable() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1})
        driver = take_over(test.host)
        driver.pause()
        call = asyncio.ensure_future(cart(test).put({"late": True}))
        await steps(20)
        reading = asyncio.ensure_future(shown(test))
        await steps(20)
        assert not reading.done()
        driver.resume()
        assert await reading == {"a": 1, "late": True}
        await call


async def test_what_failed_to_commit_is_read_again_as_it_was_before() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1})
        driver = take_over(test.host)
        driver.failures.append(StorageFullError("commit", "full"))
        driver.pause()
        call = asyncio.ensure_future(cart(test).put({"a": "lost"}))
        await steps(20)
        reading = asyncio.ensure_future(shown(test))
        await steps(20)
        driver.resume()
        assert await reading == {"a": 1}
        (failed,) = await results([call])
        assert isinstance(failed, StorageFullError)


async def test_an_open_transaction_is_waited_for_and_shown_whole() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def entered_or_left() -> None:
        entered.set()
        await leave.wait()

    env = {"entered_or_left": entered_or_left}
    async with open_test_host(env=env) as test:
        await cart(test).put({"a": 1})
        call = asyncio.ensure_future(cart(test).put_in_transaction("a"))
        await entered.wait()
        reading = asyncio.ensure_future(shown(test))
        await steps(50)
        assert not reading.done()
        leave.set()
        assert await reading == {"a": "at the end"}
        await call


async def test_a_reader_too_slow_for_the_deletions_reads_the_state_anew() -> None:
    count = DELETIONS_MAX + 500
    async with open_test_host() as test:
        await cart(test).put_many(count)
        changes = cart(test).watch("k")
        await cart(test).delete_range(0, DELETIONS_MAX + 1)
        await cart(test).put({"k": "new", "other": 1})
        change = await anext(changes)
        assert change.cleared
        rest = {f"k{n:05}": n for n in range(DELETIONS_MAX + 1, count)}
        assert change.changed == {"k": "new", **rest}


@pytest.mark.parametrize("is_in_memory", [True, False])
async def test_what_changes_while_the_state_is_read_anew_is_not_missed(
    *, is_in_memory: bool
) -> None:
    count = DELETIONS_MAX + 3_000
    async with open_test_host() as test:
        await cart(test).put_many(count)
        for n in range(0, 40, 3):  # at another moment of the reading each time
            changes = cart(test).watch()
            changes.reread(0)
            if not is_in_memory:
                await test.host.evict(cart_id(test))
            reading = asyncio.ensure_future(anext(changes))
            await steps(n)
            await cart(test).put({"k00001": n, f"k{count - 1:05}": n})
            change = await reading
            assert change.cleared
            copy = dict(change.changed)
            while changes._news.is_set():
                copy |= (await anext(changes)).changed
            assert copy["k00001"] == copy[f"k{count - 1:05}"] == n
            assert len(copy) == count


async def test_a_restored_object_is_told_whole() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1, "b": 1})
        bookmark = await cart(test).bookmark()
        await cart(test).put({"a": 2, "c": 2})
        changes = cart(test).watch()
        await results([cart(test).go_back(bookmark)])
        await cart(test).put({"d": 3})
        copy: dict[str, Any] = {"a": 2, "b": 1, "c": 2}
        while changes._news.is_set():
            change = await anext(changes)
            copy = {**({} if change.cleared else copy), **change.changed}
        assert copy == {"a": 1, "b": 1, "d": 3}


async def test_pages_of_many_sleeping_objects_keep_to_the_bound_of_open_files() -> None:
    config = Config(sql=SqlConfig(open_max=2))
    async with open_test_host(config=config) as test:
        names = [f"cart {n}" for n in range(10)]
        for name in names:
            await cart(test, name).put({"name": name})
        found = await asyncio.gather(*(shown(test, name) for name in names))
        assert found == [{"name": name} for name in names]
        for name in names:
            await test.host.evict(cart_id(test, name))
        found = await asyncio.gather(*(shown(test, name) for name in names * 2))
        assert found == [{"name": name} for name in names * 2]


async def test_damage_of_a_sleeping_object_is_told(tmp_path: Path) -> None:
    async with open_test_host(tmp_path) as test:
        await cart(test).put({"a": "x" * 100})
        await test.host.committer.fold()
        assert await test.host.evict(cart_id(test))  # and its WAL is checkpointed
        path = database_path(tmp_path, cart_id(test).raw)
    whole = path.read_bytes()
    damaged = whole.replace(b"x" * 50, b"y" * 50)
    assert damaged != whole
    path.write_bytes(damaged)
    async with open_test_host(tmp_path) as test:
        with pytest.raises(CorruptionError, match="checksum"):
            await shown(test)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("seed", range(4))
async def test_reading_beside_all_that_opens_and_closes_disturbs_nobody(
    seed: int,
) -> None:
    """Eviction, abort, deletion and restart at every moment of a reader's way."""
    chance = random.Random(seed)
    async with open_test_host() as test:
        version = 0
        is_done = False

        async def read_all_the_time() -> int:
            count, seen = 0, 0
            while not is_done:
                found = (await shown(test)).get("version", 0)
                assert found >= seen or found == 0, (found, seen)  # 0: deleted
                seen, count = found, count + 1
                await steps(chance.randrange(4))
            return count

        readers = [asyncio.ensure_future(read_all_the_time()) for _ in range(3)]
        for _ in range(60):
            match chance.randrange(6):
                case 0:
                    await test.host.evict(cart_id(test))
                case 1:
                    await test.host.delete(cart_id(test))
                case 2:
                    bookmark = await cart(test).bookmark()
                    await results([cart(test).go_back(bookmark)])
                case 3:
                    version += 1
                    call = asyncio.ensure_future(cart(test).put({"version": version}))
                    await steps(chance.randrange(6))
                    await test.host.evict(cart_id(test))
                    await call
                case _:
                    version += 1
                    await cart(test).put({"version": version})
                    assert await shown(test) == {"version": version}
            await steps(chance.randrange(8))
        is_done = True
        assert min(await asyncio.gather(*readers)) > 0
