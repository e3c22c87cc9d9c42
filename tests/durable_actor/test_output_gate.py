"""Nothing is said before it is on disk; a lost write breaks its object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from durable_actor import (
    DurableActorError,
    DurableObject,
    StorageFailedError,
    StorageFullError,
    interleave,
)
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
FULL = StorageFullError("commit", "the test's disk is full")
FAILED = StorageFailedError("commit", "the test's disk is broken")


class Account(DurableObject):
    async def deposit(self, amount: int) -> int:
        balance: int = await self.ctx.storage.get("balance", 0) + amount
        self.ctx.storage.put("balance", balance)
        return balance

    async def balance(self) -> int:
        balance: int = await self.ctx.storage.get("balance", 0)
        return balance

    async def ping(self) -> str:
        return "pong"

    async def deposit_twice(self, amount: int) -> None:
        await self.deposit(amount)
        await asyncio.sleep(0)
        await self.deposit(amount)

    async def deposit_and_sync(self, amount: int) -> None:
        self.ctx.storage.put("balance", amount)
        await self.ctx.storage.sync()
        self.env.scene.note("synced")

    async def fail_after_deposit(self, amount: int) -> None:
        await self.deposit(amount)
        raise ValueError(amount)

    async def move(self, amount: int, to: str) -> int:
        """Pay another account; answers with that account's balance."""
        self.ctx.storage.put("balance", -amount)
        other = self.env.namespace(Account).get_by_name(to)
        balance: int = await other.deposit(amount)
        self.env.scene.note(f"{to} has {balance}")
        return balance

    async def move_detached(self, amount: int, to: str) -> None:
        """Pay another account in a task that nobody awaits."""
        self.ctx.storage.put("balance", -amount)
        other = self.env.namespace(Account).get_by_name(to)
        self.env.scene.tasks.append(asyncio.ensure_future(other.deposit(amount)))
        await self.env.scene.reach("moved")

    async def look_at(self, other: str) -> int:
        """Answer with what another account said, writing nothing."""
        balance: int = await self.env.namespace(Account).get_by_name(other).balance()
        self.env.scene.note(f"{other} has {balance}")
        return balance

    async def look_and_wait(self, other: str) -> int:
        balance = await self.look_at(other)
        await self.env.scene.reach("waiting")
        return balance

    async def wait(self, scene: str) -> int:
        await self.env.scene.reach(scene)
        return await self.balance()

    @interleave
    async def peek(self) -> int:
        return await self.balance()

    async def in_transaction(self, amount: int) -> None:
        async def change(_: object) -> None:
            self.ctx.storage.put("balance", amount)
            await self.env.scene.reach("transaction")

        await self.ctx.storage.transaction(change)


class Bench:
    """Two accounts in memory, the scene they play, and the disk below them."""

    def __init__(self, test: TestHost, scene: Scene) -> None:
        self.test = test
        self.scene = scene
        self.disk = take_over(test.host)  # until the host starts again
        self.a = self.account("a")
        self.b = self.account("b")

    def account(self, name: str) -> Account:
        return self.test.host.namespace(Account).get_by_name(name)


@asynccontextmanager
async def open_bench(driver: DriverKind = "thread") -> AsyncIterator[Bench]:
    """Open a host; its accounts have been asked, and have written nothing yet."""
    scene = Scene()
    async with open_test_host(env={"scene": scene}, driver=driver) as test:
        bench = Bench(test, scene)
        await asyncio.gather(bench.a.balance(), bench.b.balance())
        yield bench


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_g1_a_reply_waits_for_the_writes_before_it(driver: DriverKind) -> None:
    async with open_bench(driver) as bench:
        bench.disk.pause()
        reply = asyncio.ensure_future(bench.a.deposit(5))
        await bench.test.settle()
        assert not reply.done()
        bench.disk.resume()
        assert await reply == 5


async def test_g1_a_reply_that_only_read_waits_for_the_write_it_saw() -> None:
    async with open_bench() as bench:
        bench.disk.pause()
        writing = asyncio.ensure_future(bench.a.deposit(5))
        reading = asyncio.ensure_future(bench.a.balance())
        await bench.test.settle()
        assert not reading.done()
        bench.disk.resume()
        assert await results([writing, reading]) == [5, 5]


async def test_a_reply_that_rests_on_nothing_new_waits_for_nobody() -> None:
    async with open_bench() as bench:
        reader, writer = bench.a, bench.b
        bench.disk.pause()
        writing = asyncio.ensure_future(writer.deposit(5))
        assert await reader.balance() == 0
        bench.disk.resume()
        await writing


async def test_an_error_waits_for_the_writes_before_it() -> None:
    async with open_bench() as bench:
        bench.disk.pause()
        reply = asyncio.ensure_future(bench.a.fail_after_deposit(5))
        await bench.test.settle()
        assert not reply.done()
        bench.disk.resume()
        with pytest.raises(ValueError, match="5"):
            await reply
        assert await bench.a.balance() == 5


async def test_a_call_inside_the_host_waits_only_where_it_leaves() -> None:
    async with open_bench() as bench:
        bench.disk.pause()
        moving = asyncio.ensure_future(bench.a.move(3, "b"))
        await bench.test.settle()
        assert bench.scene.log == ["b has 3"]  # b answered before the disk did
        assert not moving.done()
        bench.disk.resume()
        assert await moving == 3


async def test_an_answer_that_was_only_passed_on_waits_for_its_origin() -> None:
    async with open_bench() as bench:
        bench.disk.pause()
        writing = asyncio.ensure_future(bench.b.deposit(5))
        looking = asyncio.ensure_future(bench.a.look_at("b"))
        await bench.test.settle()
        assert bench.scene.log == ["b has 5"]
        assert not looking.done()
        bench.disk.resume()
        assert await results([writing, looking]) == [5, 5]


