"""Reminders: what a host does so that no object misses its alarm.

Theory of operation
    The wheel wakes objects whose alarms are near. An alarm it brings may find nobody to
    take it, and must not be lost until the next opening:

    - The class is not registered yet. The reminder is parked under the class's name
      and goes back to the wheel when the class comes.
    - The activation broke before it could look at its alarm. The object is reminded
      again after a pause.
    - The handler broke the activation, so the row on disk is still the one before. What
      the next try is to be is owed: the next activation of the object takes it over.

Does not know activations: it wakes by a callback, and is told what came of it.
"""

from __future__ import annotations

from collections.abc import Callable

from durable_actor.alarms import AlarmWheel
from durable_actor.clock import Clock
from durable_actor.ids import ObjectId
from durable_actor.storage.batch import AlarmRow
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import ReadAlarms, ShardDriver


class Reminders:
    """The alarms of one host's objects, as far as they are near or were missed."""

    def __init__(
        self,
        clock: Clock,
        *,
        wake: Callable[[ObjectId], bool],
        window_ms: int,
        pause_ms: int,
    ) -> None:
        """Remind nobody before `start`.

        Args:
            clock: Whose time it is.
            wake: Lets an object look at its alarm; False if its class is not known.
            window_ms: How far ahead alarms are brought in from the disk.
            pause_ms: Before an object is reminded again that could not look.
        """
        self._clock = clock
        self._wake = wake
        self._pause_ms = pause_ms
        self._owed: dict[bytes, AlarmRow] = {}
        self._parked: dict[str, dict[ObjectId, int]] = {}
        self._committer: Committer
        self._driver: ShardDriver
        self._wheel = AlarmWheel(
            clock, fill=self._due_alarms, fire=self._fire, window_ms=window_ms
        )

    def __len__(self) -> int:
        return len(self._wheel)

    def start(self, committer: Committer, driver: ShardDriver) -> None:
        """Begin to remind, of overdue alarms first."""
        self._committer = committer
        self._driver = driver
        self._wheel.start()

    async def stop(self) -> None:
        """Remind nobody any more."""
        await self._wheel.stop()

    def class_is_known(self, name: str) -> None:
        """Take up again what was parked because this class was missing."""
        for object_id, due_at_ms in self._parked.pop(name, {}).items():
            self._wheel.remind(object_id, due_at_ms)

    def changed(self, object_id: ObjectId, due_at_ms: int | None) -> None:
        """Move the reminder; the change is durable."""
        self._wheel.set(object_id, due_at_ms)

    def deleted(self, object_id: ObjectId) -> None:
        """Forget an object that has no alarm any more, nor anything else."""
        self._wheel.set(object_id, None)
        self._owed.pop(object_id.raw, None)

    def undelivered(self, object_id: ObjectId) -> None:
        """Remind an object again that could not look at its alarm."""
        owed = self._owed.get(object_id.raw)
        paused = self._clock.now_ms() + self._pause_ms
        self._wheel.remind(object_id, paused if owed is None else owed.due_at_ms)

    def owe(self, object_id: ObjectId, alarm: AlarmRow) -> None:
        """Remember how to deliver an alarm again whose handler broke the activation."""
        self._owed[object_id.raw] = alarm

    def take_owed(self, object_id: ObjectId) -> AlarmRow | None:
        """Return what is owed to an object, once."""
        return self._owed.pop(object_id.raw, None)

    def _fire(self, object_id: ObjectId, due_at_ms: int) -> None:
        if not self._wake(object_id):
            # Its class comes with a later register(), or is gone from the application.
            parked = self._parked.setdefault(object_id.namespace, {})
            parked[object_id] = due_at_ms

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
