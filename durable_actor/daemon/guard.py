"""The guard: who may come in, decided in one place, before any route is looked at.

Every request passes the same checks in the same order: its size and framing, the `Host`
it was sent to, the `Origin` of the page that sent it, the bearer token. Two paths are
answered without a token, by exact match: `/livez` and `/readyz`. After that the body is
watched as it is read: how large, how slow.

A WebSocket is let in by the same checks. As a browser cannot send a token with it, the
token may come as a subprotocol, `bearer.TOKEN`.

A web page cannot reach the daemon through the user's browser: a foreign name in `Host`
(DNS rebinding) and any `Origin` that is not allowed are refused on every method, and no
CORS header is ever sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_actor.daemon.grants import NOBODY, OWNER, Grant, Grants, set_grant
from durable_actor.daemon.problems import (
    RETRY_AFTER_MS,
    Problem,
    ProblemError,
    problem_of,
    refuse,
)
from durable_actor.errors import HostClosedError
from durable_actor.memory import Memory

OPEN_PATHS = frozenset({b"/livez", b"/readyz"})
DRAINING_PATHS = OPEN_PATHS | {b"/metrics"}  # still answered while the daemon drains
STREAMED_PATHS = b"/objects/"  # where an object reads the body, piece by piece
TOKEN_SUBPROTOCOL = "bearer."  # noqa: S105  # what stands before the token
_BYTES_PER_SECOND_MIN = 1_024  # of a streamed body; a slower caller is given up
_LINGER_SECONDS = 0.75  # after a deadline; in all less than a second late
_DIGITS_MAX = 18  # of a Content-Length: below 2**63, and int() is quick
# 503, not 429: it is the process that has too much, not this caller.
_CROWDED = Problem(
    status=503,
    code="overloaded",
    detail="The bodies of all requests are as many bytes as they may be.",
    hint="Wait before you try again; http.bodies_bytes_max is the limit, with"
    " objects.memory_bytes_max.",
    overloaded=True,
    retry_after_ms=RETRY_AFTER_MS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy:
    """What the guard enforces."""

    token: str  # of the owner, who may do everything
    grants: Callable[[], Grants] = dict  # of further tokens, as they are now
    hosts: frozenset[str]  # exact values of Host, in lower case, with the port
    origins: frozenset[str] = frozenset()
    body_bytes_max: int = 1_048_576
    bodies_bytes_max: int = 268_435_456  # of all requests together, as they are read
    fetch_body_bytes_max: int = 104_857_600  # of what an object's `fetch` reads
    header_bytes_max: int = 8_192
    headers_max: int = 64
    target_bytes_max: int = 8_192
    body_timeout_ms: int = 30_000
    memory: Memory | None = None  # of the process, which bodies are a part of


class BodyRefusedError(ProblemError):
    """The body is too large or too slow; raised where it is read, answered here."""

    def __init__(self, problem: Problem, *, is_more_coming: bool) -> None:
        super().__init__(problem)
        self.is_more_coming = is_more_coming


class Guard:
    """Pure ASGI: refuses, or passes on with a body that cannot be too large or slow."""

    def __init__(
        self,
        app: ASGIApp,
        policy: GuardPolicy,
        *,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._policy = policy
        self._owner = hashlib.sha256(policy.token.encode()).digest()
        self._is_draining = is_draining
        self._held = HeldBodies(policy.bodies_bytes_max, policy.memory)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        try:
            self._admit(scope)
            if self._is_draining() and scope["raw_path"] not in DRAINING_PATHS:
                raise ProblemError(problem_of(HostClosedError("It is draining.")))
            limits = self._limits_of(scope["raw_path"])
            watched = WatchedBody(receive, limits, self._held)
            try:
                await self._app(scope, watched, send)
            finally:
                watched.release()
        except BodyRefusedError as error:
            rest = receive if error.is_more_coming else None
            await _hang_up(error.problem, send, rest)
        except ProblemError as error:
            rest = receive if _has_body(scope["headers"]) else None
            await _hang_up(error.problem, send, rest)

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
            if self._is_draining():
                raise ProblemError(problem_of(HostClosedError("It is draining.")))
        except ProblemError as error:
            await deny(error.problem, send)
        else:
            await self._app(scope, receive, send)

    def _limits_of(self, raw_path: bytes) -> BodyLimits:
        policy = self._policy
        is_streamed = raw_path.startswith(STREAMED_PATHS)
        size = policy.fetch_body_bytes_max if is_streamed else policy.body_bytes_max
        return BodyLimits(size, policy.body_timeout_ms, is_streamed)

    def _admit(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._check_size(scope, headers)
        if scope["type"] == "http":
            self._check_framing(headers, self._limits_of(scope["raw_path"]))
        self._check_host(_all(headers, b"host"))
        for origin in _all(headers, b"origin"):
            if origin not in self._policy.origins:
                raise refuse(
                    "origin_refused",
                    f"Requests from the page {_shown(origin)} are not allowed.",
                    "List its origin under http.allowed_origins to allow it.",
                )
        set_grant(scope, NOBODY)
        if scope["raw_path"] not in OPEN_PATHS:
            credentials = _all(headers, b"authorization")
            if not credentials:
                credentials = _offered_tokens(scope)
            set_grant(scope, self._grant_for(credentials))

    def _check_size(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        policy = self._policy
        target = len(scope["raw_path"]) + len(scope["query_string"])
        if target > policy.target_bytes_max:
            raise refuse(
                "target_too_long",
                f"The path and query have {target} bytes;"
                f" at most {policy.target_bytes_max} are allowed.",
                "Send long values in the body.",
            )
        # As on the wire: the colon, the space and the line end count.
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > policy.headers_max or size > policy.header_bytes_max:
            raise refuse(
                "headers_too_large",
                f"{len(headers)} headers with {size} bytes; at most"
                f" {policy.headers_max} with {policy.header_bytes_max} are allowed.",
                "Send fewer cookies and other headers.",
            )

    def _check_framing(
        self, headers: list[tuple[bytes, bytes]], limits: BodyLimits
    ) -> None:
        """Refuse what two readers could cut differently (request smuggling)."""
        lengths = _all(headers, b"content-length")
        encodings = _all(headers, b"transfer-encoding")
        if (lengths and encodings) or len(lengths) > 1 or len(encodings) > 1:
            raise refuse(
                "bad_request",
                "The request gives the length of its body more than once.",
                "Send one Content-Length, or chunked Transfer-Encoding.",
            )
        if _all(headers, b"upgrade"):
            raise refuse("bad_request", "Upgrade is not supported.", "Use HTTP/1.1.")
        for encoding in _all(headers, b"content-encoding"):
            if encoding.lower() != "identity":
                raise refuse(
                    "unsupported_media_type",
                    f"The body is compressed ({_shown(encoding)}).",
                    "Send it as it is.",
                )
        if not lengths:
            return
        if not (lengths[0].isascii() and lengths[0].isdigit()):
            raise refuse(
                "bad_request",
                f"Content-Length is {_shown(lengths[0])}.",
                "Write it in decimal digits.",
            )
        length = int(lengths[0]) if len(lengths[0]) <= _DIGITS_MAX else 10**_DIGITS_MAX
        if length > limits.bytes_max:
            raise _too_large(f"{length} bytes", limits)

    def _check_host(self, hosts: list[str]) -> None:
        if len(hosts) != 1:
            raise refuse(
                "bad_request",
                f"The request has {len(hosts)} Host headers.",
                "Send exactly one.",
            )
        if hosts[0].lower() not in self._policy.hosts:
            raise refuse(
                "host_refused",
                f"This daemon is not called {_shown(hosts[0])}.",
                "Use the address of its ready line, or list the name with its port"
                " under http.allowed_hosts.",
            )

    def _grant_for(self, credentials: list[str]) -> Grant:
        scheme, _, token = credentials[0].partition(" ") if credentials else ("",) * 3
        # Digests are compared: they have one length, and say nothing of the token. It
        # takes the same time whatever was sent, and always happens.
        digest = hashlib.sha256(token.encode("latin-1")).digest()
        found = OWNER if hmac.compare_digest(digest, self._owner) else None
        if found is None:
            for known, grant in self._policy.grants().items():
                if hmac.compare_digest(digest, known):
                    found = grant
        if len(credentials) != 1 or scheme.lower() != "bearer" or found is None:
            raise refuse(
                "unauthorized",
                "The request has no valid bearer token.",
                "Send `Authorization: Bearer ...` with the content of the token file"
                " that the ready line names.",
                WWW_Authenticate="Bearer",
            )
        return found


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large the body of a request may be, and how long it may take."""

    bytes_max: int
    timeout_ms: int
    is_streamed: bool


