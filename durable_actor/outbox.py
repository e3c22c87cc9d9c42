"""The outbox: events on their way from the shard to the sinks of their classes.

An event is written in the seal of the turn that emitted it and deleted after its sink
has taken it, so it is delivered at least once, and in order. A sink that is away slows
nobody: its events wait, up to a bound; beyond it new ones are dropped and counted (G9).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from durable_actor.clock import Clock, sleep_until
from durable_actor.errors import StorageError
from durable_actor.log import get_logger
from durable_actor.rpc import EventSink, OutboxEvent
from durable_actor.storage.batch import EventRow, Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import ReadOutbox, ShardDriver

BATCH_EVENTS_MAX = 100
_READ_EVENTS_MAX = 1_000
_BACKOFF_MS_MIN = 500
_BACKOFF_MS_MAX = 60_000

log = get_logger("durable_actor.outbox")


class Outbox:
    """Delivers what is durable in the outbox, one class of objects at a time."""

    def __init__(
        self, clock: Clock, rng: random.Random, *, events_max: int = 50_000
    ) -> None:
        self._clock = clock
        self._random = rng
        self._events_max = events_max
        self._sinks: dict[str, EventSink] = {}
        self._waiting: dict[str, deque[EventRow]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._away: set[str] = set()  # classes whose sink did not take the last batch
        self._committer: Committer | None = None
        self._is_stopped = False
        self.waiting = 0
        self.reserved = 0  # room taken by events that are not durable yet
        self.delivered = 0
        self.failed_attempts = 0

    def reserve(self) -> bool:
        """Take room for one event more, if there is any."""
        if self.waiting + self.reserved >= self._events_max:
            return False
        self.reserved += 1
        return True

    async def start(self, committer: Committer, driver: ShardDriver) -> None:
        """Take up what an earlier process could not deliver."""
        self._committer = committer
        after = 0
        while True:
            rows = await driver.read(ReadOutbox(after, _READ_EVENTS_MAX))
            self.add(rows)
            if len(rows) < _READ_EVENTS_MAX:
                return
            after = rows[-1].seq

    def add(self, rows: Sequence[EventRow]) -> None:
        """Take events that have just become durable."""
        for row in rows:
            self._waiting.setdefault(row.object_class, deque()).append(row)
        self.waiting += len(rows)
        for object_class in dict.fromkeys(row.object_class for row in rows):
            self._wake(object_class)

    def register(self, object_class: str, sink: EventSink) -> None:
        """Deliver the events of a class to `sink`."""
        self._sinks[object_class] = sink
        self._wake(object_class)

    async def flush(self, timeout_seconds: float) -> None:
        """Give what waits a chance to be delivered, before the host closes.

        A sink that is away is not waited for.
        """
        under_way = [
            task for name, task in self._tasks.items() if name not in self._away
        ]
        if under_way:
            await asyncio.wait(under_way, timeout=timeout_seconds)

    async def stop(self) -> None:
        """Deliver no more; what waits is delivered by the next process."""
        self._is_stopped = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for object_class, sink in self._sinks.items():
            close = getattr(sink, "close", None)
            if close is not None:
                try:
                    await close()
                except Exception:
                    log.exception("outbox.close_failed", object_class=object_class)

    def _wake(self, object_class: str) -> None:
        sink = self._sinks.get(object_class)
        if sink is None or object_class in self._tasks or self._committer is None:
            return
        if self._is_stopped:
            return
        if not self._waiting.get(object_class):
            return
        self._tasks[object_class] = asyncio.get_running_loop().create_task(
            self._deliver(object_class, sink), name=f"outbox {object_class}"
        )

    async def _deliver(self, object_class: str, sink: EventSink) -> None:
        waiting = self._waiting[object_class]
        failures = 0
        try:
            while waiting:
                rows = [waiting[i] for i in range(min(len(waiting), BATCH_EVENTS_MAX))]
                try:
                    await sink.deliver([_event(row) for row in rows])
                except (Exception, asyncio.CancelledError) as error:  # a sink's
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise  # the host is closing, or the loop is
                    failures += 1
                    self._away.add(object_class)
                    self.failed_attempts += 1
                    delay_ms = self._backoff_ms(failures)
                    log.warning(
                        "outbox.delivery_failed",
                        object_class=object_class,
                        waiting=len(waiting),
                        failures=failures,
                        delay_ms=delay_ms,
                        error=f"{type(error).__name__}: {error}",
                    )
                    await sleep_until(self._clock, self._clock.now_ms() + delay_ms)
                    continue
                failures = 0
                self._away.discard(object_class)
                for _ in rows:
                    waiting.popleft()
                self.waiting -= len(rows)
                self.delivered += len(rows)
                self._forget([row.seq for row in rows])
        finally:
            del self._tasks[object_class]

    def _forget(self, places: list[int]) -> None:
        assert self._committer is not None
        try:
            self._committer.seal(Seal(num=0, delivered=tuple(places)))
        except StorageError:
            # The host is stopping; these are delivered once more by the next process.
            log.warning("outbox.not_noted", events=len(places))

    def _backoff_ms(self, failures: int) -> int:
        ceiling = min(_BACKOFF_MS_MIN << min(failures - 1, 10), _BACKOFF_MS_MAX)
        return int(ceiling * (0.5 + self._random.random() / 2))


def _event(row: EventRow) -> OutboxEvent:
    data: Mapping[str, object] = msgspec.json.decode(row.data)
    return OutboxEvent(seq=row.seq, object_id=row.id.hex(), data=data)
