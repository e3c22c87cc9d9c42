"""G17: what waits, the bodies of requests and the caches have one limit together."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import cast

import pytest

from durable_actor import (
    Config,
    DurableObject,
    ObjectOverloadedError,
    ObjectResetError,
    StorageLimitError,
)
from durable_actor.config import ObjectsConfig, StorageConfig
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.problems import problem_of
from durable_actor.memory import Memory, _cgroup_limits, default_bytes_max
from durable_actor.storage import overlay as overlay_module
from durable_actor.testing import TestHost, open_test_host
from tests.durable_actor.daemon.fakes import HOST, TOKEN, open_web
from tests.durable_actor.daemon.test_s11_overload import calling, check_shape
from tests.support.scene import Scene
from tests.support.stepping import SteppingDriver

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
LIMIT = 100_000


class Store(DurableObject):
    async def put(self, size: int) -> None:
        self.ctx.storage.put("value", "x" * size)

    async def hold(self, load: str = "") -> None:
        await self.env.scene.reach("over")

    async def echo(self, text: str) -> str:
        self.ctx.storage.put("echoed", len(text))
        return text

    async def echoed(self) -> int:
        return cast("int", await self.ctx.storage.get("echoed", 0))


class Book(Store, storage="sqlite"):
    """Has a database of its own, and seals its pages."""


def config(*, memory: int = LIMIT, cache: int = 1_000_000) -> Config:
    return Config(
        objects=ObjectsConfig(memory_bytes_max=memory),
        storage=StorageConfig(cache_bytes_max=cache),
    )


def store(test: TestHost, name: object) -> Store:
    return test.host.namespace(Store).get_by_name(str(name))


async def fill_cache(test: TestHost) -> int:
    """Let ten objects hold 7,000 bytes each; return what is cached."""
    for number in range(10):
        await store(test, number).put(7_000)
    return test.host.stats().cached_bytes


async def test_g17_when_messages_need_the_room_idle_objects_go() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}, config=config()) as test:
        assert await fill_cache(test) >= 70_000
        running = asyncio.ensure_future(store(test, "hot").hold())
        await test.settle()
        with pytest.raises(ObjectOverloadedError, match="process holds") as refused:
            await store(test, "hot").hold("x" * 40_000)
        assert problem_of(refused.value).status == 503
        await test.settle()  # room is made for whoever comes again
        assert test.host.stats().cached_bytes < 70_000 + 7_000
        waiting = asyncio.ensure_future(store(test, "hot").hold("x" * 40_000))
        await test.settle()
        assert not waiting.done()
        assert test.host.memory.used_bytes <= LIMIT
        scene.open("over")
        await asyncio.gather(running, waiting)
        for number in range(10):
            await store(test, number).put(1)  # whoever went comes back


async def test_g17_with_a_higher_limit_the_same_load_is_taken() -> None:
    """The control: it is the limit that refuses."""
    scene = Scene()
    settings = config(memory=1_000_000)
    async with open_test_host(env={"scene": scene}, config=settings) as test:
        assert await fill_cache(test) >= 70_000
        running = [asyncio.ensure_future(store(test, "hot").hold())]
        await test.settle()
        running.append(asyncio.ensure_future(store(test, "hot").hold("x" * 40_000)))
        await test.settle()
        assert test.host.memory.used_bytes > LIMIT
        scene.open("over")
        await asyncio.gather(*running)


async def test_g17_caches_get_what_the_others_leave() -> None:
    memory = Memory(bytes_max=1_000, queued_bytes_max=1_000)
    assert memory.cache_bytes_max == 750
    memory.queued_bytes, memory.bodies_bytes = 300, 50  # each with three copies
    assert memory.cache_bytes_max == 250
    memory.queued_bytes = 900
    assert memory.cache_bytes_max == 0


async def test_g17_a_refusal_asks_for_objects_to_go() -> None:
    asked = []
    memory = Memory(bytes_max=1_000, queued_bytes_max=1_000)
    memory.cached, memory.short = (lambda: 900), (lambda: asked.append(1))

    assert memory.refusal(100) is None
    assert not asked
    assert memory.refusal(101) == "the process holds 900 bytes (at most 1000)"
    assert asked


async def test_g17_bodies_are_a_part_of_it() -> None:
    memory = Memory(bytes_max=3_500, queued_bytes_max=2_000)
    policy = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}), memory=memory)
    async with open_web(policy=policy) as web:
        memory.queued_bytes = 1_500
        assert (await web.http.send(calling(web, 500))).status_code == 200
        check_shape(await web.http.send(calling(web, 501)), 503)
        assert (await web.http.get("/livez")).status_code == 200
        assert memory.bodies_bytes == 0, "counted until the request is over"


# -- what is written at a time ----------------------------------------------------


@pytest.mark.parametrize("kind", [Store, Book])
@pytest.mark.parametrize(("group_bytes_max", "groups"), [(10_000, 8), (1_000_000, 1)])
async def test_g17_a_group_commit_has_a_bound_in_bytes(
    kind: type[Store], group_bytes_max: int, groups: int
) -> None:
    """With a bound that nothing reaches, all is one group: the control."""
    settings = Config(storage=StorageConfig(group_bytes_max=group_bytes_max))
    async with open_test_host(config=settings) as test:
        driver = SteppingDriver(test.host.driver)
        test.host.committer._driver = driver
        driver.hold("commit.before")
        objects = test.host.namespace(kind)
        puts = [asyncio.ensure_future(objects.get_by_name("first").put(1))]
        await test.settle()
        for number in range(8):
            stub = objects.get_by_name(str(number))
            puts.append(asyncio.ensure_future(stub.put(6_000)))
        await test.settle()
        driver.release("commit.before")
        await asyncio.gather(*puts)

        assert len(driver.groups) == 1 + groups
        largest = max(len(group.batch) for group in driver.groups)
        assert (largest < 8 * 6_000) == (groups > 1)


async def test_g17_a_turn_over_its_limit_is_refused_before_it_is_sealed() -> None:
    settings = Config(storage=StorageConfig(turn_bytes_max=10_000))
    async with open_test_host(config=settings) as test:
        with pytest.raises(StorageLimitError, match="the limit is 10000"):
            await store(test, "a").put(10_000)
        await store(test, "a").put(9_000)


@pytest.mark.parametrize("kind", [Store, Book])
async def test_g17_a_reply_that_no_row_can_hold_resets_its_object_and_nobody_else(
    kind: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_module, "SEAL_BYTES_MAX", 100_000)
    async with open_test_host() as test:
        objects = test.host.namespace(kind)
        assert await objects.get_by_name("a").echo("before") == "before"
        kept = objects.get_by_name("a", request_id="r1")
        with pytest.raises(ObjectResetError, match="the limit is 100000") as caught:
            await kept.echo("x" * 200_000)
        assert caught.value.outcome == "failed"
        assert await objects.get_by_name("a").echoed() == len("before")
        assert await objects.get_by_name("a").echo("after") == "after"
        assert await objects.get_by_name("b").echo("x") == "x"


# -- the limit that nobody has set ------------------------------------------------


def make_group(root: Path, name: str, limits: dict[str, str]) -> Path:
    """Write the files of a cgroup hierarchy; return its root."""
    for group, text in limits.items():
        folder = root / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("listing", "name", "limits", "expected"),
    [
        ("0::/app\n", "memory.max", {"app": "1000\n"}, [1_000]),
        ("0::/app\n", "memory.max", {"app": "max\n", "": "5000\n"}, [5_000]),
        ("0::/\n", "memory.max", {"": "max\n"}, []),
        (
            "5:cpu:/x\n4:memory:/app/one\n0::/\n",
            "memory.limit_in_bytes",
            {"memory/app/one": "9223372036854771712\n", "memory/app": "700\n"},
            [700],
        ),
        # In a container the path is that of the host, and only the root is there.
        ("4:memory:/docker/abc\n", "memory.limit_in_bytes", {"memory": "9\n"}, [9]),
        ("", "memory.max", {}, []),
    ],
)
def test_g17_the_limit_of_the_group_is_found(
    tmp_path: Path, listing: str, name: str, limits: dict[str, str], expected: list[int]
) -> None:
    root = make_group(tmp_path / "root", name, limits)
    (tmp_path / "cgroup").write_text(listing)

    assert _cgroup_limits(tmp_path / "cgroup", root) == expected
    assert _cgroup_limits(tmp_path / "absent", root) == []


def test_g17_a_quarter_of_the_smallest_limit_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable_actor.memory._cgroup_limits", lambda: [8_000, 6_000])
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: no_limit)
    assert default_bytes_max() == 1_500
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5_000, 9_000))
    monkeypatch.setattr("durable_actor.memory._mapped_bytes", lambda: 1_000)
    assert default_bytes_max() == 1_000
    monkeypatch.setattr("durable_actor.memory._cgroup_limits", list)
    monkeypatch.setattr(resource, "getrlimit", lambda _: no_limit)
    assert default_bytes_max() == 1024**3
