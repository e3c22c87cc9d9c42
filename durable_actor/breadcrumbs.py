"""Breadcrumbs: which event was running when the process died, and which to leave alone.

Theory of operation
    A handler that ends its process (a crash in C, `os._exit`, all memory taken) leaves
    no exception behind, and whoever asked asks again; an alarm even comes by itself. So
    before each stretch of an event's code its name goes into a small file that is
    mapped into memory, and is wiped out after it: two copies of some bytes, no system
    call. Nothing is synced, as what a process has written to such a map outlives it.
    One event runs at a time in a process, and so one name is enough; an event that
    waits for something has none there, as it cannot have ended the process.

    The next start reads the name, and counts a death for it. Three deaths, and the
    event is quarantined: it is refused, until somebody releases it. An event that came
    to its end, well or with an exception, is forgiven what was counted before. An event
    is known by its object and its name (the method, `alarm`, `constructor`), whatever
    its arguments were: other objects, and other methods, go on (RELIABILITY G18).

What runs beside a handler, in tasks of its own, is not followed, nor are the passes of
runs, which count their recoveries themselves. Embedded hosts do without all of it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from durable_actor.errors import ConfigError
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger

T = TypeVar("T")

CRUMB_FILE = "running"
DEATHS_FILE = "deaths.json"
CONSTRUCTOR = "constructor"
_CRUMB_BYTES = 8_192  # a class, a name and a method, of 1,024 characters each
_LENGTH_BYTES = 2
_NOTHING = bytes(_LENGTH_BYTES)
_EVENTS_MAX = 1_000  # remembered; the quarantined ones stay

log = get_logger("durable_actor.breadcrumbs")


class EventKey(msgspec.Struct, frozen=True, array_like=True):
    """One event of one object."""

    object_class: str
    object_id: str
    event: str


class EventDeaths(msgspec.Struct, frozen=True, kw_only=True):
    """How often the process died while it ran an event, in a row."""

    key: EventKey
    object_name: str | None
    deaths: int
    is_quarantined: bool = False


class _Crumb(msgspec.Struct, frozen=True, array_like=True):
    key: EventKey
    object_name: str | None


@dataclass(frozen=True, slots=True)
class _Followed(Generic[T]):
    """Runs what it was given, and has the crumb lie there whenever that runs."""

    work: Awaitable[T]
    mark: Callable[[], None]
    wipe: Callable[[], None]

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self.work.__await__()
        failure: BaseException | None = None
        while True:
            self.mark()
            try:
                if failure is None:
                    waits_for = steps.send(None)
                else:
                    waits_for = steps.throw(failure)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # what `work` returns
            finally:
                self.wipe()
            failure = None
            try:
                yield waits_for
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as raised:  # noqa: BLE001  # goes to whom it is meant for
                failure = raised


class Breadcrumbs:
    """The crumb of this process, and the deaths of those before it."""

    def __init__(self, directory: Path, *, deaths_max: int) -> None:
        """Take up what the process before left; the directory is ours.

        Args:
            directory: The data directory.
            deaths_max: With so many an event is quarantined.

        Raises:
            OSError: The files cannot be written.
        """
        self._path = directory / DEATHS_FILE
        self._deaths = {known.key: known for known in read_deaths(directory)}
        self._map = _open_map(directory / CRUMB_FILE)
        crumb = self._take()
        if crumb is not None:
            self._count(crumb, deaths_max)

    @property
    def quarantined(self) -> list[EventDeaths]:
        """The events that are refused."""
        return [known for known in self._deaths.values() if known.is_quarantined]

    def close(self) -> None:
        """Leave no crumb behind: the process ends in order."""
        self.wipe()
        self._map.close()

    def refuses(self, object_id: ObjectId, event: str) -> bool:
        """Whether this event must not be run."""
        if not self._deaths:
            return False
        known = self._deaths.get(_key(object_id, event))
        return known is not None and known.is_quarantined

    async def follow(self, object_id: ObjectId, event: str, work: Awaitable[T]) -> T:
        """Run an event's code; if the process dies in it, the next one knows."""
        key = _key(object_id, event)
        crumb = _encoded(_Crumb(key, object_id.name))

        def mark() -> None:
            self._map[: len(crumb)] = crumb

        result = await _Followed(work, mark, self.wipe)
        if self._deaths:
            self._forgive(key)
        return result

    def mark(self, object_id: ObjectId, event: str) -> None:
        """Begin code that does not await."""
        crumb = _encoded(_Crumb(_key(object_id, event), object_id.name))
        self._map[: len(crumb)] = crumb

    def wipe(self) -> None:
        """End a stretch of code."""
        self._map[:_LENGTH_BYTES] = _NOTHING

    def survived(self, object_id: ObjectId, event: str) -> None:
        """Forgive an event that came to its end."""
        if self._deaths:
            self._forgive(_key(object_id, event))

    def release(self, key: EventKey) -> bool:
        """Let an event run again; was it quarantined?"""
        known = self._deaths.pop(key, None)
        if known is None:
            return False
        self._save()
        log.warning("event.released", object=_shown(known), what=key.event)
        return known.is_quarantined

    def _take(self) -> _Crumb | None:
        size = int.from_bytes(self._map[:_LENGTH_BYTES])
        if not 0 < size <= _CRUMB_BYTES - _LENGTH_BYTES:
            return None
        body = self._map[_LENGTH_BYTES : _LENGTH_BYTES + size]
        self.wipe()
        try:
            return msgspec.msgpack.decode(body, type=_Crumb)
        except msgspec.MsgspecError:
            return None  # the machine died, not the process

    def _count(self, crumb: _Crumb, deaths_max: int) -> None:
        before = self._deaths.pop(crumb.key, None)
        deaths = 1 if before is None else before.deaths + 1
        known = EventDeaths(
            key=crumb.key,
            object_name=crumb.object_name,
            deaths=deaths,
            is_quarantined=deaths >= deaths_max,
        )
        self._deaths[crumb.key] = known
        for key in [key for key, old in self._deaths.items() if not old.is_quarantined]:
            if len(self._deaths) <= _EVENTS_MAX:
                break
            del self._deaths[key]
        self._save()
        tell = log.error if known.is_quarantined else log.warning
        tell(
            "event.quarantined" if known.is_quarantined else "event.died",
            object=_shown(known),
            what=crumb.key.event,
            deaths=deaths,
        )

    def _forgive(self, key: EventKey) -> None:
        known = self._deaths.get(key)
        if known is not None and not known.is_quarantined:
            del self._deaths[key]
            self._save()

    def _save(self) -> None:
        # A full disk must not stop what is going on; then there is one death less.
        with contextlib.suppress(OSError):
            _write_deaths(self._path, list(self._deaths.values()))


