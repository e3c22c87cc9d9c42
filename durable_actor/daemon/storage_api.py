"""`/v1/storage`: what an object has stored, in a form for people.

The object is not activated. Its class need not be served any more: what a removed class
has left behind can be looked at, too.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from durable_actor.daemon import bodies
from durable_actor.daemon.addresses import BY, class_of, id_in
from durable_actor.daemon.loader import Served
from durable_actor.daemon.objects_api import PAGE_LIMIT_DEFAULT, page_limit
from durable_actor.daemon.ports import ObjectHost
from durable_actor.daemon.problems import refuse
from durable_actor.daemon.routing import Incoming, Route
from durable_actor.ids import IdSpace


class StoredKeyView(msgspec.Struct, frozen=True):
    """One key; `unreadable` says why its value cannot be shown, and is mostly null."""

    key: str
    value: Any
    size_bytes: int
    unreadable: str | None


class StoredPageView(msgspec.Struct, frozen=True):
    """Some keys; `cursor` leads to the next ones, and is null on the last page.

    `exists` is false if the object has never stored anything.
    """

    exists: bool
    keys: list[StoredKeyView]
    cursor: str | None


class StorageApi:
    """Handlers over a host and the classes it serves."""

    def __init__(self, host: ObjectHost, served: Served) -> None:
        self._host = host
        self._served = served

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            Route(
                method="GET",
                path="/v1/storage/{class}/{name}",
                name="listStoredKeys",
                summary="The keys an object has stored, with readable values.",
                handler=self.list_stored_keys,
                query={
                    **BY,
                    "prefix": "Only keys that begin with it.",
                    "limit": f"How many at most; {PAGE_LIMIT_DEFAULT} if not given."
                    " A page of large values ends earlier.",
                    "cursor": "Where the page before ended.",
                },
                response=StoredPageView,
                errors=(404,),
            ),
        ]

    async def list_stored_keys(self, incoming: Incoming) -> Response:
        """List one page of an object's keys."""
        query = incoming.query
        named = incoming.names["class"]
        served = self._served.find(named)
        ids = IdSpace(named) if served is None else served.ids
        target = id_in(ids, incoming)
        limit = page_limit(query.get("limit"))
        try:
            page = await self._host.stored_keys(
                target,
                prefix=query.get("prefix", ""),
                limit=limit,
                cursor=query.get("cursor"),
            )
        except ValueError as error:
            raise refuse(
                "bad_request",
                f"The page cannot be found: {error}.",
                "Send the cursor of the page before, unchanged.",
            ) from None
        if served is None and not page.exists:
            class_of(self._served, named)  # says which classes there are
        keys = [
            StoredKeyView(
                key=stored.key,
                value=stored.value,
                size_bytes=stored.size_bytes,
                unreadable=stored.unreadable,
            )
            for stored in page.keys
        ]
        return bodies.json_response(StoredPageView(page.exists, keys, page.cursor))
