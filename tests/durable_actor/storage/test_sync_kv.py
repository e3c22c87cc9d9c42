"""`ctx.storage.kv`: the same keys as `ctx.storage`, without an await."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from durable_actor import DurableObject, EncodeError, StorageError, StorageLimitError
from durable_actor.storage.sync_kv import SyncKeyValueStorage
from durable_actor.testing import TestHost, open_test_host

LARGE = 700  # keys; more than are loaded at once


class Plain(DurableObject):
    """Runs what a test wants to see done to its keys."""

    async def do(self, name: str) -> object:
        return getattr(self, f"_{name}")(self.ctx.storage.kv)

    async def fill(self, count: int) -> None:
        for number in range(count):
            self.ctx.storage.put(f"key {number:04}", number)

    async def seen(self) -> dict[str, Any]:
        return await self.ctx.storage.list()

    async def read_then_do(self, key: str, name: str) -> object:
        await self.ctx.storage.get(key)
        return getattr(self, f"_{name}")(self.ctx.storage.kv)

    def _write(self, kv: SyncKeyValueStorage) -> object:
        for key in ("b", "ä", "a", "c"):
            kv.put(key, [key])
        gone = [kv.delete("c"), kv.delete("c"), kv.delete("never")]
        return gone, kv.get("a"), kv.get("c"), kv.get("c", 7), list(kv.list())

    def _ranges(self, kv: SyncKeyValueStorage) -> object:
        for key in ("a", "ab", "b", "c", "d"):
            kv.put(key, 0)
        return {
            "prefix": [key for key, _ in kv.list(prefix="a")],
            "start": [key for key, _ in kv.list(start="b", end="d")],
            "after": [key for key, _ in kv.list(start_after="b", limit=1)],
            "reverse": [key for key, _ in kv.list(reverse=True, limit=2)],
        }

    def _list_is_of_one_moment(self, kv: SyncKeyValueStorage) -> object:
        kv.put("a", 1)
        kv.put("b", 2)
        rows = kv.list()
        kv.delete("b")
        kv.put("c", 3)
        return list(rows)

    def _fresh_values(self, kv: SyncKeyValueStorage) -> object:
        kv.put("list", [1])
        kv.get("list").append(2)
        return kv.get("list")

    def _roll_back(self, kv: SyncKeyValueStorage) -> object:
        kv.put("a", 1)

        def fails() -> None:
            kv.put("a", 2)
            kv.put("b", 2)
            raise KeyError

        with pytest.raises(KeyError):
            self.ctx.storage.transaction_sync(fails)
        return list(kv.list())

    def _misuse(self, kv: SyncKeyValueStorage) -> object:
        wrong: Any = kv
        for name, *arguments in (
            ("get", ["a"]),
            ("delete", ["a"]),
            ("put", {"a": 1}, 1),
            ("put", 1, 1),
        ):
            with pytest.raises(TypeError):
                getattr(wrong, str(name))(*arguments)
        with pytest.raises(StorageLimitError):
            kv.put("x" * 2_049, 1)
        with pytest.raises(EncodeError):
            kv.put("a", object())
        return list(kv.list())

    def _first(self, kv: SyncKeyValueStorage) -> object:
        return kv.get("key 0000")

    def _last(self, kv: SyncKeyValueStorage) -> object:
        return kv.get(f"key {LARGE - 1:04}")

    def _delete_last(self, kv: SyncKeyValueStorage) -> object:
        return kv.delete(f"key {LARGE - 1:04}")

    def _all(self, kv: SyncKeyValueStorage) -> object:
        return len(list(kv.list()))

    def _some(self, kv: SyncKeyValueStorage) -> object:
        return len(list(kv.list(start="key 0600", limit=10)))

    def _put_last(self, kv: SyncKeyValueStorage) -> object:
        key = f"key {LARGE - 1:04}"
        kv.put(key, "new")
        return kv.get(key), kv.delete(key), kv.get(key), kv.delete(key)


class Sql(Plain, storage="sqlite"):
    """The same, with a database of its own."""


@pytest.fixture(params=[Plain, Sql])
def kind(request: pytest.FixtureRequest) -> type[Plain]:
    found: type[Plain] = request.param
    return found


def one(test: TestHost, kind: type[Plain]) -> Plain:
    return test.host.namespace(kind).get_by_name("a")


async def test_keys_are_read_written_and_deleted_at_once(kind: type[Plain]) -> None:
    async with open_test_host() as test:
        rows = [("a", ["a"]), ("b", ["b"]), ("ä", ["ä"])]
        found = await one(test, kind).do("write")
        assert found == ([True, False, False], ["a"], None, 7, rows)
        assert await one(test, kind).seen() == dict(rows)
        await test.restart()
        assert await one(test, kind).seen() == dict(rows)


async def test_ranges_mean_what_they_mean_with_an_await(kind: type[Plain]) -> None:
    async with open_test_host() as test:
        assert await one(test, kind).do("ranges") == {
            "prefix": ["a", "ab"],
            "start": ["b", "c"],
            "after": ["c"],
            "reverse": ["d", "c"],
        }


async def test_a_list_shows_one_moment(kind: type[Plain]) -> None:
    async with open_test_host() as test:
        found = await one(test, kind).do("list_is_of_one_moment")
        assert found == [("a", 1), ("b", 2)]


async def test_a_value_that_was_read_is_the_readers_own(kind: type[Plain]) -> None:
    async with open_test_host() as test:
        assert await one(test, kind).do("fresh_values") == [1]


async def test_a_rolled_back_transaction_takes_the_keys_along(
    kind: type[Plain],
) -> None:
    async with open_test_host() as test:
        assert await one(test, kind).do("roll_back") == [("a", 1)]
        assert await one(test, kind).seen() == {"a": 1}


async def test_misuse_is_refused_and_writes_nothing(kind: type[Plain]) -> None:
    async with open_test_host() as test:
        assert await one(test, kind).do("misuse") == []
        assert await one(test, kind).seen() == {}


async def test_a_large_object_with_a_database_has_every_key_at_hand() -> None:
    async with open_test_host() as test:
        await one(test, Sql).fill(LARGE)
        await test.restart()
        assert await one(test, Sql).do("last") == LARGE - 1
        assert await one(test, Sql).do("all") == LARGE
        assert await one(test, Sql).do("some") == 10
        assert await one(test, Sql).do("delete_last") is True
        assert await one(test, Sql).do("delete_last") is False
        assert await one(test, Sql).do("all") == LARGE - 1


async def test_a_large_object_without_one_has_what_is_in_memory() -> None:
    async with open_test_host() as test:
        await one(test, Plain).fill(LARGE)
        await test.host.committer.fold()
        await test.restart()
        assert await one(test, Plain).do("first") == 0
        for name in ("last", "delete_last", "all", "some"):
            with pytest.raises(StorageError, match="not in memory"):
                await one(test, Plain).do(name)
        # Nothing was deleted, and what an await has brought is there.
        last = f"key {LARGE - 1:04}"
        assert await one(test, Plain).read_then_do(last, "last") == LARGE - 1
        assert await one(test, Plain).read_then_do(last, "delete_last") is True
        assert len(await one(test, Plain).seen()) == LARGE - 1


async def test_a_key_just_written_is_known_however_large_the_object(
    kind: type[Plain],
) -> None:
    async with open_test_host() as test:
        await one(test, kind).fill(LARGE)
        await test.host.committer.fold()
        await test.restart()
        assert await one(test, kind).do("put_last") == ("new", True, None, False)


def test_nothing_is_awaitable_and_nothing_goes_unconfirmed() -> None:
    for name in ("get", "put", "delete", "list"):
        method = getattr(SyncKeyValueStorage, name)
        assert not inspect.iscoroutinefunction(method)
        assert "allow_unconfirmed" not in inspect.signature(method).parameters
