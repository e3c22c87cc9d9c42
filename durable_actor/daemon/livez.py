"""`/livez` from a thread of its own, which answers while the event loop does not (G20).

The ordinary `/livez` goes through the loop like every request: if the loop is blocked,
it is silent. This one has a listener (`watchdog.livez_listen`) and a thread, and tells
how long the loop has not come round: 200 within `watchdog.degraded_ms`, 503 beyond. It
has no other path, wants no token, and tells nothing else.

One caller at a time has a fraction of a second to ask; whoever is slower is hung up on.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Protocol

from durable_actor.daemon.listening import Listen, bind, url_of

PATH = "/livez"
_ASK_SECONDS_MAX = 0.5
_HEAD_BYTES_MAX = 8_192
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed"}
_NOT_ALIVE = "Service Unavailable"


class Pulse(Protocol):
    """What knows whether the loop comes round: the watchdog."""

    @property
    def age_ms(self) -> int:
        """For how long it has not."""

    @property
    def is_alive(self) -> bool:
        """Whether that is still well."""


class LivezThread:
    """Listens and answers, from `start` to `stop`."""

    def __init__(self, listen: Listen, pulse: Pulse) -> None:
        """Take the address.

        Raises:
            ConfigError: It cannot be bound.
        """
        self._listen = listen
        self._pulse = pulse
        self._socket = bind(listen)
        self.url = url_of(self._socket)
        self._is_stopped = False
        self._thread = threading.Thread(target=self._serve, name="livez", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._is_stopped = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        if self._thread.is_alive():
            self._thread.join(2 * _ASK_SECONDS_MAX)
        if self._listen.path is not None:
            self._listen.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._is_stopped:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if not self._is_stopped:
                    time.sleep(_ASK_SECONDS_MAX)  # no descriptor is free
                continue
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = _head_of(connection)
        if head is None:
            return
        status = self._status_of(head.split(b"\r\n", 1)[0].decode("latin-1"))
        body = b""
        if status in (200, 503):
            told = {
                "status": "alive" if status == 200 else "blocked",  # noqa: PLR2004
                "loop_age_ms": self._pulse.age_ms,
            }
            body = json.dumps(told).encode()
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, _NOT_ALIVE)}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            "\r\n",
        ]
        connection.sendall("\r\n".join(lines).encode("latin-1") + body)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the caller has read it, or its time is over

    def _status_of(self, line: str) -> int:
        method, _, rest = line.partition(" ")
        if rest.partition(" ")[0] != PATH:
            return 404
        if method != "GET":
            return 405
        return 200 if self._pulse.is_alive else 503


def _head_of(connection: socket.socket) -> bytes | None:
    """Read the head of a request; None if it is too slow or too large."""
    gives_up_at = time.monotonic() + _ASK_SECONDS_MAX
    head = b""
    while b"\r\n\r\n" not in head:
        left = gives_up_at - time.monotonic()
        if left <= 0 or len(head) > _HEAD_BYTES_MAX:
            return None
        connection.settimeout(left)
        piece = connection.recv(_HEAD_BYTES_MAX)
        if not piece:
            return None
        head += piece
    connection.settimeout(_ASK_SECONDS_MAX)
    return head
