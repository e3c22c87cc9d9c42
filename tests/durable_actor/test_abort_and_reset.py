"""`abort`, and whatever else ends an activation before its time."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from durable_actor import (
    Clock,
    DurableObject,
    ObjectError,
    ObjectResetError,
    interleave,
)
from durable_actor.storage.overlay import Overlay
from durable_actor.testing import open_test_host
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Unusual(BaseException):
    """Derived from BaseException, as signals of libraries are."""


class Fragile(DurableObject):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = 0

    async def abort_now(self, reason: str | None = None) -> None:
        self.ctx.storage.put("same turn", 1)
        self.ctx.abort(reason)

    async def abort_later(self) -> None:
        self.ctx.storage.put("earlier turn", 1)
        await asyncio.sleep(0)
        self.ctx.storage.put("same turn", 1)
        self.ctx.abort()

    async def abort_after_sync(self) -> None:
        self.ctx.storage.put("synced", 1)
        await self.ctx.storage.sync()
        self.ctx.storage.put("same turn", 1)
        self.ctx.abort()

    async def abort_in_a_group(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.abort_now("in a group"))
            group.create_task(asyncio.Event().wait())

    async def abort_in_the_background(self) -> None:
        self.ctx.wait_until(self.abort_now("in the background"))
        await asyncio.Event().wait()

    async def wait(self, scene: str) -> str:
        await self.env.scene.reach(scene)
        return scene

    @interleave
    async def wait_beside(self, scene: str) -> str:
        await self.env.scene.reach(scene)
        return scene

    async def survive(self) -> None:
        """Go on after a cancellation, which an object should not do."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.env.scene.note("cancelled")
        try:
            self.ctx.storage.put("ghost", 1)
        except ObjectResetError:
            self.env.scene.note("refused")
        try:
            await self.env.namespace(Fragile).get_by_name("b").remember(1)
        except ObjectResetError:
            self.env.scene.note("not sent")

    async def abort_beside(self) -> None:
        self.ctx.abort("beside")

    abort_beside = interleave(abort_beside)

    async def remember(self, value: int) -> int:
        self.memory += value
        return self.memory

    async def write(self) -> str:
        self.ctx.storage.put("written", 1)
        return "written"

    async def write_and_wait(self) -> str:
        self.ctx.storage.put("written", 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "written"

    async def keys(self) -> list[str]:
        return list(await self.ctx.storage.list())

    async def raise_this(self, name: str) -> None:
        self.ctx.storage.put("kept", 1)
        error = RAISED[name]()
        raise error

    async def await_a_cancelled_future(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


class RefusedError(Exception):
    """A user's own."""

    def __init__(self, code: int = 7) -> None:
        super().__init__(code)
        self.code = code


RAISED: dict[str, Callable[[], BaseException]] = {
    "RefusedError": RefusedError,
    "ValueError": ValueError,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "TimeoutError": TimeoutError,
    "Unusual": Unusual,
}


async def test_abort_loses_the_writes_of_its_turn() -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        with pytest.raises(ObjectResetError) as caught:
            await fragile.abort_now()
        assert "Application called abort() to reset Durable Object." in str(
            caught.value
        )
        assert caught.value.outcome == "failed"
        assert await fragile.keys() == []


@pytest.mark.parametrize(
    ("method", "kept"),
    [("abort_later", ["earlier turn"]), ("abort_after_sync", ["synced"])],
)
async def test_abort_keeps_the_writes_of_earlier_turns(
    method: str, kept: list[str]
) -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        with pytest.raises(ObjectResetError):
            await getattr(fragile, method)()
        assert await fragile.keys() == kept


async def test_everyone_in_flight_or_in_line_is_told_whether_it_ran() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        await fragile.remember(1)
        calls = [
            asyncio.ensure_future(fragile.wait("x")),
            asyncio.ensure_future(fragile.wait_beside("y")),
            asyncio.ensure_future(fragile.wait("z")),
        ]
        await test.settle()
        aborting = asyncio.ensure_future(fragile.abort_beside())
        errors = await results([aborting, *calls])
        outcomes = []
        for error in errors:
            assert isinstance(error, ObjectResetError)
            assert "beside" in str(error)
            assert error.retryable
            outcomes.append(error.outcome)
        assert outcomes == ["failed", "failed", "failed", "not_executed"]
        assert scene.log == ["x", "y"]


async def test_an_event_accepted_but_not_begun_is_told_as_well() -> None:
    async with open_test_host(env={"scene": Scene()}) as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        await fragile.remember(1)
        aborting = asyncio.ensure_future(fragile.abort_beside())
        other = asyncio.ensure_future(fragile.wait_beside("never"))
        await test.settle()
        assert other.done()
        error = (await results([other]))[0]
        assert isinstance(error, ObjectResetError)
        assert error.outcome == "not_executed"
        await results([aborting])


async def test_the_next_call_finds_a_fresh_object() -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        assert await fragile.remember(1) == 1
        await results([fragile.abort_now()])
        assert await fragile.remember(1) == 1
        assert test.host.stats().reset == 1


@pytest.mark.parametrize("method", ["abort_in_a_group", "abort_in_the_background"])
async def test_abort_works_from_a_task_of_the_handler(method: str) -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        with pytest.raises(ObjectResetError, match=r"in (a group|the background)"):
            await getattr(fragile, method)()
        assert await fragile.keys() == []


async def test_code_that_outlives_its_object_can_do_nothing() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(Fragile)
        fragile = namespace.get_by_name("a")
        surviving = asyncio.ensure_future(fragile.survive())
        await test.settle()
        await results([fragile.abort_beside()])
        await results([surviving])
        await test.settle()
        assert scene.log == ["cancelled", "refused", "not sent"]
        assert await fragile.keys() == []
        assert await namespace.get_by_name("b").remember(1) == 1


async def test_an_exception_of_the_handler_keeps_its_type_and_the_object() -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        await fragile.remember(1)
        with pytest.raises(RefusedError) as caught:
            await fragile.raise_this("RefusedError")
        assert caught.value.code == 7
        assert await fragile.remember(1) == 2
        assert await fragile.keys() == ["kept"]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        ("StopIteration", RuntimeError),
        ("StopAsyncIteration", (StopAsyncIteration, RuntimeError)),
        ("CancelledError", ObjectError),
        ("TimeoutError", TimeoutError),
        ("Unusual", ObjectResetError),
    ],
)
async def test_whatever_a_handler_raises_nobody_hangs(raised: str, seen: Any) -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        call = asyncio.ensure_future(fragile.raise_this(raised))
        queued = asyncio.ensure_future(fragile.remember(1))
        await test.settle()
        assert call.done()
        assert queued.done()
        with pytest.raises(seen):
            await call
        await results([queued])
        assert await fragile.remember(1) >= 1


