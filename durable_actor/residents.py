"""Residents: the activations of a host, by id; who stays in memory, and who goes.

Theory of operation
    An object is activated by its first event and stays until it breaks or is let go. A
    sweep looks, several times within the time an object may idle, for those that have
    idled so long; if there are too many objects, or they hold too much, the ones that
    were used longest ago go as well. Only an idle object can go: nothing runs or waits
    there, and everything it wrote is durable. The others are asked to let go of what
    keeps them, and are looked at again next time.

    A broken activation may leave seals behind that are not settled yet. Its last ticket
    is kept until the next activation starts, which waits for it before it reads.

Does not know calls, alarms, or why an activation is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from durable_actor.activation import Activation
from durable_actor.clock import Timer
from durable_actor.entrypoints import ClassInfo
from durable_actor.ids import ObjectId
from durable_actor.surroundings import Live, Surroundings
from durable_actor.websockets import BROKEN

_CANCEL_SECONDS = 2.0  # what was cancelled has so long to clean up
_ROOM_SECONDS = 0.1  # between two looks for room; each goes through all objects
_SWEEP_PARTS = 4  # looks for idle objects so often in the time they may idle


class Residents:
    """The map from id to activation."""

    def __init__(
        self,
        host: Surroundings,
        *,
        idle_ms: int,
        objects_max: int,
        cache_bytes_max: int,
    ) -> None:
        self._host = host
        self._idle_ms = idle_ms
        self._objects_max = objects_max
        self._cache_bytes_set = cache_bytes_max
        host.memory.short = self.make_room
        self._by_id: dict[bytes, Activation] = {}
        # The last ticket of a broken activation, until the next one has started.
        self._last_tickets: dict[bytes, int] = {}
        self._sweep_timer: Timer | None = None
        self._sweep_is_planned = False  # at once, beside the timer
        self._make_room_after = 0.0  # by the loop's clock
        self._swept_to_bytes = 0  # what the last sweep could not let go

    def __iter__(self) -> Iterator[Activation]:
        """Go through all that are there now; they may break meanwhile."""
        return iter(list(self._by_id.values()))

    def find(self, object_id: ObjectId) -> Activation | None:
        """Return the activation of an object, if it has one."""
        return self._by_id.get(object_id.raw)

    def at(self, raw_id: bytes) -> Activation | None:
        """Return the activation of an object, by the 32 bytes of its id."""
        return self._by_id.get(raw_id)

    def activation(self, object_id: ObjectId, info: ClassInfo) -> Activation:
        """Return the activation of an object, starting one if there is none."""
        activation = self._by_id.get(object_id.raw)
        if activation is None:
            activation = Activation(self._host, info, object_id)
            self._by_id[object_id.raw] = activation
            self._plan_sweep()
            self._check_cache()
            activation.start(self._last_tickets.pop(object_id.raw, 0))
        elif activation.id.name is None and object_id.name is not None:
            activation.learn_name(object_id.name)
        return activation

    def forget(self, activation: Live) -> None:
        """Let the next event start another activation; this one is broken."""
        raw = activation.id.raw
        if self._by_id.get(raw) is activation:
            del self._by_id[raw]
            self._last_tickets[raw] = activation.ticket
            self._host.sockets.close(activation.id, BROKEN, "the object was reset")

    def evict(self, activation: Activation) -> None:
        """Let an idle object go."""
        activation.evict()
        del self._by_id[activation.id.raw]
        self._host.sockets.let_go(activation.id)

    def rest(self, raw_id: bytes) -> None:
        """Let an object pause until everything it wrote is folded."""
        activation = self._by_id.get(raw_id)
        if activation is not None:
            activation.rest()

    def last_ticket(self, raw_id: bytes) -> int:
        """Return what has to be settled before the object is read from the disk."""
        return self._last_tickets.get(raw_id, 0)

    def start_after(self, object_id: ObjectId, ticket: int) -> None:
        """Let the next activation of an object wait until a ticket is settled."""
        self._last_tickets[object_id.raw] = ticket

    async def let_go_of_all(self, reason: str) -> None:
        """End every activation, and wait for the tasks of those that were at work."""
        tasks: list[asyncio.Future[Any]] = []
        for activation in self:
            if activation.is_idle:
                activation.evict()
            else:
                tasks += activation.pending_tasks
                activation.break_off(reason)
        self._by_id.clear()
        here = asyncio.current_task()
        ending = [task for task in tasks if task is not here]
        if ending:
            # One that ignores its cancellation is left to itself.
            await asyncio.wait(ending, timeout=_CANCEL_SECONDS)

    def make_room(self) -> None:
        """Let go soon of what is idle, as memory is short.

        Whoever is refused an event asks again and again; one sweep in a while will do.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._make_room_after:
            self._make_room_after = loop.time() + _ROOM_SECONDS
            self._sweep_soon()

    def stop_sweeping(self) -> None:
        """Let nobody go any more for being idle; the host is closed."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    def _plan_sweep(self) -> None:
        if self._sweep_timer is not None or not self._by_id:
            return  # a host that nobody uses has nothing to look for
        clock = self._host.clock
        delay_ms = max(self._idle_ms // _SWEEP_PARTS, 1)
        self._sweep_timer = clock.call_later(delay_ms, self._sweep)

    def _sweep(self) -> None:
        """Let go of what is idle for long, or of the oldest if memory is short."""
        self._sweep_timer = None
        now_ms = self._host.clock.elapsed_ms()
        idle_since_ms = now_ms - self._idle_ms
        resident, idle = list(self), []
        for activation in resident:
            if activation.is_idle:
                idle.append(activation)
            else:
                activation.used_at_ms = now_ms  # it idles from the end of its work
        too_many = len(resident) - self._objects_max
        cached_bytes = self._host.committer.cached_bytes
        too_large = cached_bytes - self._cache_bytes_max
        if too_many > 0 or too_large > 0:
            idle.sort(key=lambda activation: activation.used_at_ms)
            if too_many > len(idle):
                # Not enough are idle: ask the others, and look again next time.
                for activation in resident:
                    activation.release(is_draining=False)
        for activation in idle:
            is_old = activation.used_at_ms <= idle_since_ms
            if is_old or too_many > 0 or too_large > 0:
                too_many -= 1
                too_large -= activation.cached_bytes
                self.evict(activation)
        self._swept_to_bytes = self._host.committer.cached_bytes
        self._host.memory.wanted_bytes = 0
        self._plan_sweep()

    def _check_cache(self) -> None:
        """Sweep at once if another object comes while the cache is over its bound.

        Unless a sweep has just shown that nobody can go.
        """
        bytes_max = self._cache_bytes_max
        over = max(bytes_max, self._swept_to_bytes + bytes_max // _SWEEP_PARTS)
        if self._host.committer.cached_bytes > over:
            self._sweep_soon()

    def _sweep_soon(self) -> None:
        if not self._sweep_is_planned:
            self._sweep_is_planned = True
            asyncio.get_running_loop().call_soon(self._sweep_now)

    @property
    def _cache_bytes_max(self) -> int:
        """What is set, or less if what waits needs the room (G17)."""
        return min(self._cache_bytes_set, self._host.memory.cache_bytes_max)

    def _sweep_now(self) -> None:
        self._sweep_is_planned = False
        self.stop_sweeping()
        self._sweep()
