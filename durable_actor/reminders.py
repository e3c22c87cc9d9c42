"""Reminders: what a host does so that no object misses its alarm.

Theory of operation
    The wheel wakes objects whose alarms are near. An alarm it brings may find nobody to
    take it, and must not be lost until the next opening:

    - The class is not registered yet. The reminder is parked under the class's name
      and goes back to the wheel when the class comes.
    - The activation broke before it could look at its alarm. The object is reminded
      again after a pause. If the object could not even be started, the pause doubles
      each time: it is likely to fail again, and must not do so at full speed (G21).
    - The handler broke the activation, so the row on disk is still the one before. What
      the next try is to be is owed: the next activation of the object takes it over.
    - The disk is full. Alarms are held back until it is not, as a handler that runs in
      vain has effects, and its retries are for failures of its own.

Does not know activations: it wakes by a callback, and is told what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from durable_actor.alarms import AlarmWheel
from durable_actor.breadcrumbs import EventKey
from durable_actor.clock import Clock
from durable_actor.ids import ObjectId
from durable_actor.storage.batch import AlarmRow
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import ReadAlarms, ShardDriver

PAUSE_DOUBLINGS_MAX = 9  # 2 s doubled nine times: about 17 minutes


class Reminders:
    """The alarms of one host's objects, as far as they are near or were missed."""

    def __init__(
        self,
        clock: Clock,
        *,
        wake: Callable[[ObjectId], asyncio.Future[Any] | None],
        window_ms: int,
        batch_max: int,
        pause_ms: int,
    ) -> None:
        """Remind nobody before `start`.

        Args:
            clock: Whose time it is.
            wake: Lets an object look at its alarm, and returns a future that is done
                when it has; None if its class is not known.
            window_ms: How far ahead alarms are brought in from the disk.
            batch_max: How many alarms of a crowd are delivered at once.
            pause_ms: Before an object is reminded again that could not look.
        """
        self._clock = clock
        self._wake = wake
        self._pause_ms = pause_ms
        self._owed: dict[bytes, AlarmRow] = {}
        self._failed_starts: dict[bytes, int] = {}  # in a row, until one succeeds
        self._parked: dict[str, dict[ObjectId, int]] = {}
        self._held: dict[ObjectId, int] | None = None  # None: alarms are let through
        self._committer: Committer
        self._driver: ShardDriver
        self._wheel = AlarmWheel(
            clock,
            fill=self._due_alarms,
            fire=self._fire,
            window_ms=window_ms,
            batch_max=batch_max,
        )

    def __len__(self) -> int:
        return len(self._wheel)

    @property
    def failing(self) -> int:
        """How many objects could not be started for their alarm, and still cannot."""
        return len(self._failed_starts)

    def start(self, committer: Committer, driver: ShardDriver) -> None:
        """Begin to remind, of overdue alarms first."""
        self._committer = committer
        self._driver = driver
        self._wheel.start()

    async def stop(self) -> None:
        """Remind nobody any more."""
        await self._wheel.stop()

    def pause(self) -> None:
        """Hold alarms back: what their handlers write could not be kept (G12)."""
        if self._held is None:
            self._held = {}

    def resume(self) -> None:
        """Let through what was held back, and what comes."""
        held, self._held = self._held or {}, None
        for object_id, due_at_ms in held.items():
            self._wheel.remind(object_id, due_at_ms)

    def class_is_known(self, name: str) -> None:
        """Take up again what was parked because this class was missing."""
        for object_id, due_at_ms in self._parked.pop(name, {}).items():
            self._wheel.remind(object_id, due_at_ms)

    def changed(self, object_id: ObjectId, due_at_ms: int | None) -> None:
        """Move the reminder; the change is durable."""
        if self._failed_starts:
            self._failed_starts.pop(object_id.raw, None)
        self._wheel.set(object_id, due_at_ms)

    def deleted(self, object_id: ObjectId) -> None:
        """Forget an object that has no alarm any more, nor anything else."""
        self._wheel.set(object_id, None)
        if self._held is not None:
            self._held.pop(object_id, None)
        self._owed.pop(object_id.raw, None)
        self._failed_starts.pop(object_id.raw, None)

    def undelivered(self, object_id: ObjectId) -> None:
        """Remind an object again that could not look at its alarm."""
        owed = self._owed.get(object_id.raw)
        doublings = max(self._failed_starts.get(object_id.raw, 0) - 1, 0)
        pause_ms = self._pause_ms << min(doublings, PAUSE_DOUBLINGS_MAX)
        paused = self._clock.now_ms() + pause_ms
        self._wheel.remind(object_id, paused if owed is None else owed.due_at_ms)

    def not_started(self, object_id: ObjectId) -> None:
        """Remind an object again that could not be started, later each time."""
        failed = self._failed_starts.get(object_id.raw, 0) + 1
        self._failed_starts[object_id.raw] = failed
        self.undelivered(object_id)

    def released(self, key: EventKey) -> None:
        """Remind an object at once whose event was quarantined; it may be its alarm."""
        object_id = ObjectId(key.object_class, bytes.fromhex(key.object_id), None)
        self._failed_starts.pop(object_id.raw, None)
        self._wheel.remind(object_id, self._clock.now_ms())

    def owe(self, object_id: ObjectId, alarm: AlarmRow) -> None:
        """Remember how to deliver an alarm again whose handler broke the activation."""
        self._owed[object_id.raw] = alarm

    def take_owed(self, object_id: ObjectId) -> AlarmRow | None:
        """Return what is owed to an object, once."""
        return self._owed.pop(object_id.raw, None)

    def _fire(self, object_id: ObjectId, due_at_ms: int) -> asyncio.Future[Any] | None:
        if self._held is not None:
            self._held[object_id] = due_at_ms
            self._committer.look_for_space()
            return None
        delivery = self._wake(object_id)
        if delivery is None:
            # Its class comes with a later register(), or is gone from the application.
            parked = self._parked.setdefault(object_id.namespace, {})
            parked[object_id] = due_at_ms
        return delivery

    async def _due_alarms(
        self, after_ms: int, until_ms: int, limit: int
    ) -> list[tuple[ObjectId, int]]:
        # What is not folded yet would be missed by the index.
        await self._committer.fold()
        found = await self._driver.read(ReadAlarms(after_ms, until_ms, limit))
        return [
            (ObjectId(alarm.object_class, alarm.id, alarm.name), alarm.due_at_ms)
            for alarm in found
        ]
