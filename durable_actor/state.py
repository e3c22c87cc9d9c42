"""`DurableObjectState`: the `ctx` an object is given.

It is a face: everything it does is done by the activation behind it, which it knows
only as the `Owner` protocol.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeVar

from durable_actor.clock import Clock
from durable_actor.ids import ObjectId
from durable_actor.storage.facade import DurableObjectStorage

T = TypeVar("T")


class Owner(Protocol):
    """What the state needs from the activation it belongs to."""

    @property
    def clock(self) -> Clock:
        """The host's clock."""
        ...

    @property
    def random(self) -> random.Random:
        """The host's source of randomness."""
        ...

    def block_concurrency_while(
        self, callback: Callable[[], Awaitable[T]]
    ) -> asyncio.Future[T]:
        """Run `callback` with every other event held back."""
        ...

    def wait_until(self, awaitable: Awaitable[T]) -> asyncio.Future[T]:
        """Run something in the background."""
        ...

    def abort(self, reason: str | None) -> NoReturn:
        """Throw the activation away."""
        ...

    def emit(self, event: Mapping[str, object]) -> None:
        """Put an event in the outbox."""
        ...

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Publish a few texts in the directory."""
        ...


class DurableObjectState:
    """What an object may ask of the runtime.

    https://developers.cloudflare.com/durable-objects/api/state/
    """

    __slots__ = ("_owner", "env", "id", "storage")

    def __init__(
        self,
        owner: Owner,
        id: ObjectId,  # noqa: A002  # Cloudflare's name of the attribute
        storage: DurableObjectStorage,
        env: Any,
    ) -> None:
        self._owner = owner
        self.id = id
        self.storage = storage
        self.env = env

    @property
    def clock(self) -> Clock:
        """The host's clock; use it instead of `time`, so that tests can move it."""
        return self._owner.clock

    @property
    def random(self) -> random.Random:
        """The host's source of randomness."""
        return self._owner.random

    def block_concurrency_while(
        self, callback: Callable[[], Awaitable[T]]
    ) -> asyncio.Future[T]:
        """Run `callback` with every other event held back; its result can be awaited.

        It starts at once. In a constructor do not await it (a constructor cannot): the
        first event waits for it. If the callback fails, the object is reset; its writes
        since then are lost.

        Raises:
            ObjectResetError: The callback failed or took more than 30 seconds.
        """
        return self._owner.block_concurrency_while(callback)

    def wait_until(self, awaitable: Awaitable[T]) -> asyncio.Future[T]:
        """Run something in the background; the object stays alive until it is done."""
        return self._owner.wait_until(awaitable)

    def abort(self, reason: str | None = None) -> NoReturn:
        """Throw this activation away. Writes of this turn are lost, earlier ones stay.

        Every caller in flight or queued gets `ObjectResetError`; the next event starts
        a fresh activation from the disk.
        """
        self._owner.abort(reason)

    def emit(self, event: Mapping[str, object]) -> None:
        """Hand an event to the class's `event_sink`, in the same commit as this turn.

        Delivered at least once, in order per object. Dropped, and counted, only when
        the outbox is full.
        """
        self._owner.emit(event)

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Publish up to 16 small texts about this object, to be searched by.

        Replaces what was published before; committed with this turn.
        """
        self._owner.set_attributes(attributes)

    blockConcurrencyWhile = block_concurrency_while
    waitUntil = wait_until