class HeldBodies:
    """How many bytes of bodies are in memory, of all requests together."""

    def __init__(self, bytes_max: int, memory: Memory | None) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._memory = memory

    def keep(self, size: int) -> bool:
        """Count a piece; whether there was room for it."""
        self.bytes += size
        if self._memory is None:
            return self.bytes <= self.bytes_max
        self._memory.bodies_bytes += size
        return self.bytes <= self.bytes_max and self._memory.has_room(0)

    def release(self, size: int) -> None:
        """Count these pieces no longer."""
        self.bytes -= size
        if self._memory is not None:
            self._memory.bodies_bytes -= size


class WatchedBody:
    """A `receive` that ends a body which is too large or too slow, or one too many.

    A body that is read at once has a deadline, and is counted until its request ends.
    One that an object reads piece by piece, when it comes to it, is given up when
    waiting for it took too long for what has come.
    """

    def __init__(self, receive: Receive, limits: BodyLimits, held: HeldBodies) -> None:
        self._receive = receive
        self._limits = limits
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._begun_at = self._loop.time()
        self._waited = 0.0
        self._received = 0
        self._is_complete = False

    async def __call__(self) -> Message:
        """Return the next piece.

        Raises:
            BodyRefusedError: There is to be no next piece.
        """
        asked_at = self._loop.time()
        try:
            async with asyncio.timeout_at(self._expires_at()):
                message = await self._receive()
        except TimeoutError:
            refusal = refuse(
                "body_timeout",
                f"After {self._limits.timeout_ms} ms only {self._received} bytes of"
                " the body were here.",
                "Send it faster, or raise http.body_timeout_ms.",
            )
            raise BodyRefusedError(refusal.problem, is_more_coming=True) from None
        self._waited += self._loop.time() - asked_at
        self._keep(len(message.get("body", b"")), message)
        self._is_complete = not message.get("more_body")
        return message

    def _keep(self, size: int, message: Message) -> None:
        self._received += size
        more = bool(message.get("more_body"))
        if self._received > self._limits.bytes_max:
            problem = _too_large("more", self._limits).problem
            raise BodyRefusedError(problem, is_more_coming=more)
        if self._limits.is_streamed:
            return  # a piece is gone before the next one comes
        if not self._held.keep(size):
            raise BodyRefusedError(_CROWDED, is_more_coming=more)

    def _expires_at(self) -> float | None:
        if self._is_complete:
            return None  # whoever asks again waits for the caller to leave
        patience = self._limits.timeout_ms / 1_000
        if not self._limits.is_streamed:
            return self._begun_at + patience
        earned = self._received / _BYTES_PER_SECOND_MIN
        return self._loop.time() + patience + earned - self._waited

    def release(self) -> None:
        """Count the body no longer; the request is over."""
        if not self._limits.is_streamed:
            self._held.release(self._received)


