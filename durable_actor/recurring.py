"""What recurs: the one APScheduler of a host, and when a schedule is due.

APScheduler decides only *when to look*: a job never carries work, it calls a function
that asks what is due. What must survive a restart is in objects. Cron expressions are
read by cronsim, whose answers stay right at changes of summer time and where days of
the month and of the week are both given.

The only module that knows APScheduler, which has no types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from cronsim import CronSim, CronSimError

from durable_actor.clock import Duration, duration_ms, to_datetime
from durable_actor.config import cron_expression
from durable_actor.errors import ConfigError
from durable_actor.log import get_logger

log = get_logger("durable_actor.recurring")

EVERY_MS_MIN = 10  # more often is a loop, not a schedule
_EPOCH = to_datetime(0)
_MS = timedelta(milliseconds=1)


class Timetable(Protocol):
    """When something recurs."""

    def next_after(self, at_ms: int) -> int | None:
        """Return the first time after this one, in epoch milliseconds, if any."""
        ...


class Every:
    """At a fixed distance, counted from an anchor, so that restarts do not shift it."""

    def __init__(self, every: Duration, *, anchor_ms: int = 0) -> None:
        """Describe an interval.

        Raises:
            ConfigError: Shorter than 10 milliseconds.
        """
        self.every_ms = duration_ms(every)
        self._anchor_ms = anchor_ms
        if self.every_ms < EVERY_MS_MIN:
            message = f"every {every!r} is less than {EVERY_MS_MIN} ms"
            raise ConfigError(message)

    def next_after(self, at_ms: int) -> int:
        """Return the first multiple after a time."""
        passed = (at_ms - self._anchor_ms) // self.every_ms
        return self._anchor_ms + (passed + 1) * self.every_ms


class Cron:
    """A cron expression in a time zone; also `@hourly`, `@daily` and their like."""

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """Describe a cron schedule.

        Raises:
            ConfigError: The expression or the time zone is not one.
        """
        self.expression = cron_expression(expression)
        try:
            self._zone = ZoneInfo(timezone)
            CronSim(self.expression, datetime(2000, 1, 1, tzinfo=UTC))
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            message = f"{timezone!r} is not a known time zone, such as Europe/Berlin"
            raise ConfigError(message) from error
        except CronSimError as error:
            message = f"{expression!r} is not a cron expression: {error}"
            raise ConfigError(message) from error

    def next_after(self, at_ms: int) -> int | None:
        """Return the first matching time after a time."""
        start = to_datetime(at_ms).astimezone(self._zone)
        for found in CronSim(self.expression, start):
            # In the hour that comes again, cronsim begins with times of its first pass.
            if (found_ms := _epoch_ms(found)) > at_ms:
                return found_ms
        return None

    @property
    def explanation(self) -> str:
        """The expression in English."""
        return str(CronSim(self.expression, datetime.now(self._zone)).explain())


class Recurring:
    """Runs functions again and again while a host is open."""

    def __init__(self) -> None:
        self._is_running = False
        # Without a grace time a late job still runs, once, instead of being dropped.
        self._scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={
                "misfire_grace_time": None,
                "coalesce": True,
                "max_instances": 1,
            },
        )

    def start(self) -> None:
        """Begin to run what was added, on the running loop."""
        self._scheduler.start()
        self._is_running = True

    def stop(self) -> None:
        """Run nothing any more, and cancel what runs."""
        # APScheduler stops a moment later; until then it says that it is running.
        if self._is_running:
            self._is_running = False
            self._scheduler.shutdown(wait=False)

    def add(
        self, name: str, timetable: Timetable, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Run `work` at each time of the timetable; replaces one of the same name."""

        async def run() -> None:
            try:
                await work()
            except asyncio.CancelledError:
                pass  # by `stop`; APScheduler would report it as an error of the job
            except Exception:
                log.exception("recurring.failed", name=name)

        self._scheduler.add_job(
            run, _Trigger(timetable), id=name, name=name, replace_existing=True
        )

    def remove(self, name: str) -> None:
        """Run it no more."""
        if self._scheduler.get_job(name) is not None:
            self._scheduler.remove_job(name)


class _Trigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Lets a timetable of ours decide."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime | None:
        after = now if previous_fire_time is None else max(previous_fire_time, now)
        at_ms = self._timetable.next_after(_epoch_ms(after))
        return None if at_ms is None else to_datetime(at_ms)


def _epoch_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def describe(timetable: Timetable) -> str:
    """Return a timetable in words."""
    if isinstance(timetable, Cron):
        return timetable.explanation
    assert isinstance(timetable, Every)
    return f"Every {timedelta(milliseconds=timetable.every_ms)}"
