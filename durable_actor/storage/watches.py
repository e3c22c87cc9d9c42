"""Watches: what became durable of one object, told to whoever asked, in order.

Theory of operation
    The committer tells every watch of an object of the seals of a group that is on
    disk, before anyone hears that it is. A watch keeps what it was told until it is
    asked: the newest value of each key, and which keys are gone. So a slow reader is
    not told of every turn, but misses no key, and what is kept is not more than the
    object holds.

    Only deletions could pile up, as a key that is gone takes no room in the object.
    From a bound on they are dropped, and the next thing the reader is told is the whole
    state as it is then, as if all had been cleared and written anew.

    A watch is known to the committer weakly: one that nobody holds any more is gone.

Promises
    Nothing is told that is not durable (watch-after-commit); a turn is told whole, and
    later turns later.
    Everything that becomes durable after `open` is told.

Does not know about activations: it neither starts one nor keeps one alive.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from durable_actor.codec import decode
from durable_actor.storage.batch import Seal

DELETIONS_MAX = 1_000  # of keys nobody was told of yet; beyond, the state is read anew

# prefix -> every key that begins with it, as it is now or was a moment ago
ReadState = Callable[[str], Awaitable[Mapping[str, bytes]]]


class KeyChanges(NamedTuple):
    """What a turn did to the keys of an object that has them in its own database."""

    keys: Mapping[str, bytes | None]  # None: the key is gone
    cleared: bool  # before `keys`: everything the object had is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """What one turn of an object changed, or several together; all of it is durable.

    To follow the state: forget everything if `cleared`, then forget the `deleted` keys,
    then take over the `changed` ones.
    """

    ticket: int  # of the newest turn in it; grows from one change to the next
    changed: Mapping[
        str, Any
    ]  # keys that were written, in order, with their new values
    deleted: frozenset[str]  # keys that are gone
    cleared: bool  # everything the object had is gone; `changed` came afterwards


class Watch:
    """The changes of one object from now on. Made by `stub.watch()`.

    ```
    async with stub.watch("line:") as changes:
        async for change in changes:
            show(change.changed, change.deleted)
    ```

    It ends by itself after the change that deletes the object, and with an exception
    when the host closes or the connection is lost: then read what you need, and watch
    again. It is for one reader, who may be cancelled and go on later.
    """

    __slots__ = (
        "__weakref__",
        "_cleared",
        "_deletions",
        "_error",
        "_has_ended",
        "_has_room",
        "_is_behind",
        "_keys",
        "_news",
        "_on_close",
        "_prefix",
        "_read_state",
        "_ticket",
        "_until_open",
    )

    def __init__(
        self,
        prefix: str = "",
        *,
        on_close: Callable[[], None] = lambda: None,
        until_open: Callable[[], Awaitable[object]] | None = None,
        read_state: ReadState | None = None,
    ) -> None:
        """Begin to collect; whoever feeds it calls `add` and `end`.

        Args:
            prefix: Only keys that begin with it.
            on_close: Called when the reader has enough.
            until_open: Returns once everything is told, if it is not from the start.
            read_state: Reads everything anew; without it, `room` says when to wait.

        Raises:
            TypeError: The prefix is not text.
        """
        given: object = prefix
        if not isinstance(given, str):
            message = f"watch: prefix must be text, got {type(given).__name__}"
            raise TypeError(message)
        self._prefix = prefix
        self._on_close = on_close
        self._until_open = until_open
        self._read_state = read_state
        self._ticket = 0
        # What nobody was told of yet. Invariant: no value is None if it was cleared.
        self._keys: dict[str, bytes | None] = {}
        self._cleared = False
        self._deletions = 0  # at least as many as there are None in _keys
        self._is_behind = False  # too much is gone: the state is to be read anew
        self._news = asyncio.Event()  # set: there may be something to tell, or it ended
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._has_ended = False
        self._error: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StateChange:
        """Return what has changed since the last time, once anything has.

        Raises:
            HostClosedError: The host is closing; nothing more will come.
            StorageError: The disk of the host failed.
            TransportError: The daemon went away.
            DecodeError: A value cannot be read here; the next change can be asked for.
        """
        while True:
            await self._news.wait()
            if self._is_behind:
                await self._catch_up()
            change = self._take()
            if change is not None:
                return change
            if self._has_ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        """Return once it tells of everything; only a daemon makes one wait."""
        if self._until_open is not None:
            await self._until_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hear nothing more; what was not asked for is forgotten."""
        self.end()
        self._keys, self._cleared, self._is_behind = {}, False, False
        self._error = None
        self._on_close()

    # -- who feeds it ---------------------------------------------------------------

    def add(
        self, ticket: int, keys: Mapping[str, bytes | None], *, cleared: bool
    ) -> None:
        """Tell of one turn, or of several together; None: the key is gone."""
        if self._has_ended:
            return
        if cleared:
            self._keys, self._deletions = {}, 0
            self._cleared, self._is_behind = True, False
        elif self._is_behind:
            self._ticket = ticket
            return  # it is going to be read anyway
        prefix, known = self._prefix, self._keys
        for key, value in keys.items():
            if not key.startswith(prefix):
                continue
            if value is not None:
                known[key] = value
            elif self._cleared:
                known.pop(key, None)
            else:
                known[key] = None
                self._deletions += 1
        if not known and not self._cleared:
            return
        self._ticket = ticket
        self._news.set()
        if self._deletions > DELETIONS_MAX:
            self._deletions = sum(value is None for value in known.values())
            if self._deletions > DELETIONS_MAX:
                self._overflow()

    def end(self, error: Exception | None = None) -> None:
        """Let it end once everything was asked for: with an error, or as it should."""
        if not self._has_ended:
            self._has_ended = True
            self._error = error
            self._is_behind = False  # what was not read can be read no more
            self._news.set()
            self._has_room.set()

    def reread(self, ticket: int) -> None:
        """Tell the whole state next: more has changed than anybody can tell."""
        if self._has_ended:
            return
        self._overflow()
        self._cleared = False
        self._ticket = ticket
        self._news.set()

    async def room(self) -> None:
        """Return when more may be added, for whoever cannot read the state anew."""
        await self._has_room.wait()

    # -- inside ---------------------------------------------------------------------

    def _overflow(self) -> None:
        if self._read_state is None:
            self._has_room.clear()
        else:
            self._keys, self._deletions, self._is_behind = {}, 0, True

    def _take(self) -> StateChange | None:
        keys, cleared = self._keys, self._cleared
        self._keys, self._cleared, self._deletions = {}, False, 0
        self._has_room.set()
        if not self._has_ended and not self._is_behind:
            self._news.clear()
        if not keys and not cleared:
            return None
        return StateChange(
            ticket=self._ticket,
            changed={
                key: decode(value)
                for key in sorted(keys)
                if (value := keys[key]) is not None
            },
            deleted=frozenset(key for key, value in keys.items() if value is None),
            cleared=cleared,
        )

    async def _catch_up(self) -> None:
        """Take the whole state, with what becomes durable meanwhile on top."""
        assert self._read_state is not None
        # From here on what comes is kept again; nothing of it is counted, as it ends up
        # in a state without anything that is gone.
        self._is_behind = False
        read_state, self._read_state = self._read_state, None
        try:
            state = await read_state(self._prefix)
        except BaseException:
            if not self._cleared:
                self._keys, self._deletions, self._is_behind = {}, 0, True
            raise
        finally:
            self._read_state = read_state
        if not self._cleared:
            merged = {**state, **self._keys}
            self._keys = {key: v for key, v in merged.items() if v is not None}
            self._cleared = True


