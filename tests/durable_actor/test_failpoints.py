"""A failpoint does nothing until it is armed, and then kills once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from durable_actor import failpoints
from durable_actor.failpoints import failpoint

_PROGRAM = """
from durable_actor.failpoints import failpoint
for number in range(1, 6):
    print(number, flush=True)
    failpoint("one")
    failpoint("two")
"""


def run(armed: str) -> tuple[int, int]:
    """Return how the program ended, and how far it came."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "DURABLE_ACTOR_FAILPOINTS": armed},
        capture_output=True,
        check=False,
    )
    return done.returncode, len(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("armed", "ended", "passes"),
    [
        ("other=kill,one=kill@6", 0, 5),
        ("one=kill", -signal.SIGKILL, 1),
        ("one=kill@3", -signal.SIGKILL, 3),
        ("one=kill@5,two=kill@2", -signal.SIGKILL, 2),
    ],
)
def test_an_armed_point_kills_at_the_pass_it_was_told(
    armed: str, ended: int, passes: int
) -> None:
    assert run(armed) == (ended, passes)


def test_what_is_not_armed_does_nothing() -> None:
    failpoint("anything")


@pytest.mark.parametrize(
    "text", ["one", "one=stop", "one=kill@x", "one=kill@0", "one=kill@-1", "=kill"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    """A misspelt failpoint would make a crash test pass without a crash."""
    with pytest.raises(ValueError, match="DURABLE_ACTOR_FAILPOINTS"):
        failpoints._parse(text)
