"""Streams: a body on its way from the code that makes it to the code that reads it.

Theory of operation
    A body that is made piece by piece is made by somebody's code: an object's, whose
    writes must be durable before a piece leaves, or a caller's. That code runs in a
    task of its own, in the context it came from, and hands its pieces over one by one;
    the reader only waits for them. At most one piece lies between the two.

Promises
    A piece is handed over after `before_each` has returned.
    A failure of the source is raised at the reader, after the pieces before it.
    When the reader closes the stream, or is gone, the source is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Self, TypeAlias

from durable_actor.errors import BodyError

Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Future[None]]


class Stream(AsyncIterator[bytes]):
    """The reader's side."""

    __slots__ = ("_ended", "_pieces", "_task")

    def __init__(
        self,
        source: AsyncIterator[bytes],
        *,
        start: Start,
        before_each: Callable[[], Awaitable[None]],
        at_end: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin to make pieces.

        Args:
            source: Makes them; closed when the stream ends, however it ends.
            start: Starts the task of the source, and owns it.
            before_each: What has to be true before a piece leaves.
            at_end: Awaited once the source has ended.
        """
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        # Its result: how the source failed, if it did.
        self._ended: asyncio.Future[BaseException | None]
        self._ended = asyncio.get_running_loop().create_future()
        # The task must not know the reader, or a reader nobody holds would stay.
        make = _make(source, self._pieces, self._ended, before_each, at_end)
        self._task = start(make)
        self._task.add_done_callback(_settle(self._ended))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        pieces, ended = self._pieces, self._ended
        if pieces.empty() and not ended.done():
            getting = asyncio.ensure_future(pieces.get())
            try:
                either: set[asyncio.Future[Any]] = {getting, ended}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
            finally:
                getting.cancel()
        if not pieces.empty():
            return pieces.get_nowait()
        failure = ended.result()
        if failure is not None:
            raise failure
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the source, and wait until it has ended."""
        self._task.cancel()
        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    def __del__(self) -> None:
        if not self._task.done() and not self._task.get_loop().is_closed():
            self._task.cancel()


async def _make(
    source: AsyncIterator[bytes],
    pieces: asyncio.Queue[bytes],
    ended: asyncio.Future[BaseException | None],
    before_each: Callable[[], Awaitable[None]],
    at_end: Callable[[], Awaitable[None]],
) -> None:
    failure: BaseException | None = None
    try:
        async for piece in source:
            await before_each()
            await pieces.put(piece)
    except Exception as error:  # noqa: BLE001  # goes to the reader
        failure = error
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await close()
        await at_end()
    if not ended.done():
        ended.set_result(failure)


def _settle(
    ended: asyncio.Future[BaseException | None],
) -> Callable[[asyncio.Future[None]], None]:
    """Tell the reader of a source that was ended from outside."""

    def settle(task: asyncio.Future[None]) -> None:
        if not ended.done():
            error = None if task.cancelled() else task.exception()
            ended.set_result(error or BodyError("the body broke off on its way"))

    return settle
