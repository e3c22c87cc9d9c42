"""A data directory has one owner, whoever else tries (G10)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_actor.errors import DataDirectoryInUseError
from durable_actor.storage import integrity
from durable_actor.storage.integrity import LOCK_NAME, DirectoryLock
from tests.durable_actor.daemon.process import Daemon, exit_line
from tests.support.racing_starts import race

PATIENCE = "_LOCK_PATIENCE_SECONDS"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait hardly at all for a lock that somebody has."""
    monkeypatch.setattr(integrity, PATIENCE, 0.02)


def test_g10_of_many_that_start_at_once_one_has_the_directory(tmp_path: Path) -> None:
    report = race(tmp_path, rounds=10, racers=4)

    assert report.double_opens == 0
    assert report.opened >= 10
    assert report.refused >= 10


def test_g10_a_race_without_the_lock_is_noticed(tmp_path: Path) -> None:
    """The control: the same race, in which everybody believes to have the lock."""
    assert race(tmp_path, rounds=10, racers=4, is_locked=False).double_opens > 0


HOLDER = """
import sys, time
from pathlib import Path
from durable_actor.storage.integrity import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("impatient")
def test_g10_a_holder_that_is_stopped_still_holds(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(DataDirectoryInUseError) as caught:
            DirectoryLock(tmp_path)
        assert str(holder.pid) in str(caught.value)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    DirectoryLock(tmp_path).release()  # a dead one does not


@pytest.mark.usefixtures("impatient")
def test_g10_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lock.release()
        DirectoryLock(tmp_path).release()
    finally:
        child.communicate(b"\n")


@pytest.mark.usefixtures("impatient")
def test_g10_a_forked_child_keeps_others_out_until_it_is_gone(tmp_path: Path) -> None:
    """A fork has the same open file: safe, as it may still write through it."""
    lock = DirectoryLock(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent closes its end
        os._exit(0)
    os.close(reading)
    lock.release()
    with pytest.raises(DataDirectoryInUseError):
        DirectoryLock(tmp_path)
    os.close(writing)
    os.waitpid(child, 0)
    DirectoryLock(tmp_path).release()


@pytest.mark.usefixtures("impatient")
def test_g10_opening_the_file_elsewhere_in_the_process_drops_nothing(
    tmp_path: Path,
) -> None:
    lock = DirectoryLock(tmp_path)
    (tmp_path / LOCK_NAME).read_bytes()  # what drops a lock of `lockf`
    with pytest.raises(DataDirectoryInUseError):
        DirectoryLock(tmp_path)
    lock.release()


def test_g10_a_second_daemon_ends_with_75_although_the_first_is_stopped(
    start_daemon: Callable[..., Daemon],
) -> None:
    first = start_daemon().wait_ready()
    first.signal(signal.SIGSTOP)
    try:
        second = start_daemon()
        status, errors = second.wait()
    finally:
        first.signal(signal.SIGCONT)

    assert status == 75
    assert str(first.process.pid) in exit_line(errors)["detail"]
    assert first.stop()[0] == 0


def test_g10_giving_up_takes_less_than_a_second(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    began = time.monotonic()
    with pytest.raises(DataDirectoryInUseError):
        DirectoryLock(tmp_path)
    assert 0.5 < time.monotonic() - began < 1.5  # the bar is 1 s; the machine is shared
    lock.release()
