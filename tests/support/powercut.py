"""Cut the power at the n-th write or sync of a session, for many n; see powercut.c.

Run with the shim preloaded. For each point a child of this process is forked from an
interpreter that has imported everything, so a point costs milliseconds. It prints one
JSON object for each point: what the session acknowledged before the cut, and what was
found when the directory was opened again.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from durable_actor.errors import DurableActorError, StorageError
from durable_actor.storage.batch import Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import ReadKeys, ShardOptions
from durable_actor.storage.shard import Shard
from tests.support.shards import object_row, raw_id, shard_options

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("powercut.c")
TURNS = 20
_FOLD_EVERY = 6
_OBJECTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One cut: at which call, what was acknowledged, and what was there afterwards."""

    at: int
    calls: int  # of the whole session, if it got to its end
    acknowledged: list[int]
    found: list[int]  # turns that are there, whole
    torn: list[int]  # turns of which only a part is there
    failure: str  # what the session ended with, if it saw an error
    opening: str  # why the directory could not be opened again

    @property
    def lost(self) -> list[int]:
        """Turns that were acknowledged and are not there."""
        return sorted(set(self.acknowledged) - set(self.found))


def compile_shim(directory: Path) -> Path:
    """Return the compiled shim.

    Raises:
        FileNotFoundError: There is no compiler.
    """
    shim = directory / "powercut.so"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result"]
    subprocess.run(
        ["gcc", *flags, "-shared", "-fPIC", "-o", shim, SOURCE, "-ldl", "-lpthread"],
        check=True,
    )
    return shim


def sweep(
    shim: Path,
    directory: Path,
    *,
    how: str,
    synchronous: str = "FULL",
    step: int = 1,
    new: bool = False,
) -> list[Point]:
    """Run the session once for each `step`-th call, cut there, and look."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.powercut",
            str(shim),
            str(directory),
            how,
            synchronous,
            str(step),
            *(["--new"] if new else []),
        ],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(shim)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return [Point(**json.loads(line)) for line in done.stdout.splitlines()]


async def _session(options: ShardOptions, acknowledge: Callable[[int], None]) -> None:
    """Commit turns of two objects, several at a time, and fold now and then."""
    shard = await Shard.open(options)
    failures: list[StorageError] = []
    committer = Committer(shard, on_failure=lambda error, _: failures.append(error))
    try:
        for turn in range(1, TURNS + 1):
            for num in range(1, _OBJECTS + 1):
                ticket = committer.seal(_turn(turn, num), raw_id(num))

            def settled(error: StorageError | None, turn: int = turn) -> None:
                if error is None:
                    acknowledge(turn)

            committer.when_durable(ticket, settled)
            if turn % 2:
                await committer.wait(ticket)
            if turn % _FOLD_EVERY == 0:
                await committer.fold()
    except BaseException:
        await committer.drop()
        raise
    await committer.close()
    if failures:
        raise failures[0]


def _turn(turn: int, num: int) -> Seal:
    value = b"%d" % turn
    keys: dict[str, bytes | None] = {
        "first": value,
        f"turn {turn}": value * 200,
        "last": value,
    }
    return Seal(num=num, keys=keys, row=object_row(num))


async def _look(options: ShardOptions) -> tuple[list[int], list[int]]:
    """Return the turns that are there whole, and those that are not."""
    shard = await Shard.open(options)
    names = [f"turn {turn}" for turn in range(1, TURNS + 1)]
    found: set[int] | None = None
    torn: set[int] = set()
    for num in range(1, _OBJECTS + 1):
        keys = await shard.read(ReadKeys(num, ["first", "last", *names]))
        present = {turn for turn in range(1, TURNS + 1) if f"turn {turn}" in keys}
        newest = b"%d" % max(present) if present else None
        if not (keys.get("first") == keys.get("last") == newest):
            torn |= {int(keys.get(key, b"0")) for key in ("first", "last")}
        # Turns are committed in order: what is there is a beginning of them.
        torn |= present - set(range(1, len(present) + 1))
        found = present if found is None else found & present
    await shard.close()
    return sorted(found or ()), sorted(torn)


def _child(work: Callable[[int], None]) -> list[object]:
    """Run work in a forked child and return what it wrote, line by line."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            work(writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        said = [json.loads(line) for line in lines]
    os.waitpid(child, 0)
    return said


def _points(arguments: argparse.Namespace) -> Iterator[Point]:
    directory = Path(arguments.directory)
    options = shard_options(
        directory,
        synchronous=arguments.synchronous,
        wal_grow_bytes=16 * 1024,
        wal_bytes_max=64 * 1024,
    )
    shim = ctypes.CDLL(arguments.shim)
    prepared = directory.with_name("prepared")

    def prepare(_: int) -> None:
        async def open_and_close() -> None:
            await (await Shard.open(options)).close()

        asyncio.run(open_and_close())

    def run(at: int) -> Callable[[int], None]:
        def work(writer: int) -> None:
            def say(news: object) -> None:
                os.write(writer, json.dumps(news).encode() + b"\n")

            shim.powercut_arm(
                str(directory).encode(), arguments.how.encode(), ctypes.c_long(at), at
            )
            try:
                asyncio.run(_session(options, say))
            except DurableActorError as error:
                say(f"failure {error}")
            say(f"calls {shim.powercut_calls()}")

        return work

    def look(writer: int) -> None:
        try:
            found, torn = asyncio.run(_look(options))
            said: object = [found, torn]
        except DurableActorError as error:
            said = str(error)
        os.write(writer, json.dumps(said).encode() + b"\n")

    directory.mkdir()
    if not arguments.new:
        _child(prepare)
    directory.rename(prepared)
    at, calls = 0, sys.maxsize  # point 0 is the session without a cut
    while at <= calls:
        shutil.copytree(prepared, directory)
        said = _child(run(at))
        (looked,) = _child(look)
        shutil.rmtree(directory)
        texts = [item for item in said if isinstance(item, str)]
        ends = [int(text.split()[1]) for text in texts if text.startswith("calls")]
        calls = ends[0] if at == 0 else calls
        yield Point(
            at=at,
            calls=ends[0] if ends else 0,
            acknowledged=[item for item in said if isinstance(item, int)],
            found=looked[0] if isinstance(looked, list) else [],
            torn=looked[1] if isinstance(looked, list) else [],
            failure=next((t for t in texts if t.startswith("failure")), ""),
            opening=looked if isinstance(looked, str) else "",
        )
        at += arguments.step if at else 1


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shim")
    parser.add_argument("directory")
    parser.add_argument("how")
    parser.add_argument("synchronous")
    parser.add_argument("step", type=int)
    parser.add_argument("--new", action="store_true")
    for point in _points(parser.parse_args()):
        print(
            json.dumps({name: getattr(point, name) for name in Point.__slots__}),
            flush=True,
        )


if __name__ == "__main__":
    _main()
