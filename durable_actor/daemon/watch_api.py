"""`/v1/watches`: what becomes durable of one object, as Server-Sent Events.

A stream is no accepted work: when the daemon drains, every stream ends at once, with an
event that says so. A caller that reads slowly holds up nobody: what changes meanwhile
is merged, as `Watch` promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from durable_actor import codec
from durable_actor.daemon import event_stream
from durable_actor.daemon.addresses import BY, class_of, target_of
from durable_actor.daemon.event_stream import (
    ChangeData,
    ClosedData,
    ExactChange,
    write_event,
)
from durable_actor.daemon.loader import Served
from durable_actor.daemon.ports import ObjectHost
from durable_actor.daemon.problems import problem_of, refuse
from durable_actor.daemon.routing import Incoming, Route
from durable_actor.errors import HostClosedError
from durable_actor.storage.watches import StateChange, Watch

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # a proxy in front passes each event on at once
}


class WatchApi:
    """Handlers over a host and the classes it serves."""

    def __init__(
        self,
        host: ObjectHost,
        served: Served,
        *,
        heartbeat_seconds: float = event_stream.HEARTBEAT_SECONDS,
    ) -> None:
        self._host = host
        self._served = served
        self._heartbeat_seconds = heartbeat_seconds
        self._open: set[Watch] = set()

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            Route(
                method="GET",
                path="/v1/watches/{class}/{name}",
                name="watchObject",
                summary="Committed changes of an object's state, as they come (SSE).",
                handler=self.watch,
                query={
                    **BY,
                    "prefix": "Only keys that begin with it.",
                    "values": "How values look: `json` (the default), or `exact`:"
                    " base64 of the bytes that the client library reads.",
                },
                response=Any,
                response_media_type=event_stream.MEDIA_TYPE,
                errors=(404,),
            ),
        ]

    def end(self) -> None:
        """End every stream: the daemon drains."""
        for watch in self._open:
            watch.end(HostClosedError("the daemon is draining; watch again later"))

    async def watch(self, incoming: Incoming) -> Response:
        """Begin a stream; what becomes durable from now on is in it."""
        served = class_of(self._served, incoming.names["class"])
        values = incoming.query.get("values", "json")
        if values not in ("json", event_stream.EXACT_VALUES):
            raise refuse(
                "bad_request", f"values is {values[:20]!r}.", "Write json or exact."
            )
        is_exact = values == event_stream.EXACT_VALUES
        prefix = incoming.query.get("prefix", "")
        watch = self._host.watch(target_of(served, incoming), prefix)
        return StreamingResponse(
            self._events(watch, is_exact=is_exact),
            media_type=event_stream.MEDIA_TYPE,
            headers=_HEADERS,
        )

    async def _events(self, watch: Watch, *, is_exact: bool) -> AsyncIterator[bytes]:
        self._open.add(watch)
        show = _exact if is_exact else _readable
        try:
            yield event_stream.HEARTBEAT  # so that the caller knows that it has begun
            while True:
                try:
                    async with asyncio.timeout(self._heartbeat_seconds):
                        change = await anext(watch)
                except TimeoutError:
                    yield event_stream.HEARTBEAT
                else:
                    yield write_event("change", show(change), change.ticket)
        except StopAsyncIteration:
            yield write_event("deleted", {})
        except Exception as error:  # noqa: BLE001  # the answer has begun: it is told so
            problem = problem_of(error)
            data = ClosedData(code=problem.code, detail=problem.detail)
            yield write_event("closed", data)
        finally:
            self._open.discard(watch)
            await watch.aclose()


def _readable(change: StateChange) -> ChangeData:
    return ChangeData(
        ticket=change.ticket,
        changed={
            key: msgspec.Raw(msgspec.json.encode(codec.to_json(value)))
            for key, value in change.changed.items()
        },
        deleted=sorted(change.deleted),
        cleared=change.cleared,
    )


def _exact(change: StateChange) -> ExactChange:
    return ExactChange(
        ticket=change.ticket,
        changed={key: codec.encode(value) for key, value in change.changed.items()},
        deleted=sorted(change.deleted),
        cleared=change.cleared,
    )
