"""What a host tells of itself: objects in the directory, pages of them, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """One object in the directory. Sizes in bytes, times in epoch milliseconds."""

    object_class: str
    name: str | None
    id: str
    created_at_ms: int
    used_at_ms: int
    size_bytes: int
    alarm_at_ms: int | None
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPage:
    """Some objects in order, and where to go on; `cursor` None: that was all."""

    objects: list[ObjectEntry]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStats:
    """Counters since the start, and sizes now. Sizes in bytes."""

    objects_resident: int
    objects_waiting_events: int
    mailbox_depth_max: int
    cached_bytes: int
    calls: int
    calls_failed: int
    shed: int
    activated: int
    reset: int
    alarms_delivered: int
    alarms_failed: int
    alarms_abandoned: int
    alarms_near: int
    groups_committed: int
    turns_committed: int
    durable_ticket: int
    events_waiting: int
    events_delivered: int
    events_dropped: int
    epoch: int
    # Sampled every 15 seconds; 0 before the first sample.
    objects_stored: int = 0
    alarms_stored: int = 0
    database_bytes: int = 0
    wal_bytes: int = 0
    log_rows: int = 0


def make_cursor(entry: ObjectEntry) -> str:
    """Return the cursor that leads on behind an entry."""
    text = f"{entry.object_class}\x00{entry.id}\x00{entry.name or ''}"
    return text.encode().hex()


def open_cursor(cursor: str | None) -> tuple[str, str, bytes] | None:
    """Return the place a cursor names: class, name and id.

    Raises:
        ValueError: Not a cursor of ours.
    """
    if cursor is None:
        return None
    try:
        object_class, raw, name = bytes.fromhex(cursor).decode().split("\x00", 2)
        return object_class, name, bytes.fromhex(raw)
    except ValueError:
        message = f"{cursor!r} is not a cursor; take it from the page before"
        raise ValueError(message) from None