@pytest.mark.parametrize("is_at_work", [False, True])
async def test_an_error_of_ours_at_the_end_of_a_turn_resets_its_object_only(
    monkeypatch: pytest.MonkeyPatch, *, is_at_work: bool
) -> None:
    """It must neither leave callers waiting nor keep other turns from ending."""
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile)
        real = Overlay.seal

        def seal(overlay: Overlay, clock: Clock) -> int:
            if overlay._id.name == "broken" and overlay.is_unsealed:
                message = "a bug"
                raise RuntimeError(message)
            return real(overlay, clock)

        monkeypatch.setattr(Overlay, "seal", seal)
        work = "write_and_wait" if is_at_work else "write"
        calls = [
            asyncio.ensure_future(getattr(fragile.get_by_name(name), work)())
            for name in ("broken", "sound")
        ]
        await test.settle()
        broken, sound = await results(calls)
        assert isinstance(broken, ObjectResetError)
        assert broken.outcome == "unknown"
        assert "a bug" in str(broken)
        assert sound == "written"
        monkeypatch.setattr(Overlay, "seal", real)
        assert await fragile.get_by_name("broken").write() == "written"


async def test_awaiting_something_cancelled_fails_the_call_only() -> None:
    async with open_test_host() as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        await fragile.remember(1)
        with pytest.raises(ObjectError, match="cancelled"):
            await fragile.await_a_cancelled_future()
        assert await fragile.remember(1) == 2


def test_system_exit_in_a_handler_ends_the_program_and_not_quietly() -> None:
    class Quitter(DurableObject):
        async def quit(self) -> None:
            self.ctx.storage.put("kept", 1)
            await self.ctx.storage.sync()
            sys.exit(3)

        async def kept(self) -> Any:
            return await self.ctx.storage.get("kept")

    async def main(path: Any) -> None:
        async with open_test_host(path) as test:
            await test.host.namespace(Quitter).get_by_name("a").quit()

    async def later(path: Any) -> Any:
        async with open_test_host(path) as test:
            return await test.host.namespace(Quitter).get_by_name("a").kept()

    with tempfile.TemporaryDirectory() as path:
        with pytest.raises(SystemExit) as caught:
            asyncio.run(main(path))
        assert caught.value.code == 3
        assert asyncio.run(later(path)) == 1
