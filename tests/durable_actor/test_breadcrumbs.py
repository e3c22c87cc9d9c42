"""Who was running when the process died is known afterwards, and left alone at last."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from durable_actor import ConfigError, DurableObject, EventQuarantinedError
from durable_actor.breadcrumbs import (
    CRUMB_FILE,
    DEATHS_FILE,
    Breadcrumbs,
    EventKey,
    quarantined_events,
    read_deaths,
    release_event,
)
from durable_actor.daemon.cli import run_command
from durable_actor.ids import IdSpace
from durable_actor.testing import TestHost, open_test_host

IDS = IdSpace("Fragile")
A, B = IDS.from_name("a"), IDS.from_name("b")
KEY = EventKey("Fragile", str(A), "work")

CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from durable_actor.breadcrumbs import Breadcrumbs
from durable_actor.ids import IdSpace

crumbs = Breadcrumbs(Path(sys.argv[1]), deaths_max=3)
ids = IdSpace("Fragile")

async def work(at):
    if at == "begin":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0)
    if at == "later":
        os._exit(1)
    if at == "waiting":
        asyncio.get_running_loop().call_later(0.01, os._exit, 1)
        await asyncio.sleep(10)

async def main():
    innocent = asyncio.ensure_future(
        crumbs.follow(ids.from_name("b"), "work", asyncio.sleep(10))
    )
    await asyncio.sleep(0)
    await crumbs.follow(ids.from_name("a"), "work", work(sys.argv[2]))

asyncio.run(main())
"""


