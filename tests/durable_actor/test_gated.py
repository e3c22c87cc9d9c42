"""Gated objects: Cloudflare's rule for when events may interleave."""

from __future__ import annotations

import asyncio

import pytest

from durable_actor import DurableObject
from durable_actor.testing import open_test_host
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
CALLS = 40
PADDING = b"x" * 20_000  # so large a value is not in memory until it is asked for


class Gated(DurableObject, concurrency="gated"):
    async def plain(self) -> int:
        value: int = await self.ctx.storage.get("n", 0)
        await self.ctx.storage.put("n", value + 1)
        return value + 1

    async def listed(self) -> int:
        entries = await self.ctx.storage.list(prefix="n")
        value: int = entries.get("n", 0)
        self.ctx.storage.put("n", value + 1)
        return value + 1

    async def slow(self) -> int:
        value: int = await self.ctx.storage.get("n", 0)
        for _ in range(3):
            await asyncio.sleep(0)
        self.ctx.storage.put("n", value + 1)
        return value + 1

    async def played(self) -> int:
        value: int = await self.ctx.storage.get("n", 0)
        await self.env.scene.reach("play")
        self.ctx.storage.put("n", value + 1)
        return value + 1

    async def in_transaction(self) -> int:
        return await self.ctx.storage.transaction(lambda _: self.slow())

    async def blocking(self) -> int:
        return await self.ctx.block_concurrency_while(self.slow)

    async def prepare(self) -> None:
        self.ctx.storage.put("large", (0, PADDING))

    async def large(self) -> int:
        value, padding = await self.ctx.storage.get("large")
        self.ctx.storage.put("large", (value + 1, padding))
        return int(value) + 1

    async def play(self, scene: str) -> None:
        await self.env.scene.reach(scene)
        self.env.scene.note(f"{scene} over")

    async def block(self, scene: str) -> None:
        await self.ctx.block_concurrency_while(lambda: self.play(scene))

    async def note(self, text: str) -> None:
        self.env.scene.note(text)

    async def self_call(self) -> int:
        return await self.env.namespace(Gated).get(self.ctx.id).plain()


@pytest.mark.parametrize("method", ["plain", "listed", "in_transaction", "blocking"])
async def test_nothing_is_lost_without_an_outside_await(method: str) -> None:
    async with open_test_host() as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        values = await asyncio.gather(*(getattr(gated, method)() for _ in range(CALLS)))
        assert values == list(range(1, CALLS + 1))


async def test_nothing_is_lost_while_a_read_needs_the_disk() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(Gated)
        gated = namespace.get_by_name("a")
        await gated.prepare()
        assert await test.host.evict(namespace.id_from_name("a"))
        values = await asyncio.gather(*(gated.large() for _ in range(CALLS)))
        assert values == list(range(1, CALLS + 1))


async def test_other_awaits_let_events_in_between() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        calls = [asyncio.ensure_future(gated.played()) for _ in range(CALLS)]
        await test.settle()
        assert scene.log == ["play"] * CALLS
        scene.open("play")
        assert await asyncio.gather(*calls) == [1] * CALLS


async def test_events_start_in_call_order_across_stubs() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Gated)
        stubs = [namespace.get_by_name("a"), namespace.get_by_name("a")]
        await asyncio.gather(*(stubs[i % 2].note(str(i)) for i in range(CALLS)))
        assert scene.log == [str(i) for i in range(CALLS)]


async def test_call_order_holds_when_each_event_closes_the_gate() -> None:
    scene = Scene()
    names = [str(i) for i in range(10)]
    scene.open(*names)
    async with open_test_host(env={"scene": scene}) as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        await asyncio.gather(*(gated.block(name) for name in names))
        assert scene.log == [text for name in names for text in (name, f"{name} over")]


async def test_an_event_of_the_same_instant_waits_for_one_that_blocks() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        await gated.note("ready")
        blocking = asyncio.ensure_future(gated.block("x"))
        other = asyncio.ensure_future(gated.note("other"))
        await test.settle()
        assert scene.log == ["ready", "x"]
        scene.open("x")
        await asyncio.gather(blocking, other)
        assert scene.log == ["ready", "x", "x over", "other"]


async def test_a_gated_object_may_call_itself() -> None:
    async with open_test_host() as test:
        assert await test.host.namespace(Gated).get_by_name("a").self_call() == 1
