"""Flips single bits of a data directory, and looks whether anyone notices.

`python -m tests.support.flips --flips 10000` flips that many, over all files of a host
that was closed in order and of one that was killed, one at a time. A flip is *found* if
`doctor` or `export` reports it, *harmless* if the export is the same as before, byte
for byte, and else *silent*; there may be none. With `--unchecked` no checksum is
compared, and silent ones appear: otherwise this would not see them either.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from durable_actor.errors import DurableActorError
from durable_actor.maintenance import export, inspection
from durable_actor.maintenance.copies import data_files
from durable_actor.storage import shard
from durable_actor.storage.sql import database, wal
from tests.support.relics import fill


class _Any(int):
    """A checksum that matches all others."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@contextmanager
def unchecked() -> Iterator[None]:
    """Compare no checksum: the control that must fail."""

    def matches(*_: Any) -> int:
        return _Any(0)

    with ExitStack() as patches:
        for module in (shard, inspection, export, database):
            for name in ("fields_crc", "value_crc", "row_crc"):
                if hasattr(module, name):
                    patches.enter_context(mock.patch.object(module, name, matches))
        checks: list[tuple[object, str]] = [
            (shard.Shard, "_check_mark"),
            (wal, "check_pages"),
            (database, "check_database"),
        ]
        for owner, name in checks:
            patches.enter_context(mock.patch.object(owner, name, return_value=None))
        patches.enter_context(mock.patch.object(shard, "_damage", return_value=""))
        patches.enter_context(mock.patch.object(inspection, "_lost", _nothing))
        patches.enter_context(mock.patch.object(inspection, "_table", _none))
        yield


def _nothing(*_: Any) -> inspection.Damage:
    return inspection.Damage(check="unchecked", detail="")


def _none(*_: Any) -> Iterator[inspection.Damage]:
    return iter(())


def judge(directory: Path, whole: list[str]) -> str:
    """Return what became of a flip: found, harmless or silent."""
    found = [d for d in inspection.damages(directory) if d.check != "unchecked"]
    if found:
        return "found"
    try:
        lines = list(export.export_lines(directory))
    except (DurableActorError, sqlite3.Error, ValueError):
        return "found"
    return "harmless" if lines == whole else "silent"


def flip(directory: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Flip bits one at a time; return what became of them, and where it was silent."""
    chance = random.Random(seed)
    whole = list(export.export_lines(directory))
    assert not inspection.damages(directory), inspection.damages(directory)
    files = data_files(directory)
    sizes = [(directory / name).stat().st_size for name in files]
    seen: Counter[str] = Counter()
    silent: list[str] = []
    for _ in range(count):
        # Each file as often as any other: the small ones matter as much.
        name = chance.choice([f for f, size in zip(files, sizes, strict=True) if size])
        path = directory / name
        data = path.read_bytes()
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        verdict = judge(directory, whole)
        path.write_bytes(data)
        seen[verdict] += 1
        seen[f"{verdict} {_kind(name)}"] += 1
        if sum(seen.values()) % 500 == 0:  # each is counted twice
            print(f"{sum(seen.values()) // 2} of {count}: {silent}", flush=True)
        if verdict == "silent":
            silent.append(f"{name} byte {place} bit {bit}")
    return seen, silent


def _kind(name: Path) -> str:
    return ("objects/*" if name.parent.name else "shard") + "".join(
        name.name.partition(".")[1:]
    )


def run(flips: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Flip half of the bits in a closed directory, and half in a killed one."""
    seen: Counter[str] = Counter()
    silent: list[str] = []
    # What is in memory needs no sync; the disk is not what is tried here.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as temporary:
        for number, killed in enumerate((False, True)):
            directory = Path(temporary) / f"data-{number}"
            asyncio.run(fill(directory, killed=killed))
            part, places = flip(directory, flips // 2, seed + number)
            seen += part
            silent += places
    return seen, silent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unchecked", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with unchecked() if options.unchecked else ExitStack():
        seen, silent = run(options.flips, options.seed)
    for verdict, count in sorted(seen.items()):
        print(f"{count:7} {verdict}")
    for place in silent[:20]:
        print("silent:", place)
    print(f"{time.monotonic() - started:.0f} s")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
