"""What travels between a stub and an object, and the port that carries it.

A `Router` is whatever can bring a call to an id: the host in this process, or a client
that speaks to a daemon. A stub holds a router and cannot tell which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from durable_actor.clock import to_datetime
from durable_actor.fetch import Request, Response
from durable_actor.ids import ObjectId
from durable_actor.storage.watches import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a caller may ask for beside the method and its arguments."""

    timeout_ms: int | None = None  # None: as long as it takes
    request_id: str | None = None  # the same id runs once; a repeat gets the kept reply
    sent_ms_ago: int = 0  # of a repeat: since the call was sent first; 0: it is none
    retries: int | None = None  # how often a client sends it again; a host never does


DEFAULT_OPTIONS = CallOptions()


class Router(Protocol):
    """Carries calls and requests to objects, and news of their state from them."""

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        """Run one method of one object and return its answer, once it is durable."""
        ...

    async def fetch(
        self, target: ObjectId, request: Request, options: CallOptions
    ) -> Response:
        """Let one object answer a request; what it answers rests on is durable.

        A streamed body goes on after this has returned, both ways.
        """
        ...

    def watch(self, target: ObjectId, prefix: str) -> Watch:
        """Begin to tell of everything that becomes durable of one object."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmInfo:
    """Why an alarm handler runs: which alarm, and which try of it."""

    retry_count: int
    is_retry: bool
    scheduled_at_ms: int

    @property
    def scheduled_at(self) -> datetime:
        """The time the alarm was set for, in UTC."""
        return to_datetime(self.scheduled_at_ms)

    # Fields have no alias in a dataclass with slots, so these are properties.

    @property
    def retryCount(self) -> int:  # noqa: N802  # Cloudflare's spelling
        """The same as `retry_count`."""
        return self.retry_count

    @property
    def isRetry(self) -> bool:  # noqa: N802  # Cloudflare's spelling
        """The same as `is_retry`."""
        return self.is_retry

    @property
    def scheduledTime(self) -> int:  # noqa: N802  # Cloudflare's name
        """The same as `scheduled_at_ms`."""
        return self.scheduled_at_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEvent:
    """One event an object emitted, with its place in the shard's order."""

    seq: int
    object_id: str
    data: Mapping[str, object]


class EventSink(Protocol):
    """Where the events of a class go.

    `deliver` gets the oldest undelivered events, in order, and returns once they have
    arrived. If it raises, the same events are offered again later, so a sink sees each
    event at least once. A sink that has an `async def close()` is closed with the host;
    a later `deliver` opens it again.
    """

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        """Take some events, oldest first."""
        ...
