"""What the HTTP face needs: a host of objects, and, if there are workflows, their runs.

Both are satisfied structurally: by `durable_actor.host.Host`, and by what the engine
class of an extension returns from `__durable_runs__(host)`. The daemon knows no package
that has workflows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from durable_actor.fetch import Request, Response
from durable_actor.ids import ObjectId
from durable_actor.rpc import CallOptions
from durable_actor.storage.watches import Watch

RUNS_HOOK = "__durable_runs__"


class ObjectEntry(Protocol):
    """One object in the host's directory."""

    @property
    def object_class(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def id(self) -> str: ...
    @property
    def created_at_ms(self) -> int: ...
    @property
    def used_at_ms(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def alarm_at_ms(self) -> int | None: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...


class ObjectPage(Protocol):
    """Some objects, and where the next ones begin."""

    @property
    def objects(self) -> Sequence[ObjectEntry]: ...
    @property
    def cursor(self) -> str | None: ...


class AlarmEntry(Protocol):
    """One alarm that is set."""

    @property
    def object_class(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def id(self) -> str: ...
    @property
    def due_at_ms(self) -> int: ...
    @property
    def scheduled_at_ms(self) -> int: ...
    @property
    def retries(self) -> int: ...


class AlarmPage(Protocol):
    """Some alarms, and where the next ones begin."""

    @property
    def alarms(self) -> Sequence[AlarmEntry]: ...
    @property
    def cursor(self) -> str | None: ...


class StoredKey(Protocol):
    """One key that an object has stored."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def unreadable(self) -> str | None: ...


class StoredPage(Protocol):
    """Some keys, and where the next ones begin."""

    @property
    def exists(self) -> bool: ...
    @property
    def keys(self) -> Sequence[StoredKey]: ...
    @property
    def cursor(self) -> str | None: ...


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
