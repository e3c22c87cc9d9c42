"""Starts that follow a crash: how many were there lately, when to stop trying (G21).

A start is noted in the file `starts` of the data directory, once the directory is ours,
and the file goes away when the daemon ends in order. So what is in it are the starts
whose lives ended badly: killed, out of memory, interrupted by the watchdog, or with a
disk that failed. If there are too many within a window, something that runs by itself
is likely to blame, and the daemon starts in safe mode: it runs no object's code, and
what is stored can be listed, shown and deleted.

Safe mode ends with the next start after an end in order (SIGTERM), or after the window
has passed. A file that cannot be read or written never keeps the daemon from starting.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from durable_actor.config import CrashesConfig
from durable_actor.log import get_logger

STARTS_FILE = "starts"
_STARTS_MAX = 64  # kept; more say nothing more

log = get_logger("durable_actor.daemon")


class Starts:
    """The starts of one data directory; made when the directory is ours."""

    def __init__(self, directory: Path, config: CrashesConfig, *, now_ms: int) -> None:
        """Note this start.

        Args:
            directory: The data directory, locked.
            config: How many starts are too many, and in which time.
            now_ms: The time. A start noted for a later one does not count: since then
                the clock was put back.
        """
        self._path = directory / STARTS_FILE
        crashed = [
            at_ms
            for at_ms in self._read()
            if now_ms - config.starts_window_ms <= at_ms <= now_ms
        ]
        self.crashes = len(crashed)
        self.are_too_many = 0 < config.starts_max <= self.crashes
        if self.are_too_many:
            log.error("daemon.safe_mode", crashes=self.crashes)
        elif crashed:
            log.warning("daemon.unclean_start", crashes=self.crashes)
        self._write([*crashed, now_ms][-_STARTS_MAX:])

    def ended_in_order(self) -> None:
        """Forget the starts: whatever was wrong, this life ended well."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _read(self) -> list[int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[int])
        except (OSError, msgspec.MsgspecError):
            return []

    def _write(self, starts: list[int]) -> None:
        # Not synced: a crash of the process loses nothing that was written, and one of
        # the machine is none of the application's.
        with contextlib.suppress(OSError):
            self._path.write_bytes(msgspec.json.encode(starts))
            self._path.chmod(0o600)
