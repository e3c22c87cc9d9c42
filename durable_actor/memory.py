"""Memory: what waits and what is cached, of all objects and requests, under one limit.

Theory of operation
    Three things grow with the load: the messages that wait in mailboxes, the bodies of
    requests that are being read, and the cached state of objects. The first two cannot
    be taken back, so they are refused when there is no room; the third can, so it is
    let go of first. Caches get what the others leave of three quarters of the limit:
    the last quarter is for what comes while objects are being evicted. An event is
    refused only when everything together has reached the limit (G17), or the messages
    that wait have reached the bound they have alone (S11).

    A body counts several times, as there are copies of it until its call is answered.
    Otherwise it is sizes of values that are counted, not what the interpreter makes of
    them, and not the code, SQLite's pages and the buffers of sockets. So the default
    limit is a quarter of what the process may have.

Promises
    What is refused has changed nothing.
    An event that need not wait costs nothing here.

Does not know objects, mailboxes or requests.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

_FALLBACK_BYTES = 1024 * 1024 * 1024  # where nobody has set a limit
_BODY_COPIES = 4  # as it came, decoded, sealed, and in the group on its way to disk
_DEFAULT_PARTS = 4  # a quarter
_CACHE_PARTS, _PARTS = 3, 4  # of the limit, for what is cached
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC_CGROUP = Path("/proc/self/cgroup")
_UNLIMITED_BYTES = 1 << 60  # version 1 writes a number like that for "no limit"


class Memory:
    """Counts what waits in a process, and says when there is no room."""

    __slots__ = (
        "bodies_bytes",
        "bytes_max",
        "cached",
        "queued_bytes",
        "queued_bytes_max",
        "short",
        "wanted_bytes",
    )

    def __init__(self, *, bytes_max: int, queued_bytes_max: int) -> None:
        """Begin to count.

        Args:
            bytes_max: Of everything together.
            queued_bytes_max: Of the messages that wait in mailboxes.
        """
        self.bytes_max = bytes_max
        self.queued_bytes_max = queued_bytes_max
        # Invariant: the sizes of all envelopes that are in a mailbox now.
        self.queued_bytes = 0
        self.wanted_bytes = 0  # of the largest that was refused, until room was made
        self.bodies_bytes = 0  # of all requests, while they are under way
        self.cached: Callable[[], int] = lambda: 0  # bytes of objects' state
        self.short: Callable[[], None] = lambda: None  # asks for objects to be evicted

    @property
    def used_bytes(self) -> int:
        """How much of the limit is used."""
        return self._waiting_bytes + self.cached()

    @property
    def cache_bytes_max(self) -> int:
        """How much may be cached beside what waits."""
        share = self.bytes_max * _CACHE_PARTS // _PARTS
        return max(
            min(share, self.bytes_max - self.wanted_bytes) - self._waiting_bytes, 0
        )

    @property
    def _waiting_bytes(self) -> int:
        return self.queued_bytes + _BODY_COPIES * self.bodies_bytes

    def refusal(self, size_bytes: int) -> str | None:
        """Return why a message may not wait, or None if it may."""
        if self.queued_bytes + size_bytes > self.queued_bytes_max:
            return (
                f"{self.queued_bytes} bytes are waiting in all objects together"
                f" (at most {self.queued_bytes_max})"
            )
        if self.has_room(size_bytes):
            return None
        return f"the process holds {self.used_bytes} bytes (at most {self.bytes_max})"

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more fits; if not, room is being made."""
        if self.used_bytes + size_bytes <= self.bytes_max:
            return True
        self.wanted_bytes = max(self.wanted_bytes, size_bytes)
        self.short()
        return False


def default_bytes_max() -> int:
    """Return a quarter of what this process may have, or a gibibyte if nobody says."""
    limits = [*_cgroup_limits(), *_process_limits()]
    return min(limits) // _DEFAULT_PARTS if limits else _FALLBACK_BYTES


def _process_limits() -> list[int]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if not 0 <= soft < _UNLIMITED_BYTES:
        return []
    # Of the address space, what is mapped already counts: code, and stacks of threads.
    return [max(soft - _mapped_bytes(), soft // 10)]


def _mapped_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _cgroup_limits(
    listing: Path = _PROC_CGROUP, root: Path = _CGROUP_ROOT
) -> list[int]:
    """Return the limits of the groups this process is in, of both versions."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container its own group is the root of what is mounted.
        group = folder / path.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(folder):
                break
            limit = _number_in(place / name)
            if limit is not None:
                found.append(limit)
    return found


def _number_in(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    limit = int(text) if text.isdigit() else _UNLIMITED_BYTES  # "max"
    return limit if limit < _UNLIMITED_BYTES else None
