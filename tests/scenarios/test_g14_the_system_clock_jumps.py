"""The real daemon while the system's clock is put forwards, back, and made to run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httpx2
import pytest

from tests.durable_actor.daemon.process import Daemon

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
BELLS = 20
HOUR_SECONDS = 3_600

APP = """
from durable_actor import DurableObject
from workflows import Step, create_durable_workflows, workflow

class Bell(DurableObject):
    async def ring_in(self, delay_ms: int) -> None:
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms() + delay_ms)

    async def all_ring_in(self, count: int, delay_ms: int) -> None:
        for number in range(count):
            await self.env.BELLS.get_by_name(f"{number}").ring_in(delay_ms)

    async def alarm(self) -> None:
        rung = await self.ctx.storage.get("rung", default=0)
        self.ctx.storage.put("rung", rung + 1)
        await self.env.BELLS.get_by_name("tower").heard()

    async def now(self) -> int:
        return self.ctx.clock.now_ms()

    async def heard(self) -> None:
        self.ctx.storage.put("heard", await self.count("heard") + 1)

    async def count(self, key: str) -> int:
        return await self.ctx.storage.get(key) or 0

@workflow
async def naps(step: Step) -> str:
    await step.sleep("nap", "2 seconds")
    return "rested"

Workflows, Client = create_durable_workflows({"naps": naps})
"""
CONFIG = """
main = "bell_app.py"
durable_objects.bindings = [{ name = "BELLS", class_name = "Bell" }]
"""


class Tower:
    """A caller of the daemon whose clock can be put."""

    def __init__(self, daemon: Daemon, http: httpx2.Client, clock: Path) -> None:
        self.daemon = daemon
        self._http = http
        self._clock = clock

    def put(self, offset: str) -> None:
        """Put the daemon's clock; it looks at the file once in a second."""
        self._clock.write_text(offset)

    def call(self, name: str, method: str, *args: object) -> object:
        path = f"/v1/objects/Bell/{name}/{method}"
        answer = self._http.post(path, json={"args": args})
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def post(self, path: str, body: object) -> httpx2.Response:
        return self._http.post(path, json=body)

    def wait_heard(self, count: int) -> float:
        """Return how long it took until so many alarms had been heard."""
        began = time.monotonic()
        while self.call("tower", "count", "heard") != count:
            assert time.monotonic() - began < 10 * _slowness()
            time.sleep(0.2)  # it is another process; it asks the time often
        return time.monotonic() - began


def test_g14_alarms_and_sleeps_when_the_clock_of_the_system_jumps(
    start: Callable[[Path], Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not LIBRARIES:
        pytest.skip("libfaketime is not installed (Debian: apt-get install faketime)")
    (tmp_path / "bell_app.py").write_text(APP)
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARIES[0]))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
    monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")  # seconds; each look is slow
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")  # an operator cannot
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")  # the same, of older releases
    daemon = start(config)
    with daemon.http() as http:
        tower = Tower(daemon, http, clock)
        tower.call("setter", "all_ring_in", BELLS, HOUR_SECONDS // 2 * 1_000)
        assert tower.call("tower", "count", "heard") == 0

        tower.put(f"+{HOUR_SECONDS}")
        assert tower.wait_heard(BELLS) < 3 * _slowness()  # one of them before it looks

        # A run sleeps for two seconds while the clock is put back by ten years.
        queued = tower.post("/v1/workflows/naps/runs", {"id": "r", "async": True})
        assert queued.status_code == 200, queued.text
        tower.put("-3650d")
        while cast("int", tower.call("0", "now")) > time.time() * 1_000:
            time.sleep(0.05)
        tower.call("0", "ring_in", 100)
        tower.wait_heard(BELLS + 1)  # not years later, and no other one again
        began = time.monotonic()
        while http.get("/v1/runs/naps/r").json()["status"]["_tag"] != "Completed":
            assert time.monotonic() - began < 10 * _slowness()
            time.sleep(0.05)
        assert tower.call("1", "count", "rung") == 1

        # Ten times as fast: ten seconds of the wall pass in one.
        tower.put("+3650d x10")
        while cast("int", tower.call("0", "now")) < time.time() * 1_000:
            time.sleep(0.05)
        tower.call("2", "ring_in", 10_000)
        assert tower.wait_heard(BELLS + 2) < 8 * _slowness()
        assert tower.call("0", "count", "rung") == 2
    assert daemon.stop()[0] == 0


def _slowness() -> float:
    """Return how much more time than on a quiet machine things may take here."""
    began = time.perf_counter()
    sum(range(2_000_000))
    return max((time.perf_counter() - began) / 0.03, 1.0)
