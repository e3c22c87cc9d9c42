"""G1, G5, G6 on the real daemon: SIGKILL under load, restart, and nothing is missing.

The short version of `python -m tests.support.kill_loop --kills 500`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kill_links import DriverKind, Setup
from tests.support.kill_loop import Report, kill_loop

SEED = 1
ACKNOWLEDGED_AT_LEAST = 20  # calls a kill, or the load was none

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


async def test_g1_a_killed_daemon_has_kept_all_it_acknowledged(tmp_path: Path) -> None:
    report = await kill_loop(setup(tmp_path), kills=8, seed=SEED)

    assert report.is_clean, report
    assert report.acknowledged > report.kills * ACKNOWLEDGED_AT_LEAST
    assert report.runs_started > 0
    assert report.refused == 0


async def test_g1_so_has_a_killed_program_that_embeds_a_host(tmp_path: Path) -> None:
    embedded = setup(tmp_path, driver="thread", is_embedded=True)
    report = await kill_loop(embedded, kills=4, seed=SEED)

    assert report.is_clean, report
    assert report.acknowledged > report.kills * ACKNOWLEDGED_AT_LEAST


async def test_the_loop_sees_what_an_early_acknowledgement_loses(
    tmp_path: Path,
) -> None:
    report = Report()
    for seed in range(SEED, SEED + 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        control = setup(folder, acknowledges_early=True)
        report = await kill_loop(control, kills=2, seed=seed)
        if report.lost:
            break

    assert report.lost > 0


def setup(
    folder: Path,
    *,
    driver: DriverKind = "process",
    is_embedded: bool = False,
    acknowledges_early: bool = False,
) -> Setup:
    return Setup(
        folder=folder,
        driver=driver,
        is_embedded=is_embedded,
        acknowledges_early=acknowledges_early,
    )
