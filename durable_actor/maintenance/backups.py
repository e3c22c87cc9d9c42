"""Backups: a data directory copied whole, with a list of its files and checksums.

A backup is a directory with the same files as a data directory, and `backup.json`
beside them, written last: without it, it is none. It has the history of databases and
the mark of the shard, so a restored directory goes on exactly where the backup was
made, and does not take itself for rolled back.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from durable_actor.errors import ConfigError, CorruptionError
from durable_actor.maintenance.copies import (
    SCRATCH_PREFIX,
    Progress,
    copy_files,
    data_files,
    no_progress,
)
from durable_actor.maintenance.importing import check_empty, move_in
from durable_actor.storage.integrity import (
    DirectoryLock,
    prepare_directory,
    sync_directory,
)

MANIFEST_NAME = "backup.json"
BACKUP_VERSION = 1
_READ_BYTES = 1024 * 1024


def back_up(directory: Path, target: Path, progress: Progress = no_progress) -> int:
    """Copy a data directory that is locked; return how many bytes.

    Raises:
        ConfigError: The target is there already.
    """
    if target.exists():
        raise ConfigError(f"{target} is there already; name a new directory")
    target.mkdir(mode=0o700, parents=True)
    files = data_files(directory)
    copy_files(directory, target, files, progress)
    return write_manifest(target)


def write_manifest(target: Path) -> int:
    """Write down what a backup consists of, which makes it one; return its bytes."""
    files = {
        str(name): {"bytes": (target / name).stat().st_size, "crc": _crc(target / name)}
        for name in data_files(target)
    }
    content = json.dumps({"backup": BACKUP_VERSION, "files": files}, indent=1)
    temporary = target / f"{MANIFEST_NAME}-new"
    with temporary.open("w") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o600)
    temporary.replace(target / MANIFEST_NAME)
    sync_directory(target)
    return sum(one["bytes"] for one in files.values())


def restore(backup: Path, directory: Path, progress: Progress = no_progress) -> int:
    """Make a data directory of a backup; return how many files.

    Raises:
        ConfigError: No backup, or the directory holds data already.
        CorruptionError: A file of the backup is missing, or not as it was written.
        DataDirectoryInUseError: A daemon, or another tool, has the directory.
    """
    files = _checked_files(backup)
    prepare_directory(directory)
    lock = DirectoryLock(directory)
    try:
        check_empty(directory)
        with tempfile.TemporaryDirectory(
            prefix=SCRATCH_PREFIX, dir=directory
        ) as scratch:
            copy_files(backup, Path(scratch), files, progress)
            _compare(Path(scratch), files)
            move_in(Path(scratch), directory)
    finally:
        lock.release()
    return len(files)


def _checked_files(backup: Path) -> dict[Path, Mapping[str, int]]:
    try:
        content = json.loads((backup / MANIFEST_NAME).read_text())
    except FileNotFoundError as error:
        message = f"{backup} is no backup: it has no {MANIFEST_NAME}"
        raise ConfigError(message) from error
    except ValueError as error:
        raise CorruptionError(f"{backup / MANIFEST_NAME} is damaged") from error
    listed = _files_of(content)
    if listed is None:
        raise CorruptionError(
            f"{backup / MANIFEST_NAME} is damaged, or of a later release"
        )
    _compare(backup, listed)
    return listed


def _files_of(content: Any) -> dict[Path, Mapping[str, int]] | None:
    if not isinstance(content, dict) or content.get("backup") != BACKUP_VERSION:
        return None
    files: dict[Path, Mapping[str, int]] = {}
    for name, facts in content["files"].items():
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            return None
        files[path] = facts
    return files


def _compare(folder: Path, files: Mapping[Path, Mapping[str, int]]) -> None:
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptionError(f"{path} is missing from the backup")
        if path.stat().st_size != facts["bytes"] or _crc(path) != facts["crc"]:
            raise CorruptionError(f"{path} is not as the backup wrote it")


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            crc = crc32(data, crc)
    return crc
