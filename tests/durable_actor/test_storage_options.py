"""What `allow_unconfirmed`, `allow_concurrency` and `no_cache` change."""

from __future__ import annotations

import asyncio

import pytest

from durable_actor import DurableObject, StorageFullError
from durable_actor.storage import overlay as overlay_module
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
FULL = StorageFullError("commit", "the test's disk is full")
VALUE = "x" * 1_000


class Meter(DurableObject, concurrency="gated"):
    async def note(self, value: int) -> int:
        self.ctx.storage.put("last", value, allow_unconfirmed=True)
        return value

    async def forget(self) -> bool:
        return await self.ctx.storage.delete("last", allow_unconfirmed=True)

    async def note_and_count(self, value: int) -> int:
        self.ctx.storage.put("last", value, allow_unconfirmed=True)
        self.ctx.storage.put("count", value)
        return value

    async def note_and_sync(self, value: int) -> None:
        self.ctx.storage.put("last", value, allow_unconfirmed=True)
        await self.ctx.storage.sync()

    async def last(self) -> int | None:
        value: int | None = await self.ctx.storage.get("last")
        return value

    async def fill(self, keys: int) -> None:
        for number in range(keys):
            self.ctx.storage.put(f"k{number:04}", VALUE)

    async def read(self, key: str, *, alone: bool, keep: bool) -> int:
        value = await self.ctx.storage.get(
            key, "", allow_concurrency=not alone, no_cache=not keep
        )
        self.env.order.append(key)
        return len(value)

    async def ping(self) -> None:
        self.env.order.append("ping")


def meter(test: TestHost) -> Meter:
    return test.host.namespace(Meter).get_by_name("m")


async def test_an_unconfirmed_write_holds_nothing_back() -> None:
    async with open_test_host() as test:
        await meter(test).last()
        disk = take_over(test.host)
        disk.pause()
        assert await meter(test).note(1) == 1
        assert await meter(test).forget()
        disk.resume()


async def test_another_write_of_the_turn_holds_it_back_after_all() -> None:
    async with open_test_host() as test:
        await meter(test).last()
        disk = take_over(test.host)
        disk.pause()
        call = asyncio.ensure_future(meter(test).note_and_count(1))
        await test.clock.settle()
        assert not call.done()
        disk.resume()
        assert await call == 1


async def test_sync_waits_for_unconfirmed_writes_too() -> None:
    async with open_test_host() as test:
        await meter(test).last()
        disk = take_over(test.host)
        disk.pause()
        call = asyncio.ensure_future(meter(test).note_and_sync(1))
        await test.clock.settle()
        assert not call.done()
        disk.resume()
        await call


async def test_an_unconfirmed_write_that_fails_is_forgotten_in_memory_too() -> None:
    async with open_test_host() as test:
        await meter(test).note(1)
        await test.settle()
        disk = take_over(test.host)
        disk.failures.append(FULL)
        assert await meter(test).note(2) == 2
        await test.settle()
        assert await meter(test).last() == 1
        assert test.host.stats().reset == 1


async def test_an_object_stays_until_its_unconfirmed_writes_are_durable() -> None:
    async with open_test_host() as test:
        stub = meter(test)
        await stub.last()
        disk = take_over(test.host)
        disk.pause()
        await stub.note(1)
        await test.advance("1 minute")
        assert test.host.stats().objects_resident == 1
        disk.resume()
        await test.advance("1 minute")
        assert test.host.stats().objects_resident == 0
        assert await stub.last() == 1


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "PARTIAL_CACHE_BYTES_MAX", 4_000)


@pytest.mark.usefixtures("small_cache")
async def test_what_was_read_without_the_cache_is_not_kept() -> None:
    order: list[str] = []
    async with open_test_host(env={"order": order}) as test:
        stub = meter(test)
        await stub.fill(400)
        await test.advance("1 minute")  # leaves memory; comes back in part

        assert await stub.read("k0001", alone=True, keep=False) == len(VALUE)
        before = test.host.stats().cached_bytes
        assert await stub.read("k0399", alone=True, keep=False) == len(VALUE)
        assert test.host.stats().cached_bytes == before
        assert await stub.read("k0399", alone=True, keep=True) == len(VALUE)
        assert test.host.stats().cached_bytes != before  # it is over its bound, and cut


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize(
    ("alone", "expected"), [(True, ["k0399", "ping"]), (False, ["ping", "k0399"])]
)
async def test_a_read_lets_others_in_only_if_told_to(
    alone: bool,  # the parameter of the test
    expected: list[str],
) -> None:
    order: list[str] = []
    async with open_test_host(env={"order": order}) as test:
        stub = meter(test)
        await stub.fill(400)
        await test.advance("1 minute")
        await stub.last()

        reading = stub.read("k0399", alone=alone, keep=True)
        await asyncio.gather(reading, stub.ping())
    assert order == expected
