"""What a SIGKILL in the middle of work leaves, and what the next daemon makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_actor import TransportError, connect
from tests.durable_actor.daemon.process import Daemon, exit_line
from tests.scenarios.apps import asking, lethal
from tests.scenarios.conftest import Answering
from workflows import WorkflowFailedError


async def test_g5_a_run_resumes_and_repeats_no_recorded_step(
    start: Callable[..., Daemon],
    app_config: Callable[[str], Path],
    answering: Answering,
) -> None:
    config = app_config("tests.scenarios.apps.asking")
    first = start(config)
    plan = asking.Journey(port=answering.port, steps=3)
    async with connect(first.url, token=first.token) as client:
        runs = client.workflows(asking.WorkflowClient)
        await runs.run_async(asking.journey, plan, id="j1")
        one = await answering.answer("one")
        two, _ = await answering.next()
        first.kill()  # step 1 is recorded; step 2 is under way

    second = start(config)
    again = await answering.answer("two")
    three = await answering.answer("three")
    async with connect(second.url, token=second.token) as client:
        run = client.workflows(asking.WorkflowClient).get(asking.journey, "j1")
        output = await run.result()
        steps = await run.completed_steps()

    assert output == ["one", "two", "three"]
    assert steps == ["step 1", "step 2", "step 3"]
    assert [heard.split()[0] for heard in answering.heard] == ["1", "2", "2", "3"]
    # The interrupted step ran again, and whoever it calls can tell by the key.
    assert again.split()[2] == two.split()[2]
    assert len({words.split()[2] for words in (one, two, three)}) == 3


async def test_a_run_that_kills_its_process_is_failed_in_the_end(
    start: Callable[..., Daemon], app_config: Callable[[str], Path]
) -> None:
    config = app_config("tests.scenarios.apps.lethal")
    first = start(config)
    async with connect(first.url, token=first.token) as client:
        runs = client.workflows(lethal.WorkflowClient)
        with contextlib.suppress(TransportError):  # it may be quicker than the answer
            await runs.run_async(lethal.lethal, id="l1")
        first.wait()
    for _ in range(lethal.RECOVERY.max_attempts):
        start(config).wait()  # dies of the recovery, with nobody asking

    last = start(config)
    async with connect(last.url, token=last.token) as client:
        run = client.workflows(lethal.WorkflowClient).get(lethal.lethal, "l1")
        with pytest.raises(WorkflowFailedError) as caught:
            await run.result()
    assert caught.value.error.type == "RecoveryExhaustedError"


async def test_a_call_that_was_under_way_is_unknown_and_its_turn_is_kept(
    start: Callable[..., Daemon],
    app_config: Callable[[str], Path],
    answering: Answering,
) -> None:
    """The write was sealed before the object asked, so it is durable or on its way."""
    config = app_config("tests.scenarios.apps.asking")
    first = start(config)
    async with connect(first.url, token=first.token) as client:
        notebook = client.namespace(asking.Notebook).get_by_name("n")
        acknowledged = asyncio.ensure_future(notebook.note("first", answering.port))
        await answering.answer("go on")
        assert await acknowledged == 1

        lost = asyncio.ensure_future(notebook.note("second", answering.port))
        await answering.next()
        first.kill()
        with pytest.raises(TransportError) as caught:
            await lost

    second = start(config)
    async with connect(second.url, token=second.token) as client:
        lines = await client.namespace(asking.Notebook).get_by_name("n").lines()

    assert caught.value.outcome == "unknown"
    assert lines in (["first"], ["first", "second"])


def test_a_daemon_whose_storage_process_dies_stops_with_status_74(
    start: Callable[..., Daemon],
) -> None:
    daemon = start()
    with daemon.http() as http:
        before = http.post("/v1/objects/Counter/a/increment", json={"args": [3]})
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1

    os.kill(int(children[0]), signal.SIGKILL)
    status, errors = daemon.wait()

    assert before.json() == {"result": 3}
    assert status == 74
    assert exit_line(errors)["code"] == "storage_failed"

    with start().http() as http:
        after = http.post("/v1/objects/Counter/a/increment", json={})
    assert after.json() == {"result": 4}
