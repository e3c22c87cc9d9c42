"""A collector: takes the events of workflows, remembers them, prints a line for each.

What `HttpBatchTracker` speaks to. Events arrive at least once, so a collector knows
them by their `eventId` and answers a repeat like the first time. Any answer but a
success makes the sender keep the batch and try again later.

    python examples/collector.py [HOST:PORT]

    POST /ingest    {"events": [...]}; answers how many were new
    GET  /events    what is remembered, oldest first; ?workflowId=... of one run

Listens on 127.0.0.1:8788 unless told otherwise; port 0 takes a free one. With
COLLECTOR_TOKEN in the environment, both ask for `Authorization: Bearer ...`.

Expected output, with `examples/order_processing.py` sending:
    listening on http://127.0.0.1:8788
    process_order/order-17  #1  workflow.queued
    process_order/order-17  #2  workflow.started
    process_order/order-17  #3  step.started  fetch order
    ...
"""

import contextlib
import hmac
import os
import socket
import sys
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

DEFAULT_ADDRESS = "127.0.0.1:8788"
EVENTS_MAX = 10_000  # beyond, the oldest are forgotten
BODY_BYTES_MAX = 2_000_000  # twice what a tracker sends at once

Event = dict[str, Any]


class Batch(msgspec.Struct, frozen=True):
    """The body of a request."""

    events: list[Event]


class Collector:
    """The events, by their id."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token
        self._events: dict[str, Event] = {}

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/ingest", self.ingest, methods=["POST"]),
                Route("/events", self.events),
            ]
        )

    async def ingest(self, request: Request) -> JSONResponse:
        """Remember the events that are new."""
        if not self._is_welcome(request):
            return _refused(401, "the token is missing or wrong")
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    return _refused(413, f"more than {BODY_BYTES_MAX} bytes")
        except ClientDisconnect:
            return _refused(400, "the sender has gone; it will send the batch again")
        try:
            batch = msgspec.json.decode(body, type=Batch)
        except msgspec.MsgspecError as error:
            return _refused(400, str(error))
        new = [event for event in batch.events if self._remember(event)]
        return JSONResponse({"accepted": len(new)})

    async def events(self, request: Request) -> JSONResponse:
        """Return what is remembered."""
        if not self._is_welcome(request):
            return _refused(401, "the token is missing or wrong")
        run_id = request.query_params.get("workflowId")
        events = [
            event
            for event in self._events.values()
            if run_id is None or event.get("workflowId") == run_id
        ]
        return JSONResponse({"events": events})

    def _is_welcome(self, request: Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode())

    def _remember(self, event: Event) -> bool:
        event_id = str(event.get("eventId"))
        if event_id in self._events:
            return False
        self._events[event_id] = event
        if len(self._events) > EVENTS_MAX:
            del self._events[next(iter(self._events))]
        print(_line(event), flush=True)
        return True


def _line(event: Event) -> str:
    run = f"{event.get('workflowName')}/{event.get('workflowId')}"
    parts = [run, f"#{event.get('seq')}", event.get("type"), event.get("stepName")]
    # repr escapes what could move the cursor; nobody here knows who sends.
    return "  ".join(repr(str(part))[1:-1] for part in parts if part is not None)


def _refused(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)


def main() -> None:
    """Listen until interrupted."""
    host, _, port = (sys.argv[1] if sys.argv[1:] else DEFAULT_ADDRESS).rpartition(":")
    collector = Collector(os.environ.get("COLLECTOR_TOKEN") or None)
    config = uvicorn.Config(collector.app(), log_config=None, access_log=False)
    with socket.create_server((host, int(port))) as listener:
        host, port = listener.getsockname()
        print(f"listening on http://{host}:{port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
