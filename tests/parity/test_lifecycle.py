"""How long an object stays in memory, what keeps it there, and what a restart keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import DataDirectoryInUseError, Host, SystemClock
from durable_actor.config import Config, ObjectsConfig
from durable_actor.testing import open_test_host
from tests.parity.cases import differs, not_applicable, same
from tests.parity.objects import Probe
from tests.parity.translate import differences, to_python
from tests.support.scene import Scene

IDLE_MS = ObjectsConfig().idle_ms
SECOND_MS = 1_000


class Resting(Probe):
    """Leaves work behind, of all kinds, and rests."""

    async def wait_until(self, ms: int, text: str) -> str:
        async def work() -> None:
            await self._wait(ms)
            self._note(text)

        self.ctx.wait_until(work())
        return "fast"

    async def float_for(self, ms: int, text: str) -> None:
        async def work() -> None:
            await self._wait(ms)
            self._note(text)

        self.env.scene.tasks.append(asyncio.ensure_future(work()))

    async def fire_in(self, ms: int, text: str) -> None:
        clock = self.ctx.clock
        clock.call_at(clock.now_ms() + ms, lambda: self._note(text))

    async def tick(self, ms: int) -> None:
        """Do something every so often, in the background."""

        async def work() -> None:
            while True:
                await self._wait(ms)
                self._note("tick")

        self.ctx.wait_until(work())

    async def put(self, key: str, value: object) -> None:
        self.ctx.storage.put(key, value)


async def _after(
    wait_ms: int, method: str = "ping", *args: Any, config: Config | None = None
) -> dict[str, Any]:
    """Call a method, wait, and tell what has become of the object."""

    class Fresh(Resting):
        lives = 0

    scene = Scene()
    async with open_test_host(env={"scene": scene}, config=config) as test:
        stub = test.host.namespace(Fresh).get_by_name("a")
        await getattr(stub, method)(*args)
        await test.advance(wait_ms)
        resident = test.host.stats().objects_resident
        log = list(scene.log)
        await stub.ping()
        return {
            "waitedMs": wait_ms,
            "evicted": not resident,
            "ctorRuns": Fresh.lives,
            "log": log,
        }


def _differences(ours: dict[str, Any], observed: dict[str, Any]) -> set[str]:
    """Compare what was looked at; a case without a log looked at none."""
    return differences({key: ours[key] for key in observed if key in ours}, observed)


@same("evict.8s")
async def test_an_object_that_rested_a_little_is_still_there(observed: Any) -> None:
    assert _differences(await _after(observed["waitedMs"]), observed) == set()


@same("evict.11s")
async def test_an_object_that_rests_is_let_go(observed: Any) -> None:
    assert observed["waitedMs"] > IDLE_MS
    assert _differences(await _after(observed["waitedMs"]), observed) == set()


@same("evict.pinned11s")
async def test_an_object_may_be_kept_for_ever(observed: Any) -> None:
    """There a namespace says so; here the configuration, with a long idle time."""
    config = Config(objects=ObjectsConfig(idle_ms=365 * 24 * 3_600_000))
    ours = await _after(observed["waitedMs"], config=config)
    assert _differences(ours, observed) == set()


@same("evict.heldNsStub")
async def test_a_stub_keeps_nothing_alive(observed: Any) -> None:
    ours = await _after(12 * SECOND_MS)
    assert {"evicted": ours["evicted"]} == observed


not_applicable(
    "evict.heldStub", "an object returns values, never a stub of its insides"
)


@same("evict.waitUntil")
async def test_wait_until_keeps_an_object_alive(observed: Any) -> None:
    ours = await _after(
        observed["waitedMs"], "wait_until", 12 * SECOND_MS, observed["log"][0]
    )
    assert _differences(ours, observed) == set()


@same("evict.waitUntil150s")
async def test_wait_until_keeps_an_object_alive_for_long(observed: Any) -> None:
    ours = await _after(
        observed["waitedMs"], "wait_until", 145 * SECOND_MS, observed["log"][0]
    )
    # There it may rest again after its work; it has been at rest for five seconds.
    assert _differences(ours, observed) == set()


@same("evict.floatingPromise")
async def test_a_task_nobody_told_of_goes_on_while_the_object_is_there(
    observed: Any,
) -> None:
    ours = await _after(
        observed["waitedMs"], "float_for", 5 * SECOND_MS, observed["log"][0]
    )
    assert _differences(ours, observed) == set()


@differs("evict.pendingTimer", "what is to keep an object alive is given to wait_until")
async def test_a_timer_does_not_keep_an_object_alive(observed: Any) -> None:
    ours = await _after(
        observed["waitedMs"], "fire_in", 12 * SECOND_MS, observed["log"][0]
    )
    assert _differences(ours, observed) == {"evicted", "ctorRuns"}
    given = await _after(
        observed["waitedMs"], "wait_until", 12 * SECOND_MS, observed["log"][0]
    )
    assert _differences(given, observed) == set()


@differs("evict.interval", "what is to keep an object alive is given to wait_until")
async def test_background_work_keeps_an_object_alive(observed: Any) -> None:
    ours = await _after(observed["waitedMs"], "tick", SECOND_MS)
    ticks = observed["waitedMs"] // SECOND_MS
    assert observed["ticks"] == ticks - 1
    assert ours["log"] == ["tick"] * ticks
    assert _differences(ours, observed) == {"ticks"}


@differs("evict.expiryNoClient", "pending work keeps an object alive until it is done")
async def test_pending_work_is_not_dropped(observed: Any) -> None:
    waited_ms = 150 * SECOND_MS
    interval = await _after(waited_ms, "tick", SECOND_MS)
    until = await _after(waited_ms, "wait_until", 145 * SECOND_MS, "done")
    assert observed["interval"]["dropped"]
    assert observed["waitUntil"] == {"dropped": True, "finished": 0}
    assert not interval["evicted"]
    assert len(interval["log"]) > observed["interval"]["ticks"]
    assert not until["evicted"]
    assert until["log"] == ["done"]


@same("timerAfterResponse")
async def test_a_timer_fires_after_the_answer(observed: Any) -> None:
    ours = await _after(100, "fire_in", 50, observed[0])
    assert ours["log"] == observed


@same("waitUntil.delaysReturn")
async def test_wait_until_does_not_delay_the_answer(observed: Any) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        stub = test.host.namespace(Resting).get_by_name("a")
        # The clock stands still, so the answer comes before the work is done.
        answer = await stub.wait_until(300, observed["log"][0])
        early = list(scene.log)
        await test.advance(300)
    assert {"fast": answer == "fast" and not early, "log": scene.log} == observed


@same("clock")
def test_the_clock_moves_while_code_computes(observed: Any) -> None:
    clock = SystemClock()
    start = clock.now_ms()
    advanced = any(clock.now_ms() > start for _ in range(100_000_000))
    assert advanced is (observed["advancedWithoutIo"] > 0)


not_applicable("ctx.props/exports", "a class is imported, and given no properties")


@differs(
    "restart.persist", "objects without SQL share a file, so that one sync serves many"
)
async def test_values_survive_a_restart(observed: Any) -> None:
    seen = to_python(observed)
    async with open_test_host() as test:
        objects = test.host.namespace(Resting)
        for name in ("SQL", "KV"):
            await objects.get_by_name(name).put("k", seen[name])
        await test.host.close()
        await test.start()
        objects = test.host.namespace(Resting)
        for name in ("SQL", "KV"):
            assert await objects.get_by_name(name).read("k") == seen[name]
        files = {path.name for path in test.directory.glob("*.db")}
    assert files == {"shard-00.db"}


@same("second.process.sameDir")
async def test_a_data_directory_has_one_owner(observed: Any) -> None:
    assert "exits at start" in observed
    async with open_test_host() as test:
        with pytest.raises(DataDirectoryInUseError):
            await Host(test.directory).open()
