"""The high-water mark: how far the shard had come, noted outside of it.

Theory of operation
    A database that was rolled back, by a copy without its WAL or a damaged frame in the
    middle of it, looks perfectly well to SQLite. So after each commit the number of the
    row and its checksum go into a small file of its own, in two slots in turn, without
    a sync. On open, a database behind its mark has lost something (RELIABILITY F6).

Promises
    Never a false alarm: a slot is written after its row was synced, so whatever of the
    file a power cut leaves is not ahead of the database. A slot that is torn or damaged
    does not count; the other one does.
    A full disk keeps no commit from being one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from durable_actor.errors import StorageFailedError

_SLOT = struct.Struct(">8sQII")  # magic, row, the row's checksum, checksum of these
_MAGIC = b"durmark\x01"
_SLOT_OFFSETS = (0, 512)  # a sector each: what tears one leaves the other whole
_FILE_BYTES = 1024
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Mark(NamedTuple):
    """A row of the log that is on disk, and its checksum."""

    seq: int
    crc: int


def mark_path(shard: Path) -> Path:
    """Return where the mark of a shard lies."""
    return shard.with_suffix(".mark")


def read_mark(path: Path) -> Mark | None:
    """Return the newest mark, None if there is no whole one.

    Raises:
        StorageFailedError: The file is there but cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailedError("open", f"{path}: {error.strerror}") from error
    found = [mark for offset in _SLOT_OFFSETS if (mark := _slot(data, offset))]
    return max(found, default=None)


def _slot(data: bytes, offset: int) -> Mark | None:
    raw = data[offset : offset + _SLOT.size]
    if len(raw) < _SLOT.size:
        return None
    magic, seq, row_crc, crc = _SLOT.unpack(raw)
    return Mark(seq, row_crc) if magic == _MAGIC and crc == crc32(raw[:-4]) else None


class MarkWriter:
    """Writes the marks of an open shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def write(self, mark: Mark) -> None:
        """Note a row whose sync has returned.

        Raises:
            StorageFailedError: The disk failed. The row is durable nevertheless.
        """
        try:
            if self._fd < 0:
                self._fd = self._open()
            head = _SLOT.pack(_MAGIC, mark.seq, mark.crc, 0)[:-4]
            slot = head + crc32(head).to_bytes(4, "big")
            os.pwrite(self._fd, slot, _SLOT_OFFSETS[mark.seq & 1])
        except OSError as error:
            if error.errno not in _NO_SPACE:
                detail = f"{self._path}: {error.strerror}"
                raise StorageFailedError("commit", detail) from error

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        fd = os.open(self._path, _FLAGS, 0o600)
        try:
            if os.fstat(fd).st_size < _FILE_BYTES:
                # Room now, so that a full disk later cannot refuse a slot.
                os.pwrite(fd, bytes(_FILE_BYTES), 0)
        except OSError:
            os.close(fd)
            raise
        return fd
