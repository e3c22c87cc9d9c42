"""The real daemon on a disk that fails, is full or is slow; see `iofaults.c`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.durable_actor.daemon.process import Daemon
from tests.support.sweep import compile_shim

Start = Callable[..., Daemon]

SHARD = "shard-00.db"
SYNC_SECONDS = 0.3


class BadDisk:
    """Daemons that start from now on have it; it is bad while `trigger` is there."""

    def __init__(self, trigger: Path) -> None:
        self._trigger = trigger

    def begin(self) -> None:
        """Let the disk be bad."""
        self._trigger.touch()

    def end(self) -> None:
        """Let it be a good one again."""
        self._trigger.unlink()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the disk of the daemon never failed")
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def bad_disk(
    shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., BadDisk]:
    def prepare(mode: str, *, match: str = SHARD) -> BadDisk:
        trigger = tmp_path / "disk-is-bad"
        monkeypatch.setenv("LD_PRELOAD", str(shim))
        monkeypatch.setenv("IOFAULTS_DIR", str((tmp_path / "data").resolve()))
        monkeypatch.setenv("IOFAULTS_MODE", mode)
        monkeypatch.setenv("IOFAULTS_MS", str(int(SYNC_SECONDS * 1_000)))
        monkeypatch.setenv("IOFAULTS_MATCH", match)
        monkeypatch.setenv("IOFAULTS_TRIGGER", str(trigger))
        return BadDisk(trigger)

    return prepare


def increment(http: httpx2.Client, name: str = "a") -> httpx2.Response:
    return http.post(f"/v1/objects/Counter/{name}/increment")


def value(http: httpx2.Client, name: str = "a") -> int:
    return int(http.post(f"/v1/objects/Counter/{name}/value").json()["result"])


def test_g13_a_failed_write_ends_the_daemon_with_74_and_loses_nothing(
    start_daemon: Start, bad_disk: Callable[..., BadDisk]
) -> None:
    disk = bad_disk("eio")
    daemon = start_daemon().wait_ready()
    with daemon.http() as http:
        for expected in range(1, 6):
            assert increment(http).json() == {"result": expected}
        disk.begin()
        answers = [increment(http)]
        try:
            answers.append(increment(http))
        except httpx2.TransportError:
            pass  # it has gone already
    status, errors = daemon.wait()
    disk.end()

    assert [answer.status_code for answer in answers if answer.is_success] == []
    assert status == 74
    assert "storage_failed" in errors
    with start_daemon().wait_ready().http() as http:
        assert value(http) in (5, 6), "the sixth was never acknowledged"


def test_g12_a_full_disk_is_a_507_until_there_is_space(
    start_daemon: Start, bad_disk: Callable[..., BadDisk]
) -> None:
    disk = bad_disk("enospc")
    daemon = start_daemon().wait_ready()
    with daemon.http() as http:
        assert increment(http).json() == {"result": 1}
        disk.begin()
        for _ in range(3):
            refused = increment(http)
            assert (refused.status_code, refused.json()["code"]) == (
                507,
                "storage_full",
            )
            assert refused.elapsed.total_seconds() < 1
            assert value(http) == 1
        assert "storage_full" in http.get("/readyz").text
        disk.end()
        give_up_at = time.monotonic() + 5
        while http.get("/readyz").status_code != 200:
            assert time.monotonic() < give_up_at
        assert increment(http).json() == {"result": 2}
        disk.begin()
    status, _ = daemon.stop()
    disk.end()

    assert status == 0, "a full disk is no reason to fail"


def test_g15_on_a_slow_disk_only_what_has_to_waits(
    start_daemon: Start, bad_disk: Callable[..., BadDisk]
) -> None:
    disk = bad_disk("slow", match="")
    daemon = start_daemon().wait_ready()
    with daemon.http() as http, ThreadPoolExecutor(20) as pool:
        assert value(http, "idle") == 0
        increment(http)
        disk.begin()
        began = time.monotonic()
        writes = [pool.submit(increment, http, f"w{i}") for i in range(20)]
        reads = [value(http, "idle") for _ in range(5)]
        reading = time.monotonic() - began
        answers = [write.result() for write in writes]
        writing = time.monotonic() - began
        disk.end()

    assert reads == [0] * 5
    assert [answer.json() for answer in answers] == [{"result": 1}] * 20
    assert writing >= SYNC_SECONDS, "the disk was slow"
    # Twenty syncs, one after the other, would take six seconds.
    assert writing < 8 * SYNC_SECONDS
    assert reading < writing
