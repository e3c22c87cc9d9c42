"""The kill loop: SIGKILL under load, restart, and see whether anything is missing.

    python -m tests.support.kill_loop --kills 500 [--seed N] [--driver thread|process]
        [--embedded] [--break-commit-order]

Starts the real daemon, or with `--embedded` a process that embeds a host; loads it from
several clients; kills it 20 to 300 ms after it was ready; starts it again on the same
data. Prints one JSON object, and exits with 1 if a promise was broken.

What the clients know, and what the process has to agree with:

    plain     Each call has an identity of its own, and is given up if no answer comes.
              The counter is never below the highest value an answer has told, nor above
              the number of calls. Values only grow, so this is tight: one lost
              acknowledged call shows as a value that was seen and is gone.
    retried   The same identity is sent until an answer comes. Every answer is the one
              before plus one: nothing lost, nothing done twice (G6).
    repeated  A few identities, sent again and again. Each always gets its first answer.
    sql       Plain and retried counters exist twice: with a key, and with a row for
              each increment (`SqlCounter`). Rows, a key and the alarm have to agree.
    runs      Every run whose start was acknowledged is there, and completes. Its output
              is what its steps have posted to the ledger, and no step posted again
              after the try that was recorded (G5).

`--break-commit-order` is the control: an application that acknowledges before the
commit must lose something, or this loop is blind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from tests.support.kill_links import Life, Link, LostError, RefusedError, Setup

KILL_AFTER_SECONDS = (0.02, 0.3)
KILL_STORAGE_TOO = (
    0.5  # how often the storage process is killed together with its owner
)
PLAIN_COUNTERS = 2
PLAIN_CLIENTS_EACH = 2
RETRIED_COUNTERS = 2
REPEATED_KEYS = 20
REPEATED_CALLS_A_KEY = 30  # on average; then other keys have their turn
RUN_PAUSE_SECONDS = 0.03
RUNS_DONE_SECONDS_MAX = 60.0
PROGRESS_KILLS = 25
_EXAMPLES_MAX = 20


@dataclass(slots=True, kw_only=True)
class Report:
    """What happened. Everything from `lost` to `runs_wrong` must be zero."""

    kills: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0  # answers that were no success
    lost: int = 0  # acknowledged increments that are gone
    doubled: int = 0  # increments that nobody asked for
    torn: int = 0  # rows, keys and alarm of an object with SQL that do not agree
    replies_changed: int = 0  # answers to a repeated identity that were not the first
    runs_started: int = 0
    runs_lost: int = 0  # acknowledged, and gone
    runs_unfinished: int = 0
    runs_wrong: int = 0  # an output that is not what was posted and recorded
    steps_rerun: int = 0  # recorded, and yet run again
    steps_tried_again: int = 0  # not recorded when the process died: allowed
    in_use_retries: int = 0
    restart_p50_seconds: float = 0.0
    restart_p99_seconds: float = 0.0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)  # the first few of what is wrong

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (
            self.lost
            or self.doubled
            or self.torn
            or self.replies_changed
            or self.runs_lost
            or self.runs_unfinished
            or self.runs_wrong
            or self.steps_rerun
        )

    def tell(self, text: str) -> None:
        """Keep an example of what is wrong."""
        if len(self.examples) < _EXAMPLES_MAX:
            self.examples.append(f"after kill {self.kills}: {text}")


class PlainCounter:
    """A counter whose calls are given up when no answer comes."""

    def __init__(self, name: str, cls: str = "Counter") -> None:
        self.name = name
        self._cls = cls
        self._sent = 0
        self._highest = 0  # that an answer has told

    async def verify(self, link: Link, report: Report) -> None:
        """Compare the value after a restart with what is known."""
        at_least = self._highest
        value = await link.value(self._cls, self.name)
        self._check(value, at_least, report)

    async def load(self, link: Link, report: Report) -> None:
        """Increment until the process dies."""
        while True:
            at_least = self._highest + 1
            self._sent += 1
            key = f"{self.name}-{self._sent}"
            value = await link.increment(self._cls, self.name, key)
            report.acknowledged += 1
            self._check(value, at_least, report)

    def _check(self, value: int, at_least: int, report: Report) -> None:
        if value < at_least:
            report.lost += at_least - value
            report.tell(f"{self.name} is {value}, was at least {at_least}")
            self._highest = min(self._highest, value)
        elif value > self._sent:
            report.doubled += value - self._sent
            report.tell(f"{self.name} is {value} after {self._sent} calls")
            self._sent = value
        self._highest = max(self._highest, value)


class RetriedCounter:
    """A counter whose calls are sent until an answer comes, with one identity each."""

    def __init__(self, name: str, cls: str = "Counter") -> None:
        self.name = name
        self._cls = cls
        self._answered = 0  # calls
        self._value = 0  # of the last answer

    async def load(self, link: Link, report: Report) -> None:
        """Increment until the process dies; begin with the call without an answer."""
        while True:
            key = f"{self.name}-{self._answered}"
            value = await link.increment(self._cls, self.name, key)
            self._answered += 1
            report.acknowledged += 1
            wanted = self._value + 1
            if value != wanted:
                report.lost += max(wanted - value, 0)
                report.doubled += max(value - wanted, 0)
                report.tell(f"{self.name} answered {value}, expected {wanted}")
            self._value = value


class RepeatedCounter:
    """A counter that gets the same few identities again and again."""

    def __init__(self, name: str, source: random.Random) -> None:
        self.name = name
        self._source = source
        self._answers: dict[str, int] = {}
        self._calls = 0
        self._generation = 0

    async def load(self, link: Link, report: Report) -> None:
        """Repeat until the process dies."""
        while True:
            name = f"{self.name}-{self._generation}"
            key = f"{name}-{self._source.randrange(REPEATED_KEYS)}"
            value = await link.increment("Counter", name, key)
            report.acknowledged += 1
            first = self._answers.setdefault(key, value)
            if value != first or value > REPEATED_KEYS:
                report.replies_changed += 1
                report.tell(f"{key} was answered {value}, before {first}")
            self._calls += 1
            if self._calls > REPEATED_KEYS * REPEATED_CALLS_A_KEY:
                self._generation += 1
                self._calls = 0
                self._answers.clear()


class Runs:
    """The runs that were started, and what became of them."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._acknowledged: list[str] = []
        self._number = 0  # of the run that is started next

    async def verify(self, link: Link, report: Report) -> None:
        """Look whether one of the acknowledged runs is still there."""
        if self._acknowledged:
            await self._state(link, self._source.choice(self._acknowledged), report)

    async def load(self, link: Link, report: Report) -> None:
        """Start runs until the process dies; begin with the start without an answer."""
        while True:
            run = f"run-{self._number}"
            await link.start(run)
            self._number += 1
            self._acknowledged.append(run)
            report.runs_started += 1
            await asyncio.sleep(self._source.random() * RUN_PAUSE_SECONDS)

    async def finish(self, link: Link, ledger: Path, report: Report) -> None:
        """Wait for all runs, and compare what they say with the ledger."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + RUNS_DONE_SECONDS_MAX
        outputs: dict[str, list[str]] = {}
        open_runs = list(self._acknowledged)
        while open_runs and loop.time() < gives_up_at:
            still_open = []
            for run in open_runs:
                status, output = await self._state(link, run, report)
                if status == "Completed" and output is not None:
                    outputs[run] = output
                elif status is not None:
                    still_open.append(run)
            open_runs = still_open
            await asyncio.sleep(0.1 if open_runs else 0)
        report.runs_unfinished = len(open_runs)
        for run in open_runs:
            report.tell(f"{run} did not complete")
        _compare(outputs, ledger, report)

    async def _state(
        self, link: Link, run: str, report: Report
    ) -> tuple[str | None, list[str] | None]:
        status, output = await link.state(run)
        if status is None:
            report.runs_lost += 1
            report.tell(f"{run} was acknowledged, and is gone")
            self._acknowledged.remove(run)
        return status, output


def _compare(outputs: dict[str, list[str]], ledger: Path, report: Report) -> None:
    posted: dict[str, list[str]] = defaultdict(list)  # by run and step
    for line in ledger.read_text().splitlines():
        step, _, word = line.rpartition(" ")
        posted[step].append(word)
    for run, words in outputs.items():
        for number, word in enumerate(words):
            tries = posted[f"{run} {number}"]
            if word not in tries:
                report.runs_wrong += 1
                report.tell(f"{run} says {word} for step {number}, posted: {tries}")
                continue
            report.steps_tried_again += tries.index(word)
            after = len(tries) - 1 - tries.index(word)
            report.steps_rerun += after
            if after:
                report.tell(f"{run} ran step {number} again after it was recorded")


class Client(Protocol):
    """Sends requests until `LostError`."""

    async def load(self, link: Link, report: Report) -> None: ...


class KillLoop:
    """The clients, and the lives of the process."""

    def __init__(self, setup: Setup, *, seed: int) -> None:
        self.report = Report()
        self._setup = setup
        self._source = random.Random(seed)
        self._plain = [
            PlainCounter(f"plain-{cls}-{n}", cls)
            for cls in ("Counter", "SqlCounter")
            for n in range(PLAIN_COUNTERS)
        ]
        self._runs = Runs(self._source)
        self._clients: list[Client] = [
            *self._plain * PLAIN_CLIENTS_EACH,
            *(
                RetriedCounter(f"retried-{cls}-{n}", cls)
                for cls in ("Counter", "SqlCounter")
                for n in range(RETRIED_COUNTERS)
            ),
            RepeatedCounter("repeated", self._source),
            self._runs,
        ]
        self._start_seconds: list[float] = []

    async def run(self, kills: int) -> Report:
        """Kill so often, then let everything finish."""
        began = time.perf_counter()
        report = self.report
        self._setup.ledger.touch()
        for _ in range(kills):
            life = await self._start()
            load = asyncio.create_task(self._load(life), name="load")
            await asyncio.sleep(self._source.uniform(*KILL_AFTER_SECONDS))
            await life.kill(storage_too=self._source.random() < KILL_STORAGE_TOO)
            await load
            report.kills += 1
            report.seconds = round(time.perf_counter() - began, 1)
            if report.kills % PROGRESS_KILLS == 0:
                print(json.dumps(asdict(report)), file=sys.stderr, flush=True)
        life = await self._start()
        link = await life.connect()
        await self._verify(link)
        if not self._setup.acknowledges_early:  # what the control lost may never end
            await self._runs.finish(link, self._setup.ledger, report)
        await life.stop()
        report.seconds = round(time.perf_counter() - began, 1)
        return report

    async def _start(self) -> Life:
        began = time.perf_counter()
        life, retries = await Life.start(self._setup)
        self.report.in_use_retries += retries
        self._start_seconds.append(time.perf_counter() - began)
        if restarts := sorted(self._start_seconds[1:]):
            last = min(int(len(restarts) * 0.99), len(restarts) - 1)
            self.report.restart_p50_seconds = round(statistics.median(restarts), 3)
            self.report.restart_p99_seconds = round(restarts[last], 3)
        return life

    async def _load(self, life: Life) -> None:
        """Compare with what is known, then let all clients work until they are lost."""
        try:
            await self._verify(await life.connect())
            links = [await life.connect() for _ in self._clients]
        except LostError as error:
            self._note_torn(error)
            return  # killed before anything was sent
        await asyncio.gather(*map(self._work, self._clients, links))

    async def _verify(self, link: Link) -> None:
        for counter in self._plain:
            await counter.verify(link, self.report)
        await self._runs.verify(link, self.report)

    async def _work(self, client: Client, link: Link) -> None:
        try:
            await client.load(link, self.report)
        except RefusedError as error:
            self.report.refused += 1
            self._note_torn(error)
            self.report.tell(f"refused: {error}")
        except LostError:
            self.report.unknown += 1

    def _note_torn(self, error: LostError) -> None:
        if "is torn" in str(error):
            self.report.torn += 1
            self.report.tell(str(error))


async def kill_loop(setup: Setup, *, kills: int, seed: int) -> Report:
    """Kill so often and report what was found."""
    return await KillLoop(setup, seed=seed).run(kills)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop, print its report; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kill_loop")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--driver", choices=["thread", "process"], default="process")
    parser.add_argument("--embedded", action="store_true", help="a host, no daemon")
    parser.add_argument(
        "--break-commit-order", action="store_true", help="the control, must fail"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kill-loop-"))
    setup = Setup(
        folder=folder,
        driver=options.driver,
        is_embedded=options.embedded,
        acknowledges_early=options.break_commit_order,
    )
    report = asyncio.run(kill_loop(setup, kills=options.kills, seed=options.seed))
    kept = not report.is_clean and not options.break_commit_order
    if not kept:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {
                **asdict(report),
                "driver": options.driver,
                "embedded": options.embedded,
                "seed": options.seed,
                "folder": str(folder) if kept else None,
            }
        )
    )
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
