"""Calls between objects: back along the chain, in circles, and copied on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import (
    CallTimeoutError,
    DurableObject,
    EncodeError,
    ObjectDeadlockError,
    ObjectOverloadedError,
    interleave,
)
from durable_actor.testing import TestHost, open_test_host
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Node(DurableObject):
    def peer(self, name: str) -> Node:
        found: Node = self.env.namespace(Node).get_by_name(name)
        return found

    async def ping(self) -> str:
        return f"{self.ctx.id.name} pong"

    async def visit(self, *names: str) -> list[str]:
        """Call the first name, which calls the next, and so on."""
        me = str(self.ctx.id.name)
        if not names:
            return [me]
        return [me, *await self.peer(names[0]).visit(*names[1:])]

    async def visit_in_a_task(self, *names: str) -> list[str]:
        me = str(self.ctx.id.name)
        if not names:
            return [me]
        found, _ = await asyncio.gather(
            self.peer(names[0]).visit_in_a_task(*names[1:]), asyncio.sleep(0)
        )
        return [me, *found]

    async def meet(self, gate: str, name: str) -> str:
        await self.env.scene.reach(gate)
        return await self.peer(name).ping()

    async def meet_gently(self, gate: str, name: str) -> str:
        await self.env.scene.reach(gate)
        try:
            return await self.peer(name).ping()
        except ObjectDeadlockError:
            return "avoided"

    @interleave
    async def ask(self, gate: str, name: str) -> str:
        await self.env.scene.reach(gate)
        return await self.peer(name).ping()

    async def wait(self, gate: str) -> str:
        await self.env.scene.reach(gate)
        return gate

    async def pass_through(self, gate: str, name: str, *rest: str) -> str:
        """Be a link of a chain, then wait at the gate and call somebody."""
        if not rest:
            return await self.meet(gate, name)
        return await self.peer(rest[0]).pass_through(gate, name, *rest[1:])

    async def keep(self, value: Any) -> Any:
        self.kept = value
        return value

    async def change(self) -> Any:
        self.kept.append("changed")
        return self.kept

    async def answer_badly(self) -> Any:
        self.ctx.storage.put("kept", 1)
        return {"list": [1, object()]}

    async def stored(self) -> list[str]:
        return list(await self.ctx.storage.list())


def node(test: TestHost, name: str) -> Node:
    return test.host.namespace(Node).get_by_name(name)


@pytest.mark.parametrize("method", ["visit", "visit_in_a_task"])
@pytest.mark.parametrize(
    "path", ["ab", "aba", "aa", "abcabc", "abacadabra"], ids=lambda path: path
)
async def test_a_call_along_its_own_chain_is_let_in(method: str, path: str) -> None:
    async with open_test_host() as test:
        first, *names = list(path)
        call = asyncio.ensure_future(getattr(node(test, first), method)(*names))
        await test.settle()
        assert call.done()
        assert await call == list(path)


async def test_calls_that_never_end_calling_are_stopped() -> None:
    class Endless(DurableObject):
        async def count(self, depth: int) -> int:
            name = "b" if self.ctx.id.name == "a" else "a"
            stub: Endless = self.env.namespace(Endless).get_by_name(name)
            try:
                return await stub.count(depth + 1)
            except ObjectOverloadedError:
                return depth

    async with open_test_host() as test:
        depth = await test.host.namespace(Endless).get_by_name("a").count(0)
        assert 100 < depth < 1_000
        assert await node(test, "a").ping() == "a pong"


async def test_two_chains_that_wait_for_each_other_are_told_so() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        calls = [
            asyncio.ensure_future(node(test, "a").meet("gate", "b")),
            asyncio.ensure_future(node(test, "b").meet("gate", "a")),
        ]
        await test.settle()
        scene.open("gate")
        first, second = await results(calls)
        assert first == "b pong"
        assert isinstance(second, ObjectDeadlockError)
        assert second.outcome == "failed"  # it ran; what it asked for did not
        assert "Node:'a'" in str(second)
        assert "Node:'b'" in str(second)


async def test_a_circle_of_three_is_found() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        calls = [
            asyncio.ensure_future(node(test, name).meet("gate", other))
            for name, other in (("a", "b"), ("b", "c"), ("c", "a"))
        ]
        await test.settle()
        scene.open("gate")
        found = await results(calls)
        assert [type(one).__name__ for one in found] == [
            "str",
            "str",
            "ObjectDeadlockError",
        ]


async def test_a_circle_through_a_call_that_came_back_is_found() -> None:
    """a calls b, which calls a, which calls c; c meanwhile calls a."""
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        chain = asyncio.ensure_future(
            node(test, "a").pass_through("chain", "c", "b", "a")
        )
        other = asyncio.ensure_future(node(test, "c").meet("other", "a"))
        await test.settle()
        scene.open("chain")
        await test.settle()
        scene.open("other")
        await test.settle()
        assert other.done()
        assert isinstance((await results([other]))[0], ObjectDeadlockError)
        assert await chain == "c pong"


async def test_who_catches_a_deadlock_goes_on() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        calls = [
            asyncio.ensure_future(node(test, "a").meet_gently("gate", "b")),
            asyncio.ensure_future(node(test, "b").meet_gently("gate", "a")),
        ]
        await test.settle()
        scene.open("gate")
        assert sorted(map(str, await results(calls))) == ["avoided", "b pong"]


async def test_a_wait_of_an_interleaving_method_is_no_deadlock() -> None:
    """b's event waits for a's slow one, which waits for nobody."""
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        slow = asyncio.ensure_future(node(test, "a").wait("slow"))
        calling = asyncio.ensure_future(node(test, "b").meet("calling", "a"))
        asking = asyncio.ensure_future(node(test, "a").ask("asking", "b"))
        await test.settle()
        scene.open("asking")  # a's interleaving method now waits in b's line
        await test.settle()
        scene.open("calling")  # and b's event in a's line, behind the slow one
        await test.settle()
        scene.open("slow")
        assert await results([slow, calling, asking]) == ["slow", "a pong", "b pong"]


async def test_a_long_queue_is_no_deadlock() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        slow = asyncio.ensure_future(node(test, "z").wait("slow"))
        calls = [
            asyncio.ensure_future(node(test, name).visit("y", "z")) for name in "abc"
        ]
        await test.settle()
        scene.open("slow")
        await asyncio.gather(slow, *calls)


async def test_arguments_and_results_are_copies() -> None:
    async with open_test_host() as test:
        value: list[Any] = [1, {"two": [3]}]
        answer = await node(test, "a").keep(value)
        assert answer == value
        value.append("mine")
        answer[1]["two"].append("mine too")
        changed = await node(test, "a").change()
        assert changed == [1, {"two": [3]}, "changed"]
        changed.append("mine")
        assert len(await node(test, "a").change()) == 4


async def test_an_argument_that_cannot_cross_says_where_it_sits() -> None:
    async with open_test_host() as test:
        with pytest.raises(EncodeError, match="object") as caught:
            await node(test, "a").keep({"list": [1, object()]})
        assert "list" in caught.value.path
        assert caught.value.outcome == "not_executed"


async def test_a_result_that_cannot_cross_fails_the_call_and_keeps_its_writes() -> None:
    async with open_test_host() as test:
        with pytest.raises(EncodeError, match="object"):
            await node(test, "a").answer_badly()
        assert await node(test, "a").stored() == ["kept"]


async def test_a_caller_that_leaves_the_line_is_not_served() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        a = node(test, "a")
        first = asyncio.ensure_future(a.wait("first"))
        second = asyncio.ensure_future(a.wait("second"))
        third = asyncio.ensure_future(a.wait("third"))
        await test.settle()
        second.cancel()
        scene.open("first", "third")
        assert await results([first, third]) == ["first", "third"]
        assert scene.log == ["first", "third"]
        await results([second])


async def test_a_caller_that_leaves_while_served_stops_nothing() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        a = node(test, "a")
        call = asyncio.ensure_future(a.meet("gate", "b"))
        await test.settle()
        call.cancel()
        await results([call])
        next_call = asyncio.ensure_future(a.ping())
        await test.settle()
        assert not next_call.done()
        scene.open("gate")
        assert await next_call == "a pong"
        assert test.host.stats().calls_failed == 0


async def test_an_interleaving_call_whose_caller_left_is_not_served() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await node(test, "a").ping()
        call = asyncio.ensure_future(node(test, "a").ask("gate", "b"))
        await asyncio.sleep(0)
        call.cancel()
        await results([call])
        await test.settle()
        assert scene.log == []


async def test_a_call_may_have_a_time_limit() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Node)
        call = asyncio.ensure_future(
            namespace.get_by_name("a", timeout="5 seconds").wait("gate")
        )
        await test.advance("4 seconds")
        assert not call.done()
        await test.advance("1 second")
        with pytest.raises(CallTimeoutError) as caught:
            await call
        assert caught.value.outcome == "unknown"
        scene.open("gate")
        assert await node(test, "a").ping() == "a pong"
