"""`stub.watch()`: what becomes durable of one object, for whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import (
    ConfigError,
    DurableObject,
    HostClosedError,
    ObjectError,
    ObjectId,
    ObjectResetError,
    StateChange,
    StorageFailedError,
    StorageFullError,
    Watch,
)
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Cart(DurableObject):
    async def add(self, item: str, count: int = 1) -> None:
        self.ctx.storage.put(f"line:{item}", count)

    async def add_all(self, **lines: int) -> None:
        self.ctx.storage.put({f"line:{item}": n for item, n in lines.items()})
        self.ctx.storage.put("count", len(lines))

    async def in_two_turns(self, first: int, second: int) -> None:
        self.ctx.storage.put("first", first)
        await self.ctx.storage.sync()
        self.ctx.storage.put("second", second)

    async def remove(self, item: str) -> None:
        self.ctx.storage.delete(f"line:{item}")

    async def empty(self) -> None:
        self.ctx.storage.delete_all()

    async def lines(self) -> dict[str, Any]:
        return await self.ctx.storage.list(prefix="line:")

    async def write_and_abort(self) -> None:
        self.ctx.storage.put("aborted", True)
        self.ctx.abort("no")

    async def roll_back(self) -> None:
        async def in_transaction(txn: Any) -> None:
            txn.put("rolled back", True)
            txn.rollback()

        await self.ctx.storage.transaction(in_transaction)
        self.ctx.storage.put("after", True)

    async def remind(self) -> None:
        self.ctx.storage.set_alarm(1)

    async def alarm(self) -> None:
        pass

    async def watch_myself(self) -> None:
        self.watch()


class SqlCart(Cart, storage="sqlite"):
    """The same, with its keys in a database of its own."""


class Chosen:
    cls: type[Cart] = Cart


@pytest.fixture(params=[Cart, SqlCart], autouse=True)
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both kinds of objects."""
    monkeypatch.setattr(Chosen, "cls", request.param)


def cart(test: TestHost, name: str = "a") -> Cart:
    return test.host.namespace(Chosen.cls).get_by_name(name)


def cart_id(test: TestHost, name: str = "a") -> ObjectId:
    return test.host.namespace(Chosen.cls).id_from_name(name)


def has_news(watch: Watch) -> bool:
    return watch._news.is_set()


async def test_a_change_has_what_a_turn_wrote() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        await cart(test).add_all(tea=1, cup=2)
        change = await anext(changes)
        assert change == StateChange(
            ticket=1,
            changed={"count": 2, "line:cup": 2, "line:tea": 1},
            deleted=frozenset(),
            cleared=False,
        )
        await cart(test).remove("tea")
        assert (await anext(changes)).deleted == {"line:tea"}
        await cart(test).empty()
        assert (await anext(changes)).cleared


async def test_watch_then_read_misses_nothing() -> None:
    """Whatever runs in between is in the answer, in the changes, or in both."""
    async with open_test_host() as test:
        adding = [
            asyncio.ensure_future(cart(test).add(f"{n:02}", n)) for n in range(30)
        ]
        for steps in range(0, 60, 7):
            for _ in range(steps):
                await asyncio.sleep(0)
            async with cart(test).watch("line:") as changes:
                copy = dict(await cart(test).lines())
                adding.append(asyncio.ensure_future(cart(test).add("last", steps)))
                await asyncio.wait(adding)
                while has_news(changes):
                    copy |= (await anext(changes)).changed
                assert copy == await cart(test).lines()


async def test_turns_are_told_in_order_and_never_in_part() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        await cart(test).in_two_turns(1, 2)
        first = await anext(changes)
        # The reader was slow: both turns are one change.
        assert first.changed == {"first": 1, "second": 2}
        running = asyncio.ensure_future(cart(test).in_two_turns(3, 4))
        assert (await anext(changes)).changed == {"first": 3}
        assert (await anext(changes)).changed == {"second": 4}
        await running


async def test_a_turn_whose_commit_failed_is_never_told() -> None:
    async with open_test_host() as test:
        await cart(test).add("tea")
        changes = cart(test).watch()
        disk = take_over(test.host)
        disk.failures.append(StorageFullError("commit", "full"))
        (failed,) = await results([cart(test).add("lost", 1)])
        assert isinstance(failed, StorageFullError)
        assert not has_news(changes)
        await cart(test).add("kept", 2)
        assert (await anext(changes)).changed == {"line:kept": 2}


