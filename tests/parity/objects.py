"""What objects under test have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from durable_actor import DurableObject, sleep_until
from durable_actor.testing import open_test_host


class Probe(DurableObject):
    """Waits by the host's clock, counts its lives, and has a memory to lose."""

    lives: int = 0  # of all objects of the class; a test makes its own class

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        type(self).lives += 1
        self.memory = 0

    async def ping(self) -> str:
        return "pong"

    async def keys(self) -> list[str]:
        return list(await self.ctx.storage.list())

    async def read(self, key: str) -> Any:
        return await self.ctx.storage.get(key)

    async def _wait(self, ms: int) -> None:
        clock = self.ctx.clock
        await sleep_until(clock, clock.now_ms() + ms)

    def _note(self, text: str) -> None:
        self.env.scene.note(text)


class Store(Probe, concurrency="gated"):
    async def alarm(self) -> None:
        """Have a handler, so that alarms can be set."""

    async def run(self, doing: int) -> dict[str, Any]:
        answer: dict[str, Any] = await self.env.doings[doing](self)
        return answer


async def inside(doing: Callable[[Store], Awaitable[Any]]) -> Any:
    """Do something as an object's own code, and return what it answers."""
    async with open_test_host(env={"doings": [doing]}) as test:
        return await test.host.namespace(Store).get_by_name("a").run(0)
