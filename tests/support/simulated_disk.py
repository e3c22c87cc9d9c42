"""A disk in memory under the `sqlite3` module, that loses what was not synced.

`simulated_disk.c` says what it does. It is compiled once for a process, and registered
as a VFS with the very SQLite that `sqlite3` uses; a database is on it if it is opened
with `SimulatedDisk.uri`.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, get_args

Survival = Literal["kill", "nothing", "prefix", "subset", "torn"]
SURVIVALS: tuple[Survival, ...] = get_args(Survival)
_SOURCE = Path(__file__).with_suffix(".c")
_KINDS = ("", "write", "sync", "truncate", "remove")


def _load() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="simulated-disk-") as directory:
        made = Path(directory) / "simulated_disk.so"
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "-o", made, _SOURCE], check=True)
        disk = ctypes.CDLL(str(made))
    # By way of the module, as there may be another SQLite in the process.
    register = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_register
    if disk.disk_register(ctypes.cast(register, ctypes.c_void_p)) != sqlite3.SQLITE_OK:
        message = "SQLite refuses the simulated disk"
        raise RuntimeError(message)
    disk.disk_size.restype = disk.disk_calls.restype = ctypes.c_long
    disk.disk_unsynced.restype = ctypes.c_long
    disk.disk_cut.argtypes = [ctypes.c_long, ctypes.c_int]
    disk.disk_fail.argtypes = [ctypes.c_long]
    disk.disk_reset.argtypes = [ctypes.c_ulonglong]
    disk.disk_write.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long]
    return disk


class SimulatedDisk:
    """The disk of this process. There is only one, whoever makes it."""

    _library: ctypes.CDLL | None = None

    def __init__(self, seed: int = 0) -> None:
        """Begin with an empty disk; a seed decides what happens by chance.

        Raises:
            FileNotFoundError: There is no compiler.
        """
        if SimulatedDisk._library is None:
            SimulatedDisk._library = _load()
        self._disk = SimulatedDisk._library
        self._disk.disk_reset(seed)

    @staticmethod
    def uri(name: str) -> str:
        """Return the URI of a database on the disk."""
        return f"file:{name}?vfs=simulated"

    def cut(self, at: int, *, after: bool) -> None:
        """Let the power go at the n-th call from now, before or after it; 0: not."""
        self._disk.disk_cut(at, after)

    def fail(self, at: int) -> None:
        """Let the n-th call from now fail with an I/O error, once; 0: not."""
        self._disk.disk_fail(at)

    def fill(self, *, full: bool) -> None:
        """Let no file grow, or let them grow again."""
        self._disk.disk_fill(full)

    def crash(self, survival: Survival) -> None:
        """Lose what was not synced, as far as that; open files are dead."""
        self._disk.disk_crash(SURVIVALS.index(survival))

    @property
    def is_dead(self) -> bool:
        """Whether the power is gone."""
        return bool(self._disk.disk_is_dead())

    @property
    def calls(self) -> int:
        """How many writes, syncs, truncations and removals there were."""
        return int(self._disk.disk_calls())

    @property
    def errors(self) -> int:
        """How many calls failed with an I/O error."""
        return int(self._disk.disk_errors())

    @property
    def refusals(self) -> int:
        """How many writes found the disk full."""
        return int(self._disk.disk_fulls())

    @property
    def unsynced(self) -> int:
        """How many changes a crash could lose now."""
        return int(self._disk.disk_unsynced())

    @property
    def cut_in(self) -> tuple[str, str]:
        """Return which call the power went at, and of which file."""
        file = "wal" if self._disk.disk_cut_is_wal() else "database"
        return _KINDS[self._disk.disk_cut_kind()], file

    def read(self, name: str) -> bytes:
        """Return what a file holds; nothing, if there is none."""
        size = self._disk.disk_size(name.encode())
        if size <= 0:
            return b""
        bytes_ = ctypes.create_string_buffer(size)
        self._disk.disk_read(name.encode(), bytes_)
        return bytes_.raw

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, durably."""
        self._disk.disk_write(name.encode(), content, len(content))
