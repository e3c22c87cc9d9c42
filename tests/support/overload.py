"""A daemon under ten times the load it can serve (G17, G19, S11).

    python -m tests.support.overload [--seconds N] [--factor F] [--connections C]
        [--scenario spread|hot|descriptors|memory] [--memory-mib M] [--control]

Starts a real daemon, calls it over TCP from many connections, prints what it found as
one line of JSON, and ends with 1 if a bar is missed.

`spread` calls a hundred objects, first from C connections, which is about the most that
is served, then from F times as many, each of which calls again as soon as it is
answered. Goodput is the calls that succeed in a second; it may fall to 80 % of the most
that was seen. Nobody may wait in vain, and `/livez` answers within 100 ms, 99 times of
100.

`hot` calls one object ten times as often as it can answer, beside callers of others:
it sheds with 429, and the others are answered within twice their quiet time and 10 ms.

`descriptors` books twice in each of a thousand databases, over five hundred connections
and with 256 descriptors: whoever is refused gets 503, all is booked in the end, and
nobody but storage takes one of the last 64.

`memory` sends large messages into a limit of the address space: what does not fit is
refused, and no MemoryError escapes. With `--control` nothing is refused for want of
memory, and the run has to fail.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from durable_actor.descriptors import PER_DATABASE, RESERVED
from tests.support.callers import (
    OK,
    Tally,
    ask,
    call_from_many,
    call_once,
    request,
)

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_suffix(".toml")
OBJECTS = 100
GOODPUT_MIN = 0.8
HEALTH_P99_MS_MAX = 100.0
_MIB = 1024 * 1024
_PROBE_SECONDS = 0.02
_WARM_SECONDS = 2.0
_START_SECONDS_MAX = 30.0
_STOP_SECONDS_MAX = 30.0


class Served:
    """A daemon that runs, and how to call it."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.process = process
        self.errors = errors
        self.ready: dict[str, Any] = {}
        self.token = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self.ready["listen"])

    def call(self, path: str, body: object = None) -> bytes:
        """Return the bytes of a request."""
        return request(self.url, self.token, path, body)

    def peak_mib(self) -> float:
        """Return the most memory the process has had resident."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(row for row in text.splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def descriptors_of_others(self) -> int:
        """Return how many descriptors it has open that are not files of its data."""
        data, count = self.ready["data_dir"], 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += not str(link.readlink()).startswith(data)
        return count

    def log(self) -> str:
        """Return what it has logged."""
        return self.errors.read_text(errors="replace")


@asynccontextmanager
async def serve(
    folder: Path,
    *,
    limits: dict[int, int] | None = None,
    environ: dict[str, str] | None = None,
) -> AsyncIterator[Served]:
    """Run a daemon, with these limits of the kernel, and end it in order."""

    def limit() -> None:
        for kind, value in (limits or {}).items():
            resource.setrlimit(kind, (value, value))

    errors = folder / "stderr"
    with errors.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "durable_actor", "serve", "--config", str(CONFIG)),
            *("--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            preexec_fn=limit,
        )
    served = Served(process, errors)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START_SECONDS_MAX):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(served.log()[-2_000:])
        served.ready = json.loads(line)
        served.token = Path(served.ready["token_file"]).read_text().strip()
        yield served
        with suppress(ProcessLookupError):  # it has died of what was sent
            process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Load:
    """Calls for some seconds, and counts what comes of them."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def run(
        self,
        connections: int,
        seconds: float,
        messages: Iterator[bytes],
        *,
        obeys: bool = True,
        pause_seconds: float = 0.0,
    ) -> Tally:
        """Call from so many connections for so long."""
        tally = Tally()
        until = time.monotonic() + seconds
        await call_from_many(
            self._served.url,
            connections,
            tally,
            lambda: next(messages) if time.monotonic() < until else None,
            obeys=obeys,
            pause_seconds=pause_seconds,
        )
        return tally

    async def probe(self, path: str, seconds: float) -> Tally:
        """Ask for something all the time from one connection, without haste."""
        messages = itertools.repeat(self._served.call(path))
        return await self.run(1, seconds, messages, pause_seconds=_PROBE_SECONDS)


def sales(served: Served, count: int = OBJECTS, load: str = "") -> Iterator[bytes]:
    """Return calls to so many objects, one after the other, without end."""
    arguments = {"args": [load] if load else []}
    return itertools.cycle(
        [served.call(f"/v1/objects/Till/{n}/sell", arguments) for n in range(count)]
    )


