"""Make the disk fail at the n-th call of a session, for every n, and look afterwards.

`python -m tests.support.sweep --cuts 2000 --modes none,prefix,torn,subset` cuts the
power so often and prints figures; see `io_session.py` for the session and `iofaults.c`
for the ways to fail. A point costs a tenth of a second: a child is forked from an
interpreter that has imported everything, with the shim under it.

The status is 1 if anything was lost, torn or not to be opened, or if an error was told
to nobody that is not known to be harmless.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from durable_actor.errors import DurableActorError
from tests.support.io_session import Session, Weakening, look

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("iofaults.c")
CUTS = ("none", "prefix", "torn", "subset")
ERRORS = ("eio", "eio-cut", "eio-read", "enospc-once", "enospc")
MODES = (*CUTS, "kill", *ERRORS)
_POINT_SECONDS = 60

# Calls that may fail without anybody being told, by how the shim tells of them.
HARMLESS = {
    "crash: *": "a process that is killed does none of this; what is on disk stays",
    "* lock": "who holds the lock is told for convenience",
    "* ballast": "without ballast a full disk ends less well, and nothing more",
    "close: unlink *.db-wal": "it was copied by then, and is begun anew",
    "*rename objects/*-aside": "the connection is not closed then, and copies nothing",
    "sync objects/??": "SQLite looks away; a fold syncs it before the log forgets",
    "unlink objects/*.db-wal": "it was copied by then, and is cut off at its position",
}

# Reads that are done again, by the warning that tells the operator that one failed.
READ_AGAIN = {
    "alarm.fill_failed": "the page of alarms is read again, before any of them is late",
    "storage.read_singly": "what was asked for together is read again, one by one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One fault: at which call, what was told before, and what was found afterwards."""

    mode: str
    at: int
    calls: int  # of the whole session, if it came to its end
    hit: str  # the call that failed; empty for a cut
    said: list[list[Any]]
    found: dict[str, list[int]] = field(default_factory=dict)
    opening: str = ""  # why the next start failed

    @property
    def acknowledged(self) -> int:
        """How many operations succeeded."""
        return sum(one[0] == "ack" for one in self.said)

    @property
    def errors(self) -> list[str]:
        """What the application was told of."""
        return [f"{one[1]}: {one[2]}" for one in self.said if one[0] == "error"]

    @property
    def logged(self) -> list[str]:
        """What the operator was told of, from a warning on."""
        return [one[2] for one in self.said if one[0] == "logged"]

    @property
    def torn(self) -> list[str]:
        """Objects that are found in half of one state and half of another."""
        return [name for name, states in self.found.items() if len(set(states)) > 1]

    @property
    def lost(self) -> list[str]:
        """Objects that are in a state before the last one that was acknowledged."""
        return [
            f"{name}: found {states[0]}, allowed {sorted(self.allowed(name))}"
            for name, states in self.found.items()
            if name not in self.torn and states[0] not in self.allowed(name)
        ]

    def allowed(self, name: str) -> set[int]:
        """Return the states the object may be found in."""
        allowed = {0}
        for verb, its_name, state in self.said:
            if its_name != name:
                continue
            if verb == "try":
                allowed.add(state)
            elif verb == "ack":
                allowed = {state}
            elif verb == "refused":
                allowed.discard(state)
        return allowed

    @property
    def reason(self) -> str:
        """Why it is harmless that this call fails; empty if it is not."""
        for pattern, reason in HARMLESS.items():
            if fnmatch(self.hit, pattern):
                return f"{pattern}: {reason}"
        if self.mode == "eio-read":
            for event, reason in READ_AGAIN.items():
                if event in self.logged:
                    return f"{event}: {reason}"
        if self.mode.startswith("enospc"):
            return "folds and checkpoints wait for space by themselves"
        return ""

    @property
    def is_silent(self) -> bool:
        """Whether an error was told to nobody, and is not known to be harmless."""
        return bool(self.hit) and not self.errors and not self.reason

    @property
    def problems(self) -> list[str]:
        """Everything that should not be."""
        found = [f"torn {name} {self.found[name]}" for name in self.torn]
        found += [f"lost {text}" for text in self.lost]
        found += [f"not opened: {self.opening}"] if self.opening else []
        return found + ([f"silent: {self.hit}"] if self.is_silent else [])


def compile_shim(directory: Path) -> Path:
    """Return the compiled shim.

    Raises:
        FileNotFoundError: There is no compiler.
    """
    shim = directory / "iofaults.so"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result"]
    subprocess.run(
        ["gcc", *flags, "-shared", "-fPIC", "-o", shim, SOURCE, "-ldl", "-lpthread"],
        check=True,
    )
    return shim


def memory_folder() -> str | None:
    """Return a folder in memory: the shim decides what is durable, not the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def sweep(
    shim: Path,
    modes: Sequence[str],
    *,
    faults: int | None = None,
    part: tuple[int, int] = (0, 1),
    weakening: Weakening | None = None,
) -> Iterator[Point]:
    """Yield a point without a fault for each mode, then those with one.

    Args:
        shim: See `compile_shim`.
        modes: Ways to fail.
        faults: About how many, of all modes together, evenly spread over the session;
            None for every call.
        part: Which part of them, of how many.
        weakening: What a control leaves out.
    """
    wish = {
        "modes": list(modes),
        "faults": faults,
        "part": part,
        "weakening": asdict(weakening or Weakening()),
    }
    command = [sys.executable, "-m", "tests.support.sweep", "--work", json.dumps(wish)]
    with subprocess.Popen(
        [*command, "--shim", str(shim)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                yield Point(**json.loads(line))
        except GeneratorExit:
            worker.kill()  # the caller has seen enough
            raise
    if worker.returncode:
        message = f"the sweep ended with status {worker.returncode}"
        raise RuntimeError(message)


# -- the worker, which runs with the shim under it -------------------------------------


def _child(work: Callable[[Callable[[Any], None]], None]) -> list[Any]:
    """Run work in a forked child and return what it said, line by line."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(_POINT_SECONDS)
        with contextlib.suppress(BaseException):
            os.close(reader)
            work(lambda news: void(os.write(writer, json.dumps(news).encode() + b"\n")))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        said = [json.loads(line) for line in lines]
    os.waitpid(child, 0)
    return said


