"""The input gate: when an event is let in beside another. All objects are gated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from durable_actor.testing import TestHost, open_test_host
from tests.parity.cases import differs, same
from tests.parity.objects import Probe
from tests.support.drivers import take_over
from tests.support.scene import Scene

CALLS = 40
DISK = "SQL"  # the engine that was observed on a disk


async def _resolved() -> None:
    """Return at once, as a micro-task does: awaiting it is no end of a turn."""


class Neighbour(Probe, concurrency="gated"):
    """Somebody else to call."""

    async def answer(self) -> None:
        await self._wait(5)


class Gated(Probe, concurrency="gated"):
    port: int = 0  # of a server that answers with a line

    async def increment(self, between: str, **options: bool) -> int:
        value: int = await self.ctx.storage.get("n", 0, **options)
        for doing in _BETWEEN[between]:
            await doing(self)
        self.ctx.storage.put("n", value + 1)
        return value + 1

    async def blocked(self) -> int:
        async def increment() -> int:
            return await self.increment("timer")

        return await self.ctx.block_concurrency_while(increment)

    async def trace(self, name: str, doing: str) -> None:
        self._note(f"{name}:start")
        for _ in range(2):
            await _STEPS[doing](self)
            self._note(f"{name}:{doing}")

    async def slow(self) -> None:
        self._note("slow-start")
        await self._wait(100)
        self._note("slow-end")

    async def note(self, text: str) -> None:
        self._note(text)

    async def nested(self, depth: int) -> int:
        if depth == 0:
            return 0
        me: Any = self.env.namespace(Gated).get(self.ctx.id)
        return 1 + int(await me.nested(depth - 1))

    async def reads_beside_a_timer(self, reads: int) -> None:
        done = asyncio.Event()

        def fire() -> None:
            self._note("timer0")
            done.set()

        asyncio.get_running_loop().call_later(0, fire)
        for index in range(reads):
            await self.ctx.storage.get("x")
            self._note(f"get{index}")
        await done.wait()

    async def reads_beside_a_fetch(self, reads: int) -> None:
        async def fetch() -> None:
            await self.fetch_line()
            self._note("fetch")

        fetching = asyncio.ensure_future(fetch())
        for index in range(reads):
            await self.ctx.storage.get("x")
            self._note(f"get{index}")
        await fetching

    async def fetch_line(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.env.port)
        await reader.readline()
        writer.close()
        await writer.wait_closed()

    async def ask_a_neighbour(self) -> None:
        await self.env.namespace(Neighbour).get_by_name("b").answer()

    async def sync(self) -> None:
        await self.ctx.storage.sync()

    async def put_and_sync(self) -> None:
        self.ctx.storage.put("x", self.ctx.clock.now_ms())
        await self.ctx.storage.sync()

    async def wait_5_ms(self) -> None:
        await self._wait(5)

    async def wait_1_ms(self) -> None:
        await self._wait(1)


Step = Callable[[Gated], Awaitable[Any]]
_STEPS: dict[str, Step] = {
    "get": lambda it: it.ctx.storage.get("x"),
    "micro": lambda _: _resolved(),
    "sync": Gated.sync,
    "put and sync": Gated.put_and_sync,
}
_BETWEEN: dict[str, list[Step]] = {
    "none": [],
    "micro": [_STEPS["micro"]] * 50,
    "setTimeout0": [Gated.wait_1_ms],  # the least that one waits there
    "timer": [Gated.wait_5_ms],
    "fetch": [Gated.fetch_line],
    "rpc": [Gated.ask_a_neighbour],
    "sync": [Gated.sync],
}


async def _counted(calls: list[Awaitable[int]], test: TestHost) -> dict[str, Any]:
    """Return what became of the same increment, made so many times at once."""
    running = asyncio.gather(*calls)
    await test.advance(CALLS * 5 + 5)
    values = await running
    final = await test.host.namespace(Gated).get_by_name("a").read("n")
    return {
        "calls": len(calls),
        "final": final,
        "lost": len(calls) - final,
        "distinctReturns": len(set(values)),
        "inOrder": values == list(range(1, len(calls) + 1)),
    }


async def _increments(between: str) -> dict[str, Any]:
    async with open_test_host() as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        await gated.ping()
        return await _counted([gated.increment(between) for _ in range(CALLS)], test)


@asynccontextmanager
async def _server(callers: int) -> AsyncIterator[int]:
    """Answer with a line once so many have asked; yield the port."""
    everyone = asyncio.Barrier(callers)

    async def answer(_: object, writer: asyncio.StreamWriter) -> None:
        await everyone.wait()
        writer.write(b"line\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@same("gate.inc.none")
async def test_nothing_is_lost_between_storage_awaits(observed: Any) -> None:
    assert await _increments("none") == observed[DISK]


@same("gate.inc.micro")
async def test_nothing_is_lost_over_awaits_that_do_not_suspend(observed: Any) -> None:
    assert await _increments("micro") == observed[DISK]


@same("gate.inc.setTimeout0")
async def test_the_shortest_timer_lets_others_in(observed: Any) -> None:
    assert await _increments("setTimeout0") == observed[DISK]


@same("gate.inc.timer")
async def test_a_timer_lets_others_in(observed: Any) -> None:
    assert await _increments("timer") == observed[DISK]


@same("gate.inc.fetch")
async def test_a_fetch_lets_others_in(observed: Any) -> None:
    async with _server(CALLS) as port, open_test_host(env={"port": port}) as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        ours = await _counted([gated.increment("fetch") for _ in range(CALLS)], test)
    assert ours == observed[DISK]


@same("gate.inc.rpcself")
async def test_a_call_to_another_object_lets_others_in(observed: Any) -> None:
    assert await _increments("rpc") == observed[DISK]


NOTHING_TO_SYNC = "`sync` returns at once, in the same turn, if nothing is unwritten"


@differs("gate.inc.sync", NOTHING_TO_SYNC)
async def test_sync_lets_others_in_if_it_waits(observed: Any) -> None:
    async with open_test_host() as test:
        stub, seen = test.host.namespace(Gated).get_by_name("a"), observed[DISK]
        await stub.ping()
        driver = take_over(test.host)
        driver.pause()
        calls = [asyncio.ensure_future(stub.increment("sync")) for _ in range(CALLS)]
        await test.settle()
        driver.resume()
        ours = await _counted(list(calls), test)
    # The first call has nothing to wait for, and so its update is not lost.
    assert ours["lost"] == seen["lost"] - 1
    assert ours["final"] == seen["final"] + 1
    assert ours["inOrder"] is seen["inOrder"]


@same("gate.inc.bcw")
async def test_nothing_is_lost_while_concurrency_is_blocked(observed: Any) -> None:
    async with open_test_host() as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        ours = await _counted([gated.blocked() for _ in range(CALLS)], test)
    assert ours == observed[DISK]


async def _increments_reading(**options: bool) -> dict[str, Any]:
    async with open_test_host() as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        await gated.ping()
        return await _counted(
            [gated.increment("none", **options) for _ in range(CALLS)], test
        )


@same("gate.inc.allowConcurrency")
async def test_a_read_of_what_is_in_memory_lets_nobody_in(observed: Any) -> None:
    ours = await _increments_reading(allow_concurrency=True, no_cache=True)
    assert ours == observed[DISK]


@same("gate.inc.noCache")
async def test_nothing_is_lost_by_reads_without_the_cache(observed: Any) -> None:
    assert await _increments_reading(no_cache=True) == observed[DISK]


@same("gate.concurrentRequests")
async def test_a_second_call_runs_while_the_first_awaits_a_timer(observed: Any) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        calls = asyncio.gather(gated.slow(), gated.note("second"))
        await test.advance(100)
        await calls
    assert scene.log == observed


async def _order(stubs: int) -> list[int]:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        objects = test.host.namespace(Gated)
        gated = [objects.get_by_name("a") for _ in range(stubs)]
        await asyncio.gather(*(gated[i % stubs].note(str(i)) for i in range(100)))
    return [int(text) for text in scene.log]


def _as_seen(order: list[int], observed: Any) -> dict[str, Any]:
    first = order[: len(observed["first"])]
    return {"inOrder": order == list(range(100)), "first": first}


@same("gate.deliveryOrder")
async def test_calls_are_delivered_in_their_order(observed: Any) -> None:
    assert _as_seen(await _order(1), observed) == observed


@same("gate.deliveryOrder.twoStubs")
async def test_the_order_of_calls_holds_across_stubs(observed: Any) -> None:
    assert _as_seen(await _order(2), observed) == observed


@same("gate.fetchVsStorage")
async def test_reads_of_storage_come_before_a_fetch_that_runs(observed: Any) -> None:
    scene = Scene()
    async with (
        _server(1) as port,
        open_test_host(env={"scene": scene, "port": port}) as test,
    ):
        await test.host.namespace(Gated).get_by_name("a").reads_beside_a_fetch(6)
    assert scene.log == observed[DISK]


@same("gate.timerVsStorage")
async def test_reads_of_storage_come_before_a_timer_that_is_due(observed: Any) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await test.host.namespace(Gated).get_by_name("a").reads_beside_a_timer(5)
    assert scene.log == observed[DISK]


async def _traced(doing: str) -> list[str]:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        gated = test.host.namespace(Gated).get_by_name("a")
        await gated.ping()
        await asyncio.gather(gated.trace("A", doing), gated.trace("B", doing))
    return scene.log


@same("gate.trace.get")
async def test_reads_of_storage_let_nobody_in(observed: Any) -> None:
    assert await _traced("get") == observed[DISK]


@same("gate.trace.micro")
async def test_awaits_that_do_not_suspend_let_nobody_in(observed: Any) -> None:
    assert await _traced("micro") == observed[DISK]


@differs("gate.trace.sync", NOTHING_TO_SYNC)
async def test_two_calls_take_turns_at_a_sync_that_waits(observed: Any) -> None:
    seen = observed[DISK]
    assert await _traced("sync") == sorted(seen, key=lambda step: step[0])
    ours = await _traced("put and sync")
    assert [step.replace("put and ", "") for step in ours] == seen


@same("gate.reentrantSelfCall")
async def test_an_object_may_call_itself(observed: Any) -> None:
    async with open_test_host() as test:
        stub = test.host.namespace(Gated).get_by_name("a")
        assert await stub.nested(3) == observed["ok"]
