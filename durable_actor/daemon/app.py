"""The ASGI application: from a request to a handler, from every failure to a problem.

`build_app` puts it together: the guard outside, the routes inside, and between them the
one place where exceptions become answers and where a request is counted as accepted
work, which the drain waits for.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from durable_actor.daemon import openapi, wire
from durable_actor.daemon.access import Access
from durable_actor.daemon.alarms_api import AlarmsApi
from durable_actor.daemon.bridge import Bridge
from durable_actor.daemon.fetch_api import FetchApi
from durable_actor.daemon.grants import OWNER, Grant, grant_of
from durable_actor.daemon.guard import (
    DRAINING_PATHS,
    OPEN_PATHS,
    BodyRefusedError,
    Guard,
    GuardPolicy,
    deny,
)
from durable_actor.daemon.loader import Served
from durable_actor.daemon.objects_api import ObjectsApi
from durable_actor.daemon.pace import Pace
from durable_actor.daemon.ports import ObjectHost, RunsApi
from durable_actor.daemon.problems import (
    RETRY_AFTER_MS,
    ExactBodyError,
    HandlerError,
    Problem,
    ProblemError,
    problem_of,
    refuse,
)
from durable_actor.daemon.quarantine_api import QuarantineApi
from durable_actor.daemon.routing import Incoming, Routes, read_query
from durable_actor.daemon.runs_api import RunRoutes
from durable_actor.daemon.service_api import ServiceApi
from durable_actor.daemon.storage_api import StorageApi
from durable_actor.daemon.watch_api import WatchApi
from durable_actor.log import get_logger

log = get_logger("durable_actor.daemon")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_RESERVE = 64  # requests of operators, beyond what the process may have under way
# 503, not 429: it is the process that has too much, not this caller or its object.
_FULL = Problem(
    status=503,
    code="overloaded",
    detail="The daemon has as many requests under way as it may have.",
    hint="Wait before you try again; http.in_flight_max is the limit.",
    overloaded=True,
    retry_after_ms=RETRY_AFTER_MS,
)
_LATE = Problem(
    status=503,
    code="overloaded",
    detail="Requests wait too long already before they begin.",
    hint="Wait before you try again.",
    overloaded=True,
    retry_after_ms=RETRY_AFTER_MS,
)
_SHARE_TAKEN = Problem(
    status=429,
    code="overloaded",
    detail="The token has as many requests under way as one token may have.",
    hint="Wait before you try again; http.in_flight_per_token_max is the limit.",
    overloaded=True,
    retry_after_ms=RETRY_AFTER_MS,
)


class Traffic:
    """Accepted requests in flight, and whether new ones are taken."""

    def __init__(
        self, *, in_flight_max: int = 20_000, per_token_max: int = 1_000
    ) -> None:
        self.is_draining = False
        self.pace = Pace()
        self.per_token_max = per_token_max
        self._by_token: dict[str, int] = {}  # of tokens with a share; none is zero
        self.in_flight = 0
        self.in_flight_max = in_flight_max
        # Called when it begins to drain: what would go on for ever is to end.
        self.on_drain: list[Callable[[], None]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_full(self) -> bool:
        """Whether as much is under way as this process may have."""
        return self.in_flight >= self.in_flight_max

    @property
    def has_reserve(self) -> bool:
        """Whether there is room for an operator although it is full."""
        return self.in_flight < self.in_flight_max + _RESERVE

    def has_share(self, grant: Grant) -> bool:
        """Whether the token has less under way than it may. The owner's always has."""
        return self._by_token.get(grant.name, 0) < self.per_token_max

    def enter(self, grant: Grant = OWNER) -> None:
        """Count one more accepted request."""
        self.in_flight += 1
        if grant is not OWNER:
            self._by_token[grant.name] = self._by_token.get(grant.name, 0) + 1
        self._idle.clear()

    def leave(self, grant: Grant = OWNER) -> None:
        """Count its end."""
        self.in_flight -= 1
        if grant is not OWNER:
            self._by_token[grant.name] -= 1
            if not self._by_token[grant.name]:
                del self._by_token[grant.name]
        if self.in_flight == 0:
            self._idle.set()

    async def drain(self) -> None:
        """Take no new requests; return once the accepted ones are answered."""
        self.is_draining = True
        for end in self.on_drain:
            end()
        await self._idle.wait()


