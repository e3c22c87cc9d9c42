"""G19: an object that is called too often is shed, and does not hold up others."""

from __future__ import annotations

import asyncio

import pytest

from durable_actor import Config, DurableObject, ObjectOverloadedError, interleave
from durable_actor.config import ObjectsConfig
from durable_actor.daemon.problems import problem_of
from durable_actor.mailbox import RATE_SECONDS, Arrivals
from durable_actor.testing import TestHost, open_test_host
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Desk(DurableObject):
    async def note(self) -> None:
        self.env.scene.note(self.ctx.id.name)

    async def hold(self, load: str = "") -> None:
        await self.env.scene.reach("over")

    @interleave
    async def ask(self) -> int:
        return 1


def config(**objects: int) -> Config:
    return Config(objects=ObjectsConfig(**objects))


def desk(test: TestHost, name: str) -> Desk:
    return test.host.namespace(Desk).get_by_name(name)


async def order_of_events(slice_ms: int) -> list[str]:
    """Return whose events ran, of a hot object and of one called after it."""
    scene = Scene()
    settings = config(slice_ms=slice_ms)
    async with open_test_host(env={"scene": scene}, config=settings) as test:
        for name in ("hot", "other"):
            await desk(test, name).note()
        scene.log.clear()
        calls = [desk(test, "hot").note() for _ in range(50)]
        calls += [desk(test, "other").note() for _ in range(3)]
        await asyncio.gather(*calls)
        return list(scene.log)


async def test_g19_a_hot_object_runs_for_a_slice_and_then_others_do() -> None:
    log = await order_of_events(slice_ms=0)

    assert log.count("hot") == 50
    assert max(n for n, name in enumerate(log) if name == "other") < 9


async def test_g19_without_slices_the_others_wait_for_all_of_it() -> None:
    """The control: the same load, and a slice that is longer than all of it."""
    log = await order_of_events(slice_ms=600_000)

    assert log == ["hot"] * 50 + ["other"] * 3


async def test_g19_more_arrivals_than_its_rate_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_test_host(
        env={"scene": Scene()}, config=config(mailbox_rate_max=3)
    ) as test:
        loop = asyncio.get_running_loop()
        began = loop.time()
        monkeypatch.setattr(loop, "time", lambda: began)
        for _ in range(2):
            await desk(test, "a").note()
        assert await desk(test, "a").ask() == 1
        for call in (desk(test, "a").note, desk(test, "a").ask):
            with pytest.raises(ObjectOverloadedError, match=r"3 events .* 10 s") as no:
                await call()
            assert problem_of(no.value).status == 429
        await desk(test, "b").note()  # each has a rate of its own
        monkeypatch.setattr(loop, "time", lambda: began + 2 * RATE_SECONDS)
        await desk(test, "a").note()
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("at", "count"),
    [(0.0, 10), (9.9, 10), (10.0, 10), (15.0, 5), (19.0, 1), (20.0, 0), (99.0, 0)],
)
def test_g19_arrivals_are_forgotten_as_their_ten_seconds_pass(
    at: float, count: int
) -> None:
    arrivals = Arrivals(0.0)
    for _ in range(10):
        arrivals.add()

    assert arrivals.count(at) == pytest.approx(count)


async def test_s11_what_waits_in_all_objects_together_is_bounded() -> None:
    scene = Scene()
    settings = config(queued_bytes_max=1_000)
    async with open_test_host(env={"scene": scene}, config=settings) as test:
        running = [asyncio.ensure_future(desk(test, name).hold()) for name in "ab"]
        await test.settle()
        waiting = asyncio.ensure_future(desk(test, "a").hold("x" * 600))
        await test.settle()
        assert test.host.memory.queued_bytes == 600
        with pytest.raises(ObjectOverloadedError, match=r"600 bytes .* together") as no:
            await desk(test, "b").hold("x" * 401)
        problem = problem_of(no.value)
        assert (problem.status, problem.overloaded) == (503, True)
        assert problem.retry_after_ms
        small = asyncio.ensure_future(desk(test, "b").hold("x" * 400))
        await test.settle()
        assert test.host.memory.queued_bytes == 1_000
        scene.open("over")
        await asyncio.gather(*running, waiting, small)
        assert test.host.memory.queued_bytes == 0


async def test_s11_what_was_refused_or_given_up_is_not_counted() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        running = asyncio.ensure_future(desk(test, "a").hold())
        await test.settle()
        waiting = [asyncio.ensure_future(desk(test, "a").hold("x")) for _ in range(3)]
        await test.settle()
        assert test.host.memory.queued_bytes == 3
        waiting[0].cancel()
        await test.host.drop()  # breaks every object off
        await asyncio.gather(running, *waiting, return_exceptions=True)
        assert test.host.memory.queued_bytes == 0
