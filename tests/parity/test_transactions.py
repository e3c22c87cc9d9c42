"""Transactions of `ctx.storage`: what they keep, what they take back, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from durable_actor import DurableObjectStorage
from durable_actor.testing import open_test_host
from tests.parity.cases import differs, same
from tests.parity.objects import Probe, Store, inside
from tests.parity.test_kv import ON_DISK
from tests.parity.translate import differences, outcome, snake
from tests.support.scene import Scene


@same("kv.transaction.concurrent")
async def test_transactions_run_one_after_the_other(observed: Any) -> None:
    scene = Scene()

    async def doing(it: Store) -> dict[str, Any]:
        async def transact(name: str) -> None:
            async def body(txn: Any) -> None:
                scene.note(f"{name}+")
                txn.put("v", name)
                await asyncio.sleep(0)
                scene.note(f"{name}-")

            await it.ctx.storage.transaction(body)

        await asyncio.gather(*(transact(name) for name in "ABC"))
        return {"v": await it.ctx.storage.get("v"), "log": scene.log}

    assert differences(await inside(doing), observed) == set()


class Aborting(Probe):
    async def abort_in_a_transaction(self, reason: str) -> None:
        async def body(txn: Any) -> None:
            txn.put("a", 1)
            await self._wait(5)
            txn.put("b", 1)
            self.ctx.abort(reason)

        await self.ctx.storage.transaction(body)


@same("kv.transaction.abortInside")
async def test_an_abort_inside_a_transaction_keeps_nothing(observed: Any) -> None:
    reason = observed["SQL"]["call"]["err"]["message"]
    async with open_test_host() as test:
        stub = test.host.namespace(Aborting).get_by_name("a")
        call = asyncio.ensure_future(
            outcome(lambda: stub.abort_in_a_transaction(reason))
        )
        await test.advance(5)
        ours = {"call": await call, "keys": await stub.keys()}
    assert differences(ours, observed["SQL"]) == set()


class _Transactions:
    """What was done to transactions, one thing after the other."""

    def __init__(self, storage: DurableObjectStorage) -> None:
        self.storage: Any = storage
        self.leaked: Any = None
        self.ours: dict[str, Any] = {}

    async def run(self, name: str, body: Callable[[Any], Any]) -> Any:
        self.ours[name] = await outcome(lambda: self.storage.transaction(body))
        return self.ours[name]

    async def see(self, name: str, doing: Callable[[], Any]) -> None:
        self.ours[name] = await outcome(doing)

    async def ends(self) -> None:
        storage = self.storage

        async def kept(txn: Any) -> str:
            self.leaked = txn
            txn.put("a", 1)
            return "r"

        async def boom(txn: Any) -> None:
            txn.put("b", 1)
            message = "txn boom"
            raise ValueError(message)

        async def rolled(txn: Any) -> str:
            txn.put("c", 1)
            txn.rollback()
            return "after rollback"

        await self.run("ret", kept)
        await self.see("leaked", lambda: self.leaked.put("x", 1))
        await self.see("leakedGet", lambda: self.leaked.get("x"))
        await self.see("leakedRollback", lambda: self.leaked.rollback())
        await self.run("throw_", boom)
        await self.see("bGone", lambda: storage.get("b"))
        await self.run("rollback", rolled)
        await self.see("cGone", lambda: storage.get("c"))

    async def after_rollback(self) -> None:
        async def put(txn: Any) -> None:
            txn.rollback()
            await txn.put("x", 1)

        async def get(txn: Any) -> None:
            txn.rollback()
            await txn.get("x")

        await self.run("useAfterRollback", put)
        await self.run("getAfterRollback", get)

    async def nesting(self) -> None:
        storage = self.storage

        async def beside(txn: Any) -> None:
            storage.put("e", 1)
            txn.rollback()

        async def inner(txn: Any) -> None:
            txn.put("g", 1)
            txn.rollback()

        async def outer(txn: Any) -> str:
            txn.put("f", 1)
            await storage.transaction(inner)
            return "ok"

        async def kept(txn: Any) -> None:
            txn.put("h", 1)

        async def outer_rolled(txn: Any) -> None:
            await storage.transaction(kept)
            txn.rollback()

        await self.run("storageInside", beside)
        await self.see("eAfter", lambda: storage.get("e"))
        await self.run("nested", outer)
        await self.see("fg", lambda: storage.get(["f", "g"]))
        await self.run("nestedOuterRollback", outer_rolled)
        await self.see("h", lambda: storage.get("h"))

    async def callbacks(self) -> None:
        storage = self.storage

        def fail(_: Any) -> None:
            message = "sync"
            raise RuntimeError(message)

        await self.run("syncCallback", lambda _: 5)
        await self.run("syncThrow", fail)
        await self.see("noarg", lambda: storage.transaction())

    async def alarms(self) -> None:
        storage = self.storage

        async def rolled(txn: Any) -> bool:
            txn.set_alarm(timedelta(hours=1))
            is_set = await txn.get_alarm() is not None
            txn.rollback()
            return is_set

        async def kept(txn: Any) -> bool:
            txn.set_alarm(timedelta(hours=1))
            return await txn.get_alarm() is not None

        await self.run("alarmRollback", rolled)
        await self.see("alarmAfter", storage.get_alarm)
        await self.run("alarmCommit", kept)

    async def names(self, seen: list[str]) -> None:
        async def body(txn: Any) -> list[str]:
            return [name for name in seen if hasattr(txn, name)]

        await self.run("keysOfTxn", body)

    async def reads(self) -> None:
        storage = self.storage

        async def snapshot(txn: Any) -> list[Any]:
            txn.put("q", 1)
            return [
                await txn.get("q"),
                await storage.get("q"),
                list(await txn.list(prefix="q")),
                await txn.delete("q"),
            ]

        async def unawaited(txn: Any) -> str:
            txn.put("w", 1)
            return "x"

        await self.run("readSnapshot", snapshot)
        await self.run("unawaitedInner", unawaited)
        await self.see("w", lambda: storage.get("w"))


@differs(
    "kv.transaction", "a callback is `async def`; a transaction has no `delete_all`"
)
async def test_transactions(observed: Any) -> None:
    async def doing(it: Store) -> dict[str, Any]:
        them = _Transactions(it.ctx.storage)
        await them.ends()
        await them.after_rollback()
        await them.nesting()
        await them.callbacks()
        await them.alarms()
        await them.names(names)
        await them.reads()
        return them.ours

    names = [snake(name) for name in observed[ON_DISK]["keysOfTxn"]["ok"]][1:]
    ours = await inside(doing)
    assert differences(ours, observed[ON_DISK]) == {"syncCallback", "keysOfTxn"}
    assert isinstance(ours["syncCallback"], TypeError)
    assert set(names) - set(ours["keysOfTxn"]) == {"delete_all"}
