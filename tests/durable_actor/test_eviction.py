"""Leaving memory: the user cannot tell, except by in-memory fields."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import Config, DurableObject, ObjectResetError
from durable_actor.config import ObjectsConfig
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Counter(DurableObject):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls = 0

    async def increment(self) -> tuple[int, int]:
        """Return the stored count and the one in memory."""
        self.calls += 1
        value: int = await self.ctx.storage.get("n", 0) + 1
        self.ctx.storage.put("n", value)
        return value, self.calls

    async def in_background(self) -> None:
        async def work() -> None:
            await self.env.scene.reach("background")
            self.ctx.storage.put("background", 1)

        self.ctx.wait_until(work())

    async def fail_in_background(self) -> None:
        async def work() -> None:
            message = "nobody awaits this"
            raise ValueError(message)

        self.ctx.wait_until(work())

    async def detach(self) -> None:
        """Start a task that the host is not told of."""

        async def work() -> None:
            await self.env.scene.reach("detached")
            self.ctx.storage.put("n", -1)

        self.env.scene.tasks.append(asyncio.ensure_future(work()))

    async def get(self, key: str) -> Any:
        return await self.ctx.storage.get(key)


def counter(test: TestHost, name: str = "a") -> Counter:
    return test.host.namespace(Counter).get_by_name(name)


async def evict(test: TestHost, name: str = "a") -> bool:
    return await test.host.evict(test.host.namespace(Counter).id_from_name(name))


async def test_an_idle_object_leaves_memory_and_keeps_its_storage() -> None:
    async with open_test_host() as test:
        assert await counter(test).increment() == (1, 1)
        await test.advance("9 seconds")
        assert await counter(test).increment() == (2, 2)
        await test.advance("20 seconds")
        assert test.host.stats().objects_resident == 0
        assert await counter(test).increment() == (3, 1)


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_evicting_by_hand_waits_for_the_disk(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        await counter(test).increment()
        disk = take_over(test.host)
        disk.pause()
        writing = asyncio.ensure_future(counter(test).increment())
        await test.settle()
        evicting = asyncio.ensure_future(evict(test))
        await test.settle()
        assert not evicting.done()
        disk.resume()
        assert await writing == (2, 2)
        assert await evicting
        assert await counter(test).increment() == (3, 1)


async def test_an_object_that_is_not_in_memory_cannot_be_evicted() -> None:
    async with open_test_host() as test:
        assert not await evict(test)
        await counter(test).increment()
        assert await evict(test)
        assert not await evict(test)


async def test_an_object_at_work_is_not_evicted() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await counter(test).in_background()
        assert not await evict(test)
        await test.advance("5 minutes")
        assert test.host.stats().objects_resident == 1
        scene.open("background")
        await test.settle()
        assert await counter(test).get("background") == 1
        assert await evict(test)


async def test_a_failure_in_the_background_does_not_reset_the_object() -> None:
    async with open_test_host() as test:
        await counter(test).increment()
        await counter(test).fail_in_background()
        await test.settle()
        assert await counter(test).increment() == (2, 2)


async def test_a_task_that_outlives_its_object_cannot_write() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await counter(test).increment()
        await counter(test).detach()
        await test.settle()
        assert await evict(test)
        assert await counter(test).increment() == (2, 1)
        scene.open("detached")
        outlived = (await results(scene.tasks))[0]
        assert isinstance(outlived, ObjectResetError)
        assert "wait_until" in str(outlived)
        assert await counter(test).increment() == (3, 2)


async def test_an_event_of_the_same_moment_is_served_by_a_new_activation() -> None:
    async with open_test_host() as test:
        await counter(test).increment()
        evicting = asyncio.ensure_future(evict(test))
        calls = [asyncio.ensure_future(counter(test).increment()) for _ in range(20)]
        values = [value for value, _ in await asyncio.gather(*calls)]
        assert values == list(range(2, 22))
        await evicting


async def test_eviction_during_a_stream_of_calls_loses_nothing() -> None:
    async with open_test_host() as test:

        async def call() -> None:
            for _ in range(50):
                await counter(test).increment()

        async def sweep() -> None:
            for _ in range(100):
                await evict(test)
                await asyncio.sleep(0)

        await asyncio.gather(call(), call(), sweep())
        assert (await counter(test).increment())[0] == 101


@pytest.mark.parametrize(
    ("driver", "objects"),
    [
        ("thread", 1_500),
        ("process", 1_500),
        pytest.param(
            "thread", 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(180)]
        ),
    ],
)
async def test_many_more_objects_than_fit_cycle_through_memory(
    driver: DriverKind, objects: int
) -> None:
    config = Config(objects=ObjectsConfig(resident_max=100))
    names = [str(i) for i in range(objects)]
    async with open_test_host(config=config, driver=driver) as test:
        for expected in (1, 2):
            for start in range(0, objects, 500):
                some = names[start : start + 500]
                answers = await asyncio.gather(
                    *(counter(test, name).increment() for name in some)
                )
                assert set(answers) == {(expected, 1)}
                # Shorter than the time to be idle: they leave for lack of room.
                await test.advance("3 seconds")
                assert test.host.stats().objects_resident <= 100


async def test_a_host_without_objects_sets_no_timer_for_them() -> None:
    async with open_test_host() as test:
        await counter(test).increment()
        await test.advance("1 minute")
        assert test.host._residents._sweep_timer is None
