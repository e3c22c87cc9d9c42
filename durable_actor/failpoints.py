"""Named points at the edges of durable actions, where a test may crash the process.

`failpoint("commit.before")` costs one attribute look-up and one comparison unless a
test armed it. Arming goes through `DURABLE_ACTOR_FAILPOINTS`, read once when the
module is imported: `name=kill` kills the process (SIGKILL) the first time the point is
passed, `name=kill@7` the seventh time.
"""

from __future__ import annotations

import os
import signal

_VARIABLE = "DURABLE_ACTOR_FAILPOINTS"


def _parse(text: str) -> dict[str, int]:
    armed = {}
    for part in filter(None, text.split(",")):
        name, _, action = part.partition("=")
        verb, _, count = action.partition("@")
        pass_number = int(count) if count.isdecimal() else 0 if count else 1
        if not name or verb != "kill" or pass_number < 1:
            message = f"{_VARIABLE}: {part!r} is not name=kill or name=kill@N"
            raise ValueError(message)
        armed[name] = pass_number
    return armed


_armed: dict[str, int] = _parse(os.environ.get(_VARIABLE, ""))


def failpoint(name: str) -> None:
    """Kill this process here if a test asked for it; otherwise do nothing."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
