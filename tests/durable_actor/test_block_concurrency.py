"""`block_concurrency_while`: the object is all one's own until the callback ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durable_actor import (
    DurableObject,
    DurableObjectState,
    Env,
    ObjectResetError,
    interleave,
)
from durable_actor.testing import open_test_host
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Slow(DurableObject):
    """Its constructor loads something before the first event."""

    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        super().__init__(ctx, env)
        self.loaded = False
        env.scene.note("constructor")
        ctx.block_concurrency_while(self._load)

    async def _load(self) -> None:
        await self.env.scene.reach("load")
        self.ctx.storage.put("loaded", True)
        if self.env.scene.failing:
            self.env.scene.failing -= 1
            raise LookupError("no such thing")
        self.loaded = True

    async def is_loaded(self, note: str = "") -> bool:
        self.env.scene.note(note)
        return self.loaded

    async def stored(self) -> Any:
        return await self.ctx.storage.get("loaded")


class Blocking(DurableObject):
    async def block(self, scene: str) -> str:
        async def callback() -> str:
            await self.env.scene.reach(scene)
            self.env.scene.note(f"{scene} over")
            return scene

        return await self.ctx.block_concurrency_while(callback)

    async def siblings(self, *scenes: str) -> list[str]:
        def callback(scene: str) -> Callable[[], Awaitable[str]]:
            async def play() -> str:
                self.env.scene.note(f"{scene}+")
                await asyncio.sleep(0)
                self.env.scene.note(f"{scene}-")
                return scene

            return play

        return await asyncio.gather(
            *(self.ctx.block_concurrency_while(callback(scene)) for scene in scenes)
        )

    async def nested(self, depth: int) -> int:
        async def callback() -> int:
            return depth if depth == 1 else await self.nested(depth - 1) + 1

        found: int = await self.ctx.block_concurrency_while(callback)
        return found

    async def fail_inside(self) -> None:
        async def callback() -> None:
            self.ctx.storage.put("b", 1)
            raise ValueError("inside")

        self.ctx.storage.put("a", 1)
        await self.ctx.block_concurrency_while(callback)

    async def fail_unawaited(self) -> str:
        async def callback() -> None:
            await self.env.scene.reach("unawaited")
            raise ValueError("inside")

        self.ctx.block_concurrency_while(callback)
        await self.env.scene.reach("handler")
        return "done"

    async def time_out_inside(self) -> None:
        async def callback() -> None:
            raise TimeoutError("of the user's own")

        await self.ctx.block_concurrency_while(callback)

    async def call_out(self, other: str) -> str:
        async def callback() -> str:
            answer: str = await self.env.namespace(Blocking).get_by_name(other).ping()
            return answer

        return await self.ctx.block_concurrency_while(callback)

    async def round_trip(self, other: str) -> str:
        async def callback() -> str:
            stub = self.env.namespace(Blocking).get_by_name(other)
            answer: str = await stub.call_back(str(self.ctx.id.name))
            return answer

        return await self.ctx.block_concurrency_while(callback)

    async def call_back(self, other: str) -> str:
        answer: str = await self.env.namespace(Blocking).get_by_name(other).ping()
        return answer

    async def ping(self) -> str:
        return "pong"

    @interleave
    async def ask(self) -> str:
        self.env.scene.note("asked")
        return "answer"

    async def keys(self) -> list[str]:
        return list(await self.ctx.storage.list())


def failing(times: int) -> Scene:
    scene = Scene()
    scene.failing = times  # type: ignore[attr-defined]  # one scene more
    return scene


async def test_the_constructor_delays_every_event_and_keeps_their_order() -> None:
    scene = failing(0)
    async with open_test_host(env={"scene": scene}) as test:
        slow = test.host.namespace(Slow).get_by_name("a")
        calls = [asyncio.ensure_future(slow.is_loaded(str(i))) for i in range(5)]
        await test.settle()
        assert scene.log == ["constructor", "load"]
        scene.open("load")
        assert await asyncio.gather(*calls) == [True] * 5
        assert scene.log == ["constructor", "load", "0", "1", "2", "3", "4"]


async def test_a_failed_constructor_resets_and_the_next_call_constructs_again() -> None:
    scene = failing(1)
    scene.open("load")
    async with open_test_host(env={"scene": scene}) as test:
        slow = test.host.namespace(Slow).get_by_name("a")
        errors = await results([slow.is_loaded(), slow.is_loaded()])
        for error in errors:
            assert isinstance(error, ObjectResetError)
            assert error.outcome == "not_executed"
            assert error.retryable
            assert "LookupError: no such thing" in str(error)
        assert await slow.is_loaded()
        assert scene.log.count("constructor") == 2


async def test_what_a_failed_constructor_wrote_is_lost() -> None:
    scene = failing(1)
    scene.open("load")
    async with open_test_host(env={"scene": scene}) as test:
        slow = test.host.namespace(Slow).get_by_name("a")
        await results([slow.is_loaded()])
        await test.restart()
        scene.failing = 1  # type: ignore[attr-defined]  # it fails again
        slow = test.host.namespace(Slow).get_by_name("a")
        await results([slow.is_loaded()])

        class Plain(DurableObject):
            async def stored(self) -> Any:
                return await self.ctx.storage.get("loaded")

        await test.restart()
        test.host.register(Plain, "Slow")
        plain = test.host.namespace_by_name("Slow").get_by_name("a")
        assert await plain.stored() is None


async def test_a_constructor_has_a_time_limit() -> None:
    scene = failing(0)
    async with open_test_host(env={"scene": scene}) as test:
        slow = test.host.namespace(Slow).get_by_name("a")
        call = asyncio.ensure_future(slow.is_loaded())
        await test.advance("29 seconds")
        assert not call.done()
        await test.advance("1 second")
        with pytest.raises(ObjectResetError, match="30000 ms") as caught:
            await call
        assert caught.value.outcome == "not_executed"
        scene.open("load")
        assert await slow.is_loaded()


async def test_a_constructor_that_raises_at_once_resets_as_well() -> None:
    class Broken(DurableObject):
        def __init__(self, ctx: DurableObjectState, env: Env) -> None:
            super().__init__(ctx, env)
            message = "never works"
            raise RuntimeError(message)

        async def ping(self) -> str:
            return "pong"

    async with open_test_host() as test:
        broken = test.host.namespace(Broken).get_by_name("a")
        for _ in range(2):
            with pytest.raises(ObjectResetError, match="RuntimeError: never works"):
                await broken.ping()


async def test_a_constructor_may_raise_anything() -> None:
    class Unusual(BaseException):
        pass

    class Broken(DurableObject):
        def __init__(self, ctx: DurableObjectState, env: Env) -> None:
            super().__init__(ctx, env)
            raise Unusual

        async def ping(self) -> str:
            return "pong"

    async with open_test_host() as test:
        broken = test.host.namespace(Broken).get_by_name("a")
        with pytest.raises(ObjectResetError, match="Unusual"):
            await broken.ping()


async def test_a_block_in_a_handler_holds_other_events() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        block = asyncio.ensure_future(blocking.block("x"))
        await test.settle()
        asked = asyncio.ensure_future(blocking.ask())
        await test.settle()
        assert scene.log == ["x"]
        scene.open("x")
        assert await results([block, asked]) == ["x", "answer"]
        assert scene.log == ["x", "x over", "asked"]


async def test_blocks_run_one_after_the_other_in_call_order() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        assert await blocking.siblings("A", "B", "C") == ["A", "B", "C"]
        assert scene.log == ["A+", "A-", "B+", "B-", "C+", "C-"]


async def test_blocks_may_be_nested() -> None:
    async with open_test_host() as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        call = asyncio.ensure_future(blocking.nested(3))
        await test.settle()
        assert call.done()
        assert await call == 3
        assert await blocking.ping() == "pong"


async def test_a_failed_block_resets_and_loses_only_its_own_writes() -> None:
    async with open_test_host() as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        with pytest.raises(ObjectResetError, match="ValueError: inside") as caught:
            await blocking.fail_inside()
        assert caught.value.outcome == "failed"
        assert await blocking.keys() == ["a"]


async def test_a_failed_block_that_nobody_awaits_resets_too() -> None:
    scene = Scene()
    scene.open("unawaited")
    async with open_test_host(env={"scene": scene}) as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        with pytest.raises(ObjectResetError, match="ValueError: inside"):
            await blocking.fail_unawaited()
        assert await blocking.ping() == "pong"


async def test_a_block_in_a_handler_has_a_time_limit() -> None:
    async with open_test_host(env={"scene": Scene()}) as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        block = asyncio.ensure_future(blocking.block("x"))
        queued = asyncio.ensure_future(blocking.ping())
        await test.advance("30 seconds")
        errors = await results([block, queued])
        assert all(isinstance(error, ObjectResetError) for error in errors)
        assert "30000 ms" in str(errors[0])
        assert await blocking.ping() == "pong"


async def test_a_timeout_of_the_users_own_is_not_called_the_time_limit() -> None:
    async with open_test_host() as test:
        blocking = test.host.namespace(Blocking).get_by_name("a")
        with pytest.raises(ObjectResetError, match="of the user's own"):
            await blocking.time_out_inside()


async def test_a_block_may_call_other_objects() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(Blocking)
        assert await namespace.get_by_name("a").call_out("b") == "pong"


async def test_a_call_that_comes_back_into_a_block_is_let_in() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(Blocking)
        call = asyncio.ensure_future(namespace.get_by_name("a").round_trip("b"))
        await test.settle()
        assert call.done()
        assert await call == "pong"
