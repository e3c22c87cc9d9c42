"""The ballast: room on the disk that is kept for the moment when there is none (G12).

Theory of operation
    A full disk refuses the very writes that would end the matter well: folding the log
    into the tables at the end, or at the start after a crash. So a file of some
    mebibytes lies in the data directory, without content. It is removed when such a
    write is refused, and made again when there is plenty of room; nothing else depends
    on it, and whoever needs its room may remove it.

It is never synced: a power cut may take it, and the next start looks.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from durable_actor.log import get_logger

BALLAST_NAME = "ballast"
# Made only if as many times its size are free: it must not be what fills the disk.
_PLENTY = 4
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_BLOCK_BYTES = 512  # what `st_blocks` counts, whatever the file system's own blocks

log = get_logger("durable_actor.storage")


class Ballast:
    """The ballast of one data directory. All of it blocks, and is for a thread."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        """Describe it; size 0 is none at all."""
        self._path = directory / BALLAST_NAME
        self._size_bytes = size_bytes
        self._is_there = False

    @property
    def is_missing(self) -> bool:
        """Whether there should be one, and is none that we know of."""
        return self._size_bytes > 0 and not self._is_there

    def make(self) -> bool:
        """Take the room if there is plenty; say whether the ballast is there now.

        Never raises: a host without ballast is one that ends less well on a full disk.
        """
        try:
            self._is_there = self._is_whole() or self._allocate()
        except OSError as error:
            log.warning("storage.no_ballast", error=str(error))
        return self._is_there

    def free(self) -> bool:
        """Give the room back; say whether there was any."""
        self._is_there = False
        if self._size_bytes == 0:
            return False
        try:
            self._path.unlink()
        except OSError:
            return False
        log.warning("storage.ballast_freed", bytes=self._size_bytes)
        return True

    def _is_whole(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            status = self._path.lstat()
            taken_bytes = status.st_blocks * _BLOCK_BYTES
            if status.st_size == self._size_bytes <= taken_bytes:
                return True
            self._path.unlink()  # of another size, or cut short by a power cut
        return False

    def _allocate(self) -> bool:
        if not self._size_bytes:
            return False
        status = os.statvfs(self._path.parent)
        if status.f_bavail * status.f_frsize < self._size_bytes * _PLENTY:
            return False
        fd = os.open(self._path, _FLAGS, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size_bytes)
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(fd)
        return True
