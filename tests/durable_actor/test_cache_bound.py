"""What all objects together keep in memory of their storage has a bound."""

from __future__ import annotations

import asyncio

import pytest

from durable_actor import Config, DurableObject
from durable_actor.config import ObjectsConfig, StorageConfig
from durable_actor.storage.overlay import PARTIAL_CACHE_BYTES_MAX
from durable_actor.testing import TestHost, open_test_host

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

KEYS = 30
VALUE = "x" * 1_000
CACHE_BYTES_MAX = 2 * 1024 * 1024


class Shelf(DurableObject):
    async def fill(self, keys: int = KEYS) -> None:
        self.ctx.storage.put({f"k{n}": VALUE for n in range(keys)})

    async def read(self) -> int:
        return len(await self.ctx.storage.list())

    async def grow(self, keys: int) -> None:
        for first in range(0, keys, 100):
            values = {f"g{n:06}": VALUE for n in range(first, first + 100)}
            self.ctx.storage.put(values)
            await self.ctx.storage.sync()


def shelf(test: TestHost, number: int) -> Shelf:
    return test.host.namespace(Shelf).get_by_name(f"shelf {number}")


async def test_the_bound_holds_between_two_sweeps_too() -> None:
    config = Config(
        storage=StorageConfig(cache_bytes_max=CACHE_BYTES_MAX),
        objects=ObjectsConfig(idle_ms=3_600_000),
    )
    async with open_test_host(config=config) as test:
        most = 0
        for number in range(400):  # eight times the bound, with the clock at rest
            await shelf(test, number).fill()
            most = max(most, test.host.stats().cached_bytes)
        assert most < 1.5 * CACHE_BYTES_MAX


@pytest.mark.parametrize(
    ("objects", "keys", "at_once"),
    [
        (400, KEYS, 40),
        pytest.param(
            10_000, KEYS, 200, marks=[pytest.mark.slow, pytest.mark.timeout(300)]
        ),
    ],
)
async def test_many_large_objects_in_turn_keep_to_the_bound_at_each_sweep(
    objects: int, keys: int, at_once: int
) -> None:
    config = Config(
        storage=StorageConfig(cache_bytes_max=CACHE_BYTES_MAX),
        objects=ObjectsConfig(idle_ms=3_600_000),  # nobody leaves for being idle
    )
    async with open_test_host(config=config) as test:
        for work, given, answer in (("fill", (keys,), None), ("read", (), keys)):
            for first in range(0, objects, at_once):
                some = range(first, min(first + at_once, objects))
                calls = [getattr(shelf(test, n), work)(*given) for n in some]
                assert set(await asyncio.gather(*calls)) == {answer}
                await test.advance("16 minutes")
                assert test.host.stats().cached_bytes <= CACHE_BYTES_MAX


async def test_an_object_that_grows_in_one_call_keeps_to_its_own_bound() -> None:
    async with open_test_host() as test:
        await shelf(test, 1).grow(3_000)

        assert test.host.stats().cached_bytes <= PARTIAL_CACHE_BYTES_MAX


async def test_the_committer_knows_what_is_cached_without_asking_every_object() -> None:
    async with open_test_host() as test:
        for number in range(10):
            await shelf(test, number).fill()
            await shelf(test, number).read()
        assert test.host.committer.cached_bytes == test.host.stats().cached_bytes > 0

        await test.advance("1 hour")
        assert test.host.stats().objects_resident == 0
        assert test.host.committer.cached_bytes == 0
