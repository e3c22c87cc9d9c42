"""Feeds: from the event stream of a daemon into a watch, for the client library.

A feed opens its stream at once and reads it in a task of its own, so that its reader
may come and go. It reads on while nobody looks, and the watch merges; only when too
many deletions pile up does it stop reading, and the daemon merges instead.

The daemon tells of everything from the moment it answers. `is_open` is set then, or
when it is known that it never will: the client waits for it before it lets a later call
to the same object go out, so that "watch, then read" has no gap here either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from durable_actor.daemon import event_stream, wire
from durable_actor.daemon.event_stream import ClosedData, Event, ExactChange
from durable_actor.errors import DurableActorError, HostClosedError, TransportError
from durable_actor.storage.watches import Watch

Opened = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]


class Feed:
    """Reads one stream into one watch, until either ends."""

    def __init__(
        self,
        opened: Opened,
        prefix: str,
        *,
        on_end: Callable[[Feed], None],
        silence_seconds: float = event_stream.SILENCE_SECONDS,
    ) -> None:
        """Begin at once.

        Args:
            opened: Opens the stream; a failure there becomes the end of the watch.
            prefix: Only keys that begin with it.
            on_end: Told once, when nothing is read any more.
            silence_seconds: Without a word for so long, the other side is gone.
        """
        self._opened = opened
        self._silence_seconds = silence_seconds
        self.is_open = asyncio.Event()
        self.watch = Watch(prefix, on_close=self._cancel, until_open=self.is_open.wait)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="watch")
        self._on_end = on_end
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Read nothing more: the client is closed."""
        self.watch.end(HostClosedError("the client was closed"))
        self._task.cancel()
        await asyncio.wait([self._task])

    def _cancel(self) -> None:
        self._task.cancel()

    def _ended(self, _: asyncio.Task[None]) -> None:
        self.is_open.set()  # it may have been cancelled before it began
        self._on_end(self)

    async def _run(self) -> None:
        try:
            async with self._opened() as chunks:
                self.is_open.set()
                await self._read(chunks)
            detail = "the daemon went away; watch again, and read what you need"
            self.watch.end(TransportError(detail))
        except DurableActorError as error:
            self.watch.end(error)
        except TimeoutError:
            seconds = self._silence_seconds
            detail = f"no word from the daemon for {seconds} s; watch again"
            self.watch.end(TransportError(detail))
        except Exception as error:  # noqa: BLE001  # whoever watches is told
            self.watch.end(error)

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        events = event_stream.read_events(chunks)
        while True:
            async with asyncio.timeout(self._silence_seconds):
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
            if event is not None:
                self._take(event)
                await self.watch.room()

    def _take(self, event: Event) -> None:
        match event.name:
            case "change":
                change = msgspec.json.decode(event.data, type=ExactChange)
                keys: dict[str, bytes | None] = dict.fromkeys(change.deleted)
                keys.update(change.changed)
                self.watch.add(change.ticket, keys, cleared=change.cleared)
            case "deleted":
                self.watch.end()
            case "closed":
                closed = msgspec.json.decode(event.data, type=ClosedData)
                self.watch.end(wire.error_named(closed.code, closed.detail))
            case _:
                pass  # of a later release
