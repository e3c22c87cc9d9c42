"""Surroundings: what an activation finds around it.

The settings that hold for all objects of a host, what is counted of all of them, and
what an activation may ask of its host. Parts of an activation that stand in a module of
their own ask through the same `Surroundings`.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from dataclasses import dataclass, field
from typing import Protocol, Self

from durable_actor.breadcrumbs import Breadcrumbs
from durable_actor.clock import Clock
from durable_actor.config import Config
from durable_actor.databases import Databases
from durable_actor.env import Env
from durable_actor.ids import ObjectId
from durable_actor.mailbox import MailboxBounds
from durable_actor.memory import Memory
from durable_actor.reminders import Reminders
from durable_actor.replies import KeptRepliesLimits, ReplyCounters
from durable_actor.seldom import Seldom
from durable_actor.sockets import Sockets
from durable_actor.storage.committer import Committer
from durable_actor.storage.kv import KeyValueLimits
from durable_actor.storage.ports import ShardDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSettings:
    """What the configuration says about objects. Times in milliseconds."""

    limits: KeyValueLimits = field(default_factory=KeyValueLimits)
    bounds: MailboxBounds = field(default_factory=MailboxBounds)
    slice_ms: int = 5
    constructor_timeout_ms: int = 30_000
    alarm_retry_limit: int = 6
    alarm_retry_base_ms: int = 2_000
    replies: KeptRepliesLimits = field(default_factory=KeptRepliesLimits)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a configuration says."""
        storage, objects, alarms = config.storage, config.objects, config.alarms
        return cls(
            limits=KeyValueLimits(
                key_bytes_max=storage.key_bytes_max,
                value_bytes_max=storage.value_bytes_max,
                batch_entries_max=storage.batch_entries_max,
                turn_bytes_max=storage.turn_bytes_max,
                list_bytes_max=storage.list_bytes_max,
            ),
            bounds=MailboxBounds(
                events_max=objects.mailbox_events_max,
                bytes_max=objects.mailbox_bytes_max,
                age_ms_max=objects.mailbox_age_ms_max,
                rate_max=objects.mailbox_rate_max,
            ),
            slice_ms=objects.slice_ms,
            constructor_timeout_ms=objects.constructor_timeout_ms,
            alarm_retry_limit=alarms.retry_limit,
            alarm_retry_base_ms=alarms.retry_base_ms,
            replies=KeptRepliesLimits(
                ttl_ms=storage.reply_ttl_ms,
                replies_max=storage.replies_per_object_max,
            ),
        )


@dataclass(slots=True)
class ActivationCounters:
    """What all activations of a host have done so far."""

    calls: int = 0
    calls_failed: int = 0
    shed: int = 0
    activated: int = 0
    reset: int = 0
    alarms_delivered: int = 0
    alarms_failed: int = 0
    alarms_abandoned: int = 0
    events_dropped: int = 0
    replies: ReplyCounters = field(default_factory=ReplyCounters)
    # Of the log, about objects that met a full disk: each caller meets it again.
    full_lines: Seldom = field(default_factory=Seldom)


class Live(Protocol):
    """An activation, as what plans its work for it sees it."""

    id: ObjectId

    @property
    def ticket(self) -> int:
        """The last ticket it depends on."""

    def turn_ended(self) -> None:
        """Seal what the step that is over wrote."""

    async def drain(self, task: asyncio.Task[None]) -> None:
        """Run the events in line, in this task."""


class Surroundings(Protocol):
    """What an activation needs from its host."""

    committer: Committer
    driver: ShardDriver
    clock: Clock
    random: random.Random
    env: Env
    settings: ActivationSettings
    counters: ActivationCounters
    memory: Memory
    context: contextvars.Context
    reminders: Reminders
    sockets: Sockets
    databases: Databases
    breadcrumbs: Breadcrumbs | None

    def plan_turn_end(self, activation: Live, /) -> None:
        """Call `turn_ended` once the running step is over."""

    def plan_drain(self, activation: Live, /) -> None:
        """Call `drain` in a task that runs nothing else meanwhile."""

    def forget(self, activation: Live, /) -> None:
        """The activation is broken: let the next event start another one."""

    def reserve_event(self) -> bool:
        """Take room for one event in the outbox, if there is any."""

    def release_events(self, count: int) -> None:
        """Give room back: these events are in the outbox now, or are lost."""
