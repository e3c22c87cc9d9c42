"""Accepting: who connects gets a descriptor, unless it is one of the last.

Theory of operation
    The event loop's own server accepts as many as wait, before any of them is looked
    at; at the limit of descriptors it fails in a loop, and so does every `open()` of
    the process. Here a look at what is free comes first, and no more are accepted than
    that. When nothing is free, nobody is accepted until something is: who connects
    meanwhile waits in the kernel, which costs no descriptor of ours, and is served
    later (G16).

Does not know HTTP: a connection is handed to the protocol it is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from durable_actor import descriptors
from durable_actor.log import get_logger
from durable_actor.seldom import Seldom

log = get_logger("durable_actor.daemon")

_ACCEPTS_MAX = 64  # at once; then those who are connected have their turn
_PAUSE_SECONDS = 0.05  # then it looks again whether something is free
_COUNT_SECONDS = 1.0  # others open files as well, so a count is not trusted longer


class Room:
    """How many connections may be accepted now.

    Counting descriptors takes a microsecond for each ten, so it is not done for each
    connection: half of what was found free is let in on one count.
    """

    def __init__(
        self,
        *,
        spoken_for: Callable[[], int] = lambda: 0,
        limit: Callable[[], int] = descriptors.soft_limit,
        count: Callable[[], int] = descriptors.open_count,
    ) -> None:
        """Describe what is not for connections.

        Args:
            spoken_for: How many descriptors others may yet take, beside the reserve.
            limit: How many the process may have.
            count: How many it has.
        """
        self._spoken_for = spoken_for
        self._limit = limit
        self._count = count
        self._credit = 0
        self._counted_at = 0.0  # loop time, seconds

    def free(self) -> int:
        """Return how many may be accepted."""
        now = asyncio.get_running_loop().time()
        if self._credit <= 0 or now - self._counted_at >= _COUNT_SECONDS:
            taken = self._count() + descriptors.RESERVED + self._spoken_for()
            free = max(self._limit() - taken, 0)
            self._credit = -(-free // 2)
            self._counted_at = now
        return self._credit

    def take(self) -> None:
        """Note that one was accepted."""
        self._credit -= 1


class Acceptor:
    """One listening socket, and those who connect to it."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        room: Room,
        tls: ssl.SSLContext | None = None,
        handshake_seconds: float = 5.0,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._room = room
        self._tls = tls
        self._handshake_seconds = None if tls is None else handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # handshakes
        self._pause: asyncio.TimerHandle | None = None
        self._lines = Seldom()
        self._is_closed = False

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept nobody any more; who is connected stays."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._pause is None:
            self._loop.remove_reader(self._listener)
        else:
            self._pause.cancel()

    @property
    def is_paused(self) -> bool:
        """Whether it waits for a descriptor."""
        return self._pause is not None

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_MAX):
            if not self._room.free():
                self._wait("there are no descriptors but those kept for storage")
                return
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait(str(error))
                return
            self._room.take()
            accepted.setblocking(False)
            task = self._loop.create_task(self._connect(accepted), name="connect")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_seconds,
            )
        except (OSError, TimeoutError):  # it has left, or does not speak TLS
            with contextlib.suppress(OSError):
                accepted.close()

    def _wait(self, reason: str) -> None:
        """Accept nobody for a moment."""
        kept_back = self._lines.kept_back()
        if kept_back is not None:
            log.warning("daemon.accepting_paused", reason=reason, kept_back=kept_back)
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)
