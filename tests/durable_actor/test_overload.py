"""The mailbox is bounded in events, bytes and age; beyond it, nothing is delivered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from durable_actor import (
    Config,
    DurableObject,
    ObjectOverloadedError,
    interleave,
    register,
)
from durable_actor.config import ObjectsConfig
from durable_actor.testing import TestHost, open_test_host
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@register
@dataclass(frozen=True)
class Parcel:
    content: bytes


class Busy(DurableObject):
    async def work(self, gate: str, load: Any = None) -> str:
        await self.env.scene.reach(gate)
        return gate

    @interleave
    async def ask(self, gate: str) -> str:
        await self.env.scene.reach(gate)
        return gate

    async def block(self, gate: str) -> None:
        await self.ctx.block_concurrency_while(lambda: self.env.scene.reach(gate))


class GatedBusy(Busy, concurrency="gated"):
    pass


def small_mailbox(**bounds: int) -> Config:
    return Config(objects=ObjectsConfig(**bounds))


def busy(test: TestHost, name: str = "a") -> Busy:
    return test.host.namespace(Busy).get_by_name(name)


async def keep_busy(test: TestHost) -> asyncio.Future[str]:
    running = asyncio.ensure_future(busy(test).work("running"))
    await test.settle()
    return running


async def test_beyond_the_number_of_events_a_call_is_refused_at_once() -> None:
    scene = Scene()
    config = small_mailbox(mailbox_events_max=3)
    async with open_test_host(env={"scene": scene}, config=config) as test:
        running = await keep_busy(test)
        waiting = [asyncio.ensure_future(busy(test).work(f"w{i}")) for i in range(3)]
        await test.settle()
        with pytest.raises(ObjectOverloadedError, match="3 events") as caught:
            await busy(test).work("refused")
        error = caught.value
        assert error.overloaded
        assert not error.retryable
        assert error.outcome == "not_executed"
        assert (error.object_class, error.object_name) == ("Busy", "a")
        assert test.host.stats().shed == 1
        scene.open("running", "w0", "w1", "w2")
        await asyncio.gather(running, *waiting)
        assert "refused" not in scene.log
        scene.open("after")
        assert await busy(test).work("after") == "after"


@pytest.mark.parametrize(
    "load",
    [b"x" * 600, "x" * 600, [b"x" * 300, {"key": "x" * 300}], Parcel(b"x" * 600)],
    ids=["bytes", "text", "nested", "dataclass"],
)
async def test_beyond_the_number_of_bytes_a_call_is_refused(load: Any) -> None:
    scene = Scene()
    config = small_mailbox(mailbox_bytes_max=1_000)
    async with open_test_host(env={"scene": scene}, config=config) as test:
        running = await keep_busy(test)
        waiting = [asyncio.ensure_future(busy(test).work("gate")) for _ in range(5)]
        waiting.append(asyncio.ensure_future(busy(test).work("gate", load)))
        await test.settle()
        with pytest.raises(ObjectOverloadedError, match="bytes"):
            await busy(test).work("gate", load)
        scene.open("running", "gate")
        await asyncio.gather(running, *waiting)
        assert await busy(test).work("gate", load) == "gate"


async def test_behind_an_event_that_waited_too_long_a_call_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    config = small_mailbox(mailbox_age_ms_max=10_000)
    async with open_test_host(env={"scene": scene}, config=config) as test:
        running = await keep_busy(test)
        old = asyncio.ensure_future(busy(test).work("gate"))
        await test.settle()
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 11)
        with pytest.raises(ObjectOverloadedError, match="waited 11"):
            await busy(test).work("gate")
        scene.open("running", "gate")
        await asyncio.gather(running, old)
        assert await busy(test).work("gate") == "gate"


async def test_other_objects_do_not_notice() -> None:
    scene = Scene()
    config = small_mailbox(mailbox_events_max=1)
    async with open_test_host(env={"scene": scene}, config=config) as test:
        running = await keep_busy(test)
        waiting = asyncio.ensure_future(busy(test).work("gate"))
        await test.settle()
        scene.open("gate")
        assert await busy(test, "b").work("gate") == "gate"
        scene.open("running")
        await asyncio.gather(running, waiting)


async def test_a_call_along_its_own_chain_is_never_refused() -> None:
    scene = Scene()
    config = small_mailbox(mailbox_events_max=1)

    class Recursive(Busy):
        async def call_self(self) -> str:
            await self.env.scene.reach("running")
            stub: Recursive = self.env.namespace(Recursive).get(self.ctx.id)
            return await stub.work("inner")

    async with open_test_host(env={"scene": scene}, config=config) as test:
        recursive = test.host.namespace(Recursive).get_by_name("a")
        first = asyncio.ensure_future(recursive.call_self())
        await test.settle()
        second = asyncio.ensure_future(recursive.call_self())
        await test.settle()
        scene.open("running", "inner")
        assert await results([first, second]) == ["inner", "inner"]


async def test_interleaving_events_that_wait_for_the_gate_are_bounded() -> None:
    scene = Scene()
    config = small_mailbox(mailbox_events_max=2)
    async with open_test_host(env={"scene": scene}, config=config) as test:
        blocking = asyncio.ensure_future(busy(test).block("blocking"))
        await test.settle()
        asking = [asyncio.ensure_future(busy(test).ask("ask")) for _ in range(3)]
        await test.settle()
        scene.open("blocking", "ask")
        found = await results(asking)
        assert found[:2] == ["ask", "ask"]
        assert isinstance(found[2], ObjectOverloadedError)
        await blocking


@pytest.mark.parametrize("cls", [GatedBusy, Busy])
async def test_events_that_need_not_wait_are_not_counted(cls: type[Busy]) -> None:
    scene = Scene()
    config = small_mailbox(mailbox_events_max=2)
    async with open_test_host(env={"scene": scene}, config=config) as test:
        stub = test.host.namespace(cls).get_by_name("a")
        scene.open("ready")
        await stub.ask("ready")
        method = stub.work if cls is GatedBusy else stub.ask
        calls = [asyncio.ensure_future(method("gate")) for _ in range(10)]
        await test.settle()
        scene.open("gate")
        assert await asyncio.gather(*calls) == ["gate"] * 10