async def die(directory: Path, at: str) -> None:
    """Run a process that dies in the event `work` of object a."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(directory), at
    )
    assert await child.wait() in (1, -signal.SIGKILL)


async def test_g18_the_event_that_ran_at_three_deaths_is_quarantined(
    tmp_path: Path,
) -> None:
    for at in ("begin", "later", "later"):
        await die(tmp_path, at)
    crumbs = Breadcrumbs(tmp_path, deaths_max=3)

    assert [(found.key, found.deaths) for found in crumbs.quarantined] == [(KEY, 3)]
    assert crumbs.refuses(A, "work")
    assert not crumbs.refuses(A, "rest")
    assert not crumbs.refuses(B, "work")  # it waited, and so is not to blame
    crumbs.close()
    for name in (CRUMB_FILE, DEATHS_FILE):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


async def test_g18_an_event_that_only_waited_is_not_to_blame(tmp_path: Path) -> None:
    await die(tmp_path, "waiting")

    assert read_deaths(tmp_path) == []
    crumbs = Breadcrumbs(tmp_path, deaths_max=3)
    assert read_deaths(tmp_path) == []
    crumbs.close()


def leave(directory: Path, event: str = "work") -> Breadcrumbs:
    """Die while an event runs, as far as the files can tell; start again."""
    crumbs = Breadcrumbs(directory, deaths_max=3)
    crumbs.mark(A, event)
    return crumbs


async def test_g18_an_event_that_came_to_its_end_is_forgiven(tmp_path: Path) -> None:
    leave(tmp_path)
    leave(tmp_path)
    crumbs = Breadcrumbs(tmp_path, deaths_max=3)
    assert [found.deaths for found in read_deaths(tmp_path)] == [2]

    await crumbs.follow(A, "work", asyncio.sleep(0))

    assert read_deaths(tmp_path) == []
    leave(tmp_path)
    assert not Breadcrumbs(tmp_path, deaths_max=3).refuses(A, "work")


async def test_g18_what_is_followed_answers_fails_and_is_cancelled_as_before(
    tmp_path: Path,
) -> None:
    crumbs = Breadcrumbs(tmp_path, deaths_max=3)

    async def work(how: str) -> str:
        await asyncio.sleep(0)
        if how == "raise":
            raise LookupError(how)
        if how == "wait":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "was cancelled"
        return how

    assert await crumbs.follow(A, "x", work("answer")) == "answer"
    with pytest.raises(LookupError, match="raise"):
        await crumbs.follow(A, "x", work("raise"))
    task = asyncio.create_task(crumbs.follow(A, "x", work("wait")))
    await asyncio.sleep(0.01)
    task.cancel()
    assert await task == "was cancelled"
    abandoned = crumbs.follow(A, "x", work("wait"))
    abandoned.send(None)
    abandoned.close()
    crumbs.close()
    assert (tmp_path / CRUMB_FILE).read_bytes()[:2] == b"\0\0"


def test_g18_a_damaged_file_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / CRUMB_FILE).write_bytes(os.urandom(8_192))
    (tmp_path / DEATHS_FILE).write_bytes(b"[{]")

    assert Breadcrumbs(tmp_path, deaths_max=3).quarantined == []


def test_g18_it_can_be_released_while_nobody_has_the_directory(tmp_path: Path) -> None:
    for _ in range(3):
        leave(tmp_path)
    assert Breadcrumbs(tmp_path, deaths_max=3).refuses(A, "work")

    [found] = quarantined_events(tmp_path)
    release_event(tmp_path, found.key.object_id, found.key.event)
    with pytest.raises(ConfigError, match="work"):
        release_event(tmp_path, str(A), "work")
    assert not Breadcrumbs(tmp_path, deaths_max=3).refuses(A, "work")
    assert not (tmp_path / DEATHS_FILE).exists()


def test_g18_the_command_lists_and_releases_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def make() -> None:
        async with open_test_host(tmp_path, classes=[Fragile]):
            pass

    asyncio.run(make())
    for _ in range(3):
        leave(tmp_path)
    Breadcrumbs(tmp_path, deaths_max=3).close()

    capsys.readouterr()
    assert run_command(["quarantine", "list", str(tmp_path)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["id"], line["event"]) == (str(A), "work")
    command = ["quarantine", "release", str(tmp_path), str(A), "work"]
    assert run_command(command) == 0
    assert quarantined_events(tmp_path) == []
    assert run_command(command) != 0


class Fragile(DurableObject):
    ran: ClassVar[list[str]] = []

    async def work(self) -> str:
        return "worked"

    async def rest(self) -> str:
        return "rested"

    async def ring_in(self, delay_ms: int) -> None:
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms() + delay_ms)

    async def alarm(self) -> None:
        self.ran.append("alarm")


@asynccontextmanager
async def quarantining(directory: Path, event: str) -> AsyncIterator[TestHost]:
    """Open a host on whose disk this event of object a has ended three processes."""
    Fragile.ran.clear()
    for _ in range(3):
        leave(directory, event)
    async with open_test_host(directory / "data", classes=[Fragile]) as test:
        test.host.breadcrumbs = Breadcrumbs(directory, deaths_max=3)
        yield test


async def test_g18_a_quarantined_call_is_refused_and_all_else_goes_on(
    tmp_path: Path,
) -> None:
    async with quarantining(tmp_path, "work") as test:
        fragile = test.host.namespace(Fragile)
        with pytest.raises(EventQuarantinedError, match="work") as raised:
            await fragile.get_by_name("a").work()
        assert raised.value.outcome == "not_executed"
        assert await fragile.get_by_name("a").rest() == "rested"
        assert await fragile.get_by_name("b").work() == "worked"

        [found] = test.host.quarantined()
        assert test.host.release_event(found.key)
        assert await fragile.get_by_name("a").work() == "worked"
        assert not test.host.release_event(found.key)


async def test_g18_a_quarantined_alarm_waits_until_it_is_released(
    tmp_path: Path,
) -> None:
    async with quarantining(tmp_path, "alarm") as test:
        await test.host.namespace(Fragile).get_by_name("a").ring_in(1_000)
        await test.advance("1 hour")
        assert Fragile.ran == []
        assert len((await test.host.alarms()).alarms) == 1

        [found] = test.host.quarantined()
        test.host.release_event(found.key)
        await test.settle()
        assert Fragile.ran == ["alarm"]
        assert (await test.host.alarms()).alarms == []


async def test_g18_a_quarantined_constructor_keeps_its_object_from_starting(
    tmp_path: Path,
) -> None:
    async with quarantining(tmp_path, "constructor") as test:
        fragile = test.host.namespace(Fragile)
        for _ in range(2):
            with pytest.raises(EventQuarantinedError, match="constructor"):
                await fragile.get_by_name("a").work()
        assert await fragile.get_by_name("b").work() == "worked"

        [found] = test.host.quarantined()
        test.host.release_event(found.key)
        assert await fragile.get_by_name("a").work() == "worked"
