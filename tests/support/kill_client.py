"""The client under fire: it always retries, against a daemon that is killed again.

    python -m tests.support.kill_client --kills 100 [--seed N] [--driver thread|process]
        [--no-request-ids]

Some clients of the library increment counters, with keys and with rows, through a Unix
socket that keeps its address, while the daemon behind it is killed 50 to 400 ms after
each start. A client gives no call up. At the end all counters together say how often
calls ran, and that has to be how many there were (G6). Prints one JSON object, and
exits with 1 if it was another number.

`--no-request-ids` is the control: the same, by callers that repeat what is unknown
although their calls have no identity. It must double some.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from durable_actor import Client, DurableActorError, connect, retries
from tests.support.kill_links import DriverKind, Life, Setup
from tests.support.kill_loop_app import COUNTERS

KILL_AFTER_SECONDS = (0.0, 0.3)
KILL_AFTER_CALLS = 30  # at least, or there was nothing to lose
KILL_STORAGE_TOO = 0.5
_BACKOFF_SECONDS_MAX = 0.05  # back before the daemon is killed again
CALLERS_EACH = 3  # of each counter
RETRIES_MAX = 1_000


@dataclass(slots=True, kw_only=True)
class Report:
    """What happened."""

    kills: int = 0
    calls: int = 0
    ran: int = 0  # what the counters say
    failed: int = 0  # tries that a caller without identities repeated itself
    seconds: float = 0.0

    @property
    def doubled(self) -> int:
        """How many runs nobody asked for."""
        return max(self.ran - self.calls, 0)

    @property
    def lost(self) -> int:
        """How many answered calls left no trace."""
        return max(self.calls - self.ran, 0)


class Callers:
    """Everybody who calls, until told to stop."""

    def __init__(self, client: Client, report: Report) -> None:
        self._client = client
        self._report = report
        self._is_over = False

    async def run(self) -> None:
        """Call, and give no call up."""
        async with asyncio.TaskGroup() as group:
            for name in COUNTERS:
                for _ in range(CALLERS_EACH):
                    group.create_task(self._call_on(name))

    def stop(self) -> None:
        """Begin no more calls."""
        self._is_over = True

    async def total(self) -> int:
        """Return how often calls ran."""
        return sum([await self._counter(name).value() for name in COUNTERS])

    async def _call_on(self, name: str) -> None:
        while not self._is_over:
            self._report.calls += 1
            await self._until_answered(name)

    async def _until_answered(self, name: str) -> None:
        while True:
            try:
                await self._counter(name).increment()
            except DurableActorError:
                self._report.failed += 1
                await asyncio.sleep(0.02)
            else:
                return

    def _counter(self, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  # a stub
        return self._client.namespace(COUNTERS[name]).get_by_name("shared")


async def kill_client(
    setup: Setup, *, kills: int, seed: int, request_ids: bool = True
) -> Report:
    """Kill the daemon so often under its clients; report how often calls ran."""
    began = time.perf_counter()
    before, retries.WAIT_SECONDS_MAX = retries.WAIT_SECONDS_MAX, _BACKOFF_SECONDS_MAX
    try:
        report = await _run(setup, kills=kills, seed=seed, request_ids=request_ids)
    finally:
        retries.WAIT_SECONDS_MAX = before
    report.seconds = round(time.perf_counter() - began, 1)
    return report


async def _run(setup: Setup, *, kills: int, seed: int, request_ids: bool) -> Report:
    source = random.Random(seed)
    report = Report()
    setup.ledger.touch()
    life, _ = await Life.start(setup)
    async with connect(
        setup.listen,
        token=life.token,
        retries=RETRIES_MAX if request_ids else 0,
        request_ids=request_ids,
    ) as client:
        callers = Callers(client, report)
        calling = asyncio.create_task(callers.run(), name="callers")
        for _ in range(kills):
            wanted = report.calls + KILL_AFTER_CALLS
            while report.calls < wanted:
                await asyncio.sleep(0.005)
            await asyncio.sleep(source.uniform(*KILL_AFTER_SECONDS))
            await life.kill(storage_too=source.random() < KILL_STORAGE_TOO)
            report.kills += 1
            life, _ = await Life.start(setup)
        callers.stop()
        await calling
        report.ran = await callers.total()
    await life.stop()
    return report


def setup_in(folder: Path, driver: DriverKind = "process") -> Setup:
    """Return a daemon with an address that does not change."""
    return Setup(folder=folder, driver=driver, listen=f"unix:{folder / 'socket'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop, print its report; 1 if a call did not run exactly once."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kill_client")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--driver", choices=["thread", "process"], default="process")
    parser.add_argument(
        "--no-request-ids", action="store_true", help="the control, must fail"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kill-client-"))
    report = asyncio.run(
        kill_client(
            setup_in(folder, options.driver),
            kills=options.kills,
            seed=options.seed,
            request_ids=not options.no_request_ids,
        )
    )
    shutil.rmtree(folder)
    found = {"doubled": report.doubled, "lost": report.lost, "seed": options.seed}
    print(json.dumps({**asdict(report), **found}))
    return 0 if report.ran == report.calls else 1


if __name__ == "__main__":
    sys.exit(main())
