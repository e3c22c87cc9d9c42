"""A delivery: one event while it runs, and the waits between deliveries.

Theory of operation
    Every piece of object code runs in a delivery, which it finds in `current_delivery`;
    the tasks a handler starts inherit it. So a call that such code makes carries the
    delivery it came from and, in `chain`, the numbers of all that wait for its answer:
    an object that finds one of its own among them is called back, and lets the event in
    beside what waits for it.

    A circle of waits that no chain shows (A asks B in one delivery while B asks A in
    another) is found by walking: from the object that is about to be asked to the
    delivery that must end there first, from that to what its handler awaits, and so on.
    If the walk comes back to the delivery that asks, its call would never be answered.

Does not know mailboxes, gates or storage: `Place` tells what runs in an object.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from typing import Any, Protocol

import msgspec

from durable_actor.errors import Outcome
from durable_actor.ids import ObjectId
from durable_actor.lifecycle import Lifecycle
from durable_actor.mailbox import Envelope

_CIRCLE_MAX = 1_000  # deliveries that wait for each other, looked at for a deadlock

_delivery_numbers = itertools.count(1)


class Place(Protocol):
    """The activation a delivery runs in, as those see it whom the delivery calls."""

    id: ObjectId
    lifecycle: Lifecycle

    @property
    def host(self) -> object:
        """Where it lives."""

    def check_unbroken(self) -> None:
        """Refuse to go on with code whose object is gone."""

    def end_turn(self) -> int:
        """Seal what was written so far; return the last ticket depended on."""

    async def wait_durable(self, ticket: int) -> None:
        """Return once a ticket is on disk."""

    def adopt(self, ticket: int) -> None:
        """Depend on what an answer rested on."""

    def delivery_before(self, envelope: Envelope | None) -> Delivery | None:
        """Return the delivery that has to end before an event there is answered."""

    def break_off(
        self, reason: str, *, outcome: Outcome = "unknown", counts: bool = False
    ) -> None:
        """Throw the activation away and tell everyone who waits."""


class Delivery(msgspec.Struct, eq=False):
    """One event while it runs. Tasks that the handler starts belong to it as well."""

    activation: Place
    label: str
    before: tuple[int, ...]  # the deliveries that wait for this one
    task: asyncio.Task[Any] | None
    number: int = msgspec.field(default_factory=_delivery_numbers.__next__)
    # What the handler itself awaits, and where, for finding deadlocks.
    awaits: tuple[Place, Envelope] | None = None

    @property
    def chain(self) -> tuple[int, ...]:
        """The deliveries that wait for what this one asks for."""
        return (*self.before, self.number)


# The delivery that the running code belongs to, if any.
current_delivery: contextvars.ContextVar[Delivery | None] = contextvars.ContextVar(
    "durable_actor_delivery", default=None
)


def circle_of_waits(sender: Delivery, place: Place) -> str | None:
    """Return what would wait for what for ever if `sender` asked the object at `place`.

    Only waits of the handlers themselves count; what a handler awaits through other
    tasks may still go on, and is bounded by the mailbox's age.

    Returns:
        The circle in words; None if there is none.
    """
    if asyncio.current_task() is not sender.task:
        return None
    places = [place]
    before = place.delivery_before(None)
    for _ in range(_CIRCLE_MAX):
        if before is sender:
            circle = " waits for ".join(repr(place.id) for place in places)
            asked = f"{sender.label} of {sender.activation.id!r}"
            return f"{asked} would wait for {circle}, for ever"
        if before is None or before.awaits is None:
            return None
        place, envelope = before.awaits
        places.append(place)
        before = place.delivery_before(envelope)
    return None


def was_cancelled() -> bool:
    """Whether someone cancelled the running task, and its code did not merely raise."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
