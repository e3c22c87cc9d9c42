"""What a host tells of itself: objects, alarms and keys in pages, and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INT_MAX = 2**63  # what SQLite compares with
_AFTER_KEY = "after "


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
class AlarmEntry:
    """One alarm that is set, and whose it is. Times in epoch milliseconds."""

    object_class: str
    name: str | None
    id: str
    due_at_ms: int  # when it fires next
    scheduled_at_ms: int  # what it was set for; earlier, once a try has failed
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmPage:
    """Some alarms in due order, and where to go on; `cursor` None: that was all."""

    alarms: list[AlarmEntry]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """One key that an object has stored, with its value in a form for people.

    The form is made for JSON and needs no class; there is no way back from it.
    """

    key: str
    value: Any
    size_bytes: int  # of the stored value
    unreadable: str | None = None  # why `value` is None although something is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPage:
    """Some keys in order, and where to go on; `cursor` None: that was all."""

    exists: bool  # whether the object has ever stored anything, be it an alarm
    keys: list[StoredKey]
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
    starts_failing: int
    groups_committed: int
    turns_committed: int
    durable_ticket: int
    events_waiting: int
    events_delivered: int
    events_dropped: int
    replies_kept: int
    replies_repeated: int
    replies_dropped: int
    replies_expired: int
    web_sockets: int
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


def make_alarm_cursor(due_at_ms: int, num: int) -> str:
    """Return the cursor that leads on behind the alarm of the object with a number."""
    return f"{due_at_ms} {num}".encode().hex()


def open_alarm_cursor(cursor: str | None) -> tuple[int, int] | None:
    """Return the place a cursor names: due time and number of the object.

    Raises:
        ValueError: Not a cursor of ours.
    """
    if cursor is None:
        return None
    try:
        due_at_ms, num = bytes.fromhex(cursor).decode("ascii").split(" ")
        place = int(due_at_ms), int(num)
        if max(place) >= _INT_MAX:
            raise ValueError
        return place
    except ValueError:
        message = f"{cursor!r} is not a cursor; take it from the page before"
        raise ValueError(message) from None


def make_key_cursor(key: str) -> str:
    """Return the cursor that leads on behind a key."""
    return f"{_AFTER_KEY}{key}".encode().hex()


def open_key_cursor(cursor: str | None) -> str | None:
    """Return the key that a cursor leads on behind.

    Raises:
        ValueError: Not a cursor of ours.
    """
    if cursor is None:
        return None
    try:
        text = bytes.fromhex(cursor).decode()
        if not text.startswith(_AFTER_KEY):
            raise ValueError
    except ValueError:
        message = f"{cursor!r} is not a cursor; take it from the page before"
        raise ValueError(message) from None
    return text.removeprefix(_AFTER_KEY)