def read_deaths(directory: Path) -> list[EventDeaths]:
    """Return what is known in a data directory, which nobody needs to have open."""
    try:
        body = (directory / DEATHS_FILE).read_bytes()
        return msgspec.json.decode(body, type=list[EventDeaths])
    except (OSError, msgspec.MsgspecError):
        return []


def quarantined_events(directory: Path) -> list[EventDeaths]:
    """Return the events of a data directory that are refused."""
    return [known for known in read_deaths(directory) if known.is_quarantined]


def release_event(directory: Path, object_id: str, event: str) -> None:
    """Let an event of a locked data directory run again at the next start.

    Raises:
        ConfigError: It is not quarantined.
        OSError: The file cannot be written.
    """
    known = read_deaths(directory)
    released = {
        key
        for key in (found.key for found in known if found.is_quarantined)
        if key.object_id == object_id and key.event == event
    }
    if not released:
        message = f"{event!r} of {object_id} is not an event that is refused"
        raise ConfigError(message)
    kept = [deaths for deaths in known if deaths.key not in released]
    _write_deaths(directory / DEATHS_FILE, kept)


def _write_deaths(path: Path, deaths: list[EventDeaths]) -> None:
    if not deaths:
        path.unlink(missing_ok=True)
        return
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_bytes(msgspec.json.encode(deaths))
    beside.replace(path)


def _open_map(path: Path) -> mmap.mmap:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        # Taken now, as a page that finds no room on the disk later is a bus error.
        os.posix_fallocate(fd, 0, _CRUMB_BYTES)
        return mmap.mmap(fd, _CRUMB_BYTES)
    finally:
        os.close(fd)


def _key(object_id: ObjectId, event: str) -> EventKey:
    return EventKey(object_id.namespace, object_id.raw.hex(), event)


def _encoded(crumb: _Crumb) -> bytes:
    body = msgspec.msgpack.encode(crumb)
    if len(body) > _CRUMB_BYTES - _LENGTH_BYTES:
        body = msgspec.msgpack.encode(_Crumb(crumb.key, None))
    if len(body) > _CRUMB_BYTES - _LENGTH_BYTES:
        return _NOTHING
    return len(body).to_bytes(_LENGTH_BYTES) + body


def _shown(known: EventDeaths) -> str:
    label = known.object_name if known.object_name is not None else known.key.object_id
    return f"{known.key.object_class}({label!r})"