class Watches:
    """Every watch of a shard, by the object's id."""

    def __init__(self) -> None:
        # Invariant: no empty list, so that the dict is true only if somebody watches.
        self.by_id: dict[bytes, list[weakref.ref[Watch]]] = {}

    def open(self, raw_id: bytes, prefix: str, read_state: ReadState) -> Watch:
        """Return a watch that hears of everything that becomes durable from now on."""
        # Neither may keep the watch alive: it goes when its reader lets go of it.
        known: list[weakref.ref[Watch]] = []
        watch = Watch(
            prefix,
            on_close=lambda: self._forget(raw_id, known[0]),
            read_state=read_state,
        )
        known.append(weakref.ref(watch, lambda gone: self._forget(raw_id, gone)))
        self.by_id.setdefault(raw_id, []).append(known[0])
        return watch

    def tell(
        self,
        raw_ids: Iterable[bytes],
        seals: Iterable[Seal],
        first_ticket: int,
        elsewhere: Mapping[int, KeyChanges],
    ) -> None:
        """Tell of the seals of a group that is durable.

        Args:
            raw_ids: Whose they are.
            seals: In order.
            first_ticket: The first one's; the others follow.
            elsewhere: By ticket, what turns changed in databases of their own.
        """
        pairs = zip(raw_ids, seals, strict=True)
        for ticket, (raw_id, seal) in enumerate(pairs, first_ticket):
            references = self.by_id.get(raw_id)
            if references is None:
                continue
            keys, cleared = elsewhere.get(ticket) or (seal.keys, seal.cleared)
            for watch in _alive(references):
                if keys or cleared or seal.deleted:
                    watch.add(ticket, keys, cleared=cleared or seal.deleted)
                if seal.deleted:
                    watch.end()
            if seal.deleted:
                self.by_id.pop(raw_id, None)

    def reread(self, raw_id: bytes, ticket: int) -> None:
        """Have every watch of an object read its state anew."""
        for watch in _alive(self.by_id.get(raw_id, ())):
            watch.reread(ticket)

    def end(self, error: Exception) -> None:
        """End all of them with an error."""
        by_id, self.by_id = self.by_id, {}
        for references in by_id.values():
            for watch in _alive(references):
                watch.end(error)

    def _forget(self, raw_id: bytes, gone: weakref.ref[Watch]) -> None:
        references = self.by_id.get(raw_id)
        if references is not None and gone in references:
            references.remove(gone)
            if not references:
                del self.by_id[raw_id]


def _alive(references: Iterable[weakref.ref[Watch]]) -> list[Watch]:
    found = [reference() for reference in references]
    return [watch for watch in found if watch is not None]
