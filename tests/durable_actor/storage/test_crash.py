"""Killed at any named point, the store has what it acknowledged, in whole turns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from durable_actor.storage.ports import ReadRange
from tests.support.shards import open_shard
from tests.support.writer import OBJECTS, TURNS

ROOT = Path(__file__).parents[3]


def run_writer(directory: Path, kind: str, failpoints: str) -> tuple[int, list[int]]:
    """Return how the writer ended, and what it acknowledged."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.writer", str(directory), kind],
        cwd=ROOT,
        env={**os.environ, "DURABLE_ACTOR_FAILPOINTS": failpoints},
        capture_output=True,
        check=False,
    )
    return done.returncode, [int(line) for line in done.stdout.splitlines()]


async def turns_in(directory: Path) -> list[int]:
    """Return the turns that are there; each must be there whole."""
    turns: list[int] = []
    async with open_shard(directory) as shard:
        for num in range(1, OBJECTS + 1):
            page = await shard.read(ReadRange(num, "", None, 1_000, False))
            keys = dict(page.rows)
            mine = sorted(int(key[5:]) for key in keys if key.startswith("turn "))
            assert all(keys[f"turn {turn}"] == b"%d" % turn for turn in mine)
            newest = b"%d" % mine[-1] if mine else None
            assert keys.get("first") == keys.get("last") == newest
            turns += mine
    return sorted(turns)


async def check(directory: Path, acknowledged: list[int]) -> list[int]:
    found = await turns_in(directory)
    assert set(acknowledged) <= set(found)
    assert found == [*range(1, len(found) + 1)], "in order, without a gap"
    return found


POINTS = [
    *(f"commit.before=kill@{n}" for n in (1, 7)),
    *(f"commit.after=kill@{n}" for n in (1, 7)),
    *(f"fold.chunk=kill@{n}" for n in (1, 2, 9)),
]


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_loses_nothing_that_was_acknowledged(
    tmp_path: Path, point: str
) -> None:
    directory = tmp_path / "data"
    ended, acknowledged = run_writer(directory, "thread", point)

    assert ended == -signal.SIGKILL
    found = await check(directory, acknowledged)
    if point.startswith("commit.after"):
        assert len(found) > len(acknowledged), "durable, but not said yet"


async def test_kills_while_the_log_is_replayed_lose_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    _, acknowledged = run_writer(directory, "thread", "commit.after=kill@15")
    for point in ("fold.chunk=kill", "fold.chunk=kill@2", "open.grown=kill"):
        ended, more = run_writer(directory, "thread", point)
        assert (ended, more) == (-signal.SIGKILL, [])

    found = await check(directory, acknowledged)
    ended, more = run_writer(directory, "thread", "")
    assert ended == 0
    assert more == [*range(len(found) + 1, len(found) + TURNS + 1)]
    assert await check(directory, more) == [*range(1, len(found) + TURNS + 1)]


@pytest.mark.parametrize("point", ["commit.after=kill@7", "fold.chunk=kill@2"])
async def test_a_kill_of_the_storage_process_loses_nothing_that_was_acknowledged(
    tmp_path: Path, point: str
) -> None:
    """The writer outlives it, hears of it and acknowledges nothing more."""
    directory = tmp_path / "data"
    ended, acknowledged = run_writer(directory, "process", point)

    assert ended == 1
    found = await check(directory, acknowledged)
    assert 0 < len(acknowledged) < TURNS
    assert len(found) - len(acknowledged) <= 3, "no more than was under way"
