"""A disk so small that a test can fill it: a file system in memory, for root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_CHUNKS = (1024 * 1024, 64 * 1024, 4096)


class SmallDisk:
    """A mounted file system, and a file that fills it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"

    def fill(self) -> None:
        """Leave not a single page free."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for chunk in _CHUNKS:
                with contextlib.suppress(OSError):
                    while os.write(fd, bytes(chunk)):
                        pass
        finally:
            os.close(fd)

    def make_room(self) -> None:
        """Give all of it back."""
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(place: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a disk of this size, and unmount it afterwards; skips without the right."""
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700"]
    try:
        subprocess.run([*mounting, "tmpfs", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk to fill: mounting one failed ({error})")
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", place], check=True)
