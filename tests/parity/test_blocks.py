"""Constructors and `block_concurrency_while`. All objects are gated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from durable_actor import ObjectResetError
from durable_actor.testing import TestHost, open_test_host
from tests.parity.cases import differs, same
from tests.parity.objects import Probe
from tests.parity.test_atomicity import ADDRESS
from tests.parity.translate import Refusal, differences, outcome, to_python
from tests.support.scene import Scene


class Starting(Probe, concurrency="gated"):
    """Does what its class says in its constructor."""

    ready = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._begin(type(self).lives)

    def _begin(self, life: int) -> None:
        raise NotImplementedError

    async def is_ready(self, name: str = "") -> bool:
        self._note(f"call {name} ready={str(self.ready).lower()}")
        return self.ready


def _host(scene: Scene | None = None, **env: Any) -> Any:
    return open_test_host(env={"scene": scene or Scene(), **env})


@same("bcw.ctor.queue")
async def test_calls_wait_for_a_constructor_that_blocks(observed: Any) -> None:
    class Blocking(Starting):
        def _begin(self, life: int) -> None:
            self.ctx.block_concurrency_while(self._prepare)

        async def _prepare(self) -> None:
            self._note("bcw-start")
            await self._wait(100)
            self.ready = True
            self._note("bcw-end")

    scene = Scene()
    async with _host(scene) as test:
        stub = test.host.namespace(Blocking).get_by_name("a")
        start = test.clock.now_ms()
        calls = asyncio.gather(*(stub.is_ready(str(i)) for i in range(5)))
        await test.advance(100)
        assert {
            "ready": await calls,
            "ms": test.clock.now_ms() - start >= 100,
            "log": scene.log,
        } == observed


@same("ctor.asyncWithoutBlock")
async def test_a_constructor_that_does_not_block_is_not_waited_for(
    observed: Any,
) -> None:
    class Careless(Starting):
        def _begin(self, life: int) -> None:
            self.preparing = asyncio.ensure_future(self._prepare())

        async def _prepare(self) -> None:
            await self._wait(100)
            self.ready = True

    async with _host() as test:
        stub = test.host.namespace(Careless).get_by_name("a")
        first = await stub.is_ready()
        await test.advance(100)
        assert {"first": first} == observed
        assert await stub.is_ready()


async def _failing(message: str, *, blocking: bool, times: int) -> type[Starting]:
    """Return a class whose constructor writes and fails, so many times."""

    class Failing(Starting):
        lives = 0

        def _begin(self, life: int) -> None:
            if life > times:
                return
            if blocking:
                self.ctx.block_concurrency_while(self._fail)
                return
            self.ctx.storage.put("w", 1)
            raise ValueError(message)

        async def _fail(self) -> None:
            self.ctx.storage.put("w", 1)
            raise TypeError(message)

    return Failing


@differs("bcw.ctor.throws", ADDRESS)
async def test_a_blocking_constructor_that_fails_is_run_again(observed: Any) -> None:
    cls = await _failing("bcw ctor boom", blocking=True, times=100)
    async with _host() as test:
        stub = test.host.namespace(cls).get_by_name("a")
        ours = {
            "first": await outcome(stub.ping),
            "sameStub": await outcome(stub.ping),
        }
        fresh = test.host.namespace(cls).get_by_name("a")
        ours |= {"freshStub": await outcome(fresh.ping), "runs": cls.lives}
    # There the constructor is not run for a stub that is broken; ours has no such.
    assert differences(ours, observed) == {"runs"}
    assert cls.lives == observed["runs"] + 1


@same("bcw.ctor.throwsOnce")
async def test_a_blocking_constructor_loses_its_writes_if_it_fails(
    observed: Any,
) -> None:
    cls = await _failing("bcw ctor boom once", blocking=True, times=1)
    async with _host() as test:
        stub = test.host.namespace(cls).get_by_name("a")
        ours = {
            "first": await outcome(stub.ping),
            "second": await outcome(stub.ping),
            "runs": cls.lives,
            "write": await stub.read("w"),
        }
    assert differences(ours, observed) == set()


@differs("ctor.throws", ADDRESS)
async def test_a_constructor_that_fails_is_run_again(observed: Any) -> None:
    cls = await _failing("ctor boom", blocking=False, times=100)
    async with _host() as test:
        stub = test.host.namespace(cls).get_by_name("a")
        ours: dict[str, Any] = {
            "first": await outcome(stub.ping),
            "secondSameStub": await outcome(stub.ping),
            "runsAfterTwoOnOneStub": cls.lives,
            "freshStub": await outcome(stub.ping),
            "runsAfterFreshStub": cls.lives,
        }
        pair = await asyncio.gather(outcome(stub.ping), outcome(stub.ping))
        ours |= {"concurrentPair": pair, "runsAfterPair": cls.lives}
    runs = {"runsAfterTwoOnOneStub", "runsAfterFreshStub", "runsAfterPair"}
    assert differences(ours, observed) == {*runs, "concurrentPair"}
    for error, message in zip(pair, observed["concurrentPair"], strict=True):
        assert isinstance(error, ObjectResetError)
        assert message in str(error)
    # Each call that finds no object begins one; the pair shares one.
    assert [ours[name] for name in sorted(runs, key=list(ours).index)] == [2, 3, 4]


@differs("ctor.throwsOnce", ADDRESS)
async def test_a_constructor_that_fails_once_is_forgotten(observed: Any) -> None:
    cls = await _failing("ctor boom once", blocking=False, times=1)
    async with _host() as test:
        stub = test.host.namespace(cls).get_by_name("a")
        ours = {
            "first": await outcome(stub.ping),
            "sameStub": await outcome(stub.ping),
            "freshStub": await outcome(test.host.namespace(cls).get_by_name("a").ping),
            "runs": cls.lives,
        }
    assert differences(ours, observed) == {"sameStub"}
    assert ours["sameStub"] == "pong"


@differs("ctor.putThenThrow", ADDRESS)
async def test_a_constructor_that_fails_loses_its_writes(observed: Any) -> None:
    cls = await _failing("ctor put boom", blocking=False, times=1)
    async with _host() as test:
        stub = test.host.namespace(cls).get_by_name("a")
        ours = {
            "first": await outcome(stub.ping),
            "write": await outcome(lambda: stub.read("w")),
        }
    assert differences(ours, observed) == {"write"}
    assert ours["write"] is None


class Blocker(Probe, concurrency="gated"):
    """Blocks concurrency in its handlers."""

    def _block(self, body: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        return self.ctx.block_concurrency_while(body)

    def _later(self, ms: int, text: str) -> None:
        async def fire() -> None:
            await self._wait(ms)
            self._note(text)

        self.ctx.wait_until(fire())

    async def note(self, text: str) -> str:
        self._note(text)
        return "ok"

    async def siblings(self) -> None:
        def body(name: str) -> Callable[[], Awaitable[None]]:
            async def blocking() -> None:
                self._note(f"{name}+")
                await self._wait(10)
                self._note(f"{name}-")

            return blocking

        await asyncio.gather(*(self._block(body(name)) for name in "ABC"))

    async def nested(self, depth: int) -> int:
        if depth == 0:
            return 0
        return 1 + int(await self._block(lambda: self.nested(depth - 1)))

    async def outside(self) -> int:
        """Do I/O of all kinds inside a block."""

        async def body() -> int:
            self.ctx.storage.put("n", 1)
            await self.env.fetch()
            other = self.env.namespace(Blocker).get_by_name("other")
            await other.note("called")
            return int(await self.ctx.storage.get("n"))

        return int(await self._block(body))

    async def calls_itself(self) -> Any:
        me = self.env.namespace(Blocker).get(self.ctx.id)
        return await self._block(me.ping)

    async def with_outer_timer(self, outer_ms: int, inner_ms: int | None) -> str:
        self._later(outer_ms, "outer-timer")
        self._note("before")

        async def body() -> None:
            self._note("in")
            if inner_ms is None:
                await self.env.fetch()
            else:
                await self._wait(inner_ms)
                self._note("inner-timer")
            self._note("out")

        await self._block(body)
        self._note("after")
        return "ok"

    async def throw_caught(self) -> str:
        async def body() -> None:
            await self._wait(1)
            message = "inside"
            raise ValueError(message)

        try:
            await self._block(body)
        except Exception as error:  # noqa: BLE001  # that it is never reached is the case
            self._note(f"caught {error}")
        return "ret"

    async def throw_no_await(self) -> str:
        async def body() -> None:
            await self._wait(1)
            message = "later inside"
            raise ValueError(message)

        self._block(body)
        return "returned-before"

    async def throw_at_once(self) -> str:
        def body() -> Awaitable[None]:
            message = "sync inside"
            raise ValueError(message)

        self._block(body)
        return "ret"


@same("bcw.twoSiblings")
async def test_blocks_run_one_after_the_other(observed: Any) -> None:
    scene = Scene()
    async with _host(scene) as test:
        call = asyncio.ensure_future(
            test.host.namespace(Blocker).get_by_name("a").siblings()
        )
        await test.advance(30)
        await call
    assert scene.log == observed


@same("bcw.nested")
async def test_blocks_are_nested_64_deep_at_most(observed: Any) -> None:
    async with _host() as test:
        stub = test.host.namespace(Blocker).get_by_name("a")
        ours = {
            name: await outcome(lambda: stub.nested(int(name[1:]))) for name in observed
        }
        await test.settle()  # until all of them have unwound
    assert differences(ours, observed) == set()


@same("bcw.ioInside")
async def test_everything_is_possible_inside_a_block(observed: Any) -> None:
    async def fetch() -> None:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0)
        async with server:
            await _get_line(server.sockets[0].getsockname()[1])

    async with _host(fetch=fetch) as test:
        stub = test.host.namespace(Blocker).get_by_name("a")
        assert await stub.outside() == to_python(observed)


async def _answer(_: object, writer: asyncio.StreamWriter) -> None:
    writer.write(b"line\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _get_line(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.close()
    await writer.wait_closed()


@differs("bcw.selfCall", "a call that comes back along its own chain is let in")
async def test_a_block_may_call_its_own_object(observed: Any) -> None:
    async with _host() as test:
        ours = await test.host.namespace(Blocker).get_by_name("a").calls_itself()
        assert ours == "pong"
        assert isinstance(to_python(observed["r"]), Refusal)  # after 30 seconds


@same("bcw.timeout30s")
async def test_a_block_has_thirty_seconds(observed: Any) -> None:
    class Slow(Starting):
        def _begin(self, life: int) -> None:
            self.ctx.block_concurrency_while(lambda: self._wait(31_000))

    async with _host() as test:
        start = test.clock.now_ms()
        call = asyncio.ensure_future(
            outcome(test.host.namespace(Slow).get_by_name("a").ping)
        )
        await test.advance(observed["seconds"] * 1_000 - 1)
        assert not call.done()
        await test.advance(1)
        seconds = (test.clock.now_ms() - start) // 1_000
        ours = {"r": await call, "seconds": seconds}
    assert differences(ours, observed) == set()


async def _beside(call: Awaitable[Any], test: TestHost, ms: int) -> list[Any]:
    """Make a call, and another one behind it; return what both got."""
    stub = test.host.namespace(Blocker).get_by_name("a")
    calls = asyncio.gather(call, stub.note("other-call"))
    await test.advance(ms)
    return list(await calls)


@differs("bcw.handler.outerTimerDue", "a timer that is due holds up no other timer")
async def test_a_timer_from_outside_does_not_stop_a_block(observed: Any) -> None:
    scene = Scene()
    async with _host(scene) as test:
        stub = test.host.namespace(Blocker).get_by_name("a")
        ours = await _beside(stub.with_outer_timer(10, 60), test, 100)
    assert ours == ["ok", "ok"]
    assert scene.log[: len(observed["log"])] == observed["log"]
    assert scene.log[len(observed["log"]) :] == [
        "outer-timer",
        "inner-timer",
        "out",
        "after",
        "other-call",
    ]


@same("bcw.handler.outerTimerLater")
async def test_a_timer_that_is_due_after_a_block(observed: Any) -> None:
    scene = Scene()
    async with _host(scene) as test:
        stub = test.host.namespace(Blocker).get_by_name("a")
        results = await _beside(stub.with_outer_timer(70, 60), test, 100)
    assert {"results": results, "log": scene.log} == {
        key: observed[key] for key in ("results", "log")
    }


@differs(
    "bcw.handler.outerTimerDueFetch", "the gate holds events, not the object's own"
)
async def test_a_timer_of_the_object_fires_inside_its_block(observed: Any) -> None:
    scene = Scene()
    fetched = asyncio.Event()
    async with _host(scene, fetch=fetched.wait) as test:
        stub = test.host.namespace(Blocker).get_by_name("a")
        calls = asyncio.gather(stub.with_outer_timer(10, None), stub.note("other-call"))
        await test.advance(60)
        fetched.set()
        results = await calls
    assert results == observed["results"]
    assert sorted(scene.log) == sorted(observed["log"])
    assert scene.log.index("outer-timer") == scene.log.index("in") + 1
    mine, theirs = (
        [x for x in log if x != "outer-timer"] for log in (scene.log, observed["log"])
    )
    assert mine == theirs


@same("bcw.handler.throws")
async def test_a_block_that_fails_resets_the_object(observed: Any) -> None:
    methods = {
        "b.throwCaught": "throw_caught",
        "b.syncThrow": "throw_at_once",
        "b.throwNoAwait": "throw_no_await",
    }
    ours = {}
    for name, method in methods.items():
        scene = Scene()

        class Fresh(Blocker):
            lives = 0

        async with _host(scene) as test:
            stub = test.host.namespace(Fresh).get_by_name("a")
            await stub.ping()
            calls = asyncio.gather(
                outcome(getattr(stub, method)), outcome(lambda: stub.note("concurrent"))
            )
            await test.advance(10)
            call, concurrent = await calls
            await stub.ping()
            ours[name] = {
                "call": call,
                "concurrentCall": concurrent,
                "newInstance": Fresh.lives == 2,
                "log": scene.log,
            }
    assert differences(ours, observed) == set()
