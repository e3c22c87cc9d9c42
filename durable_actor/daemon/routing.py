"""Routes: from a method and a raw path to a handler and the names in the path.

The path is split at its slashes before it is decoded, so a name may contain anything
once it is percent-encoded: `a%2Fb` is the name `a/b`. One table serves three readers:
the matcher, the OpenAPI document, and the test that walks every route without a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from durable_actor.daemon import event_stream, wire
from durable_actor.daemon.grants import Grant, Verb, grant_of
from durable_actor.daemon.problems import ProblemError, nearest, refuse

TIMEOUT_MS_MAX = 86_400_000  # a day; whoever needs longer needs a workflow
_QUERY_FIELDS_MAX = 32


class Incoming:
    """One request, as a handler sees it: the names in its path, its query, its body."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        names: Mapping[str, str],
        query: Mapping[str, str],
    ) -> None:
        self.names = names
        self.query = query
        self.scope = scope
        self.receive = receive
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]

    @property
    def grant(self) -> Grant:
        """What the caller's token allows."""
        return grant_of(self.scope)

    def header(self, name: str) -> str | None:
        """Return the first header of that name."""
        wanted = name.lower().encode()
        for key, value in self._headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    async def body(self) -> bytes:
        """Return the whole body; the guard has bounded it."""
        chunks: list[bytes] = []
        while True:
            message: Message = await self.receive()
            if message["type"] == "http.disconnect":
                raise refuse("bad_request", "The caller left.", "")
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(chunks)


Handler: TypeAlias = Callable[[Incoming], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation of the HTTP face, and what the documentation says of it."""

    method: str
    path: str  # segments in braces are names: /v1/objects/{class}/{name}
    takes_rest: bool = False  # its last name is all that follows, slashes and all, raw;
    # and its query is not looked at
    name: str  # the operation's id
    summary: str
    handler: Handler
    query: Mapping[str, str] = field(default_factory=dict)  # parameter: what it means
    headers: Mapping[str, str] = field(default_factory=dict)  # the same
    request: Any = None  # a struct, or Any for any JSON; None: no body
    response: Any = None
    response_media_type: str = wire.JSON
    status: int = 200
    errors: tuple[int, ...] = ()
    verb: Verb | None = None  # None: `read` for GET, and for all else `admin`
    is_for_all: bool = False  # belongs to no class or workflow, and is no secret

    @property
    def needs(self) -> Verb:
        """What a token must allow. A route that says nothing is for operators."""
        return self.verb or ("read" if self.method == "GET" else "admin")

    @property
    def is_stream(self) -> bool:
        """Whether its answer has no end of its own."""
        return self.response_media_type == event_stream.MEDIA_TYPE


class Routes:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.table = tuple(routes)
        self._split = [(tuple(route.path.split("/")), route) for route in self.table]

    def find(self, method: str, raw_path: bytes) -> tuple[Route, dict[str, str]]:
        """Return the route and the decoded names of its path.

        Raises:
            ProblemError: 404, 405 (with `Allow`), or 400 for a name that is not UTF-8.
        """
        is_known = False
        for route, names, rest in self._matching(raw_path):
            if method in _methods_of(route):
                decoded = {key: _decode(value) for key, value in names.items()}
                return route, decoded | rest
            is_known = True
        if is_known:
            raise _not_allowed(method, self._methods(raw_path))
        raise refuse(
            "not_found",
            f"There is nothing at {_shown(raw_path)}.",
            "All paths are described at /openapi.json.",
        )

    def _methods(self, raw_path: bytes) -> list[str]:
        found = [route for route, _, _ in self._matching(raw_path)]
        return sorted({"OPTIONS"}.union(*map(_methods_of, found)))

    def _matching(
        self, raw_path: bytes
    ) -> Iterator[tuple[Route, dict[str, str], dict[str, str]]]:
        """Yield the routes of a path with their names, and the rest if one takes it."""
        segments = raw_path.decode("latin-1").split("/")
        for pattern, route in self._split:
            rest = {}
            if route.takes_rest:
                *pattern_before, last = pattern
                names = _match(pattern_before, segments[: len(pattern_before)])
                rest[last[1:-1]] = "/".join(segments[len(pattern_before) :])
            else:
                names = _match(pattern, segments)
            if names is not None:
                yield route, names, rest


def read_query(route: Route, query_string: bytes) -> dict[str, str]:
    """Return the query's parameters; each must be known to the route, and come once."""
    if route.takes_rest:
        return {}
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_QUERY_FIELDS_MAX,
        )
    except ValueError as error:  # not ASCII, not UTF-8 once decoded, or too many
        raise refuse(
            "bad_request",
            f"The query cannot be read: {error}.",
            "Percent-encode it as UTF-8.",
        ) from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name not in route.query:
            raise refuse(
                "bad_request",
                f"The query has an unknown parameter {name[:48]!r}.",
                nearest(name, list(route.query)),
            )
        if name in query:
            raise refuse(
                "bad_request", f"The query has {name!r} twice.", "Send it once."
            )
        query[name] = value
    return query


def timeout_ms_of(incoming: Incoming) -> int | None:
    """Return how long the caller waits, if it says so."""
    text = incoming.header(wire.TIMEOUT_HEADER)
    if text is None:
        return None
    is_number = text.isascii() and text.isdigit() and len(text) < len("100000000")
    timeout_ms = int(text) if is_number else 0
    if not 1 <= timeout_ms <= TIMEOUT_MS_MAX:
        raise refuse(
            "bad_request",
            f"{wire.TIMEOUT_HEADER} is {text[:20]!a}.",
            f"Send milliseconds, from 1 to {TIMEOUT_MS_MAX}.",
        )
    return timeout_ms


def _methods_of(route: Route) -> tuple[str, ...]:
    """Return the methods a route answers. HEAD is GET without its body."""
    if route.method == "GET" and not route.is_stream:
        return ("GET", "HEAD")
    return (route.method,)


def _match(pattern: Sequence[str], segments: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    names: dict[str, str] = {}
    for expected, actual in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            names[expected[1:-1]] = actual
        elif expected != actual:
            return None
    return names


def _decode(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise refuse(
            "invalid_id",
            f"The path segment {segment[:48]!r} is not UTF-8 once it is decoded.",
            "Encode the name as UTF-8, then percent-encode it.",
        ) from None


def _not_allowed(method: str, allowed: list[str]) -> ProblemError:
    names = ", ".join(allowed)
    return refuse(
        "method_not_allowed",
        f"{method} is not possible here.",
        f"Use {names}.",
        Allow=names,
    )


def _shown(raw_path: bytes) -> str:
    text = raw_path.decode("ascii", "backslashreplace")
    return text if len(text) <= 100 else text[:97] + "..."  # noqa: PLR2004
