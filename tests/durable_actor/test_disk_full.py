"""A full disk: calls fail, the process stays, and everything goes on afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from durable_actor import (
    AlarmInfo,
    DurableActorError,
    DurableObject,
    Host,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.config import Config, StorageConfig
from durable_actor.storage.ballast import BALLAST_NAME
from durable_actor.storage.ports import Group
from durable_actor.storage.sql.database import Database
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import PausableDriver, take_over
from tests.support.scene import results
from tests.support.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Ledger(DurableObject):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = 0

    async def add(self, amount: int) -> int:
        total: int = await self.ctx.storage.get("total", 0) + amount
        self.ctx.storage.put("total", total)
        self.seen = total
        return total

    async def total(self) -> tuple[int, int]:
        stored: int = await self.ctx.storage.get("total", 0)
        return stored, self.seen

    async def add_and_sync(self, amount: int) -> str:
        self.ctx.storage.put("total", amount)
        try:
            await self.ctx.storage.sync()
        except DurableActorError as error:
            self.seen = -1
            return error.code
        return "synced"


def ledger(test: TestHost, name: str = "a") -> Ledger:
    return test.host.namespace(Ledger).get_by_name(name)


def fill(disk: PausableDriver, commits: int = 1) -> None:
    disk.failures.extend(StorageFullError("commit", "full") for _ in range(commits))


async def test_the_host_says_so_until_a_commit_succeeds() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        disk = take_over(test.host)
        fill(disk, 2)
        for _ in range(2):
            await results([ledger(test).add(1)])
            assert test.host.state == "full"
            assert not test.host.failed.is_set()
        assert await ledger(test).add(1) == 2
        assert test.host.state == "ok"


async def test_reads_are_served_while_the_disk_is_full() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        disk = take_over(test.host)
        fill(disk)
        await results([ledger(test).add(1)])
        for _ in range(3):
            assert (await ledger(test).total())[0] == 1


async def test_memory_goes_back_with_the_disk() -> None:
    async with open_test_host() as test:
        await ledger(test).add(5)
        assert await ledger(test).total() == (5, 5)
        fill(take_over(test.host))
        await results([ledger(test).add(7)])
        assert await ledger(test).total() == (5, 0)


async def test_all_turns_of_the_lost_group_and_later_ones_are_lost_together() -> None:
    async with open_test_host() as test:
        names = "abcdef"
        await asyncio.gather(*(ledger(test, name).add(1) for name in names))
        disk = take_over(test.host)
        disk.pause()
        fill(disk)
        calls = []
        for name in names:
            calls.append(asyncio.ensure_future(ledger(test, name).add(1)))
            await test.settle()
        disk.resume()
        found = await results(calls)
        assert all(isinstance(one, DurableActorError) for one in found)
        totals = [await ledger(test, name).total() for name in names]
        assert {stored for stored, _ in totals} == {1}


async def test_sync_fails_and_the_object_is_reset() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        fill(take_over(test.host))
        error = (await results([ledger(test).add_and_sync(7)]))[0]
        assert isinstance(error, DurableActorError)
        assert error.outcome == "failed"
        assert await ledger(test).total() == (1, 0)


async def test_many_failures_in_a_row_cost_nothing_later() -> None:
    async with open_test_host() as test:
        await ledger(test).add(1)
        disk = take_over(test.host)
        for _ in range(50):
            fill(disk)
            await results([ledger(test).add(1)])
        assert await ledger(test).add(1) == 2
        await test.restart()
        assert await ledger(test).add(1) == 3


async def test_what_was_acknowledged_around_a_full_disk_is_there_after_a_crash() -> (
    None
):
    async with open_test_host() as test:
        disk = take_over(test.host)
        acknowledged = 0
        for i in range(20):
            if i % 3 == 1:
                fill(disk)
            found = (await results([ledger(test).add(1)]))[0]
            acknowledged += isinstance(found, int)
        await test.restart()
        assert (await ledger(test).total())[0] == acknowledged


# -- a disk that is really full (G12) -------------------------------------------------

MIB = 1024 * 1024
_DISK_BYTES = 12 * MIB


class Book(DurableObject, storage="sqlite"):
    async def add(self, amount: int) -> int:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS entry (amount INTEGER, pad BLOB)")
        sql.exec("INSERT INTO entry VALUES (?, zeroblob(50000))", amount)
        return await self.total()

    async def total(self) -> int:
        count = "SELECT count(*) AS n FROM sqlite_schema WHERE name = 'entry'"
        if not self.ctx.storage.sql.exec(count).one()["n"]:
            return 0
        total = self.ctx.storage.sql.exec("SELECT total(amount) AS sum FROM entry")
        return int(cast("float", total.one()["sum"]))


class Heavy(Ledger):
    async def add_much(self, amount: int) -> int:
        self.ctx.storage.put(f"pad {amount % 3}", bytes(50_000))
        return await self.add(amount)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", _DISK_BYTES) as disk:
        yield disk


def real_host(disk: SmallDisk, driver: DriverKind = "thread") -> Host:
    config = Config(
        storage=StorageConfig(wal_grow_bytes=64 * 1024, ballast_bytes=2 * MIB)
    )
    return Host(
        disk.place / "data", classes=[Heavy, Book], config=config, driver=driver
    )


def heavy(host: Host) -> Heavy:
    return host.namespace(Heavy).get_by_name("a")


async def add_until_full(host: Host) -> int:
    """Add ones until the disk refuses; return how many were acknowledged."""
    for acknowledged in range(1_000):
        began = asyncio.get_running_loop().time()
        try:
            await heavy(host).add_much(1)
        except StorageFullError:
            assert asyncio.get_running_loop().time() - began < 1
            return acknowledged
    message = "the disk was never full"
    raise AssertionError(message)


async def until_ok(host: Host, seconds: float) -> None:
    """Return when the host takes writes again, without asking it to write."""
    async with asyncio.timeout(seconds):
        while host.state != "ok":
            await asyncio.to_thread(time.sleep, 0.02)


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_g12_a_full_disk_refuses_writes_and_recovers_by_itself(
    disk: SmallDisk, driver: DriverKind
) -> None:
    async with real_host(disk, driver) as host:
        book = host.namespace(Book).get_by_name("b")
        await heavy(host).add_much(1)
        assert await book.add(1) == 1
        disk.fill()
        acknowledged = 1 + await add_until_full(host)
        assert host.state == "full"
        with pytest.raises(StorageFullError):
            for _ in range(100):
                await book.add(0)
        # Reads are served, of what is on disk.
        assert (await heavy(host).total())[0] == acknowledged
        assert await book.total() == 1

        disk.make_room()
        await until_ok(host, seconds=5)
        assert await heavy(host).add_much(1) == acknowledged + 1
        assert await book.add(1) == 2
    async with real_host(disk, driver) as host:
        assert (await heavy(host).total())[0] == acknowledged + 1


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_g12_the_ballast_is_given_back_to_end_in_order_and_made_again(
    disk: SmallDisk, driver: DriverKind
) -> None:
    ballast = disk.place / "data" / BALLAST_NAME
    async with real_host(disk, driver) as host:
        assert ballast.stat().st_blocks * 512 >= 2 * MIB
        await heavy(host).add_much(1)
        await host.committer.fold()
        disk.fill()
        acknowledged = 1 + await add_until_full(host)
    assert not ballast.exists()
    assert not list((disk.place / "data").glob("*-wal")), "folded and checkpointed"

    async with real_host(disk, driver) as host:
        assert (await heavy(host).total())[0] == acknowledged
        assert not ballast.exists()
        disk.make_room()
        await heavy(host).add_much(1)
        await host.committer.fold()
        assert ballast.exists()


async def test_g12_a_start_after_a_crash_on_a_full_disk_uses_the_ballast(
    disk: SmallDisk,
) -> None:
    ballast = disk.place / "data" / BALLAST_NAME
    host = real_host(disk)
    await host.open()
    for _ in range(20):
        await heavy(host).add_much(1)
    await host.drop()
    disk.fill()
    async with real_host(disk) as host:
        assert not ballast.exists()
        assert (await heavy(host).total())[0] == 20


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_g12_control_without_ballast_a_start_on_a_full_disk_is_refused(
    disk: SmallDisk, driver: DriverKind
) -> None:
    host = real_host(disk, driver)
    await host.open()
    for _ in range(20):
        await heavy(host).add_much(1)
    await host.drop()
    (disk.place / "data" / BALLAST_NAME).unlink()
    disk.fill()
    with pytest.raises(StorageFullError):
        await real_host(disk, driver).open()


# -- what must not happen while it is full ---------------------------------------------


class Sleeper(DurableObject):
    async def set(self) -> None:
        self.ctx.storage.set_alarm(timedelta(seconds=1))

    async def alarm(self, info: AlarmInfo) -> None:
        self.env.retries.append(info.retry_count)
        self.ctx.storage.put("done", 1)


class FullDriver(PausableDriver):
    """A disk that is full for as long as somebody says so."""

    is_full = False

    async def commit(self, group: Group) -> None:
        if self.is_full:
            raise StorageFullError("commit", "full")
        await super().commit(group)


def put_under(test: TestHost) -> FullDriver:
    driver = FullDriver(test.host.driver)
    test.host.driver = test.host.committer._driver = driver
    return driver


async def test_g12_alarms_wait_for_space_and_use_up_no_retries() -> None:
    retries: list[int] = []
    async with open_test_host(env={"retries": retries}) as test:
        await test.host.namespace(Sleeper).get_by_name("a").set()
        driver = put_under(test)
        driver.is_full = True
        await results([ledger(test).add(1)])
        await test.advance("1 hour")
        assert retries == [], "a handler whose writes cannot be kept is not run"
        driver.is_full = False
        await ledger(test).add(1)
        await test.settle()
        assert retries == [0]


async def test_g12_a_handler_that_met_the_full_disk_is_run_again_without_blame() -> (
    None
):
    retries: list[int] = []
    async with open_test_host(env={"retries": retries}) as test:
        await test.host.namespace(Sleeper).get_by_name("a").set()
        driver = put_under(test)
        driver.is_full = True
        await test.advance("10 minutes")
        assert retries == [0], "this is how the full disk is found"
        driver.is_full = False
        await ledger(test).add(1)
        await test.advance("3 seconds")
        assert retries == [0, 0]
        assert test.host.stats().alarms_abandoned == 0


async def test_g12_a_full_disk_does_not_flood_the_log() -> None:
    async with open_test_host() as test:
        driver = put_under(test)
        driver.is_full = True
        with capture_logs() as lines:
            for _ in range(200):
                await results([ledger(test).add(1)])
        assert 1 <= len(lines) <= 5, lines[:10]


async def test_g12_callers_in_the_middle_of_their_work_are_told_what_it_was() -> None:
    async with open_test_host() as test:
        driver = put_under(test)
        driver.is_full = True
        first, second = await results(
            [ledger(test).add_and_sync(1), ledger(test).add(2)]
        )
        assert isinstance(first, StorageFullError)
        assert isinstance(second, DurableActorError)
        assert second.retryable
        driver.is_full = False
        assert await ledger(test).total() == (0, 0)


class Chime(DurableObject, storage="sqlite"):
    """An alarm of an object whose own database meets the full disk."""

    async def set(self) -> None:
        self.ctx.storage.set_alarm(timedelta(seconds=1))

    async def alarm(self, info: AlarmInfo) -> None:
        self.env.retries.append(info.retry_count)
        self.ctx.storage.put("done", 1)


async def test_g12_an_alarm_whose_database_is_on_a_full_disk_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retries: list[int] = []
    async with open_test_host(env={"retries": retries}) as test:
        await test.host.namespace(Chime).get_by_name("a").set()

        def refuse(_: Database) -> None:
            raise StorageFullError("commit", "full")

        with monkeypatch.context() as patch:
            patch.setattr(Database, "commit", refuse)
            await test.advance("1 second")
            assert retries == [0]
        await test.advance("3 seconds")
        assert retries == [0, 0]
        await test.advance("1 hour")
        assert retries == [0, 0], "it has succeeded"


async def test_g12_a_write_that_a_full_database_refuses_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_test_host() as test:
        book = test.host.namespace(Book).get_by_name("b")
        await book.add(1)

        def refuse(_: Database) -> None:
            raise StorageFullError("commit", "full")

        with monkeypatch.context() as patch:
            patch.setattr(Database, "commit", refuse)
            with pytest.raises(StorageFullError) as refusal:
                await book.add(1)
        assert refusal.value.outcome == "failed"
        assert await book.total() == 1


async def test_g13_a_checkpoint_of_a_database_that_fails_stops_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Database) -> None:
        raise StorageFailedError("checkpoint", "an I/O error")

    async with open_test_host() as test:
        book = test.host.namespace(Book).get_by_name("b")
        monkeypatch.setattr(Database, "checkpoint", fail)
        for _ in range(30):  # more than a mebibyte of pages
            await book.add(1)
        await test.host.committer.fold()
        await test.settle()
        assert test.host.state == "failed"
        with pytest.raises(StorageFailedError):
            await ledger(test).add(1)
        assert test.host.failed.is_set()
        monkeypatch.undo()
        await test.restart()
        assert await test.host.namespace(Book).get_by_name("b").total() == 30
