"""Objects that do not suspend share a task; none may notice that of another."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from durable_actor import DurableObject
from durable_actor.testing import open_test_host
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


class Actor(DurableObject):
    async def paint(self, colour: str) -> str:
        before = COLOUR.get()
        COLOUR.set(colour)
        return before

    async def play(self, scene: str) -> str:
        await self.env.scene.reach(scene)
        return scene

    async def note(self, text: str) -> str:
        self.env.scene.note(text)
        return text

    async def leave_a_cancellation_behind(self) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "done"


async def test_a_context_variable_stays_with_the_object_that_set_it() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(Actor)
        actors = [namespace.get_by_name(str(n)) for n in range(5)]
        await asyncio.gather(*(actor.paint("red") for actor in actors))
        seen = await asyncio.gather(*(actor.paint("blue") for actor in actors))

    assert seen == ["none"] * 5


async def test_who_suspends_holds_up_nobody_behind() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Actor)
        slow, quick = namespace.get_by_name("slow"), namespace.get_by_name("quick")
        await asyncio.gather(slow.note("slow is there"), quick.note("quick is there"))

        playing = asyncio.ensure_future(slow.play("x"))
        noting = asyncio.ensure_future(quick.note("not held up"))
        await test.settle()
        assert noting.done()
        assert not playing.done()
        scene.open("x")
        assert await playing == "x"


async def test_a_cancellation_left_behind_reaches_no_other_object() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Actor)
        actors = [namespace.get_by_name(str(n)) for n in range(4)]
        await asyncio.gather(*(actor.note("there") for actor in actors))

        leaving = asyncio.ensure_future(actors[0].leave_a_cancellation_behind())
        playing = [asyncio.ensure_future(actor.play("y")) for actor in actors[1:3]]
        noting = asyncio.ensure_future(actors[3].note("z"))
        await test.settle()
        scene.open("y")
        answers = await asyncio.gather(leaving, *playing, noting)

    assert answers == ["done", "y", "y", "z"]
