"""Checksums of the pages of an object's database, as its last checkpoint left them.

Theory of operation
    SQLite's pages have no checksum. `<64 hex>.sum` has one for each page of the
    database file, and the position up to which the WAL had been copied. It is written
    after a checkpoint has synced the database and before anything begins the WAL anew.
    So at every moment each page is either in the durable part of the WAL, which has a
    checksum of its own and hides the page of the file, or is as this file says.

    It is also the mark of a database that was closed in order: one without a WAL has
    everything only if its last checkpoint was at the last durable position.

Pure file code. Reads the database file only where nobody has it open.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from durable_actor.errors import CorruptionError
from durable_actor.storage.integrity import sync_directory

_HEAD = struct.Struct(">8s8sQI")  # magic; generation and end of the WAL; pages
_MAGIC = b"dursums\x01"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
PAGE_BYTES = 4096


class Sums(NamedTuple):
    """What a checkpoint left: where the WAL ended, and each page's checksum."""

    generation: bytes
    end: int
    pages: Sequence[int]


def sums_path(path: Path) -> Path:
    """Return where the checksums of a database lie; `path` is the database's."""
    return path.with_suffix(".sum")


def read_sums(path: Path) -> Sums | None:
    """Return the checksums of a database; None if it never had a checkpoint.

    Raises:
        CorruptionError: The file is damaged.
    """
    file = sums_path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) >= _HEAD.size + 4:
        magic, generation, end, count = _HEAD.unpack_from(data)
        is_whole = (
            magic == _MAGIC
            and len(data) == _HEAD.size + 4 * count + 4
            and int.from_bytes(data[-4:], "big") == crc32(data[:-4])
        )
        if is_whole:
            pages = struct.unpack_from(f">{count}I", data, _HEAD.size)
            return Sums(generation, end, pages)
    raise CorruptionError(f"{file} is damaged")


def write_sums(path: Path, sums: Sums) -> None:
    """Write the checksums of a database, durably, whole or not at all."""
    count = len(sums.pages)
    data = _HEAD.pack(_MAGIC, sums.generation, sums.end, count)
    data += struct.pack(f">{count}I", *sums.pages)
    data += crc32(data).to_bytes(4, "big")
    file = sums_path(path)
    temporary = file.with_name(file.name + "-new")
    fd = os.open(temporary, _FLAGS, 0o600)
    with os.fdopen(fd, "wb") as raw:
        raw.write(data)
        raw.flush()
        os.fsync(raw.fileno())
    temporary.replace(file)
    sync_directory(file.parent)


def sums_of(path: Path) -> list[int]:
    """Return the checksums of the pages of a database as they are now."""
    with path.open("rb") as file:
        return [crc32(page) for page in iter(lambda: file.read(PAGE_BYTES), b"")]


def merged(old: Sums | None, in_wal: Mapping[int, int], count: int) -> list[int]:
    """Return the checksums after a checkpoint that copied `in_wal`.

    Raises:
        CorruptionError: A page that is not in the WAL has no checksum yet.
    """
    known = () if old is None else old.pages
    pages: list[int] = []
    for page in range(1, count + 1):
        if page in in_wal:
            pages.append(in_wal[page])
        elif page <= len(known):
            pages.append(known[page - 1])
        else:
            raise CorruptionError(f"page {page} has no checksum, and is not in the WAL")
    return pages


def check_pages(
    path: Path, sums: Sums | None, covered: Mapping[int, int], count: int
) -> None:
    """Compare the pages of a database that the WAL does not cover.

    Args:
        path: The database's, which is not open anywhere.
        sums: Of its last checkpoint, if it had one.
        covered: The pages in the durable part of the WAL.
        count: How many pages the database has, WAL and all.

    Raises:
        CorruptionError: A page is missing, or not what was written.
    """
    merged(sums, covered, count)  # every page is somewhere
    if all(page in covered for page in range(1, count + 1)):
        return
    assert sums is not None, "a page in neither was refused above"
    with path.open("rb") as file:
        for page in range(1, count + 1):
            if page not in covered:
                file.seek((page - 1) * PAGE_BYTES)
                if crc32(file.read(PAGE_BYTES)) != sums.pages[page - 1]:
                    message = f"{path}: the checksum of page {page} does not match"
                    raise CorruptionError(message)
