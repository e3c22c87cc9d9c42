"""What operators ask the daemon: alive, ready, measured, described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from durable_actor.daemon import bodies
from durable_actor.daemon.routing import Incoming, Route

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str = "alive"


class Ready(msgspec.Struct, frozen=True):
    """Whether new work is taken; if not, why."""

    status: str
    reasons: list[str] = []


class ServiceApi:
    """Handlers that look at the daemon itself.

    Args:
        reasons: Why no work is taken now; empty when it is.
        metrics: The text of `/metrics`.
        document: The OpenAPI document, once the routes are known.
    """

    def __init__(
        self,
        *,
        reasons: Callable[[], list[str]],
        metrics: Callable[[], bytes],
        document: Callable[[], dict[str, Any]],
    ) -> None:
        self._reasons = reasons
        self._metrics = metrics
        self._document = document

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            Route(
                method="GET",
                path="/livez",
                name="livez",
                summary="Whether the process answers.",
                handler=self.livez,
                is_for_all=True,
                response=Alive,
            ),
            Route(
                method="GET",
                path="/readyz",
                name="readyz",
                summary="Whether new work is taken; 503 with reasons if not.",
                handler=self.readyz,
                is_for_all=True,
                response=Ready,
            ),
            Route(
                method="GET",
                path="/metrics",
                name="metrics",
                summary="Counters and gauges, in the text format of Prometheus.",
                handler=self.metrics,
                response=Any,
                response_media_type=METRICS_MEDIA_TYPE,
            ),
            Route(
                method="GET",
                path="/openapi.json",
                name="openapi",
                summary="This description.",
                handler=self.openapi,
                is_for_all=True,
                response=Any,
            ),
        ]

    async def livez(self, incoming: Incoming) -> Response:
        """Answer."""
        del incoming
        return bodies.json_response(Alive())

    async def readyz(self, incoming: Incoming) -> Response:
        """Answer 200 or 503."""
        del incoming
        reasons = self._reasons()
        if reasons:
            return bodies.json_response(Ready("not_ready", reasons), status=503)
        return bodies.json_response(Ready("ready"))

    async def metrics(self, incoming: Incoming) -> Response:
        """Render the metrics."""
        del incoming
        return Response(self._metrics(), media_type=METRICS_MEDIA_TYPE)

    async def openapi(self, incoming: Incoming) -> Response:
        """Render the description."""
        del incoming
        return bodies.json_response(self._document())
