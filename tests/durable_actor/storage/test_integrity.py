"""A data directory has one owner, and is a place that only its owner writes to."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor.errors import ConfigError, DataDirectoryInUseError
from durable_actor.storage import integrity
from durable_actor.storage.integrity import (
    LOCK_NAME,
    DirectoryLock,
    prepare_directory,
    row_crc,
    value_crc,
)

_HOLDER = """
import sys
from pathlib import Path
from durable_actor.storage.integrity import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""

Hold = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start processes that hold the lock of `tmp_path`."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a held lock soon."""
    monkeypatch.setattr(integrity, "_LOCK_PATIENCE_SECONDS", 0.05)


# -- the lock -----------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_second_process_is_refused_and_told_who_holds_it(
    tmp_path: Path, hold: Hold
) -> None:
    holder = hold()

    with pytest.raises(DataDirectoryInUseError) as caught:
        DirectoryLock(tmp_path)
    assert caught.value.holder == f"process {holder.pid}"


def test_a_lock_is_refused_within_a_second(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DataDirectoryInUseError, match=f"process {os.getpid()}"):
        DirectoryLock(tmp_path)
    lock.release()


@pytest.mark.usefixtures("impatient")
def test_a_stopped_holder_still_holds(tmp_path: Path, hold: Hold) -> None:
    holder = hold()
    holder.send_signal(signal.SIGSTOP)

    with pytest.raises(DataDirectoryInUseError):
        DirectoryLock(tmp_path)


def test_a_killed_holder_lets_go(tmp_path: Path, hold: Hold) -> None:
    hold().kill()

    DirectoryLock(tmp_path).release()


def test_an_owner_that_is_just_going_is_waited_for(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    taken: list[DirectoryLock] = []
    waiting = threading.Thread(target=lambda: taken.append(DirectoryLock(tmp_path)))
    waiting.start()
    first.release()
    waiting.join()

    (second,) = taken
    second.release()


@pytest.mark.usefixtures("impatient")
def test_the_lock_survives_that_its_file_is_opened_and_closed_elsewhere(
    tmp_path: Path,
) -> None:
    """A POSIX record lock would be gone after this."""
    lock = DirectoryLock(tmp_path)
    (tmp_path / LOCK_NAME).read_text()
    with (tmp_path / LOCK_NAME).open("a"):
        pass

    with pytest.raises(DataDirectoryInUseError):
        DirectoryLock(tmp_path)
    lock.release()


@pytest.mark.usefixtures("impatient")
def test_a_child_that_inherited_the_lock_keeps_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fd])
    lock.release()
    with pytest.raises(DataDirectoryInUseError):
        DirectoryLock(tmp_path)

    child.communicate()
    DirectoryLock(tmp_path).release()


def test_other_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    lock.release()

    DirectoryLock(tmp_path).release()
    child.communicate()


def test_a_file_that_was_replaced_while_it_was_locked_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    replaced: list[int] = []

    def open_and_replace(path: Path, flags: int, mode: int = 0o777) -> int:
        fd = real(path, flags, mode)
        if not replaced:
            path.unlink()
            os.close(real(path, flags, mode))
            replaced.append(os.fstat(fd).st_ino)
        return fd

    monkeypatch.setattr(os, "open", open_and_replace)
    lock = DirectoryLock(tmp_path)

    assert os.fstat(lock.fd).st_ino == (tmp_path / LOCK_NAME).stat().st_ino
    lock.release()


def test_the_lock_file_stays_when_the_lock_is_released(tmp_path: Path) -> None:
    DirectoryLock(tmp_path).release()

    assert (tmp_path / LOCK_NAME).exists(), "unlinking it would let two owners in"
    assert stat.S_IMODE((tmp_path / LOCK_NAME).stat().st_mode) == 0o600


def test_a_full_disk_does_not_keep_the_owner_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the holder is a courtesy."""

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    lock = DirectoryLock(tmp_path)
    monkeypatch.undo()
    lock.release()


def test_s16_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to(victim)

    with pytest.raises(ConfigError, match="lock"):
        DirectoryLock(tmp_path)
    assert victim.read_text() == "precious"


# -- the directory ------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_s16_a_new_directory_is_for_its_owner_alone(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        prepare_directory(tmp_path / "a" / "b" / "data")
    finally:
        os.umask(before)

    mode = (tmp_path / "a" / "b" / "data").stat().st_mode
    assert stat.S_IMODE(mode) == 0o700


def test_every_directory_that_was_made_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(integrity, "sync_directory", synced.append)
    prepare_directory(tmp_path / "a" / "b" / "data")

    for made in ("a/b", "a", "."):
        assert tmp_path / made in synced, "its entry is in the directory above it"


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    prepare_directory(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_s16_a_directory_that_others_may_write_to_is_refused(
    tmp_path: Path, mode: int
) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(mode)

    with pytest.raises(ConfigError, match=f"mode {mode & 0o777:o}.*chmod 700"):
        prepare_directory(directory)


def test_s16_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    for name, target in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(ConfigError, match="symbolic link"):
            prepare_directory(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/data"):
        with pytest.raises(ConfigError, match=place):
            prepare_directory(tmp_path / place)


def test_s16_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    with suppress(PermissionError):
        os.chown(tmp_path, 12_345, -1)
    if tmp_path.stat().st_uid == os.geteuid():
        pytest.skip("only root can give a directory away")

    with pytest.raises(ConfigError, match="belongs to user 12345"):
        prepare_directory(tmp_path)


# -- checksums ----------------------------------------------------------------


@given(
    num=st.integers(1, 1 << 40), key=st.text(max_size=5), value=st.binary(max_size=20)
)
def test_a_value_under_another_key_or_object_has_another_checksum(
    num: int, key: str, value: bytes
) -> None:
    crc = value_crc(num, key, value)

    assert 0 <= crc < 1 << 32
    assert value_crc(num, key + "x", value) != crc
    assert value_crc(num, key, value + b"x") != crc
    assert value_crc(num ^ 1, key, value) != crc


@given(
    first=st.integers(0, 1 << 60),
    last=st.integers(0, 1 << 60),
    bit=st.integers(0, 61),
    batch=st.binary(max_size=20),
)
def test_a_flipped_bit_in_a_ticket_changes_the_checksum_of_its_row(
    first: int, last: int, bit: int, batch: bytes
) -> None:
    crc = row_crc(first, last, batch)

    assert row_crc(first ^ (1 << bit), last, batch) != crc
    assert row_crc(first, last ^ (1 << bit), batch) != crc
