"""An object with an alarm, and what the tests of alarms look at."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from durable_actor import AlarmInfo
from durable_actor.testing import TestHost, open_test_host
from tests.parity.objects import Probe
from tests.support.scene import Scene

RETRY_BASE_MS = 2_000
JITTER = 0.25  # of the delay; added, never taken away
LATE_MS = 100  # how much later than that a real clock may measure


class Ringing(Probe, concurrency="gated"):
    """Notes each run of its alarm, then does what the test asks for."""

    async def set(self, when: Any) -> Any:
        return await self.ctx.storage.set_alarm(when)

    async def due(self) -> int | None:
        return await self.ctx.storage.get_alarm()

    async def delete(self) -> Any:
        return await self.ctx.storage.delete_alarm()

    async def delete_all(self) -> None:
        self.ctx.storage.delete_all()

    async def alarm(self, info: AlarmInfo) -> None:
        self.memory += 1
        self.env.runs.append(
            {
                "n": len(self.env.runs) + 1,
                "mem": self.memory,
                "at": self.ctx.clock.now_ms(),
                "due": info.scheduled_at_ms,
                "retryCount": info.retry_count,
                "isRetry": info.is_retry,
                "get": await self.ctx.storage.get_alarm(),
                "name": self.ctx.id.name,
            }
        )
        if "then" in self.env:
            await self.env.then(self)

    async def set_then_fail(self, *, abort: bool) -> None:
        self.ctx.storage.set_alarm(timedelta(milliseconds=50))
        if abort:
            self.ctx.abort()
        message = "after set_alarm"
        raise RuntimeError(message)

    async def block(self, ms: int) -> None:
        async def blocking() -> None:
            self._note("bcw+")
            await self._wait(ms)
            self._note("bcw-")

        await self.ctx.block_concurrency_while(blocking)

    async def slow(self, ms: int) -> None:
        self._note("slow-start")
        await self._wait(ms)
        self._note("slow-end")


class Bell:
    """An object with an alarm, the time it goes by, and what became of it."""

    def __init__(self, test: TestHost, cls: type[Ringing], scene: Scene) -> None:
        self.test = test
        self.cls = cls
        self.scene = scene
        self.runs: list[dict[str, Any]] = []

    @property
    def stub(self) -> Ringing:
        return self.test.host.namespace(self.cls).get_by_name("bell")

    async def set_in(self, ms: int) -> Any:
        return await self.stub.set(timedelta(milliseconds=ms))

    def seen(self, *names: str) -> list[dict[str, Any]]:
        """Return some of what each run noted."""
        return [{name: run[name] for name in names} for run in self.runs]

    @property
    def delays_ms(self) -> list[int]:
        times = [run["at"] for run in self.runs]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


@asynccontextmanager
async def ring(
    then: Callable[[Any], Awaitable[None]] | None = None,
    cls: type[Ringing] = Ringing,
) -> AsyncIterator[Bell]:
    """Open a host with a bell, whose handler goes on with `then`."""
    env: dict[str, Any] = {"scene": Scene()}
    if then is not None:
        env["then"] = then
    async with open_test_host(env=env, classes=[cls]) as test:
        bell = Bell(test, cls, env["scene"])
        test.host.bind("runs", bell.runs)
        yield bell


def assert_retried(delays_ms: list[int]) -> None:
    """Check that each delay is the base, doubled so often, and some jitter."""
    for doublings, delay_ms in enumerate(delays_ms):
        least_ms = RETRY_BASE_MS << doublings
        assert least_ms <= delay_ms <= least_ms * (1 + JITTER) + LATE_MS


async def fail(_: Any) -> None:
    """Fail, as a handler may."""
    message = "in the handler"
    raise RuntimeError(message)


def once(doing: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Do something in the first run only."""

    async def then(it: Any) -> None:
        if len(it.env.runs) == 1:
            await doing(it)

    return then
