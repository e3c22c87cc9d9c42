"""A full disk: calls fail, the process stays, and everything goes on afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import DurableActorError, DurableObject, StorageFullError
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import PausableDriver, take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Ledger(DurableObject):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = 0

    async def add(self, amount: int) -> int:
        total: int = await self.ctx.storage.get("total", 0) + amount
        self.ctx.storage.put("total", total)
        self.seen = total
        return total

    async def total(self) -> tuple[int, int]:
        stored: int = await self.ctx.storage.get("total", 0)
        return stored, self.seen

    async def add_and_sync(self, amount: int) -> str:
        self.ctx.storage.put("total", amount)
        try:
            await self.ctx.storage.sync()
        except DurableActorError as error:
            self.seen = -1
            return error.code
        return "synced"


def ledger(test: TestHost, name: str = "a") -> Ledger:
    return test.host.namespace(Ledger).get_by_name(name)


def fill(disk: PausableDriver, commits: int = 1) -> None:
    disk.failures.extend(StorageFullError("commit", "full") for _ in range(commits))


async def test_the_host_says_so_until_a_commit_succeeds() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        disk = take_over(test.host)
        fill(disk, 2)
        for _ in range(2):
            await results([ledger(test).add(1)])
            assert test.host.state == "full"
            assert not test.host.failed.is_set()
        assert await ledger(test).add(1) == 2
        assert test.host.state == "ok"


async def test_reads_are_served_while_the_disk_is_full() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        disk = take_over(test.host)
        fill(disk)
        await results([ledger(test).add(1)])
        for _ in range(3):
            assert (await ledger(test).total())[0] == 1


async def test_memory_goes_back_with_the_disk() -> None:
    async with open_test_host() as test:
        await ledger(test).add(5)
        assert await ledger(test).total() == (5, 5)
        fill(take_over(test.host))
        await results([ledger(test).add(7)])
        assert await ledger(test).total() == (5, 0)


async def test_all_turns_of_the_lost_group_and_later_ones_are_lost_together() -> None:
    async with open_test_host() as test:
        names = "abcdef"
        await asyncio.gather(*(ledger(test, name).add(1) for name in names))
        disk = take_over(test.host)
        disk.pause()
        fill(disk)
        calls = []
        for name in names:
            calls.append(asyncio.ensure_future(ledger(test, name).add(1)))
            await test.settle()
        disk.resume()
        found = await results(calls)
        assert all(isinstance(one, DurableActorError) for one in found)
        totals = [await ledger(test, name).total() for name in names]
        assert {stored for stored, _ in totals} == {1}


async def test_sync_fails_and_the_object_is_reset() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        fill(take_over(test.host))
        error = (await results([ledger(test).add_and_sync(7)]))[0]
        assert isinstance(error, DurableActorError)
        assert error.outcome == "failed"
        assert await ledger(test).total() == (1, 0)


async def test_many_failures_in_a_row_cost_nothing_later() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        disk = take_over(test.host)
        for _ in range(50):
            fill(disk)
            await results([ledger(test).add(1)])
        assert await ledger(test).add(1) == 2
        await test.restart()
        assert await ledger(test).add(1) == 3


async def test_what_was_acknowledged_around_a_full_disk_is_there_after_a_crash() -> (
    None
):
    async with open_test_host() as test:
        disk = take_over(test.host)
        acknowledged = 0
        for i in range(20):
            if i % 3 == 1:
                fill(disk)
            found = (await results([ledger(test).add(1)]))[0]
            acknowledged += isinstance(found, int)
        await test.restart()
        assert (await ledger(test).total())[0] == acknowledged
