"""How long after its start is a host ready, with 100,000 objects and 10,000 alarms?

The directory is made in bulk, by the same seals and the same shard that a host uses,
and closed as a host closes it. The alarms are due in an hour, so none of them fires.
The baseline is the budget, one second.

The second figure is the daemon's: a process that is started on the same directory,
until it says that it is ready. It starts Python and imports the package as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.measuring import Answer, Counter, Scale, data_directory
from durable_actor import Host
from durable_actor.codec import encode
from durable_actor.ids import IdSpace
from durable_actor.storage.batch import AlarmRow, ObjectRow, Seal, encode_batch
from durable_actor.storage.integrity import prepare_directory
from durable_actor.storage.ports import Group, ShardOptions
from durable_actor.storage.shard import Shard
from durable_actor.storage.store import SHARD_NAME

OBJECTS = 100_000
ALARMS = 10_000
BUDGET_SECONDS = 1.0
STARTS = 2
_GROUP_SEALS = 5_000
_HOUR_MS = 3_600_000
_ROOT = Path(__file__).parents[1]
_CONFIG = _ROOT / "examples" / "fixture" / "config.toml"


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return the median time to ready, embedded and as a daemon."""
    starts = STARTS if scale.is_quick else 5 * STARTS
    with data_directory() as folder, data_directory() as cache:
        data = folder / "data"
        await fill(data)
        embedded = [await _open(data) for _ in range(starts)]
        # The first start compiles the modules, as an installation has done.
        daemon = [await _serve(data, cache) for _ in range(starts + 1)][1:]
    return {
        "ready_seconds_100k": _answer(embedded),
        "ready_seconds_100k_daemon": _answer(daemon),
    }


async def fill(directory: Path) -> None:
    """Write a data directory with objects and alarms, without a host."""
    prepare_directory(directory)
    path = str(directory / SHARD_NAME)
    # Nothing crashes here, so nothing has to be synced before the end.
    shard = await Shard.open(ShardOptions(path=path, synchronous="OFF"))
    now_ms = time.time_ns() // 1_000_000
    ids = IdSpace(Counter.__name__)
    for first in range(0, OBJECTS, _GROUP_SEALS):
        seals = []
        for number in range(first, first + _GROUP_SEALS):
            name = f"object-{number}"
            seal = Seal(num=number + 1, keys={"value": encode(number)})
            seal.row = ObjectRow(
                ids.from_name(name).raw, Counter.__name__, name, now_ms, now_ms
            )
            if number < ALARMS:
                due_at_ms = now_ms + _HOUR_MS + number
                seal.alarm = AlarmRow(due_at_ms, due_at_ms)
            seals.append(seal)
        group = Group(first + 1, first + _GROUP_SEALS, encode_batch(seals))
        await shard.commit(group)
    await shard.close()


async def _open(directory: Path) -> float:
    host = Host(directory, classes=[Counter])
    started = time.perf_counter()
    await host.open()
    seconds = time.perf_counter() - started
    try:
        assert await host.namespace(Counter).get_by_name("object-0").increment() > 0
    finally:
        await host.close()
    return seconds


async def _serve(directory: Path, cache: Path) -> float:
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "durable_actor", "serve"),
        *("--config", str(_CONFIG), "--data-dir", str(directory)),
        *("--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=_ROOT,
        env=environ,
    )
    assert daemon.stdout is not None
    line = await daemon.stdout.readline()
    seconds = time.perf_counter() - started
    daemon.terminate()
    await daemon.wait()
    assert json.loads(line)["event"] == "ready"
    return seconds


def _answer(seconds: list[float]) -> Answer:
    return Answer(
        value=statistics.median(seconds), baseline=BUDGET_SECONDS, unit="seconds"
    )
