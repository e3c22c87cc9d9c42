"""`host.stored_keys()`: what an object has stored, for people, without waking it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durable_actor import (
    CorruptionError,
    DurableObject,
    HostClosedError,
    InvalidIdError,
    ObjectId,
    StorageFullError,
    StoredKey,
    StoredPage,
    encode,
)
from durable_actor.storage import committer as committer_module
from durable_actor.storage.ports import PAGE_BYTES_MAX, Query, ReadRange
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import PausableDriver, take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

MANY = 2_000  # too many to be loaded at once


@dataclass
class Line:
    count: int
    at: datetime


class Cart(DurableObject):
    async def put(self, entries: dict[str, Any]) -> None:
        self.ctx.storage.put(entries)

    async def put_line(self) -> None:
        self.ctx.storage.put("line", Line(2, datetime(2030, 1, 1, tzinfo=UTC)))

    async def fill(self, size_bytes: int = 1) -> None:
        for n in range(MANY):
            self.ctx.storage.put(f"k{n:05}", "x" * size_bytes)

    async def delete(self, *keys: str) -> None:
        await self.ctx.storage.delete(list(keys))

    async def delete_range(self, first: int, last: int) -> None:
        for n in range(first, last):
            await self.ctx.storage.delete(f"k{n:05}")

    async def empty(self) -> None:
        self.ctx.storage.delete_all()

    async def remind(self) -> None:
        self.ctx.storage.set_alarm(timedelta(hours=1))

    async def alarm(self) -> None: ...


class SqlCart(Cart, storage="sqlite"):
    """The same, with its keys in a database of its own."""


class Chosen:
    cls: type[Cart] = Cart


@pytest.fixture(params=[Cart, SqlCart], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both kinds of objects."""
    monkeypatch.setattr(Chosen, "cls", request.param)


only_in_the_shard = pytest.mark.parametrize("kind", [Cart], indirect=True)
only_in_a_database = pytest.mark.parametrize("kind", [SqlCart], indirect=True)


