"""A disk whose sync does not return: what needs it waits, nothing else does (G15)."""

from __future__ import annotations

import asyncio

import pytest

from durable_actor import CallTimeoutError, DurableObject
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Counter(DurableObject):
    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("value", 0) + 1
        self.ctx.storage.put("value", value)
        return value

    async def value(self) -> int:
        value: int = await self.ctx.storage.get("value", 0)
        return value


def counter(test: TestHost, name: str) -> Counter:
    return test.host.namespace(Counter).get_by_name(name)


async def test_g15_what_rests_on_nothing_unsynced_is_answered_during_a_sync() -> None:
    async with open_test_host() as test:
        await counter(test, "idle").increment()
        disk = take_over(test.host)
        disk.pause()
        writing = asyncio.ensure_future(counter(test, "busy").increment())
        reading_its_write = asyncio.ensure_future(counter(test, "busy").value())
        assert await counter(test, "idle").value() == 1
        assert await counter(test, "fresh").value() == 0
        await test.settle()
        assert not writing.done()
        assert not reading_its_write.done(), "it saw what is not on disk"
        disk.resume()
        assert [await writing, await reading_its_write] == [1, 1]


async def test_g15_a_deadline_holds_during_a_sync() -> None:
    async with open_test_host() as test:
        disk = take_over(test.host)
        disk.pause()
        stub = test.host.namespace(Counter).get_by_name("a", timeout="2 seconds")
        writing = asyncio.ensure_future(stub.increment())
        await test.advance("1999 milliseconds")
        assert not writing.done()
        await test.advance("1 millisecond")
        with pytest.raises(CallTimeoutError) as refusal:
            await writing
        assert refusal.value.outcome == "unknown"
        disk.resume()
        assert await counter(test, "a").value() == 1


async def test_g15_all_that_waited_for_one_sync_share_the_next() -> None:
    async with open_test_host() as test:
        disk = take_over(test.host)
        disk.pause()
        first = asyncio.ensure_future(counter(test, "first").increment())
        await test.settle()
        groups = disk.groups
        others = [
            asyncio.ensure_future(counter(test, f"c{i}").increment()) for i in range(50)
        ]
        await test.settle()
        disk.resume()
        await asyncio.gather(first, *others)
        assert disk.groups - groups <= 3
