"""`/metrics`: the counters of one host in the text format of Prometheus.

Each daemon has its own registry, so that two in one process do not collide. The name of
an object is never a label.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_STATES: Final = ("ok", "full", "failed")

# The field of the host's statistics: the metric, and what it means.
_GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "objects_resident": ("durable_objects_resident", "Objects in memory."),
    "objects_waiting_events": (
        "durable_mailbox_waiting_events",
        "Events that wait in mailboxes.",
    ),
    "mailbox_depth_max": (
        "durable_mailbox_depth_max",
        "Events that wait in the fullest mailbox.",
    ),
    "cached_bytes": ("durable_objects_cached_bytes", "Stored values kept in memory."),
    "alarms_near": ("durable_alarms_near", "Alarms on the wheel."),
    "starts_failing": (
        "durable_starts_failing",
        "Objects with a due alarm that cannot be started.",
    ),
    "durable_ticket": ("durable_commit_ticket", "The newest turn that is on disk."),
    "events_waiting": (
        "durable_outbox_waiting_events",
        "Events on their way to a sink.",
    ),
    "web_sockets": ("durable_web_sockets", "Hibernatable sockets that are open."),
    "objects_stored": ("durable_objects_stored", "Objects on disk, sampled."),
    "alarms_stored": ("durable_alarms_stored", "Alarms on disk, sampled."),
    "database_bytes": ("durable_storage_bytes", "Size of the database, sampled."),
    "wal_bytes": ("durable_wal_bytes", "Size of the write-ahead log, sampled."),
    "log_rows": ("durable_log_rows", "Groups not folded into the tables, sampled."),
    "epoch": ("durable_epoch", "How often the data directory has been opened."),
}
_COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "calls": ("durable_calls", "Events delivered to objects."),
    "calls_failed": ("durable_calls_failed", "Deliveries that raised."),
    "shed": ("durable_shed", "Events refused because a mailbox was full."),
    "activated": ("durable_activations", "Objects loaded into memory."),
    "reset": ("durable_resets", "Activations that broke."),
    "alarms_delivered": ("durable_alarms_delivered", "Alarm handlers run."),
    "alarms_failed": ("durable_alarms_failed", "Alarm handlers that raised."),
    "alarms_abandoned": ("durable_alarms_abandoned", "Alarms given up."),
    "groups_committed": ("durable_commits", "Transactions, one sync each."),
    "turns_committed": ("durable_turns", "Turns made durable."),
    "events_delivered": ("durable_outbox_delivered", "Events a sink has taken."),
    "events_dropped": ("durable_outbox_dropped", "Events dropped at a full outbox."),
    "replies_kept": ("durable_replies_kept", "Replies kept for a repeat of the call."),
    "replies_repeated": ("durable_replies_repeated", "Repeats that got a kept reply."),
    "replies_dropped": ("durable_replies_dropped", "Kept replies over their number."),
    "replies_expired": ("durable_replies_expired", "Repeats too late for a reply."),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopStats:
    """How well the event loop comes round."""

    lag_seconds: float = 0.0
    blocked: int = 0
    degraded: int = 0
    interrupted: int = 0


class HostCollector(Collector):
    """Asks the host when it is asked."""

    def __init__(
        self,
        stats: Callable[[], Any],
        *,
        state: Callable[[], str],
        in_flight: Callable[[], int],
        loop: Callable[[], LoopStats],
    ) -> None:
        self._loop = loop
        self._stats = stats
        self._state = state
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        """Yield every metric. A field without a description is not shown."""
        values = dataclasses.asdict(self._stats())
        for field, (name, text) in _GAUGES.items():
            if field in values:
                yield GaugeMetricFamily(name, text, value=values[field])
        for field, (name, text) in _COUNTERS.items():
            if field in values:
                yield CounterMetricFamily(name, text, value=values[field])
        state = GaugeMetricFamily(
            "durable_storage_state", "1 for the state storage is in.", labels=["state"]
        )
        current = self._state()
        for name in _STATES:
            state.add_metric([name], float(name == current))
        yield state
        yield GaugeMetricFamily(
            "durable_http_in_flight", "Requests in flight.", value=self._in_flight()
        )
        loop = self._loop()
        yield GaugeMetricFamily(
            "durable_loop_lag_seconds",
            "How long the event loop took to come round, when last asked.",
            value=loop.lag_seconds,
        )
        for name, text, count in (
            ("blocked", "Times the event loop was blocked.", loop.blocked),
            ("degraded", "Times it was, for long.", loop.degraded),
            ("interrupted", "Times object code was interrupted.", loop.interrupted),
        ):
            yield CounterMetricFamily(f"durable_loop_{name}", text, value=count)
        build = GaugeMetricFamily(
            "durable_build_info", "Always 1.", labels=["version", "python"]
        )
        build.add_metric([version("durable-actor"), platform.python_version()], 1)
        yield build


def make_metrics(
    stats: Callable[[], Any],
    *,
    state: Callable[[], str],
    in_flight: Callable[[], int],
    loop: Callable[[], LoopStats] = LoopStats,
) -> Callable[[], bytes]:
    """Return a function that renders the metrics of one host."""
    registry = CollectorRegistry()
    registry.register(HostCollector(stats, state=state, in_flight=in_flight, loop=loop))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)
