"""A host that calls methods straight, and a client that talks to the app in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from durable_actor import codec
from durable_actor.breadcrumbs import EventDeaths, EventKey
from durable_actor.config import Binding
from durable_actor.daemon.app import Traffic, build_app
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.loader import Served
from durable_actor.daemon.ports import RunsApi
from durable_actor.daemon.routing import Routes
from durable_actor.directory import AlarmPage, ObjectEntry, ObjectPage, StoredPage
from durable_actor.entrypoints import ClassInfo, DurableObject
from durable_actor.errors import ObjectOverloadedError, StorageFullError
from durable_actor.fetch import Request, Response
from durable_actor.ids import ObjectId
from durable_actor.rpc import CallOptions
from durable_actor.storage.watches import Watch

TOKEN = "correct-horse-battery-staple"
HOST = "127.0.0.1:8787"


@dataclass(frozen=True)
class Order:
    sku: str
    count: int = 1


class TooManyError(Exception):
    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"{count} is too many")


class Till(DurableObject):
    """Keeps nothing; its methods show what crosses the wire."""

    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    async def order(self, order: Order) -> str:
        return f"{order.count} of {order.sku}"

    async def echo(self, value: Any) -> Any:
        return value

    async def fail(self, count: int) -> None:
        raise TooManyError(count)

    async def overloaded(self) -> None:
        detail = "1000 events waiting"
        raise ObjectOverloadedError(detail)

    async def full(self) -> None:
        raise StorageFullError("put")

    async def hold(self, value: Any) -> str:
        return await self.wait()

    async def wait(self) -> str:
        await asyncio.Event().wait()
        return "never"

    def plain(self) -> int:
        return 1


def digest_of(token: str) -> bytes:
    """Return what the guard knows of a token."""
    return hashlib.sha256(token.encode()).digest()


def fake_entry(
    object_class: str,
    name: str | None,
    id: str,  # noqa: A002  # as the record calls it
) -> ObjectEntry:
    """Make an entry whose other facts do not matter."""
    return ObjectEntry(
        object_class=object_class,
        name=name,
        id=id,
        created_at_ms=1,
        used_at_ms=2,
        size_bytes=3,
        alarm_at_ms=None,
        attributes={},
    )


class FakeHost:
    """Runs each method on a bare instance, without mailbox or storage."""

    def __init__(self, *classes: type[DurableObject]) -> None:
        self._classes = {cls.__name__: cls for cls in classes}
        self.entries: list[ObjectEntry] = []
        self.calls: list[tuple[ObjectId, str, CallOptions]] = []
        self.called = asyncio.Event()
        self.evicted: list[ObjectId] = []
        self.deleted: list[ObjectId] = []

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        self.calls.append((target, method, options))
        self.called.set()
        cls = self._classes[target.namespace]
        instance = cls.__new__(cls)
        return codec.clone(await getattr(instance, method)(*args, **kwargs))

    async def fetch(
        self, target: ObjectId, request: Request, options: CallOptions
    ) -> Response:
        self.calls.append((target, "fetch", options))
        self.called.set()
        cls = self._classes[target.namespace]
        function = ClassInfo(cls).fetch().function
        response: Response = await function(cls.__new__(cls), request)
        return response

    async def list_objects(
        self,
        object_class: str | None = None,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> ObjectPage:
        found = [
            entry
            for entry in self.entries
            if object_class in (None, entry.object_class)
            and (entry.name or "").startswith(prefix)
        ]
        start = int(cursor or 0)
        end = start + limit
        return ObjectPage(
            objects=found[start:end], cursor=str(end) if end < len(found) else None
        )

    async def alarms(
        self,
        object_class: str | None = None,
        *,
        before: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> AlarmPage:
        return AlarmPage(alarms=[], cursor=None)

    async def stored_keys(
        self,
        object_id: ObjectId,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage:
        return StoredPage(exists=False, keys=[], cursor=None)

    def watch(self, target: ObjectId, prefix: str) -> Watch:
        return Watch(prefix)

    async def evict(self, object_id: ObjectId) -> bool:
        self.evicted.append(object_id)
        return True

    async def delete(self, object_id: ObjectId) -> bool:
        self.deleted.append(object_id)
        return True

    def quarantined(self) -> list[EventDeaths]:
        return []

    def release_event(self, key: EventKey) -> bool:
        del key
        return False


class FakeRuns:
    """Remembers what it was asked."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.asked: list[tuple[Any, ...]] = []

    def names(self) -> Sequence[str]:
        return self._names

    async def start(
        self, name: str, json_input: Any, *, run_id: str, is_async: bool
    ) -> Mapping[str, object]:
        self.asked.append(("start", name, json_input, run_id, is_async))
        return {"id": run_id, "completed": not is_async, "output": json_input}

    async def status(self, name: str, run_id: str) -> Mapping[str, object]:
        exists = any(ask[:2] == ("start", name) for ask in self.asked)
        status = {"_tag": "Paused"} if exists else None
        return {"status": status, "completed_steps": [], "exists": exists}

    async def cancel(
        self, name: str, run_id: str, reason: str | None
    ) -> Mapping[str, object]:
        self.asked.append(("cancel", name, run_id, reason))
        return {"cancelled": True, "reason": reason}

    async def list(
        self,
        *,
        status: str | None,
        workflow: str | None,
        limit: int,
        cursor: str | None,
    ) -> Mapping[str, object]:
        self.asked.append(("list", status, workflow, limit, cursor))
        return {"runs": [{"workflow": self._names[0]}], "cursor": None}


class Web:
    """An app in memory, and a caller that holds its token."""

    def __init__(
        self,
        *,
        policy: GuardPolicy | None = None,
        runs: Sequence[RunsApi] = (),
        debug: bool = False,
        classes: Sequence[type[DurableObject]] = (Till,),
        traffic: Traffic | None = None,
    ) -> None:
        self.host = FakeHost(*classes)
        self.traffic = traffic or Traffic()
        self.routes: Routes
        self.app, self.routes = build_app(
            self.host,
            Served(
                classes,
                [
                    Binding(name=f"{cls.__name__.upper()}S", class_name=cls.__name__)
                    for cls in classes
                ],
            ),
            runs,
            policy or GuardPolicy(token=TOKEN, hosts=frozenset({HOST})),
            self.traffic,
            debug=debug,
        )
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app),
            base_url=f"http://{HOST}",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )

    async def call(self, method: str, *args: Any, **kwargs: Any) -> httpx2.Response:
        """Call a method of the till `a`, as JSON."""
        body = {"args": args, "kwargs": kwargs}
        return await self.http.post(f"/v1/objects/Till/a/{method}", json=body)


@asynccontextmanager
async def open_web(
    *,
    policy: GuardPolicy | None = None,
    runs: Sequence[RunsApi] = (),
    debug: bool = False,
    classes: Sequence[type[DurableObject]] = (Till,),
) -> AsyncIterator[Web]:
    web = Web(policy=policy, runs=runs, debug=debug, classes=classes)
    async with web.http:
        yield web