async def test_sync_returns_once_the_write_is_durable() -> None:
    async with open_bench() as bench:
        bench.disk.pause()
        reply = asyncio.ensure_future(bench.a.deposit_and_sync(5))
        await bench.test.settle()
        assert bench.scene.log == []
        bench.disk.resume()
        await reply
        assert bench.scene.log == ["synced"]


async def test_a_full_disk_fails_the_call_and_the_next_event_starts_from_disk() -> None:
    async with open_bench() as bench:
        await bench.a.deposit(1)
        bench.disk.failures.append(FULL)
        with pytest.raises(DurableActorError) as caught:
            await bench.a.deposit(5)
        assert caught.value.outcome == "failed"
        assert caught.value.retryable
        assert await bench.a.balance() == 1
        assert await bench.a.deposit(1) == 2
        assert bench.test.host.state == "ok"


async def test_a_full_disk_spares_objects_that_did_not_depend_on_it() -> None:
    async with open_bench() as bench:
        await asyncio.gather(bench.a.deposit(1), bench.b.deposit(1))
        bench.disk.failures.append(FULL)
        bench.disk.pause()
        writing = asyncio.ensure_future(bench.a.deposit(5))
        await bench.test.settle()
        reset_before = bench.test.host.stats().reset
        bench.disk.resume()
        with pytest.raises(DurableActorError):
            await writing
        assert await bench.b.balance() == 1
        assert bench.test.host.stats().reset == reset_before + 1


async def test_a_lost_write_also_breaks_who_heard_of_it() -> None:
    async with open_bench() as bench:
        bench.disk.failures.append(FULL)
        bench.disk.pause()
        writing = asyncio.ensure_future(bench.b.deposit(5))
        looking = asyncio.ensure_future(bench.a.look_and_wait("b"))
        await bench.test.settle()
        assert bench.scene.log == ["b has 5", "waiting"]
        bench.disk.resume()
        wrote, looked = await results([writing, looking])
        assert isinstance(wrote, DurableActorError)
        assert isinstance(looked, StorageFullError)
        assert looked.outcome == "failed"
        assert await bench.a.look_at("b") == 0


async def test_a_message_whose_sender_lost_its_write_is_not_delivered() -> None:
    async with open_bench() as bench:
        bench.disk.failures.append(FULL)
        bench.disk.pause()
        busy = asyncio.ensure_future(bench.b.wait("busy"))
        await bench.test.settle()
        moving = asyncio.ensure_future(bench.a.move(3, "b"))  # waits in b's line
        await bench.test.settle()
        bench.disk.resume()
        moved = (await results([moving]))[0]
        assert isinstance(moved, StorageFullError)
        bench.scene.open("busy")
        assert await busy == 0
        await bench.test.settle()
        # The debit was lost, so the credit must not happen.
        assert [await bench.a.balance(), await bench.b.balance()] == [0, 0]
        assert await bench.b.ping() == "pong"


async def test_a_message_of_a_detached_task_is_not_delivered_either() -> None:
    async with open_bench() as bench:
        bench.disk.failures.append(FULL)
        bench.disk.pause()
        busy = asyncio.ensure_future(bench.b.wait("busy"))
        await bench.test.settle()
        moving = asyncio.ensure_future(bench.a.move_detached(3, "b"))
        await bench.test.settle()
        bench.disk.resume()
        await results([moving])
        bench.scene.open("busy")
        await results([busy, *bench.scene.tasks])
        assert [await bench.a.balance(), await bench.b.balance()] == [0, 0]


async def test_an_object_that_once_heard_of_a_lost_write_answers_again() -> None:
    async with open_bench() as bench:
        bench.disk.failures.append(FULL)
        await results([bench.b.deposit(5), bench.a.look_at("b"), bench.a.look_at("b")])
        assert await bench.a.ping() == "pong"
        assert await bench.a.look_at("b") == 0


async def test_a_queued_call_behind_a_lost_write_was_not_executed() -> None:
    async with open_bench() as bench:
        bench.disk.failures.append(FULL)
        bench.disk.pause()
        writing = asyncio.ensure_future(bench.a.deposit(5))
        running = asyncio.ensure_future(bench.a.wait("running"))
        queued = asyncio.ensure_future(bench.a.deposit(7))
        await bench.test.settle()
        bench.disk.resume()
        errors = await results([writing, running, queued])
        assert all(isinstance(error, DurableActorError) for error in errors)
        outcomes = [
            error.outcome for error in errors if isinstance(error, DurableActorError)
        ]
        assert outcomes == ["failed", "failed", "not_executed"]
        assert await bench.a.balance() == 0


async def test_any_other_storage_error_stops_the_host() -> None:
    async with open_bench() as bench:
        await asyncio.gather(bench.a.deposit(1), bench.b.deposit(1))
        bench.disk.failures.append(FAILED)
        with pytest.raises(DurableActorError) as caught:
            await bench.a.deposit(5)
        assert caught.value.outcome == "unknown"
        assert bench.test.host.failed.is_set()
        assert bench.test.host.state == "failed"
        with pytest.raises(StorageFailedError):
            await bench.b.balance()
        await bench.test.restart()
        assert await bench.account("a").balance() == 1


async def test_a_reply_waits_for_the_transaction_whose_writes_it_saw() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:

        class Mixed(Account, concurrency="gated"):
            pass

        account = test.host.namespace(Mixed).get_by_name("a")
        reading = asyncio.ensure_future(account.wait("reading"))
        await test.settle()
        changing = asyncio.ensure_future(account.in_transaction(5))
        await test.settle()
        scene.open("reading")
        await test.settle()
        assert not reading.done()
        scene.open("transaction")
        assert await reading == 5
        await changing
