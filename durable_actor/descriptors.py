"""Descriptors: how many files and sockets this process may have, and who gets them.

Each connection is a descriptor, each open database of an object three. When there is
none left, every `open()` of the process fails, that of a journal as well, so some are
kept for storage: nobody else takes one of the last `RESERVED` (G16). Of the others,
databases may have a third, and connections what the databases leave.
"""

from __future__ import annotations

import os
import resource

RESERVED = 64  # for storage: logs, histories, databases that cannot be closed yet
PER_DATABASE = 3  # the file, its WAL, and the WAL as we read it
_OF_THE_PROCESS = 32  # what it has open when it has started, and some
_DATABASE_PARTS = 3  # a third
_TO_REFUSE = 8  # connections over the bound, which are told so


def soft_limit() -> int:
    """Return how many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def open_count() -> int:
    """Return how many descriptors are open now; takes a microsecond for each ten."""
    # Not through Path, which makes an object of each.
    return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208  # the listing has one itself


def databases_max(wanted: int) -> int:
    """Return how many databases may be open, of as many as are wanted."""
    return max(min(wanted, _free() // _DATABASE_PARTS // PER_DATABASE), 1)


def connections_max(wanted: int, *, databases: int) -> int:
    """Return how many connections may be served beside so many databases."""
    free = _free() - databases * PER_DATABASE - _TO_REFUSE
    return max(min(wanted, free), 1)


def _free() -> int:
    return soft_limit() - RESERVED - _OF_THE_PROCESS
