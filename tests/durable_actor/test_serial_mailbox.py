"""Serial objects: one event at a time, from acceptance to reply."""

from __future__ import annotations

import asyncio

import pytest

from durable_actor import DurableObject, DurableObjectState, Env, interleave
from durable_actor.testing import open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Actor(DurableObject):
    """Plays scenes; each ends when the test opens its gate."""

    async def play(self, scene: str) -> str:
        await self.env.scene.reach(scene)
        self.env.scene.note(f"{scene} over")
        return scene

    async def note(self, text: str) -> None:
        self.env.scene.note(text)

    @interleave
    async def ask(self, text: str) -> str:
        self.env.scene.note(text)
        return text

    async def write(self, key: str) -> None:
        self.env.scene.note(key)
        self.ctx.storage.put(key, 1)

    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("n", 0)
        await asyncio.sleep(0)
        self.ctx.storage.put("n", value + 1)
        return value + 1


async def test_g3_one_event_runs_at_a_time_in_order_of_arrival() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        actor = test.host.namespace(Actor).get_by_name("a")
        calls = [asyncio.ensure_future(actor.play(name)) for name in "xyz"]
        await test.settle()
        assert scene.log == ["x"]

        scene.open("y")
        await test.settle()
        assert scene.log == ["x"]

        scene.open("x", "z")
        assert await asyncio.gather(*calls) == ["x", "y", "z"]
        assert scene.log == ["x", "x over", "y", "y over", "z", "z over"]


async def test_two_stubs_of_one_object_share_its_line() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Actor)
        stubs = [namespace.get_by_name("a"), namespace.get(namespace.id_from_name("a"))]
        await asyncio.gather(*(stubs[i % 2].note(str(i)) for i in range(10)))
        assert scene.log == [str(i) for i in range(10)]


async def test_events_of_different_objects_overlap() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Actor)
        calls = [
            asyncio.ensure_future(namespace.get_by_name(name).play(name))
            for name in "ab"
        ]
        await test.settle()
        assert sorted(scene.log) == ["a", "b"]
        scene.open("a", "b")
        await asyncio.gather(*calls)


async def test_g3_read_and_write_around_an_await_lose_nothing() -> None:
    async with open_test_host() as test:
        actor = test.host.namespace(Actor).get_by_name("a")
        values = await asyncio.gather(*(actor.increment() for _ in range(40)))
        assert values == list(range(1, 41))


async def test_the_next_event_does_not_wait_for_the_disk() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        actor = test.host.namespace(Actor).get_by_name("a")
        await actor.note("ready")
        disk = take_over(test.host)
        disk.pause()
        calls = [asyncio.ensure_future(actor.write(key)) for key in "xy"]
        await test.settle()
        assert scene.log == ["ready", "x", "y"]
        assert not any(call.done() for call in calls)
        disk.resume()
        await asyncio.gather(*calls)


async def test_an_interleaving_method_runs_while_another_event_awaits() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        actor = test.host.namespace(Actor).get_by_name("a")
        playing = asyncio.ensure_future(actor.play("x"))
        waiting = asyncio.ensure_future(actor.note("later"))
        await test.settle()
        assert await actor.ask("now") == "now"
        assert scene.log == ["x", "now"]
        scene.open("x")
        await asyncio.gather(playing, waiting)
        assert scene.log == ["x", "now", "x over", "later"]


async def test_an_interleaving_method_waits_for_the_constructor() -> None:
    scene = Scene()

    class Slow(Actor):
        def __init__(self, ctx: DurableObjectState, env: Env) -> None:
            super().__init__(ctx, env)
            ctx.block_concurrency_while(lambda: env.scene.reach("constructor"))

    async with open_test_host(env={"scene": scene}) as test:
        slow = test.host.namespace(Slow).get_by_name("a")
        asked = asyncio.ensure_future(slow.ask("question"))
        await test.settle()
        assert scene.log == ["constructor"]
        scene.open("constructor")
        assert await asked == "question"


async def test_an_idle_object_is_not_a_task() -> None:
    async with open_test_host(env={"scene": Scene()}) as test:
        namespace = test.host.namespace(Actor)
        await test.settle()
        before = asyncio.all_tasks()
        for i in range(20):
            await namespace.get_by_name(str(i)).increment()
        await test.settle()
        assert asyncio.all_tasks() == before
