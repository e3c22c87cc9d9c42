"""G6 on the real daemon: clients that never give up, and a daemon that is killed.

The short version of `python -m tests.support.kill_client --kills 100`; the control is
its `--no-request-ids`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kill_client import KILL_AFTER_CALLS, kill_client, setup_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


async def test_g6_calls_to_a_daemon_that_is_killed_run_once_each(
    tmp_path: Path,
) -> None:
    report = await kill_client(setup_in(tmp_path), kills=3, seed=1)

    assert report.ran == report.calls
    assert report.calls > report.kills * KILL_AFTER_CALLS
