"""A bank under stress: whatever breaks, no money is made and none is lost."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from durable_actor import (
    DurableActorError,
    DurableObject,
    StorageFullError,
    interleave,
)
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import PausableDriver, take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
NAMES = "abcde"
OPENING = 100


class Account(DurableObject):
    """Pays others by a note of what is under way, which is struck out when it is done.

    A credit carries the identity of its payment, so that it happens once however often
    it is sent.
    """

    async def balance(self) -> int:
        balance: int = await self.ctx.storage.get("balance", OPENING)
        return balance

    async def pay(self, to: str, amount: int, payment: str) -> None:
        balance = await self.balance()
        if amount > balance:
            message = f"{amount} is more than {balance}"
            raise ValueError(message)
        self.ctx.storage.put(
            {"balance": balance - amount, f"under way/{payment}": (to, amount)}
        )
        await self._finish(to, amount, payment)

    async def credit(self, amount: int) -> None:
        self.ctx.storage.put("balance", await self.balance() + amount)

    async def recover(self) -> None:
        notes = await self.ctx.storage.list(prefix="under way/")
        for key, (to, amount) in notes.items():
            await self._finish(to, amount, key.removeprefix("under way/"))

    @interleave
    async def abort(self) -> None:
        self.ctx.storage.put("balance", -1_000_000)
        self.ctx.abort("for the test")

    async def _finish(self, to: str, amount: int, payment: str) -> None:
        other = self.env.namespace(type(self)).get_by_name(to, request_id=payment)
        await other.credit(amount)
        self.ctx.storage.delete(f"under way/{payment}")


class GatedAccount(Account, concurrency="gated"):
    pass


class Chaos:
    """One seed's run: payments at random, and what may happen to a bank."""

    def __init__(self, test: TestHost, cls: type[Account], seed: int) -> None:
        self._test = test
        self._cls = cls
        self._random = random.Random(seed)
        self._payments = 0
        self._calls: list[asyncio.Future[Any]] = []
        self._disks: list[PausableDriver] = []
        self.happened: set[str] = set()

    def account(self, name: str) -> Account:
        return self._test.host.namespace(self._cls).get_by_name(name)

    async def play(self, rounds: int) -> None:
        for _ in range(rounds):
            for _ in range(self._random.randrange(8)):
                self._pay()
            for _ in range(self._random.randrange(30)):
                await asyncio.sleep(0)
            await getattr(self, self._random.choice(self.EVENTS))()
            await self._look_at_results()

    async def audit(self) -> None:
        """Let everything come to rest and count the money."""
        await results(self._calls)
        await self._look_at_results()
        for disk in self._disks:
            disk.failures.clear()
        for name in NAMES:
            await self.account(name).recover()
        balances = [await self.account(name).balance() for name in NAMES]
        assert sum(balances) == OPENING * len(NAMES), balances
        assert min(balances) >= 0

    def _pay(self) -> None:
        self._payments += 1
        sender, receiver = self._random.sample(NAMES, 2)
        amount = self._random.randrange(1, 60)
        call = self.account(sender).pay(receiver, amount, f"p{self._payments}")
        self._calls.append(asyncio.ensure_future(call))

    async def _look_at_results(self) -> None:
        over = [call for call in self._calls if call.done()]
        self._calls = [call for call in self._calls if not call.done()]
        for found in await results(over):
            assert found is None or isinstance(found, (DurableActorError, ValueError))
            self.happened.add(type(found).__name__)

    EVENTS = ("nothing", "nothing", "abort", "evict", "fill", "crash", "rest")

    async def nothing(self) -> None:
        pass

    async def abort(self) -> None:
        call = self.account(self._random.choice(NAMES)).abort()
        self._calls.append(asyncio.ensure_future(call))

    async def evict(self) -> None:
        namespace = self._test.host.namespace(self._cls)
        await results(
            self._test.host.evict(namespace.id_from_name(name)) for name in NAMES
        )

    async def fill(self) -> None:
        disk = take_over(self._test.host)
        disk.failures.append(StorageFullError("commit", "full"))
        self._disks.append(disk)

    async def crash(self) -> None:
        await self._test.restart()

    async def rest(self) -> None:
        await self._test.settle()
        self._test.host.stats()


@pytest.mark.parametrize("cls", [Account, GatedAccount])
@pytest.mark.parametrize("seed", range(4))
async def test_the_sum_of_all_balances_stays(cls: type[Account], seed: int) -> None:
    async with open_test_host(seed=seed) as test:
        chaos = Chaos(test, cls, seed)
        for _ in range(3):
            await chaos.play(12)
            await chaos.audit()
            await test.restart()
        assert "NoneType" in chaos.happened
        assert len(chaos.happened) >= 2


@pytest.mark.parametrize("driver", ["process"])
async def test_the_sum_stays_with_a_storage_process(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        chaos = Chaos(test, Account, seed=1)
        await chaos.play(12)
        await chaos.audit()