class Application:
    """Answers what the guard has let in."""

    def __init__(
        self,
        routes: Routes,
        access: Access,
        requests: FetchApi,
        traffic: Traffic,
        *,
        debug: bool,
    ) -> None:
        self._routes = routes
        self._access = access
        self._requests = requests
        self._bridges: set[Bridge] = set()
        self._traffic = traffic
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; never raises, but for a body the guard refuses."""
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        if self._traffic.is_full and not self._is_for_operators(scope):
            await self._failed(scope, ProblemError(_FULL))(scope, receive, send)
            return
        grant = grant_of(scope)
        if not self._traffic.has_share(grant) and scope["raw_path"] not in OPEN_PATHS:
            await self._failed(scope, ProblemError(_SHARE_TAKEN))(scope, receive, send)
            return
        pace, is_urgent = self._traffic.pace, False
        if not pace.is_free:
            is_urgent = self._is_for_operators(scope)
            if pace.is_late(_line_of(scope)) and not is_urgent:
                late = self._failed(scope, ProblemError(_LATE))
                await late(scope, receive, send)
                return
        self._traffic.enter(grant)
        try:
            if not is_urgent:
                await pace.turn(_line_of(scope))
            response = await self._answer(scope, receive)
            await response(scope, receive, send)
        finally:
            self._traffic.leave(grant)

    def _is_for_operators(self, scope: Scope) -> bool:
        """Whether a request is let in when there is no room: health, and a reserve."""
        if scope["raw_path"] in DRAINING_PATHS:
            return True
        if "admin" not in grant_of(scope).verbs or not self._traffic.has_reserve:
            return False
        try:
            route, _ = self._routes.find(scope["method"], scope["raw_path"])
        except ProblemError:
            return False
        return route.needs == "admin"

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        try:
            raw_path = scope["raw_path"]
            route, names = self._routes.find(scope["method"], raw_path)
            query = read_query(route, scope["query_string"])
        except ProblemError as error:
            if scope["method"] == "OPTIONS" and "Allow" in error.problem.headers:
                return Response(status_code=204, headers=error.problem.headers)
            return self._failed(scope, error)
        try:
            if raw_path not in OPEN_PATHS:
                self._access.check(grant_of(scope), route, names, query)
            response = await route.handler(Incoming(scope, receive, names, query))
        except BodyRefusedError:
            raise  # the guard answers, and hangs up
        except ExactBodyError as error:
            problem = problem_of(error)
            headers = problem.headers_to_send() | {"Content-Type": wire.EXACT_ERROR}
            response = Response(error.body, problem.status, headers)
        except Exception as error:  # noqa: BLE001  # this is where every failure ends
            response = self._failed(scope, error)
        self._access.note(
            grant_of(scope),
            route,
            names,
            status=response.status_code,
            trace_id=_trace_id(scope),
        )
        return response

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open a WebSocket to an object; from then on it is no request under way."""
        grant = grant_of(scope)
        self._traffic.enter(grant)
        try:
            bridge, answer = await self._open(scope, receive)
            if answer is not None:
                await answer(scope, receive, send)
        except Exception as error:  # noqa: BLE001  # this is where every failure ends
            await deny(self._problem(scope, error, _trace_id(scope)), send)
            return
        finally:
            self._traffic.leave(grant)
        if bridge is None:
            return
        self._bridges.add(bridge)
        try:
            await bridge.run(receive, send)
        finally:
            self._bridges.discard(bridge)

    def end(self) -> None:
        """End what would go on for ever: WebSockets, and the events of objects."""
        for bridge in self._bridges:
            bridge.go_away()
        self._requests.end()

    async def _open(
        self, scope: Scope, receive: Receive
    ) -> tuple[Bridge | None, Response | None]:
        if self._traffic.is_full:
            raise ProblemError(_FULL)
        if not self._traffic.has_share(grant_of(scope)):
            raise ProblemError(_SHARE_TAKEN)
        route, names = self._routes.find("GET", scope["raw_path"])
        if not route.takes_rest:
            raise refuse(
                "bad_request",
                "There is no WebSocket here.",
                "Objects have them, at /objects/{class}/{name}/...",
            )
        # A handshake is a GET, but what comes after it is more than looking.
        self._access.check(grant_of(scope), route, names, {}, verb="write")
        return await self._requests.open_socket(Incoming(scope, receive, names, {}))

    def _failed(self, scope: Scope, error: Exception) -> Response:
        trace_id = _trace_id(scope)
        problem = self._problem(scope, error, trace_id)
        return Response(
            problem.body(trace_id),
            status_code=problem.status,
            headers=problem.headers_to_send(),
        )

    def _problem(self, scope: Scope, error: Exception, trace_id: str) -> Problem:
        problem = problem_of(error, debug=self._debug)
        problem = self._access.told_to(grant_of(scope), problem).spread()
        if problem.code == "internal":
            log.error("request.failed", trace_id=trace_id, exc_info=error)
        elif isinstance(error, HandlerError) and problem.code == "handler_error":
            log.info(
                "request.handler_error",
                trace_id=trace_id,
                error=type(error.original).__qualname__,
            )
        return problem


def build_app(
    host: ObjectHost,
    served: Served,
    runs: Sequence[RunsApi],
    policy: GuardPolicy,
    traffic: Traffic,
    *,
    debug: bool = False,
    reasons: Callable[[], list[str]] = list,
    metrics: Callable[[], bytes] = bytes,
) -> tuple[ASGIApp, Routes]:
    """Put the HTTP face together; the routes are returned to be described or walked."""
    described: dict[str, Any] = {}
    service = ServiceApi(
        reasons=lambda: (["draining"] if traffic.is_draining else []) + reasons(),
        metrics=metrics,
        document=lambda: described,
    )
    requests = FetchApi(host, served, debug=debug)
    watches = WatchApi(host, served)
    traffic.on_drain.append(watches.end)
    routes = Routes(
        [
            *service.routes(),
            *ObjectsApi(host, served, debug=debug).routes(),
            *AlarmsApi(host, served).routes(),
            *StorageApi(host, served).routes(),
            *QuarantineApi(host, served).routes(),
            *watches.routes(),
            *requests.routes(),
            *RunRoutes(runs).routes(),
        ]
    )
    described |= openapi.document(routes.table, version=version("durable-actor"))
    access = Access(served, [name for api in runs for name in api.names()])
    application = Application(routes, access, requests, traffic, debug=debug)
    traffic.on_drain.append(application.end)
    guard = Guard(application, policy, is_draining=lambda: traffic.is_draining)
    return guard, routes


def _line_of(scope: Scope) -> bytes:
    """Return what requests wait in line for: an object, whatever its method."""
    raw_path: bytes = scope["raw_path"]
    return raw_path.rpartition(b"/")[0]


def _trace_id(scope: Scope) -> str:
    """Return the caller's trace, if it has one (W3C), or a fresh id."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            match = _TRACEPARENT.fullmatch(value.decode("latin-1"))
            if match:
                return match[1]
    return secrets.token_hex(16)
