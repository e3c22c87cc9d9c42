"""`doctor`: what could go wrong on this machine, before or after it did.

Looks and changes nothing, so it may run beside a daemon; then it does not look at the
data, which is the daemon's. Otherwise every row and page is compared with its checksum
(G11). Each finding says how bad it is and what to do about it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Final, Literal

from durable_actor.daemon.tokens import TOKEN_FILE
from durable_actor.errors import ConfigError, DataDirectoryInUseError
from durable_actor.maintenance.copies import locked
from durable_actor.maintenance.inspection import damages
from durable_actor.storage.store import SHARD_NAME

Severity = Literal["error", "warning", "info"]

OPEN_FILES_MIN: Final = 4_096  # connections, and a file for each object with SQL
FREE_BYTES_MIN: Final = 1 << 30
_SQLITE_MIN: Final = (3, 38, 0)  # STRICT tables (3.37) and what the schema uses
_SQLITE_SAFE: Final = (3, 51, 3)  # the fix of the WAL-reset bug
_DISTRIBUTION: Final = "durable-actor"
_LOCK_FILE: Final = "lock"
_UNREADABLE: Final = ("directory.readable", "data.readable")
_NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing worth knowing."""

    check: str
    severity: Severity
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings about a data directory and the machine it is on."""

    directory: str
    versions: dict[str, str]
    findings: list[Finding]
    can_read: bool

    @property
    def status(self) -> int:
        """0 clean, 1 findings, 2 cannot read."""
        if not self.can_read:
            return 2
        return int(any(finding.severity != "info" for finding in self.findings))


def examine(directory: Path) -> Report:
    """Return what there is to say about a data directory and this machine."""
    findings = [*_machine(), *_directory(directory), *_data(directory)]
    return Report(
        directory=str(directory),
        versions={
            "durable-actor": version(_DISTRIBUTION),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "system": f"{platform.system()} {platform.release()}",
        },
        findings=findings,
        can_read=not any(f.check in _UNREADABLE for f in findings),
    )


def _machine() -> Iterator[Finding]:
    sqlite = sqlite3.sqlite_version_info
    if sqlite < _SQLITE_MIN:
        yield Finding(
            check="sqlite.version",
            severity="error",
            detail=f"SQLite {sqlite3.sqlite_version} is too old.",
            remedy="Use a Python that is linked with SQLite 3.38 or later.",
        )
    elif sqlite < _SQLITE_SAFE:
        yield Finding(
            check="sqlite.version",
            severity="info",
            detail=f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug, which needs"
            " two connections to one file; the daemon never has two.",
            remedy="Do not open the files with another program while it runs.",
        )
    if sqlite3.threadsafety == 0:
        yield Finding(
            check="sqlite.threads",
            severity="error",
            detail="SQLite was built without support for threads.",
            remedy="Use a Python that is linked with an ordinary SQLite.",
        )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES_MIN:
        yield Finding(
            check="limits.open_files",
            severity="warning",
            detail=f"A process may open {limit} files.",
            remedy=f"Raise it to {OPEN_FILES_MIN} or more: ulimit -n, or LimitNOFILE=.",
        )
    yield from _foreign_workflows()


def _foreign_workflows() -> Iterator[Finding]:
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name != _DISTRIBUTION and any(
            file.parts[:1] == ("workflows",) for file in distribution.files or ()
        ):
            yield Finding(
                check="packages.workflows",
                severity="warning",
                detail=f"The distribution {name} also has a package `workflows`.",
                remedy=f"Uninstall {name}, or use another environment.",
            )


def _directory(directory: Path) -> Iterator[Finding]:
    try:
        facts = directory.stat()
        names = {path.name for path in directory.iterdir()}
    except OSError as error:
        yield Finding(
            check="directory.readable",
            severity="error",
            detail=f"{directory} cannot be read: {error.strerror}.",
            remedy="Name the data directory, or start the daemon once to create it.",
        )
        return
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o077:
        yield Finding(
            check="directory.mode",
            severity="error" if mode & 0o022 else "warning",
            detail=f"{directory} is open to others (mode {mode:04o}).",
            remedy=f"chmod 700 {directory}",
        )
    if facts.st_uid != os.geteuid():
        yield Finding(
            check="directory.owner",
            severity="warning",
            detail=f"{directory} belongs to user {facts.st_uid}, not {os.geteuid()}.",
            remedy="Run the daemon as its owner.",
        )
    if not os.access(directory, os.W_OK):
        yield Finding(
            check="directory.writable",
            severity="error",
            detail=f"{directory} cannot be written to.",
            remedy="Mount it writable, or give it to the user of the daemon.",
        )
    yield from _disk(directory)
    if TOKEN_FILE in names:
        yield from _token(directory / TOKEN_FILE)
    if _LOCK_FILE in names:
        yield from _lock(directory / _LOCK_FILE)


def _data(directory: Path) -> Iterator[Finding]:
    """Look for damage, if nobody has the directory open."""
    if not (directory / SHARD_NAME).exists():
        return
    try:
        with locked(directory):
            found = damages(directory)
    except DataDirectoryInUseError:
        yield Finding(
            check="data.in_use",
            severity="info",
            detail="The data was not looked at: it is in use.",
            remedy="Stop the daemon, and run this again.",
        )
        return
    except (ConfigError, OSError) as error:
        yield Finding(
            check="data.readable",
            severity="error",
            detail=f"The data cannot be read: {error}.",
            remedy="A copy of it is made within the directory; it needs as much room.",
        )
        return
    for damage in found:
        yield Finding(
            check=damage.check,
            severity="error",
            detail=(f"{damage.object_id}: " if damage.object_id else "")
            + damage.detail,
            remedy="Restore a backup; nothing was changed.",
        )


def _disk(directory: Path) -> Iterator[Finding]:
    disk = os.statvfs(directory)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < FREE_BYTES_MIN:
        yield Finding(
            check="disk.free",
            severity="warning",
            detail=f"{free_bytes // 1_048_576} MiB are free.",
            remedy="Free space: at a full disk every write is refused.",
        )
    kind = _file_system(directory)
    if kind in _NETWORK_FILE_SYSTEMS:
        yield Finding(
            check="disk.kind",
            severity="error",
            detail=f"{directory} is on a network file system ({kind}).",
            remedy="Use a local disk: locks and syncs are not reliable over a network.",
        )
    elif kind in ("tmpfs", "ramfs"):
        yield Finding(
            check="disk.kind",
            severity="warning",
            detail=f"{directory} is in memory ({kind}); a reboot forgets it.",
            remedy="Use a disk for anything that is to last.",
        )


def _file_system(directory: Path) -> str:
    """Return the type of the mount the directory is on, or nothing where unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    target = str(directory.resolve())
    best, kind = "", ""
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _token(path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode & 0o077:
        yield Finding(
            check="token.mode",
            severity="error",
            detail=f"{path} may be read by others (mode {mode:04o}).",
            remedy=f"chmod 600 {path}; if others may have read it, delete it first.",
        )


def _lock(path: Path) -> Iterator[Finding]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # Shared, so that two doctors do not see each other, and let go at once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        yield Finding(
            check="directory.lock",
            severity="info",
            detail=f"In use by {holder or 'another process'}.",
        )
    finally:
        os.close(descriptor)