def void(_: object) -> None:
    """Make nothing of a result."""


class _Worker:
    """Makes points in this process."""

    def __init__(self, shim: str, folder: Path) -> None:
        self._shim = ctypes.CDLL(shim)
        self._shim.iofaults_hit.restype = ctypes.c_char_p
        self._shim.iofaults_calls.restype = ctypes.c_long
        self._folder = folder

    def point(self, mode: str, at: int) -> Point:
        place = self._folder / "point"
        place.mkdir()
        directory = place / "data"
        said = _child(lambda say: self._session(directory, mode, at, say))
        (looked,) = _child(lambda say: self._look(directory, say)) or (["it died"],)
        shutil.rmtree(place)
        ends = [one for one in said if one[0] == "end"]
        return Point(
            mode=mode,
            at=at,
            calls=ends[0][1] if ends else 0,
            hit=ends[0][2] if ends else "",
            said=[one for one in said if one[0] != "end"],
            found=looked if isinstance(looked, dict) else {},
            opening="" if isinstance(looked, dict) else looked[0],
        )

    def _session(
        self, directory: Path, mode: str, at: int, say: Callable[[Any], None]
    ) -> None:
        directory.mkdir(mode=0o700)
        _listen(lambda event: say(["logged", "", event]))
        shim = self._shim
        shim.iofaults_arm(
            os.fsencode(directory), mode.encode(), ctypes.c_long(at), at * 7 + len(mode)
        )
        session = Session(
            directory,
            say,
            make_room=shim.iofaults_free,
            begin=lambda phase: shim.iofaults_phase(phase.encode()),
        )
        asyncio.run(session.run())
        say(["end", shim.iofaults_calls(), shim.iofaults_hit().decode()])
        if mode == "eio-cut":
            shim.iofaults_cut()

    def _look(self, directory: Path, say: Callable[[Any], None]) -> None:
        try:
            say(asyncio.run(look(directory)))
        except (DurableActorError, OSError) as error:
            say([f"{type(error).__name__}: {error}"])


class _Listener(logging.Handler):
    """Hands on the names of the events that are logged."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if named := re.match(r"event='([^']+)'", record.getMessage()):
            self._say(named[1])


def _listen(say: Callable[[str], None]) -> None:
    """Hand on what this process, which is a child, tells the operator from now on."""
    logging.disable(logging.NOTSET)
    logging.getLogger().addHandler(logging.NullHandler())  # and print nothing
    logging.getLogger("durable_actor").addHandler(_Listener(say))


def _work(shim: str, wish: dict[str, Any]) -> None:
    logging.disable(logging.CRITICAL)
    Weakening(**wish["weakening"]).apply()
    faults, (part, parts) = wish["faults"], wish["part"]
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        worker = _Worker(shim, Path(folder))
        for mode in wish["modes"]:
            whole = worker.point(mode, 0)
            _print(whole)
            if not whole.calls or whole.problems or whole.errors:
                message = f"the session without a fault: {whole}"
                raise AssertionError(message)
            count = whole.calls if faults is None else -(-faults // len(wish["modes"]))
            for place in range(part, count, parts):
                _print(worker.point(mode, 1 + place * whole.calls // count))


def _print(point: Point) -> None:
    print(json.dumps(asdict(point)), flush=True)


# -- the command ----------------------------------------------------------------------


def _report(points: Sequence[Point], seconds: float) -> dict[str, Any]:
    by_mode: dict[str, Counter[str]] = {}
    for point in points:
        if not point.at:
            continue
        counts = by_mode.setdefault(point.mode, Counter())
        counts["points"] += 1
        counts["acknowledged"] += point.acknowledged
        counts["lost"] += len(point.lost)
        counts["torn"] += len(point.torn)
        counts["not_opened"] += bool(point.opening)
        counts["failed_calls"] += bool(point.hit)
        counts["harmless"] += bool(point.hit and not point.errors)
        counts["silent"] += point.is_silent
    harmless = Counter(p.reason for p in points if p.hit and not p.errors and p.reason)
    return {
        "seconds": round(seconds, 1),
        "cuts": sum(c["points"] for m, c in by_mode.items() if m in CUTS),
        "modes": {mode: dict(counts) for mode, counts in by_mode.items()},
        "harmless": dict(harmless.most_common()),
    }


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, help="how many faults; default: all")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {MODES}")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--shim", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        _work(given.shim, json.loads(given.work))
        return 0
    modes = given.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such modes: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    points: list[Point] = []

    def run(part: int) -> None:
        parts = (part, given.jobs)
        for point in sweep(shim, modes, faults=given.cuts, part=parts):
            points.append(point)
            for problem in point.problems:
                print(f"{point.mode} at {point.at}: {problem}", flush=True)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        shim = compile_shim(Path(folder))
        for _ in pool.map(run, range(given.jobs)):
            pass
    print(json.dumps(_report(points, time.monotonic() - began), indent=2))
    return 1 if any(point.problems for point in points) else 0


if __name__ == "__main__":
    sys.exit(_main())
