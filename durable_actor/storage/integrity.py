"""What proves that the disk still holds what was written, and that we own it.

Checksums sit beside every stored value and every row of the log. The data directory has
one owner at a time: a lock file, held with `flock` for the life of the process, never
unlinked (RELIABILITY F7, G10).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from zlib import crc32

from durable_actor.errors import ConfigError, DataDirectoryInUseError

LOCK_NAME = "lock"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK_PATIENCE_SECONDS = 0.8  # a dying owner's storage process lets go within this
_LOCK_POLL_SECONDS = 0.02


def value_crc(num: int, key: str, value: bytes) -> int:
    """Return the checksum of one stored value, with its key and its object's number."""
    try:
        raw_key = key.encode()
    except UnicodeEncodeError:  # a flipped bit in a key, see `fields_crc`
        raw_key = key.encode("utf-8", "surrogatepass")
    return crc32(value, crc32(raw_key, num & 0xFFFFFFFF))


def row_crc(first_ticket: int, last_ticket: int, batch: bytes) -> int:
    """Return the checksum of one row of the log."""
    return crc32(batch, crc32(b"%d %d" % (first_ticket, last_ticket)))


def fields_crc(*fields: int | str | bytes | None) -> int:
    """Return the checksum of the fields of one row, each with its type and length."""
    crc = 0
    for field in fields:
        if isinstance(field, str):
            # What a flipped bit made of a text need not be one any more.
            field = field.encode("utf-8", "surrogatepass")  # noqa: PLW2901  # as bytes
            crc = crc32(field, crc32(b"s%d:" % len(field), crc))
        elif isinstance(field, bytes):
            crc = crc32(field, crc32(b"b%d:" % len(field), crc))
        else:
            crc = crc32(b"n" if field is None else b"i%d;" % field, crc)
    return crc


class DirectoryLock:
    """The exclusive right to a data directory, for as long as `fd` is open."""

    def __init__(self, directory: Path) -> None:
        """Take the lock, waiting a moment for an owner that is just going.

        Blocks for up to 0.8 seconds, so call it from a thread.

        Raises:
            ConfigError: The lock file cannot be opened, or is a symbolic link.
            DataDirectoryInUseError: Another process holds it.
        """
        self.path = directory / LOCK_NAME
        give_up_at = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                self.fd = os.open(self.path, _LOCK_FLAGS, 0o600)
            except OSError as error:
                message = (
                    f"the lock file {self.path} cannot be opened: {error.strerror}"
                )
                raise ConfigError(message) from error
            if self._try():
                break
            holder = os.pread(self.fd, 200, 0).decode(errors="replace").strip()
            os.close(self.fd)
            if time.monotonic() >= give_up_at:
                raise DataDirectoryInUseError(
                    str(directory), holder or "another process"
                )
            time.sleep(_LOCK_POLL_SECONDS)
        # Who it is helps the next one to ask, but a full disk keeps nobody out.
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"process {os.getpid()}\n".encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Whoever replaced the file meanwhile would lock another inode than ours.
        try:
            return self.path.stat().st_ino == os.fstat(self.fd).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let the next owner in."""
        os.close(self.fd)


def prepare_directory(directory: Path) -> None:
    """Create the data directory if it is absent, and make its name durable.

    Raises:
        ConfigError: Not a directory, a symbolic link, of another user, or writable for
            others.
    """
    if directory.is_symlink():
        message = f"the data directory {directory} is a symbolic link; name its target"
        raise ConfigError(message)
    try:
        if not directory.exists():
            _create(directory)
        status = directory.stat()
    except OSError as error:
        message = f"the data directory {directory} cannot be made: {error.strerror}"
        raise ConfigError(message) from error
    if not directory.is_dir():
        message = f"the data directory {directory} is not a directory"
        raise ConfigError(message)
    if status.st_uid != os.geteuid():
        message = (
            f"the data directory {directory} belongs to user {status.st_uid};"
            f" run as that user, or change its owner to {os.geteuid()}"
        )
        raise ConfigError(message)
    if status.st_mode & 0o022:
        message = (
            f"the data directory {directory} is writable for others"
            f" (mode {status.st_mode & 0o777:o}); run chmod 700 on it"
        )
        raise ConfigError(message)


def _create(directory: Path) -> None:
    missing = [directory]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        # Another process may make it at the same time; the lock tells us apart.
        folder.mkdir(mode=0o700 if folder is directory else 0o777, exist_ok=True)
    directory.chmod(0o700)  # whatever the umask says
    for folder in missing:
        sync_directory(folder)
        sync_directory(folder.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