async def spread(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    load, seconds = Load(served), options.seconds
    await load.run(options.connections, _WARM_SECONDS, sales(served))
    peak = 0.0
    for connections in (options.connections, 2 * options.connections):
        tally = await load.run(connections, seconds, sales(served))
        peak = max(peak, tally.good / seconds)
    many = options.connections * options.factor
    over, health = await asyncio.gather(
        load.run(many, seconds, sales(served), obeys=not options.impatient),
        load.probe("/livez", seconds),
    )
    goodput = over.good / seconds
    found: dict[str, Any] = {
        "peak": round(peak),
        "goodput": round(goodput),
        "ratio": round(goodput / peak, 3),
        "shed": over.shed,
        "failed": over.failed,
        "lost": over.lost,
        "timeouts": over.timeouts + health.timeouts,
        "p99_ms": round(over.p99_ms(), 1),
        "health_asked": health.good,
        "health_p99_ms": round(health.p99_ms(), 1),
        "peak_mib": round(served.peak_mib()),
    }
    found["missed"] = _missed(
        goodput=goodput >= GOODPUT_MIN * peak,
        health=health.good > 0 and health.p99_ms() <= HEALTH_P99_MS_MAX,
        timeouts=found["timeouts"] == 0,
        failed=over.failed == over.lost == over.refusals_incomplete == 0,
    )
    return found


async def hot(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    load, seconds = Load(served), options.seconds
    others = sales(served)
    await load.run(4, _WARM_SECONDS, others)
    quiet = await load.run(4, seconds, others, pause_seconds=_PROBE_SECONDS)
    hot_call = itertools.repeat(served.call("/v1/objects/Desk/hot/serve", {}))
    alone = await load.run(4, seconds, hot_call)
    crowd, beside = await asyncio.gather(
        load.run(options.connections * options.factor, seconds, hot_call),
        load.run(4, seconds, others, pause_seconds=_PROBE_SECONDS),
    )
    bar_ms = 2 * quiet.p99_ms() + 10
    found: dict[str, Any] = {
        "capacity": round(alone.good / seconds),
        "offered": round((crowd.good + crowd.shed) / seconds),
        "served": round(crowd.good / seconds),
        "shed": crowd.statuses[429],
        "failed": crowd.failed + beside.failed + beside.shed,
        "timeouts": crowd.timeouts + beside.timeouts,
        "quiet_p99_ms": round(quiet.p99_ms(), 1),
        "others_p99_ms": round(beside.p99_ms(), 1),
        "bar_ms": round(bar_ms, 1),
    }
    found["missed"] = _missed(
        shed=crowd.statuses[429] > 0 and crowd.statuses[503] == 0,
        others=beside.good > 0 and beside.p99_ms() <= bar_ms,
        timeouts=found["timeouts"] == 0,
        failed=found["failed"] == crowd.refusals_incomplete == 0,
    )
    return found


async def descriptors(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Call a thousand databases over five hundred connections, with 256 descriptors."""
    objects = options.objects
    waiting = list(range(objects)) * 2  # each is to be booked twice
    booked: Counter[int] = Counter()
    others_max = 0  # descriptors that are not storage's
    gives_up_at = time.monotonic() + options.seconds * 30

    def next_call() -> tuple[int, bytes] | None:
        if not waiting or time.monotonic() > gives_up_at:
            return None
        number = waiting.pop()
        return number, served.call(f"/v1/objects/Ledger/{number}/book", {})

    tally = Tally()
    refused = 0

    async def one() -> None:
        nonlocal refused
        while (found := next_call()) is not None:
            number, message = found
            status = await call_once(served.url, message, tally)
            if status == OK:
                booked[number] += 1
            else:
                refused += 1
                waiting.insert(0, number)
                await asyncio.sleep(0.2)

    async def watch() -> None:
        nonlocal others_max
        while True:
            others_max = max(others_max, served.descriptors_of_others())
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one() for _ in range(options.connections * options.factor)))
    watching.cancel()
    check = Tally()
    wrong = 0
    for number in range(objects):
        message = served.call(f"/v1/objects/Ledger/{number}/booked", {})
        answer = await ask(served.url, message, check)
        wrong += answer is None or json.loads(answer)["result"] < booked[number]
    for_databases = PER_DATABASE * ((options.descriptors - RESERVED - 32) // 9)
    found: dict[str, Any] = {
        "limit": options.descriptors,
        "others_max": others_max,
        "booked": booked.total(),
        "refused": refused,
        "statuses": {str(key): count for key, count in tally.statuses.items()},
        "lost": tally.lost,
        "timeouts": tally.timeouts,
        "acknowledged_and_missing": wrong,
        "errors_logged": served.log().count('"level": "error"'),
        "pauses_logged": served.log().count("accepting_paused"),
    }
    found["missed"] = _missed(
        all_booked=booked.total() == 2 * objects,
        only_shed=set(tally.statuses) <= {OK, 429, 503} and tally.lost == 0,
        kept=wrong == 0,
        reserve=others_max <= options.descriptors - RESERVED - for_databases,
        quiet=found["errors_logged"] == 0,
    )
    return found


async def memory(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    load, seconds = Load(served), options.seconds
    before_mib = served.peak_mib()
    text = "x" * (options.message_kib * 1024)
    # Each message stays with its object, in the cache, and many wait at a time.
    messages = (
        served.call(f"/v1/objects/Till/{n % 997}/keep", {"args": [str(n % 7), text]})
        for n in itertools.count()
    )
    over, health = await asyncio.gather(
        load.run(options.connections * options.factor, seconds, messages),
        load.probe("/livez", seconds),
    )
    is_alive = served.process.returncode is None
    found: dict[str, Any] = {
        "good": over.good,
        "shed": over.shed,
        "failed": over.failed,
        "lost": over.lost,
        "timeouts": over.timeouts + health.timeouts,
        "memory_errors": served.log().count("MemoryError"),
        "is_alive": is_alive,
        "health_asked": health.good,
        "health_p99_ms": round(health.p99_ms(), 1),
        "mib_before": round(before_mib),
        "peak_mib": round(served.peak_mib()) if is_alive else None,
    }
    found["missed"] = _missed(
        memory_errors=found["memory_errors"] == 0 and is_alive,
        good=over.good > 0,
        timeouts=found["timeouts"] == 0,
        failed=over.failed == 0,
    )
    return found


SCENARIOS: dict[str, Callable[[Served, argparse.Namespace], Any]] = {
    "spread": spread,
    "hot": hot,
    "descriptors": descriptors,
    "memory": memory,
}


def _missed(**bars: bool) -> list[str]:
    return [name for name, is_met in bars.items() if not is_met]


@contextmanager
def _folder(parent: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="overload-", dir=parent) as name:
        yield Path(name)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run one scenario and return what was found."""
    scenario = SCENARIOS[options.scenario]
    environ, limits = {}, {}
    if options.scenario == "descriptors":
        limits[resource.RLIMIT_NOFILE] = options.descriptors
    if options.scenario == "hot":
        # Ten times what it can answer must not fit into its mailbox.
        environ["DURABLE_ACTOR_OBJECTS_MAILBOX_EVENTS_MAX"] = str(options.connections)
    if options.scenario == "memory":
        limits[resource.RLIMIT_AS] = options.memory_mib * _MIB
        if options.control:
            for key in ("OBJECTS_MEMORY_BYTES_MAX", "HTTP_BODIES_BYTES_MAX"):
                environ[f"DURABLE_ACTOR_{key}"] = str(1 << 40)
            environ["DURABLE_ACTOR_STORAGE_CACHE_BYTES_MAX"] = str(1 << 40)
            environ["DURABLE_ACTOR_OBJECTS_QUEUED_BYTES_MAX"] = str(1 << 40)
    with _folder(options.folder) as folder:
        async with serve(folder, limits=limits, environ=environ) as served:
            found: dict[str, Any] = await scenario(served, options)
            return found


def main() -> int:
    """Run, print what was found, and say whether the bars were met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--factor", type=int, default=10)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--scenario", choices=SCENARIOS)
    parser.add_argument("--impatient", action="store_true")
    parser.add_argument("--memory-mib", type=int, default=768)
    parser.add_argument("--message-kib", type=int, default=512)
    parser.add_argument("--descriptors", type=int, default=256)
    parser.add_argument("--objects", type=int, default=1_000)
    parser.add_argument("--folder", help="where the data lies, such as /dev/shm")
    parser.add_argument("--control", action="store_true")
    parser.set_defaults(scenario="spread")
    found = asyncio.run(run(parser.parse_args()))
    print(json.dumps(found))
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
