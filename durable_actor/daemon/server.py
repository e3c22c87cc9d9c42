"""The process: binds the socket, serves, drains on a signal, chooses the exit status.

On SIGTERM or SIGINT readiness fails and new work is refused with 503, while the socket
still listens; accepted work finishes within the grace; then the host is closed, which
flushes everything. A second signal skips the waiting: what was acknowledged is on disk
anyway. uvicorn parses HTTP and nothing else: signals, sockets and the end are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from enum import IntEnum

import structlog
import uvicorn
from starlette.types import ASGIApp

from durable_actor.daemon.listening import BACKLOG
from durable_actor.daemon.protocol import BoundedProtocol

log = structlog.get_logger("durable_actor.daemon")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_ANSWERS_SECONDS = 1  # for answers being written when the grace is over


class Exit(IntEnum):
    """Exit statuses of `serve`, those of sysexits.h."""

    DRAINED = 0
    USAGE = 64
    INTERNAL = 70
    STORAGE_FAILED = 74
    DATA_DIRECTORY_IN_USE = 75
    CONFIG = 78


class Server(uvicorn.Server):
    """uvicorn without its signal handling, which raises the signal again at the end."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._on_started()


def make_server(
    app: ASGIApp,
    *,
    protocol: type[BoundedProtocol],
    idle_timeout_ms: int,
    on_started: Callable[[], None],
) -> Server:
    """Return a server of the application."""
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=-(-idle_timeout_ms // 1_000),
            timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
        ),
        on_started,
    )


class Signals:
    """SIGTERM and SIGINT as events: the first means drain, the second means now."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()

    def received(self, number: int) -> None:
        """Take note of a signal."""
        name = signal.Signals(number).name
        if self.stop.is_set():
            log.warning("daemon.stop_now", signal=name)
            self.now.set()
        else:
            log.info("daemon.stop", signal=name)
            self.stop.set()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals while the block runs."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.received, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