def _too_large(what: str, limits: BodyLimits) -> ProblemError:
    key = "http.fetch_body_bytes_max" if limits.is_streamed else "http.body_bytes_max"
    return refuse(
        "body_too_large",
        f"The body has {what}; at most {limits.bytes_max} bytes are allowed.",
        f"Send less at once, or raise {key}.",
    )


async def deny(problem: Problem, send: Send) -> None:
    """Answer the request for a WebSocket with a problem instead."""
    problem = problem.spread()
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in problem.headers_to_send().items()
    ]
    await send(
        {
            "type": "websocket.http.response.start",
            "status": problem.status,
            "headers": headers,
        }
    )
    await send({"type": "websocket.http.response.body", "body": problem.body(None)})


def _offered_tokens(scope: Scope) -> list[str]:
    """Return the token that came as a subprotocol, as a header would have it."""
    return [
        f"Bearer {offered.removeprefix(TOKEN_SUBPROTOCOL)}"
        for offered in scope.get("subprotocols", ())
        if offered.startswith(TOKEN_SUBPROTOCOL)
    ]


async def _hang_up(problem: Problem, send: Send, rest: Receive | None) -> None:
    """Answer with a problem and close the connection, so that the caller can read it.

    Closing while the caller still sends makes its side drop the answer (a reset), so
    the rest of a body that is on its way is read for a moment and thrown away.
    """
    problem = problem.spread()
    body = problem.body(None)
    headers = problem.headers_to_send()
    headers |= {"Content-Length": str(len(body)), "Connection": "close"}
    start = {
        "type": "http.response.start",
        "status": problem.status,
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers.items()
        ],
    }
    await send(start)
    is_last = rest is None
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})
    if rest is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await rest()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _shown(value: str) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "...'"  # noqa: PLR2004
