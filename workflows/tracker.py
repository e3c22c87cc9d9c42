"""Where events go: the `Tracker` protocol and the two that need no network.

A tracker is the `event_sink` of the engine class. The host offers it the oldest
undelivered events, in order; if it raises, the same events are offered again later,
with back-off. So a tracker sees each event at least once, and a slow or dead one never
slows or fails a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from durable_actor import EventSink, OutboxEvent

Tracker: TypeAlias = EventSink


class NoopTracker:
    """Takes every event and keeps none; `tracker=None` is cheaper."""

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        """Do nothing."""


class InMemoryTracker:
    """Keeps the newest events in a list, for tests and for looking around."""

    def __init__(self, *, events_max: int = 10_000) -> None:
        self.events: list[Mapping[str, object]] = []
        self._events_max = events_max
        self._seen: set[object] = set()

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        """Keep what was not delivered before; beyond the bound the oldest go."""
        for row in events:
            event_id = row.data.get("eventId")
            if event_id not in self._seen:
                self._seen.add(event_id)
                self.events.append(row.data)
        excess = max(0, len(self.events) - self._events_max)
        for event in self.events[:excess]:
            self._seen.discard(event.get("eventId"))
        del self.events[:excess]

    def types(self, run_id: str | None = None) -> list[str]:
        """Return the types in order of arrival, of one run or of all."""
        return [
            str(event["type"])
            for event in self.events
            if run_id is None or event["workflowId"] == run_id
        ]

    def clear(self) -> None:
        """Forget all events."""
        self.events.clear()
        self._seen.clear()
