"""What the HTTP face needs: a host of objects, and, if there are workflows, their runs.

Both are satisfied structurally: by `durable_actor.host.Host`, and by what the engine
class of an extension returns from `__durable_runs__(host)`. The daemon knows no package
that has workflows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from durable_actor.breadcrumbs import EventDeaths, EventKey
from durable_actor.directory import AlarmPage, ObjectPage, StoredPage
from durable_actor.fetch import Request, Response
from durable_actor.ids import ObjectId
from durable_actor.rpc import CallOptions
from durable_actor.storage.watches import Watch

RUNS_HOOK = "__durable_runs__"


class ObjectHost(Protocol):
    """The host, as far as the HTTP face uses it."""

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object: ...

    async def fetch(
        self, target: ObjectId, request: Request, options: CallOptions, /
    ) -> Response: ...

    async def list_objects(
        self,
        object_class: str | None = None,
        /,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> ObjectPage: ...

    async def alarms(
        self,
        object_class: str | None = None,
        /,
        *,
        before: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> AlarmPage: ...

    async def stored_keys(
        self,
        object_id: ObjectId,
        /,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage: ...

    def watch(self, target: ObjectId, prefix: str, /) -> Watch: ...

    async def evict(self, object_id: ObjectId, /) -> bool: ...

    async def delete(self, object_id: ObjectId, /) -> bool: ...

    def quarantined(self) -> Sequence[EventDeaths]: ...

    def release_event(self, key: EventKey, /) -> bool: ...


class RunsApi(Protocol):
    """The runs of one engine class, in the shapes JSON answers have."""

    def names(self) -> Sequence[str]:
        """Return the names of the workflows."""
        ...

    async def start(
        self, name: str, json_input: Any, *, run_id: str, is_async: bool
    ) -> Mapping[str, object]:
        """Start a run, or find the one with this id: `id`, `completed`, `output`."""
        ...

    async def status(self, name: str, run_id: str) -> Mapping[str, object]:
        """Return `status`, `completed_steps` and `exists`."""
        ...

    async def cancel(
        self, name: str, run_id: str, reason: str | None
    ) -> Mapping[str, object]:
        """Return `cancelled` and `reason`."""
        ...

    async def list(
        self,
        *,
        status: str | None,
        workflow: str | None,
        limit: int,
        cursor: str | None,
    ) -> Mapping[str, object]:
        """Return `runs` and `cursor`."""
        ...
