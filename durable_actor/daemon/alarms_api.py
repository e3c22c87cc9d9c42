"""`/v1/alarms`: which alarms are set, in the order in which they fire."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from durable_actor.clock import TIME_MS_MAX
from durable_actor.daemon import bodies
from durable_actor.daemon.addresses import class_of
from durable_actor.daemon.loader import Served
from durable_actor.daemon.objects_api import PAGE_LIMIT_DEFAULT, page_limit
from durable_actor.daemon.ports import ObjectHost
from durable_actor.daemon.problems import refuse
from durable_actor.daemon.routing import Incoming, Route

_DIGITS_MAX = 15  # of a time in milliseconds: thirty thousand years


class AlarmView(msgspec.Struct, frozen=True):
    """One alarm that is set."""

    object_class: str = msgspec.field(name="class")
    name: str | None
    id: str
    due_at_ms: int
    scheduled_at_ms: int
    retries: int


class AlarmPageView(msgspec.Struct, frozen=True):
    """Some alarms; `cursor` leads to the next ones, and is null on the last page."""

    alarms: list[AlarmView]
    cursor: str | None


class AlarmsApi:
    """Handlers over a host and the classes it serves."""

    def __init__(self, host: ObjectHost, served: Served) -> None:
        self._host = host
        self._served = served

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            Route(
                method="GET",
                path="/v1/alarms",
                name="listAlarms",
                summary="Alarms that are set, the earliest first, in pages.",
                handler=self.list_alarms,
                query={
                    "class": "Only alarms of objects of this class.",
                    "before": "Only those due before it, in epoch milliseconds.",
                    "limit": f"How many at most; {PAGE_LIMIT_DEFAULT} if not given.",
                    "cursor": "Where the page before ended.",
                },
                response=AlarmPageView,
                errors=(404,),
            ),
        ]

    async def list_alarms(self, incoming: Incoming) -> Response:
        """List one page of alarms."""
        query = incoming.query
        wanted = query.get("class")
        object_class = None if wanted is None else class_of(self._served, wanted).name
        try:
            page = await self._host.alarms(
                object_class,
                before=_time(query.get("before")),
                limit=page_limit(query.get("limit")),
                cursor=query.get("cursor"),
            )
        except ValueError as error:
            raise refuse(
                "bad_request",
                f"The page cannot be found: {error}.",
                "Send the cursor of the page before, unchanged.",
            ) from None
        views = [
            AlarmView(
                object_class=entry.object_class,
                name=entry.name,
                id=entry.id,
                due_at_ms=entry.due_at_ms,
                scheduled_at_ms=entry.scheduled_at_ms,
                retries=entry.retries,
            )
            for entry in page.alarms
        ]
        return bodies.json_response(AlarmPageView(views, page.cursor))


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    is_time = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
    if not is_time or not 0 < int(text) <= TIME_MS_MAX:
        raise refuse(
            "bad_request",
            f"before is {text[:20]!r}.",
            "Write milliseconds since the epoch.",
        )
    return int(text)