async def test_nothing_is_told_while_the_disk_has_not_answered() -> None:
    """The control for the test above: what is held back comes once it is durable."""
    async with open_test_host() as test:
        changes = cart(test).watch()
        disk = take_over(test.host)
        disk.pause()
        adding = asyncio.ensure_future(cart(test).add("tea"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not has_news(changes)
        disk.resume()
        assert (await anext(changes)).changed == {"line:tea": 1}
        await adding


async def test_what_was_aborted_or_rolled_back_is_never_told() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        assert isinstance(
            (await results([cart(test).write_and_abort()]))[0], ObjectResetError
        )
        await cart(test).roll_back()
        assert (await anext(changes)).changed == {"after": True}


async def test_an_alarm_is_no_change_of_the_state() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        await cart(test).remind()
        await test.settle()
        assert not has_news(changes)


async def test_watching_neither_activates_nor_keeps_in_memory() -> None:
    async with open_test_host() as test:
        await cart(test).add("tea")
        object_id = cart_id(test)
        assert await test.host.evict(object_id)
        changes = cart(test).watch()
        assert test.host.stats().objects_resident == 0
        await cart(test).add("cup")
        assert (await anext(changes)).changed == {"line:cup": 1}
        assert await test.host.evict(object_id)
        await cart(test).add("pot")
        assert (await anext(changes)).changed == {"line:pot": 1}


async def test_it_outlives_a_reset_of_the_object() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        await results([cart(test).write_and_abort()])
        await cart(test).add("tea")
        assert (await anext(changes)).changed == {"line:tea": 1}


async def test_it_ends_after_the_deletion_of_the_object() -> None:
    async with open_test_host() as test:
        await cart(test).add("tea")
        changes = cart(test).watch()
        await test.host.delete(cart_id(test))
        await cart(test).add("of another life")
        found = [change async for change in changes]
        assert [(change.cleared, change.changed) for change in found] == [(True, {})]


async def test_closing_the_host_shows_the_rest_and_then_says_so() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        await cart(test).add("tea")
        await test.host.close()
        assert (await anext(changes)).changed == {"line:tea": 1}
        with pytest.raises(HostClosedError):
            await anext(changes)
        with pytest.raises(StopAsyncIteration):
            await anext(changes)


async def test_a_reader_that_waits_hears_that_the_host_is_dropped() -> None:
    async with open_test_host() as test:
        waiting = asyncio.ensure_future(anext(cart(test).watch()))
        await asyncio.sleep(0)
        await test.host.drop()
        with pytest.raises(HostClosedError):
            await waiting


async def test_it_ends_with_the_failure_of_the_disk() -> None:
    async with open_test_host() as test:
        changes = cart(test).watch()
        disk = take_over(test.host)
        disk.failures.append(StorageFailedError("commit", "SQLITE_IOERR_FSYNC"))
        await results([cart(test).add("lost")])
        with pytest.raises(StorageFailedError, match="FSYNC"):
            await anext(changes)


async def test_a_draining_host_takes_no_new_watches() -> None:
    async with open_test_host() as test:
        stub = cart(test)
        await test.host.drain()
        with pytest.raises(HostClosedError):
            stub.watch()
    with pytest.raises(HostClosedError):
        stub.watch()


async def test_a_class_that_is_not_known_cannot_be_watched() -> None:
    async with open_test_host() as test:
        stub = cart(test)
        object.__setattr__(test.host, "_classes", {})
        with pytest.raises(ObjectError, match="Cart"):
            stub.watch()


@pytest.mark.parametrize("prefix", [1, None, b"line:", ("a", "b")])
async def test_a_prefix_is_text(prefix: Any) -> None:
    """Refused at the call: where it is used, a commit would be in the way."""
    async with open_test_host() as test:
        with pytest.raises(TypeError, match="prefix must be text"):
            cart(test).watch(prefix)
        await cart(test).add("tea")


async def test_it_costs_nothing_when_nobody_watches() -> None:
    async with open_test_host() as test:
        async with cart(test).watch() as changes:
            assert test.host.committer.watches.by_id
            del changes
        assert test.host.committer.watches.by_id == {}


async def test_an_object_has_no_watch_of_its_own() -> None:
    async with open_test_host() as test:
        with pytest.raises(TypeError, match="for stubs"):
            await cart(test).watch_myself()


@pytest.mark.parametrize("name", ["watch", "id", "name"])
def test_a_method_that_no_stub_could_call_is_refused(name: str) -> None:
    async def method(self: Any) -> None: ...

    with pytest.raises(ConfigError, match=f"{name!r} of its own; give the method"):
        type("Hidden", (DurableObject,), {name: method})
    mixin = type("Mixin", (), {name: method})
    with pytest.raises(ConfigError, match="Hidden"):
        type("Hidden", (mixin, DurableObject), {})


def test_attributes_that_are_no_methods_may_be_called_like_those_of_a_stub() -> None:
    cls = type("Named", (DurableObject,), {"name": "x", "id": 1})
    assert cls.__name__ == "Named"
