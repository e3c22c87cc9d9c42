"""The integration tests of the original, through the real daemon and its socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from durable_actor import connect
from examples.fixture import app as fixture
from tests.durable_actor.daemon.process import Daemon


@dataclass(frozen=True, slots=True)
class Asleep:
    """A run that sleeps for five seconds, and what was said of it when it began."""

    daemon: Daemon
    started: Any
    paused: Any

    async def result(self) -> str:
        """Wait for as long as the run sleeps, and no longer."""
        async with connect(self.daemon.url, token=self.daemon.token) as client:
            runs = client.workflows(fixture.WorkflowClient)
            return await runs.get(fixture.sleeping, "sleeping-test").result()


@pytest.fixture(scope="module", autouse=True)
def asleep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asleep]:
    """Begin with the run, so that it sleeps while the other stories are told."""
    daemon = Daemon("--data-dir", str(tmp_path_factory.mktemp("asleep") / "data"))
    with daemon.wait_ready().http() as http:
        started = http.post("/workflow/sleeping", json={}).json()
        paused = http.get("/workflow/sleeping/status").json()
    yield Asleep(daemon, started, paused)
    daemon.kill()


@pytest.fixture(scope="module", autouse=True)
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """Begin with the other one, too: a daemon that is killed, and the next."""
    data_dir = str(tmp_path_factory.mktemp("killed") / "data")
    first = Daemon("--data-dir", data_dir).wait_ready()
    with first.http() as http:
        http.post("/workflow/sleeping", json={})
    first.kill()
    second = Daemon("--data-dir", data_dir).wait_ready()
    yield first, second
    second.kill()


@pytest.fixture
def http(asleep: Asleep) -> Iterator[httpx2.Client]:
    """A caller of a daemon that serves the fixture."""
    with asleep.daemon.http() as caller:
        yield caller


def test_simple_doubles_21_to_42(http: httpx2.Client) -> None:
    answer = http.post("/workflow/simple", json={"value": 21})

    assert answer.json() == {"id": "simple-test", "completed": True, "output": 42}


def test_steps_upper_cases_its_items(http: httpx2.Client) -> None:
    answer = http.post("/workflow/steps?id=s1", json={"items": ["a", "b"]})
    status = http.get("/workflow/steps/status?id=s1").json()

    assert answer.json() == {"id": "s1", "completed": True, "output": ["A", "B"]}
    assert status["status"]["_tag"] == "Completed"
    assert status["completed_steps"] == ["process-a", "process-b"]
    assert status["exists"] is True


def test_slow_is_cancelled_while_it_is_queued(http: httpx2.Client) -> None:
    http.post("/workflow/slow?async=true", json={})
    cancelled = http.post("/workflow/slow/cancel", json={"reason": "changed my mind"})
    status = http.get("/workflow/slow/status").json()

    assert cancelled.json() == {"cancelled": True, "reason": "changed my mind"}
    assert status["status"]["_tag"] == "Cancelled"
    assert status["completed_steps"] == []


def test_a_run_that_never_was_has_no_status(http: httpx2.Client) -> None:
    status = http.get("/workflow/simple/status?id=nobody").json()

    assert status == {"status": None, "completed_steps": [], "exists": False}


async def test_sleeping_is_paused_and_then_completed_after_its_sleep(
    asleep: Asleep, http: httpx2.Client
) -> None:
    output = await asleep.result()
    completed = http.get("/workflow/sleeping/status").json()

    started = {"id": "sleeping-test", "completed": False, "output": None}
    assert asleep.started == started
    assert asleep.paused["status"]["_tag"] == "Paused"
    assert output == "done"
    assert completed["status"]["_tag"] == "Completed"


async def test_a_run_that_sleeps_completes_although_the_daemon_is_killed(
    killed: tuple[Daemon, Daemon],
) -> None:
    first, second = killed
    async with connect(second.url, token=second.token) as client:
        runs = client.workflows(fixture.WorkflowClient)
        output = await runs.get(fixture.sleeping, "sleeping-test").result()

    assert second.ready["epoch"] == first.ready["epoch"] + 1
    assert output == "done"
