"""The commands for a data directory that no daemon has open.

`export`, `import`, `backup`, `restore`, `quarantine` and `accept-rollback`. Exit
statuses: 0 done, 1 failed, 74 damaged or the disk failed, 75 a daemon has the
directory, 78 refused. One line on stderr says why. On a terminal they show how far they
are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID

from durable_actor.breadcrumbs import quarantined_events, release_event
from durable_actor.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryInUseError,
    DurableActorError,
    StorageError,
)
from durable_actor.maintenance.backups import back_up
from durable_actor.maintenance.backups import restore as restore_backup
from durable_actor.maintenance.copies import (
    Progress,
    accept_rolled_back,
    locked,
    no_progress,
)
from durable_actor.maintenance.export import export_lines
from durable_actor.maintenance.importing import import_lines
from durable_actor.maintenance.release import quarantined, release


class Status(IntEnum):
    """Exit statuses, those of `serve` where it has one."""

    DONE = 0
    FAILED = 1
    STORAGE_FAILED = 74
    DATA_DIRECTORY_IN_USE = 75
    CONFIG = 78


def add_to(app: App) -> None:
    """Add the commands to those of the program."""
    app.command(export)
    app.command(import_, name="import")
    app.command(backup)
    app.command(restore)
    app.command(accept_rollback)
    app.command(quarantine)


quarantine = App(
    name="quarantine",
    help="What is refused: damaged objects, and events that ended the process.",
)


@quarantine.command(name="list")
def list_quarantined(directory: Path, /) -> int:
    """List the objects and events that are refused, and why, one to a line of JSON.

    Args:
        directory: The data directory; no daemon may have it open.
    """

    def work(progress: Progress) -> None:
        with locked(directory):
            found = quarantined(directory, progress)
            events = quarantined_events(directory)
        for object_id, damages in found.items():
            reasons = [damage.detail for damage in damages]
            print(json.dumps({"id": object_id, "reasons": reasons}))
        for known in events:
            reasons = [f"the process died {known.deaths} times while it ran"]
            key = {"id": known.key.object_id, "event": known.key.event}
            print(json.dumps({**key, "reasons": reasons}))

    return _run(work)


@quarantine.command(name="release")
def release_quarantined(
    directory: Path, object_id: str, event: str | None = None, /
) -> int:
    """Let an object be served again, with what of it can be read, or an event be run.

    Args:
        directory: The data directory; no daemon may have it open.
        object_id: Its id, as `quarantine list` shows it.
        event: The event, if `quarantine list` shows one; the object is left as it is.
    """

    def work(_: Progress) -> None:
        with locked(directory):
            if event is not None:
                release_event(directory, object_id, event)
                _say(f"{event} of {object_id} is run again")
                return
            count = release(directory, object_id)
        _say(f"{count} rows were taken out, to released-{object_id}.jsonl")

    return _run(work)


def export(directory: Path, /, *, output: Path | None = None) -> int:
    """Write all data as lines of JSON, sorted, the same for the same data.

    Args:
        directory: The data directory; no daemon may have it open.
        output: A new file; by default the lines go to stdout.
    """

    def work(progress: Progress) -> None:
        with locked(directory):
            lines = export_lines(directory, progress)
            if output is None:
                sys.stdout.writelines(f"{line}\n" for line in lines)
                return
            with output.open("x") as file:
                output.chmod(0o600)
                file.writelines(f"{line}\n" for line in lines)

    return _run(work)


def import_(file: Path, directory: Path, /) -> int:
    """Make a data directory of the lines of an export.

    Args:
        file: What `export` wrote; `-` reads stdin.
        directory: An empty directory, or a new one.
    """

    def work(progress: Progress) -> None:
        if str(file) == "-":
            count = import_lines(directory, sys.stdin, progress)
        else:
            with file.open() as lines:
                count = import_lines(directory, lines, progress)
        _say(f"{count} objects")

    return _run(work)


def backup(directory: Path, target: Path, /) -> int:
    """Copy a data directory whole, with the history of its databases.

    Args:
        directory: The data directory; no daemon may have it open.
        target: A new directory.
    """

    def work(progress: Progress) -> None:
        with locked(directory):
            size_bytes = back_up(directory, target, progress)
        _say(f"{target}: {size_bytes:,} bytes")

    return _run(work)


def restore(source: Path, directory: Path, /) -> int:
    """Make a data directory of a backup.

    Args:
        source: What `backup` wrote.
        directory: An empty directory, or a new one.
    """

    def work(progress: Progress) -> None:
        count = restore_backup(source, directory, progress)
        _say(f"{directory}: {count} files")

    return _run(work)


def accept_rollback(directory: Path, /) -> int:
    """Let a data directory open that was rolled back: what is missing stays missing.

    Args:
        directory: The data directory; no daemon may have it open.
    """

    def work(_: Progress) -> None:
        with locked(directory):
            accept_rolled_back(directory)
        _say(f"{directory} is taken as it is")

    return _run(work)


def _run(work: Callable[[Progress], None]) -> int:
    try:
        with _progress() as progress:
            work(progress)
    except DurableActorError as error:
        _say(f"{error.code}: {error}")
        return _status_of(error)
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}")
        return Status.FAILED
    return Status.DONE


def _status_of(error: DurableActorError) -> Status:
    match error:
        case DataDirectoryInUseError():
            return Status.DATA_DIRECTORY_IN_USE
        case CorruptionError() | StorageError():
            return Status.STORAGE_FAILED
        case ConfigError():
            return Status.CONFIG
        case _:
            return Status.FAILED


def _say(line: str) -> None:
    # Not on stdout, where the lines of an export go.
    print(line, file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show bars on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield show
