"""The host: opened once, closed gracefully, dropped at any moment, used by one loop."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from durable_actor import (
    Config,
    DataDirectoryInUseError,
    DurableActorError,
    DurableObject,
    Host,
    HostClosedError,
    HostMisuseError,
    ObjectResetError,
    StorageFailedError,
    interleave,
)
from durable_actor.config import StorageConfig
from durable_actor.storage.store import DriverKind
from durable_actor.testing import ManualClock, TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
DRIVERS: list[DriverKind] = ["thread", "process"]


class Worker(DurableObject):
    async def increment(self) -> int:
        value: int = await self.ctx.storage.get("n", 0) + 1
        self.ctx.storage.put("n", value)
        return value

    async def work(self, gate: str) -> int:
        await self.env.scene.reach(gate)
        return await self.increment()

    async def work_with(self, gate: str, name: str) -> int:
        await self.env.scene.reach(gate)
        done: int = await self.env.namespace(Worker).get_by_name(name).increment()
        return done

    async def in_background(self, gate: str) -> None:
        self.ctx.wait_until(self.work(gate))

    async def stubborn(self) -> None:
        """Ignore being cancelled, for a while."""
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.env.scene.note("cancelled")
                await asyncio.sleep(0)
                return

    async def several_turns(self) -> None:
        for name in "abc":
            self.ctx.storage.put(f"{name}1", name)
            self.ctx.storage.put(f"{name}2", name)
            await asyncio.sleep(0)

    @interleave
    async def stored(self) -> dict[str, Any]:
        return await self.ctx.storage.list()


def worker(test: TestHost, name: str = "a") -> Worker:
    return test.host.namespace(Worker).get_by_name(name)


# -- closing ----------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
async def test_g22_accepted_work_finishes_and_new_work_is_refused(
    driver: DriverKind,
) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}, driver=driver) as test:
        running = asyncio.ensure_future(worker(test).work("gate"))
        queued = asyncio.ensure_future(worker(test).increment())
        await test.settle()
        closing = asyncio.ensure_future(test.host.close())
        await test.settle()
        assert not closing.done()
        with pytest.raises(HostClosedError) as caught:
            await worker(test, "b").increment()
        assert caught.value.outcome == "not_executed"
        assert caught.value.retryable
        scene.open("gate")
        assert await results([running, queued]) == [1, 2]
        await closing
        await test.start()
        assert await worker(test).increment() == 3


async def test_accepted_work_may_still_call_other_objects() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        running = asyncio.ensure_future(worker(test).work_with("gate", "b"))
        await test.settle()
        closing = asyncio.ensure_future(test.host.close())
        await test.settle()
        scene.open("gate")
        assert await running == 1
        await closing


async def test_closing_waits_for_work_in_the_background() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await worker(test).in_background("gate")
        closing = asyncio.ensure_future(test.host.close())
        await test.settle()
        assert not closing.done()
        scene.open("gate")
        await closing
        await test.start()
        assert await worker(test).stored() == {"n": 1}


async def test_closing_waits_for_the_disk() -> None:
    async with open_test_host() as test:
        await worker(test).increment()
        disk = take_over(test.host)
        disk.pause()
        writing = asyncio.ensure_future(worker(test).increment())
        await test.settle()
        closing = asyncio.ensure_future(test.host.close())
        await test.settle()
        assert not closing.done()
        disk.resume()
        assert await writing == 2
        await closing


async def test_what_does_not_end_within_the_grace_is_broken_off() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        running = asyncio.ensure_future(worker(test).work("gate"))
        queued = asyncio.ensure_future(worker(test).increment())
        stubborn = asyncio.ensure_future(worker(test, "b").stubborn())
        await test.settle()
        closing = asyncio.ensure_future(test.host.close(grace_ms=5_000))
        await test.advance("4 seconds")
        assert not closing.done()
        await test.advance("1 second")
        await closing
        errors = await results([running, queued, stubborn])
        outcomes = []
        for error in errors:
            assert isinstance(error, ObjectResetError)
            outcomes.append(error.outcome)
        assert outcomes == ["unknown", "not_executed", "unknown"]
        assert scene.log == ["gate", "cancelled"]


async def test_draining_says_whether_everything_finished() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        assert not test.host.is_draining
        running = asyncio.ensure_future(worker(test).work("gate"))
        await test.settle()
        draining = asyncio.ensure_future(test.host.drain(1_000))
        await test.advance("1 second")
        assert await draining is False
        scene.open("gate")
        await running
        assert await test.host.drain() is True
        assert test.host.is_draining


async def test_closing_twice_is_closing_once() -> None:
    async with open_test_host() as test:
        await test.host.close()
        await test.host.close()


# -- crashes ----------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_crash_loses_nothing_that_was_acknowledged(
    driver: DriverKind,
) -> None:
    async with open_test_host(driver=driver) as test:
        for expected in range(1, 6):
            assert await worker(test).increment() == expected
            await test.restart()
        assert test.host.epoch == 6


@pytest.mark.parametrize("steps", range(12))
async def test_a_crash_at_any_moment_leaves_nobody_waiting(steps: int) -> None:
    async with open_test_host() as test:
        await worker(test).increment()
        calls = [asyncio.ensure_future(worker(test).increment()) for _ in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
        await test.crash()
        async with asyncio.timeout(5):
            found = await results(calls)
        answers = [one for one in found if isinstance(one, int)]
        assert all(isinstance(one, (int, DurableActorError)) for one in found)
        await test.start()
        stored = (await worker(test).stored())["n"]
        assert max(answers, default=1) <= stored <= 4


async def test_g2_a_turn_is_on_disk_whole_or_not_at_all() -> None:
    for groups in range(5):
        async with open_test_host() as test:
            await worker(test).stored()
            take_over(test.host).pause_after(groups)
            writing = asyncio.ensure_future(worker(test).several_turns())
            await test.settle()
            await test.crash()
            await results([writing])
            await test.start()
            stored = await worker(test).stored()
            pairs = {name: f"{name}2" in stored for name in "abc"}
            assert pairs == {name: f"{name}1" in stored for name in "abc"}
            # An earlier turn is never missing where a later one is there.
            assert list(pairs.values()) == sorted(pairs.values(), reverse=True)


async def test_a_host_can_be_dropped_and_opened_many_times() -> None:
    async with open_test_host() as test:
        for _ in range(10):
            await worker(test).increment()
            await test.restart()
        assert await worker(test).stored() == {"n": 10}


async def test_everyone_in_flight_at_a_crash_is_told_that_nobody_knows() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        running = asyncio.ensure_future(worker(test).work("gate"))
        queued = asyncio.ensure_future(worker(test).increment())
        await test.settle()
        await test.crash()
        errors = await results([running, queued])
        outcomes = [getattr(error, "outcome", None) for error in errors]
        assert outcomes == ["unknown", "not_executed"]


async def test_a_storage_process_that_dies_stops_the_host() -> None:
    async with open_test_host(driver="process") as test:
        assert await worker(test).increment() == 1
        disk = take_over(test.host)
        disk.pause()
        writing = asyncio.ensure_future(worker(test).increment())
        await test.settle()
        store: Any = test.host._store.driver
        store._process.kill()
        await store._process.wait()
        disk.resume()
        with pytest.raises(DurableActorError) as caught:
            await writing
        assert caught.value.outcome == "unknown"
        await test.host.failed.wait()
        with pytest.raises(StorageFailedError):
            await worker(test, "b").increment()
        await test.restart()
        assert await worker(test).increment() == 2


# -- use --------------------------------------------------------------------------


async def test_a_host_is_used_between_open_and_close(tmp_path: Path) -> None:
    host = Host(tmp_path, clock=ManualClock())
    stub = host.namespace(Worker).get_by_name("a")
    uses: list[Any] = [
        stub.increment,
        host.list_objects,
        lambda: host.evict(host.namespace(Worker).id_from_name("a")),
        lambda: host.delete(host.namespace(Worker).id_from_name("a")),
        host.expire_replies,
        host.storage_status,
    ]
    for use in uses:
        with pytest.raises(HostClosedError, match="not open"):
            await use()
    async with host:
        assert await stub.increment() == 1
    for use in uses:
        with pytest.raises(HostClosedError, match=r"not open|draining"):
            await use()


async def test_a_host_is_opened_once(tmp_path: Path) -> None:
    host = Host(tmp_path, clock=ManualClock())
    async with host:
        with pytest.raises(HostMisuseError, match="opened once"):
            await host.open()
    with pytest.raises(HostMisuseError, match="opened once"):
        await host.open()


async def test_another_host_cannot_have_the_same_directory() -> None:
    async with open_test_host() as test:
        other = Host(test.directory, clock=ManualClock())
        with pytest.raises(DataDirectoryInUseError):
            await other.open()
        assert await worker(test).increment() == 1


async def test_g26_another_loop_is_told_to_use_its_own_host() -> None:
    async with open_test_host() as test:
        stub = worker(test)

        def elsewhere() -> None:
            uses: list[Any] = [stub.increment(), test.host.list_objects()]
            for use in uses:
                with pytest.raises(HostMisuseError, match="another event loop"):
                    asyncio.run(use)

        await asyncio.to_thread(elsewhere)
        assert await stub.increment() == 1


def test_g26_a_child_of_a_fork_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.forked", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "told": dict.fromkeys(("call", "close", "list"), "HostMisuseError"),
        "is_untouched": True,
        "counts": [2, 2, 3, 3],
    }


async def test_a_host_is_a_guest_in_its_program(tmp_path: Path) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    before = (
        [signal.getsignal(number) for number in numbers],
        asyncio.get_event_loop_policy(),
        threading.excepthook,
        asyncio.get_running_loop().get_exception_handler(),
    )
    async with Host(tmp_path, clock=ManualClock()) as host:
        await host.namespace(Worker).get_by_name("a").increment()
        during = (
            [signal.getsignal(number) for number in numbers],
            asyncio.get_event_loop_policy(),
            threading.excepthook,
            asyncio.get_running_loop().get_exception_handler(),
        )
    assert during == before


async def test_a_host_that_cannot_read_its_outbox_lets_the_directory_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, clock=ManualClock())

    async def fail(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(host._outbox, "start", fail)
    with pytest.raises(LookupError):
        await host.open()
    async with Host(tmp_path, clock=ManualClock()) as other:
        assert await other.namespace(Worker).get_by_name("a").increment() == 1


async def test_the_directory_is_the_configurations_unless_it_is_given(
    tmp_path: Path,
) -> None:
    config = Config(storage=StorageConfig(dir=str(tmp_path / "configured")))
    assert Host(config=config).directory == tmp_path / "configured"
    assert Host(tmp_path, config=config).directory == tmp_path


@pytest.mark.parametrize("driver", DRIVERS)
async def test_hosts_of_one_program_are_strangers(
    tmp_path: Path, driver: DriverKind
) -> None:
    async with (
        open_test_host(tmp_path / "one", driver=driver) as one,
        open_test_host(tmp_path / "two", driver=driver) as two,
    ):
        assert [await worker(one).increment() for _ in range(2)] == [1, 2]
        assert await worker(two).increment() == 1


async def test_a_call_to_another_host_waits_for_the_disk(tmp_path: Path) -> None:
    scene = Scene()

    class Caller(DurableObject):
        async def write_and_call(self) -> int:
            self.ctx.storage.put("key", 1)
            stub: Worker = self.env.other
            return await stub.increment()

    async with open_test_host(tmp_path / "two", env={"scene": scene}) as two:
        env = {"other": worker(two)}
        async with open_test_host(tmp_path / "one", env=env) as one:
            caller = one.host.namespace(Caller).get_by_name("a")
            assert await caller.write_and_call() == 1
            disk = take_over(one.host)
            disk.pause()
            calling = asyncio.ensure_future(caller.write_and_call())
            await one.settle()
            assert await worker(two).stored() == {"n": 1}
            disk.resume()
            assert await calling == 2


async def test_numbers_tell_what_the_host_has_done() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await worker(test).increment()
        running = asyncio.ensure_future(worker(test).work("gate"))
        queued = asyncio.ensure_future(worker(test).increment())
        await test.settle()
        stats = test.host.stats()
        assert stats.objects_resident == 1
        assert stats.objects_waiting_events == 1
        assert stats.mailbox_depth_max == 1
        assert stats.cached_bytes > 0
        assert (stats.calls, stats.activated, stats.epoch) == (1, 1, 1)
        assert stats.durable_ticket == stats.turns_committed == 1
        scene.open("gate")
        await asyncio.gather(running, queued)
        status = await test.host.storage_status()
        assert status["objects"] <= 1
        assert status["database_bytes"] > 0


class Noting(DurableObject):
    async def note(self) -> None:
        self.ctx.storage.put("noted", True)


async def test_statistics_tell_the_sizes_of_storage_once_they_were_sampled() -> None:
    async with open_test_host() as test:
        await test.host.namespace(Noting).get_by_name("a").note()
        before = test.host.stats()
        await test.host.committer.fold()
        await test.host.sample_storage()
        after = test.host.stats()

    assert before.objects_stored == 0
    assert after.objects_stored == 1
    assert after.database_bytes > 0
