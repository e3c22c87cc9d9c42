"""The alarm wheel: the one timer that knows which object is due next.

Theory of operation
    The truth about an alarm is in the shard, in the same seal as the object's keys. The
    wheel holds what is due within a window from now and is filled from the index when
    the window moves on; millions of later alarms stay on disk. An entry is only a
    reminder: the object that is woken looks at its own alarm, and if nothing is due it
    goes on sleeping. So a reminder may be too early, and several may be wrong, but none
    may be late.

    Invariant (alarm-never-late): for every alarm due within the window, the wheel has
    an entry for its object that is not later than the stored time. Setting an alarm
    moves an entry either way, once the setting is durable; filling only adds entries or
    moves them earlier.

    A crowd of overdue alarms must not keep everybody else waiting: no more are fired at
    once than make a batch. The next batch follows when half of the deliveries of this
    one have ended, so that the machine sets the pace, or a moment later: all of them
    may take hours.

Does not know about activations or SQLite: `fill` brings what is due, `fire` takes it,
and may return a future that is done when the delivery has ended.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from durable_actor.clock import TIME_MS_MAX, Clock, Timer
from durable_actor.ids import ObjectId
from durable_actor.log import get_logger
from durable_actor.seldom import Seldom

# (after_ms, until_ms, limit) -> the earliest alarms due in that range, in due order
Fill = Callable[[int, int, int], Awaitable[Sequence[tuple[ObjectId, int]]]]

WINDOW_MS = 60_000
FILL_MAX = 4_096  # entries brought in at once; the rest follows in parts of this size
FIRE_MAX = 64  # a batch: some 20 ms of work for objects that have to be loaded
BATCH_MS_MAX = 200  # then the next batch follows, whatever the deliveries are doing
STALE_MAX = 1_024  # entries of alarms that were moved; more are cleared out
_FILL_RETRY_MS = 1_000

log = get_logger("durable_actor.alarms")


@dataclass(slots=True)
class WheelCounters:
    """What the wheel has done so far."""

    fired: int = 0
    fills: int = 0


class AlarmWheel:
    """Reminds objects, in due order, never before their time."""

    def __init__(
        self,
        clock: Clock,
        *,
        fill: Fill,
        fire: Callable[[ObjectId, int], asyncio.Future[Any] | None],
        window_ms: int = WINDOW_MS,
        batch_max: int | None = None,
    ) -> None:
        self._clock = clock
        self._fill = fill
        self._fire = fire
        self._window_ms = window_ms
        self._batch_max = batch_max
        self._pause: Timer | None = None  # between two batches
        # Invariant: each (due, id) of _due is in _heap; other heap entries are stale.
        self._due: dict[ObjectId, int] = {}
        self._heap: list[tuple[int, ObjectId]] = []
        self._horizon_ms = 0  # every alarm due at or before this had an entry
        self._fill_at_ms = 0  # when the window is to be moved on
        self._fill_limit = FILL_MAX
        self._timer: Timer | None = None
        self._timer_at_ms = TIME_MS_MAX
        self._filling: asyncio.Task[None] | None = None
        self._is_running = False
        self._failed_lines = Seldom()  # it is tried again and again
        self.counters = WheelCounters()

    def __len__(self) -> int:
        return len(self._due)

    def start(self) -> None:
        """Fill the first window and begin to fire, overdue alarms first."""
        self._is_running = True
        self._horizon_ms = 0
        self._start_fill()

    async def stop(self) -> None:
        """Fire no more."""
        self._is_running = False
        for timer in (self._timer, self._pause):
            if timer is not None:
                timer.cancel()
        self._timer = self._pause = None
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])

    def set(self, object_id: ObjectId, due_at_ms: int | None) -> None:
        """Move or drop an object's reminder; call it once the change is durable."""
        if due_at_ms is None or due_at_ms > self._horizon_ms:
            self._due.pop(object_id, None)
            return
        self._add(object_id, due_at_ms)

    def remind(self, object_id: ObjectId, due_at_ms: int) -> None:
        """Add a reminder, unless the object has one that is as early."""
        known = self._due.get(object_id)
        if known is None or known > due_at_ms:
            self._add(object_id, due_at_ms)

    def _add(self, object_id: ObjectId, due_at_ms: int) -> None:
        self._due[object_id] = due_at_ms
        heapq.heappush(self._heap, (due_at_ms, object_id))
        if len(self._heap) > 2 * len(self._due) + STALE_MAX:
            self._heap = [(due, other) for other, due in self._due.items()]
            heapq.heapify(self._heap)
        self._arm()

    def _arm(self) -> None:
        """Keep one timer, for the earliest entry or the next filling."""
        if not self._is_running or self._pause is not None:
            return
        next_at_ms = self._heap[0][0] if self._heap else TIME_MS_MAX
        if self._filling is None:
            next_at_ms = min(next_at_ms, self._fill_at_ms)
        if self._timer is not None:
            if self._timer_at_ms <= next_at_ms:
                return
            self._timer.cancel()
        self._timer_at_ms = next_at_ms
        self._timer = self._clock.call_at(next_at_ms, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_ms = self._clock.now_ms()
        fired, batch_max = 0, self._batch_max or FIRE_MAX
        deliveries: list[asyncio.Future[Any]] = []
        while self._heap and self._heap[0][0] <= now_ms and fired < batch_max:
            due_at_ms, object_id = heapq.heappop(self._heap)
            if self._due.get(object_id) != due_at_ms:
                continue
            del self._due[object_id]
            fired += 1
            self.counters.fired += 1
            try:
                delivery = self._fire(object_id, due_at_ms)
            except Exception:  # the others are due as well
                log.exception("alarm.fire_failed", object=repr(object_id))
            else:
                if delivery is not None:
                    deliveries.append(delivery)
        if self._filling is None and now_ms >= self._fill_at_ms:
            self._start_fill()
        if fired >= batch_max and deliveries:
            self._pause_for(deliveries)
        self._arm()

    def _pause_for(self, deliveries: Sequence[asyncio.Future[Any]]) -> None:
        """Fire the next batch when half of these are over, or a moment later."""
        pause = self._pause = self._clock.call_later(BATCH_MS_MAX, self._go_on)
        left = (len(deliveries) + 1) // 2

        def ended(_: asyncio.Future[Any]) -> None:
            nonlocal left
            left -= 1
            if not left and self._pause is pause:
                pause.cancel()
                self._go_on()

        for delivery in deliveries:
            delivery.add_done_callback(ended)

    def _go_on(self) -> None:
        self._pause = None
        self._arm()

    def _start_fill(self) -> None:
        self._filling = asyncio.get_running_loop().create_task(
            self._fill_window(), name="alarm-fill"
        )

    async def _fill_window(self) -> None:
        now_ms = self._clock.now_ms()
        previous_ms, until_ms = self._horizon_ms, now_ms + self._window_ms
        # From here on `set` keeps entries up to the new horizon, so what becomes
        # durable while the index is read is not missed.
        self._horizon_ms = max(previous_ms, until_ms)
        try:
            found = await self._fill(previous_ms, until_ms, self._fill_limit)
        except Exception:
            kept_back = self._failed_lines.kept_back()
            if kept_back is not None:
                log.exception("alarm.fill_failed", kept_back=kept_back)
            self._horizon_ms = previous_ms
            self._fill_at_ms = now_ms + _FILL_RETRY_MS
        else:
            self._take_in(found, until_ms)
        finally:
            self._filling = None
        self._arm()

    def _take_in(self, found: Sequence[tuple[ObjectId, int]], until_ms: int) -> None:
        self.counters.fills += 1
        for object_id, due_at_ms in found:
            self.remind(object_id, due_at_ms)
        # Move the window on well before its end, so that nothing near it is late.
        self._fill_at_ms = until_ms - self._window_ms // 2
        if len(found) < self._fill_limit:
            self._fill_limit = FILL_MAX
            return
        # There is more. The window ends before the last due time that was brought, as
        # others may share it; if all share one time, ask for more at once.
        last_ms = found[-1][1]
        if found[0][1] == last_ms:
            self._fill_limit *= 2
        self._horizon_ms = last_ms - 1
        self._fill_at_ms = 0
