"""What was acknowledged survives a power cut at any write or sync.

A kill proves nothing about it: the kernel still has what was written. Here every change
that no sync covers is undone (see `tests/support/powercut.c`). The controls with weaker
settings must lose something, or the test would not notice a missing sync.

The suite cuts at every few calls; `DURABLE_ACTOR_SWEEP=1` cuts at each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.powercut import TURNS, Point, compile_shim, sweep

SWEEPS_ALL = "DURABLE_ACTOR_SWEEP" in os.environ


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the power was not cut, durability is not proven")
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a place in memory: the shim decides what is durable, not the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place) / "data"


def step(normally: int) -> int:
    return 1 if SWEEPS_ALL else normally


def check_whole(points: list[Point]) -> None:
    """Assert that the session is a good one, and nothing was torn or unreadable."""
    whole = points[0]
    assert whole.acknowledged == whole.found == [*range(1, TURNS + 1)]
    for point in points:
        assert point.opening == "", point
        assert point.torn == [], point


@pytest.mark.timeout(600 if SWEEPS_ALL else 60)
@pytest.mark.parametrize(
    ("how", "new", "normally"),
    [
        ("power", False, 8),
        ("power", True, 31),
        ("some", False, 17),
        ("some", True, 47),
        ("kill", False, 41),
    ],
    ids=["all", "all-new", "some", "some-new", "kill"],
)
def test_nothing_acknowledged_is_lost(
    shim: Path, directory: Path, how: str, new: bool, normally: int
) -> None:
    points = sweep(shim, directory, how=how, new=new, step=step(normally))

    check_whole(points)
    assert [point for point in points if point.lost] == []
    assert len({len(point.acknowledged) for point in points}) > 3, "cut all over it"


@pytest.mark.timeout(600 if SWEEPS_ALL else 60)
@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_with_fewer_syncs_something_is_lost(
    shim: Path, directory: Path, synchronous: str
) -> None:
    """The controls: if nothing is lost here, the test above sees nothing either."""
    points = sweep(shim, directory, how="power", synchronous=synchronous, step=step(18))

    assert any(point.lost for point in points)


@pytest.mark.timeout(600 if SWEEPS_ALL else 60)
def test_an_error_of_any_write_or_sync_is_reported_and_loses_nothing(
    shim: Path, directory: Path
) -> None:
    points = sweep(shim, directory, how="eio", step=step(17))

    check_whole(points)
    assert [point for point in points if point.lost] == []
    # SQLite looks away from two: the directory's sync when it makes the WAL, and the
    # removal of the empty WAL at the end.
    assert len([point for point in points[1:] if not point.failure]) <= 2


@pytest.mark.timeout(600 if SWEEPS_ALL else 60)
def test_a_disk_that_becomes_full_at_any_write_loses_nothing(
    shim: Path, directory: Path
) -> None:
    points = sweep(shim, directory, how="enospc", step=step(23))

    check_whole(points)
    assert [point for point in points if point.lost] == []