@pytest.fixture
def late_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what is durable in the log."""
    monkeypatch.setattr(committer_module, "_IDLE_FOLD_SECONDS", 3_600)


def cart(test: TestHost, name: str = "a") -> Cart:
    return test.host.namespace(Chosen.cls).get_by_name(name)


def cart_id(test: TestHost, name: str = "a") -> ObjectId:
    return test.host.namespace(Chosen.cls).id_from_name(name)


async def shown(test: TestHost, **options: Any) -> dict[str, Any]:
    page = await test.host.stored_keys(cart_id(test), **options)
    assert page.cursor is None
    return {stored.key: stored.value for stored in page.keys}


async def all_pages(test: TestHost, **options: Any) -> list[StoredPage]:
    pages = [await test.host.stored_keys(cart_id(test), **options)]
    while (cursor := pages[-1].cursor) is not None:
        page = await test.host.stored_keys(cart_id(test), cursor=cursor, **options)
        pages.append(page)
    return pages


def keys_of(pages: list[StoredPage]) -> list[str]:
    return [stored.key for page in pages for stored in page.keys]


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_keys_come_in_order_with_value_and_size(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        await cart(test).put({"b": [1, None], "a": 1.5, "ä": b"\x00", "": "first"})
        page = await test.host.stored_keys(cart_id(test))
        assert page == StoredPage(
            exists=True,
            keys=[
                StoredKey(key="", value="first", size_bytes=len(encode("first"))),
                StoredKey(key="a", value=1.5, size_bytes=len(encode(1.5))),
                StoredKey(key="b", value=[1, None], size_bytes=len(encode([1, None]))),
                StoredKey(key="ä", value="AA==", size_bytes=len(encode(b"\x00"))),
            ],
            cursor=None,
        )


async def test_neither_the_class_nor_an_activation_is_needed(tmp_path: Path) -> None:
    async with open_test_host(tmp_path) as test:
        await cart(test).put_line()
    async with open_test_host(tmp_path) as test:
        (listed,) = (await test.host.list_objects()).objects
        assert test.host.class_names == []
        page = await test.host.stored_keys(listed.id)
        assert test.host.stats().activated == 0
    assert page.keys[0].value == {
        "type": f"{Line.__module__}:Line",
        "count": 2,
        "at": "2030-01-01T00:00:00+00:00",
    }


@pytest.mark.usefixtures("late_fold")
@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("is_large", [False, True])
async def test_what_is_durable_is_shown_folded_or_not(
    is_folded: bool, is_large: bool
) -> None:
    async with open_test_host() as test:
        if is_large:
            await cart(test).fill()
            await test.host.committer.fold()
        await cart(test).put({"a": 1, "line:1": 1, "line:2": 2, "line:3": 3})
        await cart(test).put({"line:2": "changed"})
        await cart(test).delete("line:3")
        if is_folded:
            await test.host.committer.fold()
        assert await shown(test, prefix="line:") == {"line:1": 1, "line:2": "changed"}
        assert len(keys_of(await all_pages(test))) == 3 + (MANY if is_large else 0)
        await cart(test).empty()
        assert await shown(test) == {}
        await cart(test).put({"new": 1})
        assert await shown(test) == {"new": 1}


@only_in_the_shard
async def test_what_is_not_durable_yet_is_not_shown() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1})
        driver = take_over(test.host)
        driver.pause()
        call = asyncio.ensure_future(cart(test).put({"late": True}))
        while test.host.committer.last_ticket == test.host.committer.durable_ticket:
            await asyncio.sleep(0)
        assert await shown(test) == {"a": 1}
        driver.resume()
        await call
        assert await shown(test) == {"a": 1, "late": True}


async def test_what_failed_to_commit_is_not_shown_and_a_full_disk_is_read() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1})
        take_over(test.host).failures.append(StorageFullError("commit", "full"))
        await results([cart(test).put({"lost": 1})])
        assert test.host.state == "full"
        assert await shown(test) == {"a": 1}


@pytest.mark.usefixtures("late_fold")
@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("count", [10, MANY])
async def test_pages_follow_each_other_and_miss_nothing(
    count: int, is_folded: bool
) -> None:
    async with open_test_host() as test:
        for first in range(0, count, 100):
            numbers = range(first, min(first + 100, count))
            await cart(test).put({f"k{n:05}": n for n in numbers})
        if is_folded:
            await test.host.committer.fold()
        await cart(test).put({"k00003+": 1})
        await cart(test).delete("k00001", "k00008")
        limit = count // 3
        pages = await all_pages(test, limit=limit)
        expected = {f"k{n:05}" for n in range(count)} | {"k00003+"}
        assert keys_of(pages) == sorted(expected - {"k00001", "k00008"})
        assert all(1 <= len(page.keys) <= limit for page in pages[:-1])


@pytest.mark.usefixtures("late_fold")
async def test_keys_that_were_just_deleted_leave_no_empty_page() -> None:
    async with open_test_host() as test:
        await cart(test).fill()
        await test.host.committer.fold()
        await cart(test).delete_range(0, 500)
        page = await test.host.stored_keys(cart_id(test), limit=100)
        assert [stored.key for stored in page.keys] == [
            f"k{n:05}" for n in range(500, 600)
        ]
        await cart(test).delete_range(500, MANY)
        assert await shown(test, limit=100) == {}


@pytest.mark.usefixtures("late_fold")
@pytest.mark.parametrize("is_folded", [False, True])
async def test_a_page_of_large_values_ends_early(is_folded: bool) -> None:
    async with open_test_host() as test:
        for n in range(12):
            await cart(test).put({f"large:{n:02}": "x" * 300_000})
        if is_folded:
            await test.host.committer.fold()
        pages = await all_pages(test, limit=1_000)
        assert [len(page.keys) for page in pages] == [4, 4, 4]
        assert keys_of(pages) == [f"large:{n:02}" for n in range(12)]


class Reading(PausableDriver):
    """Keeps the ranges that were asked for."""

    def __init__(self, driver: Any) -> None:
        super().__init__(driver)
        self.ranges: list[ReadRange] = []

    async def read(self, query: Query[Any]) -> Any:
        if isinstance(query, ReadRange):
            self.ranges.append(query)
        return await super().read(query)


@only_in_the_shard
async def test_no_more_is_read_than_a_page() -> None:
    async with open_test_host() as test:
        await cart(test).fill()
        await test.host.committer.fold()
        driver = Reading(test.host.driver)
        test.host.driver = driver
        page = await test.host.stored_keys(cart_id(test), limit=7)
        assert len(page.keys) == 7
        (asked,) = driver.ranges
        assert asked.limit == 7
        assert asked.bytes_max < PAGE_BYTES_MAX


async def test_an_object_that_stored_nothing_does_not_exist() -> None:
    async with open_test_host() as test:
        nothing = StoredPage(exists=False, keys=[], cursor=None)
        assert await test.host.stored_keys(cart_id(test, "never")) == nothing
        await cart(test).put({"a": 1})
        await test.host.delete(cart_id(test))
        assert await test.host.stored_keys(cart_id(test)) == nothing


async def test_an_object_with_only_an_alarm_exists() -> None:
    async with open_test_host() as test:
        await cart(test).remind()
        page = await test.host.stored_keys(cart_id(test))
        assert page == StoredPage(exists=True, keys=[], cursor=None)


@only_in_the_shard
@pytest.mark.usefixtures("late_fold")
async def test_a_value_that_cannot_be_read_hides_no_other() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1, "b": 2})
        (change,) = test.host.committer.pending(cart_id(test).raw)
        change.keys["a"] = b"\xff of a later release"
        first, second = (await test.host.stored_keys(cart_id(test))).keys
        assert (first.key, first.value, first.size_bytes) == ("a", None, 20)
        assert first.unreadable
        assert (second.value, second.unreadable) == (2, None)


@only_in_the_shard
async def test_damage_on_the_disk_is_told() -> None:
    async with open_test_host() as test:
        await cart(test).put({"a": 1})
        await test.host.committer.fold()
        shard: Any = test.host.driver
        while not hasattr(shard, "_all"):
            shard = getattr(shard, "_shard", None) or shard._driver
        await shard._all("UPDATE kv SET crc = crc + 1 WHERE key = 'a'")
        with pytest.raises(CorruptionError, match="'a'"):
            await test.host.stored_keys(cart_id(test))


@pytest.mark.parametrize("limit", [0, -1, 1_001])
async def test_a_page_has_a_size_between_1_and_1000(limit: int) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="limit"):
            await test.host.stored_keys(cart_id(test), limit=limit)


@pytest.mark.parametrize("cursor", ["", "zz", "00", "ff00", b"k1".hex()])
async def test_a_wrong_cursor_is_refused(cursor: str) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="cursor"):
            await test.host.stored_keys(cart_id(test), cursor=cursor)


@pytest.mark.parametrize("text", ["", "zz", "a" * 63])
async def test_a_text_that_is_no_id_is_refused(text: str) -> None:
    async with open_test_host() as test:
        with pytest.raises(InvalidIdError):
            await test.host.stored_keys(text)


async def test_a_closed_host_shows_nothing() -> None:
    async with open_test_host() as test:
        object_id = cart_id(test)
        await test.host.close()
        with pytest.raises(HostClosedError):
            await test.host.stored_keys(object_id)
