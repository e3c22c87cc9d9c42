"""The directory of objects: listed, searched, paged and deleted from."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from durable_actor import (
    DurableObject,
    ObjectEntry,
    ObjectResetError,
    StorageFullError,
)
from durable_actor.storage.store import DriverKind
from durable_actor.testing import START_MS, TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Order(DurableObject):
    async def place(self, **attributes: str) -> None:
        self.ctx.storage.put("placed", True)
        self.ctx.set_attributes(attributes)

    async def write(self, key: str, value: Any) -> None:
        self.ctx.storage.put(key, value)

    async def read(self, key: str) -> Any:
        return await self.ctx.storage.get(key)

    async def write_and_abort(self) -> None:
        self.ctx.set_attributes({"state": "aborted"})
        self.ctx.storage.put("key", 1)
        self.ctx.abort()

    async def publish(self, attributes: dict[str, Any]) -> None:
        self.ctx.set_attributes(attributes)

    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("n", 0) + 1
        self.ctx.storage.put("n", value)
        return value

    async def wait(self, gate: str) -> None:
        await self.env.scene.reach(gate)

    async def remind_later(self) -> None:
        self.ctx.storage.set_alarm(START_MS + 60_000)

    async def alarm(self) -> None:
        self.env.scene.note("alarm")


class Invoice(Order):
    pass


def order(test: TestHost, name: str = "a") -> Order:
    return test.host.namespace(Order).get_by_name(name)


async def names(test: TestHost, *args: Any, **kwargs: Any) -> list[str | None]:
    page = await test.host.list_objects(*args, **kwargs)
    assert page.cursor is None
    return [entry.name for entry in page.objects]


async def entry(test: TestHost, name: str) -> ObjectEntry:
    return (await test.host.list_objects(prefix=name)).objects[0]


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_objects_are_listed_by_class_and_name(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        for name in ("b", "a", "é", "c/1", "c/2"):
            await order(test, name).place()
        await test.host.namespace(Invoice).get_by_name("a").place()
        assert await names(test) == ["a", "a", "b", "c/1", "c/2", "é"]
        assert await names(test, "Order") == ["a", "b", "c/1", "c/2", "é"]
        assert await names(test, "Order", prefix="c/") == ["c/1", "c/2"]
        assert await names(test, "Nobody") == []


async def test_an_object_that_stored_nothing_is_not_listed() -> None:
    async with open_test_host() as test:
        await order(test).read("key")
        assert await names(test) == []


async def test_an_entry_says_what_is_known_of_the_object() -> None:
    async with open_test_host(env={"scene": Scene()}) as test:
        await order(test).place(state="new")
        await test.advance("1 minute")
        await order(test).write("key", "x" * 100)
        await order(test).remind_later()
        found = await entry(test, "a")
        assert found.object_class == "Order"
        assert found.id == str(test.host.namespace(Order).id_from_name("a"))
        assert found.created_at_ms == START_MS
        assert found.used_at_ms == START_MS + 60_000
        assert found.alarm_at_ms == START_MS + 60_000
        assert 100 < found.size_bytes < 200
        assert found.attributes == {"state": "new"}


async def test_objects_are_found_by_what_they_published() -> None:
    async with open_test_host() as test:
        for i in range(6):
            await order(test, str(i)).place(
                parity="odd" if i % 2 else "even", small=str(i < 3)
            )
        assert await names(test, where={"parity": "odd"}) == ["1", "3", "5"]
        both = {"parity": "odd", "small": "True"}
        assert await names(test, where=both) == ["1"]
        assert await names(test, where={"parity": "none"}) == []
        await order(test, "1").place(parity="even")
        assert await names(test, where={"parity": "odd"}) == ["3", "5"]


async def test_attributes_are_in_the_commit_of_their_turn() -> None:
    async with open_test_host() as test:
        await order(test).place(state="new")
        with contextlib.suppress(ObjectResetError):
            await order(test).write_and_abort()
        assert (await entry(test, "a")).attributes == {"state": "new"}
        take_over(test.host).failures.append(StorageFullError("commit", "full"))
        await results([order(test).place(state="lost")])
        assert (await entry(test, "a")).attributes == {"state": "new"}
        await test.restart()
        assert (await entry(test, "a")).attributes == {"state": "new"}


@pytest.mark.parametrize(
    "attributes",
    [
        {str(i): "" for i in range(17)},
        {"key": "x" * 257},
        {"k" * 257: "x"},
        {"key": 1},
        {"key": "lone \ud800 surrogate"},
        {"lone \ud800 surrogate": "x"},
    ],
    ids=[
        "too many",
        "long value",
        "long key",
        "a number",
        "surrogate",
        "surrogate key",
    ],
)
async def test_attributes_that_cannot_be_kept_are_refused(
    attributes: dict[str, Any],
) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="attribute"):
            await order(test).publish(attributes)
        await order(test).write("key", 1)
        assert test.host.state == "ok"
        assert (await entry(test, "a")).attributes == {}


async def test_pages_follow_each_other_and_miss_nothing() -> None:
    async with open_test_host() as test:
        await asyncio.gather(*(order(test, f"{i:03}").place() for i in range(25)))
        unnamed = test.host.namespace(Order).new_unique_id()
        await test.host.namespace(Order).get(unnamed).place()
        found: list[str | None] = []
        cursor = None
        for _ in range(10):
            page = await test.host.list_objects("Order", limit=7, cursor=cursor)
            found += [one.name for one in page.objects]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == [None, *(f"{i:03}" for i in range(25))]


@pytest.mark.parametrize("limit", [0, -1, 1_001])
async def test_a_page_has_a_size_between_1_and_1000(limit: int) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="limit"):
            await test.host.list_objects(limit=limit)


@pytest.mark.parametrize("cursor", ["", "zz", "00", "ff00"])
async def test_a_wrong_cursor_is_refused(cursor: str) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="cursor"):
            await test.host.list_objects(cursor=cursor)


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_a_deleted_object_is_gone_and_may_be_made_again(
    driver: DriverKind,
) -> None:
    async with open_test_host(driver=driver) as test:
        object_id = test.host.namespace(Order).id_from_name("a")
        await order(test).place(state="new")
        assert await test.host.delete(object_id)
        assert await order(test).read("placed") is None
        assert await names(test) == []
        assert not await test.host.delete(object_id)
        await order(test).write("key", 1)
        assert await names(test) == ["a"]
        assert (await entry(test, "a")).attributes == {}
        await test.restart()
        assert await order(test).read("key") == 1
        assert await order(test).read("placed") is None


async def test_the_alarm_of_a_deleted_object_does_not_fire() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await order(test).remind_later()
        await test.host.delete(test.host.namespace(Order).id_from_name("a"))
        await test.advance("2 minutes")
        assert scene.log == []


async def test_deleting_resets_an_object_at_work() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await order(test).place()
        waiting = asyncio.ensure_future(order(test).wait("gate"))
        queued = asyncio.ensure_future(order(test).read("placed"))
        await test.settle()
        await test.host.delete(test.host.namespace(Order).id_from_name("a"))
        errors = await results([waiting, queued])
        assert all(isinstance(error, ObjectResetError) for error in errors)
        assert await order(test).read("placed") is None


@pytest.mark.parametrize("steps", range(0, 400, 25))
async def test_a_call_during_a_deletion_is_before_it_or_after_it(steps: int) -> None:
    """Never in between: an answer that was given stays true."""
    async with open_test_host() as test:
        object_id = test.host.namespace(Order).id_from_name("a")
        assert await order(test).increment() == 1
        deleting = asyncio.ensure_future(test.host.delete(object_id))
        for _ in range(steps):
            await asyncio.sleep(0)
        found = (await results([order(test).increment()]))[0]
        assert await deleting
        last = await order(test).increment()
        # After the deletion it counts from 1; before it, or reset by it, is forgotten.
        assert (found, last) in [(1, 2), (2, 1)] or (
            isinstance(found, ObjectResetError) and last == 1
        )
        await test.host.evict(object_id)
        assert await order(test).increment() == last + 1
        await test.restart()
        assert await order(test).increment() == last + 2
        assert await names(test) == ["a"]
