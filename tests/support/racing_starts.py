"""Many processes that take one data directory at the same moment, again and again.

    python -m tests.support.racing_starts [--rounds 250] [--racers 4]

In each round all racers try at once. Who gets the lock of the directory makes a file
that must not be there, removes it a little later, and lets the lock go. Prints one JSON
object; 1 if two were ever inside together. Processes are kept between the rounds, so
that a thousand starts take seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

from durable_actor.errors import DataDirectoryInUseError
from durable_actor.storage import integrity
from durable_actor.storage.integrity import DirectoryLock

_INSIDE_SECONDS = 0.004


@dataclass(slots=True, kw_only=True)
class Report:
    """What the racers saw."""

    starts: int = 0
    opened: int = 0
    refused: int = 0
    double_opens: int = 0


def race(
    directory: Path, *, rounds: int, racers: int, is_locked: bool = True
) -> Report:
    """Let so many processes race for a directory so often."""
    report = Report()
    arguments = [str(directory), "locked" if is_locked else "unlocked"]
    command = [sys.executable, "-m", "tests.support.racing_starts", "--racer"]
    processes = [
        subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(racers)
    ]
    try:
        for process in processes:
            _tell(process)
            assert _heard(process) == "ready"
        for _ in range(rounds):
            for process in processes:
                _tell(process)
            for process in processes:
                _note(_heard(process), report)
    finally:
        for process in processes:
            process.communicate()
    return report


def _tell(process: subprocess.Popen[bytes]) -> None:
    stream = cast("IO[bytes]", process.stdin)
    stream.write(b"\n")
    stream.flush()


def _heard(process: subprocess.Popen[bytes]) -> str:
    return cast("IO[bytes]", process.stdout).readline().decode().strip()


def _note(heard: str, report: Report) -> None:
    report.starts += 1
    if heard == "refused":
        report.refused += 1
        return
    report.opened += 1
    report.double_opens += heard == "double"


def _racer(directory: Path, *, is_locked: bool) -> None:
    integrity._LOCK_PATIENCE_SECONDS = 0.0  # one try each
    sys.stdin.readline()
    print("ready", flush=True)
    while sys.stdin.readline():
        print(_start(directory, is_locked=is_locked), flush=True)


def _start(directory: Path, *, is_locked: bool) -> str:
    try:
        lock = DirectoryLock(directory) if is_locked else None
    except DataDirectoryInUseError:
        return "refused"
    inside = directory / "inside"
    try:
        fd = os.open(inside, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return "double"
    else:
        time.sleep(_INSIDE_SECONDS)
        os.close(fd)
        inside.unlink()
        return "opened"
    finally:
        if lock is not None:
            lock.release()


def main(arguments: Sequence[str] | None = None) -> int:
    """Race, print the report; 1 if two were inside together."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.racing_starts")
    parser.add_argument("--rounds", type=int, default=250)
    parser.add_argument("--racers", type=int, default=4)
    parser.add_argument("--racer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.racer:
        directory, kind = options.racer
        _racer(Path(directory), is_locked=kind == "locked")
        return 0
    with tempfile.TemporaryDirectory(prefix="race-") as directory:
        report = race(Path(directory), rounds=options.rounds, racers=options.racers)
    print(json.dumps(asdict(report)))
    return 1 if report.double_opens else 0


if __name__ == "__main__":
    sys.exit(main())
