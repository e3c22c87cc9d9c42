"""A transaction beside other code of its object: neither undoes what the other said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from durable_actor import (
    DurableObject,
    DurableObjectTransaction,
    EventSink,
    OutboxEvent,
)
from durable_actor.testing import START_MS, TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Sink:
    def __init__(self) -> None:
        self.taken: list[object] = []

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        self.taken += [event.data["n"] for event in events]


class Desk(DurableObject, concurrency="gated"):
    """Others come in while an event awaits something that is not its storage."""

    sink = Sink()
    event_sink: ClassVar[EventSink | None] = sink

    async def transact(self, end: str) -> None:
        """Write all kinds of things, wait at the gate, then commit or roll back."""

        async def change(txn: DurableObjectTransaction) -> None:
            txn.put("txn", 1)
            self.ctx.storage.put("both", "txn")
            txn.set_alarm(timedelta(hours=1))
            self.ctx.emit({"n": "txn"})
            self.ctx.set_attributes({"from": "txn"})
            await self.env.scene.reach("transaction")
            txn.put("after", 1)
            if end == "fail":
                raise LookupError
            if end == "roll back":
                txn.rollback()

        await self.ctx.storage.transaction(change)

    async def wait_then(self, method: str) -> Any:
        """Be inside before the transaction begins, and go on while it is open."""
        await self.env.scene.reach("beside")
        return await getattr(self, f"_{method}")()

    async def _write(self) -> str:
        self.ctx.storage.put("beside", 1)
        self.ctx.storage.put({"both": "beside", "more": 1})
        self.ctx.storage.delete("old")
        return "written"

    async def _set_alarm(self) -> str:
        self.ctx.storage.set_alarm(START_MS + 60_000)
        return "set"

    async def _emit(self) -> str:
        self.ctx.emit({"n": "beside"})
        self.ctx.set_attributes({"from": "beside"})
        return "emitted"

    async def _write_and_sync(self) -> str:
        self.ctx.storage.put("beside", 1)
        await self.ctx.storage.sync()
        self.env.scene.note("synced")
        return "synced"

    async def _read(self) -> Any:
        return await self.ctx.storage.get("txn")

    async def prepare(self) -> None:
        self.ctx.storage.put("old", 1)

    async def stored(self) -> dict[str, Any]:
        return await self.ctx.storage.list()

    async def due_at(self) -> int | None:
        return await self.ctx.storage.get_alarm()

    async def alarm(self) -> None: ...


class Play:
    """A transaction that is open, and an event beside it that has gone on."""

    def __init__(self, test: TestHost, scene: Scene) -> None:
        self.test = test
        self.scene = scene
        self.desk = test.host.namespace(Desk).get_by_name("a")

    async def begin(self, method: str, end: str) -> None:
        await self.desk.prepare()
        self.beside = asyncio.ensure_future(self.desk.wait_then(method))
        await self.test.settle()
        self.transacting = asyncio.ensure_future(self.desk.transact(end))
        await self.test.settle()
        self.scene.open("beside")
        await self.test.settle()

    async def end(self) -> Any:
        self.scene.open("transaction")
        answers = await results([self.beside, self.transacting])
        await self.test.settle()
        return answers[0]


@asynccontextmanager
async def open_play() -> AsyncIterator[Play]:
    """Open a host with a desk, before the transaction begins."""
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        yield Play(test, scene)


@pytest.mark.parametrize("end", ["fail", "roll back"])
async def test_a_rollback_leaves_what_others_wrote_meanwhile(end: str) -> None:
    async with open_play() as play:
        await play.begin("write", end)
        assert await play.end() == "written"
        expected = {"beside": 1, "both": "beside", "more": 1}
        assert await play.desk.stored() == expected
        await play.test.restart()
        desk = play.test.host.namespace(Desk).get_by_name("a")
        assert await desk.stored() == expected


async def test_a_commit_keeps_both() -> None:
    async with open_play() as play:
        await play.begin("write", "commit")
        assert await play.end() == "written"
        expected = {"after": 1, "beside": 1, "both": "beside", "more": 1, "txn": 1}
        assert await play.desk.stored() == expected


async def test_a_rollback_leaves_the_alarm_that_another_event_set() -> None:
    async with open_play() as play:
        await play.begin("set_alarm", "fail")
        assert await play.end() == "set"
        assert await play.desk.due_at() == START_MS + 60_000
        await play.test.restart()
        desk = play.test.host.namespace(Desk).get_by_name("a")
        assert await desk.due_at() == START_MS + 60_000


async def test_a_rollback_leaves_what_others_published() -> None:
    Desk.sink.taken.clear()
    async with open_play() as play:
        await play.begin("emit", "fail")
        assert await play.end() == "emitted"
        assert Desk.sink.taken == ["beside"]
        page = await play.test.host.list_objects()
        assert page.objects[0].attributes == {"from": "beside"}


async def test_sync_beside_a_transaction_waits_until_it_can_be_true() -> None:
    async with open_play() as play:
        disk = take_over(play.test.host)
        await play.begin("write_and_sync", "fail")
        assert "synced" not in play.scene.log
        groups = disk.groups
        assert await play.end() == "synced"
        assert disk.groups > groups
        assert await play.desk.stored() == {"beside": 1, "old": 1}


async def test_an_answer_that_saw_a_transaction_waits_for_its_end() -> None:
    async with open_play() as play:
        await play.begin("read", "commit")
        assert not play.beside.done()
        assert await play.end() == 1
