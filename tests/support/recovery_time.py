"""How long a daemon takes to be well again after SIGKILL (G23).

    python -m tests.support.recovery_time [--objects 10000] [--runs 1000]
        [--alarms 10000]

Starts the real daemon, makes that many objects, alarms that are overdue by then, and
runs in the middle of a step; kills it with its storage process, starts it again on the
same data, and measures: until the ready line, for the first call, until all runs have
gone on to their end, until all alarms have been delivered. Prints one JSON object, and
exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

from tests.durable_actor.daemon.process import Daemon
from tests.support.recovery_app import GATE_VARIABLE

READY_SECONDS_MAX = 2.0
FIRST_CALL_MS_MAX = 100.0
RUNS_SECONDS_MAX = 10.0
ALARMS_SECONDS_MAX = 10.0
_PATIENCE_SECONDS = 120.0
_CONFIG = """
main = "tests.support.recovery_app"
durable_objects.bindings = [
    { name = "COUNTERS", class_name = "Counter" },
    { name = "BELLS", class_name = "Bell" },
]
"""


@dataclass(slots=True, kw_only=True)
class Report:
    """What was measured; seconds and milliseconds of the second life."""

    objects: int
    runs: int
    alarms: int
    recovered_runs: int = 0
    ready_seconds: float = 0.0
    ready_cpu_seconds: float = 0.0  # of the daemon alone, for a machine that is busy
    first_call_ms: float = 0.0
    runs_seconds: float = 0.0  # from the ready line until all have ended
    alarms_seconds: float = 0.0  # from the ready line until all were delivered
    objects_lost: int = 0

    @property
    def is_good(self) -> bool:
        """Whether every bar was met."""
        return (
            self.recovered_runs == self.runs
            and self.ready_seconds <= READY_SECONDS_MAX
            and self.first_call_ms <= FIRST_CALL_MS_MAX
            and self.runs_seconds <= RUNS_SECONDS_MAX
            and self.alarms_seconds <= ALARMS_SECONDS_MAX
            and self.objects_lost == 0
        )


def recovery_time(directory: Path, *, objects: int, runs: int, alarms: int) -> Report:
    """Fill a data directory, kill the daemon, and measure the next one."""
    report = Report(objects=objects, runs=runs, alarms=alarms)
    config = directory / "config.toml"
    config.write_text(_CONFIG)
    gate = directory / "gate"
    os.environ[GATE_VARIABLE] = str(gate)
    first = _start(directory, config)
    try:
        with first.http() as http:
            http.timeout = _PATIENCE_SECONDS
            due_at_ms = _populate(http, objects, runs, alarms)
    finally:
        os.killpg(first.process.pid, signal.SIGKILL)
        first.kill()
    gate.touch()
    time.sleep(max(due_at_ms / 1_000 - time.time(), 0))  # all alarms are overdue

    began = time.perf_counter()
    second = _start(directory, config)
    ready = time.perf_counter()
    try:
        report.ready_seconds = round(ready - began, 3)
        report.ready_cpu_seconds = _cpu_seconds(second.process.pid)
        report.recovered_runs = second.ready["recovered_runs"]
        with second.http() as http:
            http.timeout = _PATIENCE_SECONDS
            began = time.perf_counter()
            value = _call(http, "Counter", "0", "increment")
            report.first_call_ms = round((time.perf_counter() - began) * 1_000, 1)
            report.objects_lost += value != 2  # once in each life
            _wait_for_the_rest(http, report, ready)
    finally:
        second.stop()
        second.kill()
    return report


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _start(directory: Path, config: Path) -> Daemon:
    return Daemon("--data-dir", str(directory / "data"), config=config).wait_ready()


def _call(http: httpx2.Client, cls: str, name: str, method: str, *args: object) -> int:
    answer = http.post(f"/v1/objects/{cls}/{name}/{method}", json={"args": args})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["result"] or 0)


def _populate(http: httpx2.Client, objects: int, runs: int, alarms: int) -> int:
    _call(http, "Populace", "p", "counters", objects)
    for number in range(runs):
        body = {"id": f"r{number}", "async": True}
        answer = http.post("/v1/workflows/at_work/runs", json=body)
        assert answer.status_code == 200, answer.text
    began = time.perf_counter()
    while _unstarted(http):
        assert time.perf_counter() - began < _PATIENCE_SECONDS, "runs do not begin"
        time.sleep(0.2)
    # A little ahead, so that none is delivered before the process dies.
    at_ms = int(time.time() * 1_000) + 2_000 + alarms
    _call(http, "Populace", "p", "bells", alarms, at_ms)
    return at_ms


def _unstarted(http: httpx2.Client) -> bool:
    return bool(http.get("/v1/runs?status=Queued&limit=1").json()["runs"])


def _wait_for_the_rest(http: httpx2.Client, report: Report, ready: float) -> None:
    while not (report.runs_seconds and report.alarms_seconds):
        passed = round(time.perf_counter() - ready, 3)
        assert passed < _PATIENCE_SECONDS, asdict(report)
        if (
            not report.runs_seconds
            and not (http.get("/v1/runs?status=Running&limit=1").json()["runs"])
        ):
            report.runs_seconds = passed
        if (
            not report.alarms_seconds
            and not (http.get("/v1/alarms?class=Bell&limit=1").json()["alarms"])
        ):
            report.alarms_seconds = passed
        time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the report; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.recovery_time")
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--alarms", type=int, default=10_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="recovery-") as directory:
        report = recovery_time(
            Path(directory),
            objects=options.objects,
            runs=options.runs,
            alarms=options.alarms,
        )
    print(json.dumps(asdict(report)))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
