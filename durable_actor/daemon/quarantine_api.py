"""`/v1/quarantine`: events that are not run any more, and their release (G18)."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from durable_actor.breadcrumbs import EventKey
from durable_actor.daemon import bodies
from durable_actor.daemon.addresses import BY, class_of, id_in
from durable_actor.daemon.loader import Served
from durable_actor.daemon.ports import ObjectHost
from durable_actor.daemon.routing import Incoming, Route


class QuarantinedEventView(msgspec.Struct, frozen=True):
    """One event; `deaths` is how often the process died while it ran."""

    object_class: str
    name: str | None
    id: str
    event: str
    deaths: int


class QuarantineView(msgspec.Struct, frozen=True):
    """All that are quarantined."""

    events: list[QuarantinedEventView]


class Released(msgspec.Struct, frozen=True):
    """Whether the event was quarantined."""

    released: bool


class QuarantineApi:
    """Handlers over a host and the classes it serves."""

    def __init__(self, host: ObjectHost, served: Served) -> None:
        self._host = host
        self._served = served

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            Route(
                method="GET",
                path="/v1/quarantine",
                name="listQuarantine",
                summary="Events that are refused, as the process died running them.",
                handler=self.list_quarantine,
                verb="admin",
                response=QuarantineView,
            ),
            Route(
                method="DELETE",
                path="/v1/quarantine/{class}/{name}/{event}",
                name="releaseEvent",
                summary="Let an event be run again.",
                handler=self.release,
                query=BY,
                response=Released,
                errors=(404,),
            ),
        ]

    async def list_quarantine(self, incoming: Incoming) -> Response:
        """List all events."""
        del incoming
        views = [
            QuarantinedEventView(
                object_class=found.key.object_class,
                name=found.object_name,
                id=found.key.object_id,
                event=found.key.event,
                deaths=found.deaths,
            )
            for found in self._host.quarantined()
        ]
        return bodies.json_response(QuarantineView(views))

    async def release(self, incoming: Incoming) -> Response:
        """Release one event."""
        served = class_of(self._served, incoming.names["class"])
        target = id_in(served.ids, incoming)
        key = EventKey(served.name, str(target), incoming.names["event"])
        return bodies.json_response(Released(self._host.release_event(key)))
