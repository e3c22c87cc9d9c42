"""Schedules: recurring calls of an object, or starts of a run, that survive restarts.

Theory of operation
    A schedule is a record of a system object, `ScheduleTable`. APScheduler says when to
    look. A firing is first recorded as owed, together with the time it is for, in one
    turn; only then is it delivered, under an identity made of the schedule's name and
    that time; and only when it has arrived is it struck off. So a crash at any point
    leaves either nothing or a firing that is owed, which the next start delivers under
    the same identity: a call with a known identity runs once (G6), and a run is
    started once by its id.

    Times that passed while no host was open are made up by one firing, for the latest
    of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from durable_actor.clock import Duration, Timer, duration_ms
from durable_actor.codec import encode
from durable_actor.entrypoints import DurableObject, interleave
from durable_actor.errors import ConfigError, DurableActorError, HostClosedError
from durable_actor.host import Host
from durable_actor.log import get_logger
from durable_actor.recurring import Cron, Every, Timetable
from durable_actor.rpc import CallOptions

log = get_logger("durable_actor.schedules")

StartRun = Callable[[str, Any, str], Awaitable[object]]
"""Start a run: the workflow's name, its input, and the id of the run."""

RETRY_MS = 5_000  # after a delivery that could not be made
_CATCH_UP_MAX = 100_000  # times counted when looking for the latest that was missed


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What recurs, when, and how far it has come. Times in epoch milliseconds."""

    name: str
    cron: str | None = None
    every_ms: int | None = None
    timezone: str = "UTC"
    object_class: str | None = None
    object_name: str | None = None
    method: str | None = None
    args: tuple[Any, ...] = ()
    workflow: str | None = None
    input: Any = None
    created_at_ms: int = 0
    last_at_ms: int = 0  # the time that was fired for last; 0: none yet
    owed_at_ms: int | None = None  # recorded, and not known to have arrived
    is_paused: bool = False

    def timetable_key(self) -> tuple[str | None, int | None, str]:
        """Return what the timetable is made from, to compare."""
        return (self.cron, self.every_ms, self.timezone)

    @property
    def timetable(self) -> Timetable:
        """When it recurs."""
        if self.cron is not None:
            return Cron(self.cron, self.timezone)
        return Every(self.every_ms or 0, anchor_ms=self.created_at_ms)

    def next_at_ms(self) -> int | None:
        """Return the next time it is for."""
        return self.timetable.next_after(self.last_at_ms or self.created_at_ms)

    def latest_due_ms(self, now_ms: int) -> int | None:
        """Return the latest time that has come and was not fired for."""
        timetable, latest = self.timetable, None
        at_ms = timetable.next_after(self.last_at_ms or self.created_at_ms)
        if isinstance(timetable, Every) and at_ms is not None and at_ms <= now_ms:
            return timetable.next_after(now_ms) - timetable.every_ms
        for _ in range(_CATCH_UP_MAX):
            if at_ms is None or at_ms > now_ms:
                break
            latest = at_ms
            at_ms = timetable.next_after(at_ms)
        return latest


class ScheduleTable(DurableObject):
    """The schedules of a host, as keys of one object."""

    async def save(self, schedule: Schedule) -> Schedule:
        """Add a schedule, or change one; how far it has come is kept."""
        known: Schedule | None = await self.ctx.storage.get(schedule.name)
        now_ms = self.ctx.clock.now_ms()
        if known is None:
            schedule = replace(schedule, created_at_ms=now_ms)
        else:
            schedule = replace(
                schedule,
                created_at_ms=known.created_at_ms,
                last_at_ms=known.last_at_ms,
                owed_at_ms=known.owed_at_ms,
                is_paused=known.is_paused,
            )
            if schedule.timetable_key() != known.timetable_key():
                # A new timetable owes nothing for times before it was made.
                schedule = replace(schedule, last_at_ms=now_ms)
        self.ctx.storage.put(schedule.name, schedule)
        return schedule

    async def remove(self, name: str) -> bool:
        """Forget a schedule; was there one?"""
        return await self.ctx.storage.delete(name)

    async def pause(self, name: str, *, is_paused: bool) -> bool:
        """Stop or resume firing; times that pass meanwhile are not made up."""
        known: Schedule | None = await self.ctx.storage.get(name)
        if known is None:
            return False
        last_at_ms = known.last_at_ms if is_paused else self.ctx.clock.now_ms()
        self.ctx.storage.put(
            name, replace(known, is_paused=is_paused, last_at_ms=last_at_ms)
        )
        return True

    @interleave
    async def everything(self) -> list[Schedule]:
        """Return all schedules, by name."""
        return list((await self.ctx.storage.list()).values())

    async def owe(self, name: str) -> Schedule | None:
        """Record that a firing is owed, if one is; return it with `owed_at_ms` set."""
        known: Schedule | None = await self.ctx.storage.get(name)
        if known is None or known.is_paused:
            return None
        if known.owed_at_ms is None:
            due_at_ms = known.latest_due_ms(self.ctx.clock.now_ms())
            if due_at_ms is None:
                return None
            known = replace(known, owed_at_ms=due_at_ms, last_at_ms=due_at_ms)
            self.ctx.storage.put(name, known)
        return known

    async def strike_off(self, name: str, at_ms: int) -> None:
        """The firing for this time has arrived."""
        known: Schedule | None = await self.ctx.storage.get(name)
        if known is not None and known.owed_at_ms == at_ms:
            self.ctx.storage.put(name, replace(known, owed_at_ms=None))


class Schedules:
    """The schedules of a host; `start` them once its classes are registered."""

    def __init__(self, host: Host, *, start_run: StartRun | None = None) -> None:
        self._host = host
        self._start_run = start_run
        self._table = host.namespace(ScheduleTable).get_by_name("default")
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, Timer] = {}
        self._armed: set[str] = set()

    async def start(self) -> None:
        """Deliver what is owed, make up for what was missed, and go on from there."""
        for schedule in await self._table.everything():
            self._arm(schedule)
            self._look_soon(schedule.name)

    async def stop(self) -> None:
        """Fire no more; what is under way is finished by the next start."""
        for name in self._armed:
            self._host.recurring.remove(_job_name(name))
        self._armed.clear()
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def call(
        self,
        name: str,
        cls: type[DurableObject] | str,
        object_name: str,
        method: str,
        *args: Any,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str = "UTC",
    ) -> None:
        """Call a method of an object again and again.

        Args:
            name: Identifies the schedule; the same name again changes it.
            cls: The object's class, or the name it is registered under.
            object_name: The object's name.
            method: A public method of it.
            args: What it is given each time.
            cron: A cron expression in `timezone`, such as `"0 3 * * *"`.
            every: Or a distance, such as `"10 minutes"`.
            timezone: Such as `"Europe/Berlin"`.

        Raises:
            ConfigError: Not exactly one of `cron` and `every`, or not valid.
            MethodNotFoundError: The class has no such method.
        """
        class_name = cls if isinstance(cls, str) else cls.__name__
        if not isinstance(cls, str):
            self._host.register(cls)
        self._host.namespace_by_name(class_name)
        info = self._host.class_info(class_name)
        assert info is not None
        info.method(method)
        encode(args)
        await self.add(
            Schedule(
                name=name,
                cron=cron,
                every_ms=None if every is None else duration_ms(every),
                timezone=timezone,
                object_class=class_name,
                object_name=object_name,
                method=method,
                args=args,
            )
        )

    async def run(
        self,
        name: str,
        workflow: str,
        input: Any = None,  # noqa: A002  # the word workflows use
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str = "UTC",
    ) -> None:
        """Start a run of a workflow again and again, each under an id of its own.

        Raises:
            ConfigError: Not exactly one of `cron` and `every`, or not valid; or the
                host has no workflows.
        """
        if self._start_run is None:
            message = f"schedule {name!r}: this host serves no workflows"
            raise ConfigError(message)
        await self.add(
            Schedule(
                name=name,
                cron=cron,
                every_ms=None if every is None else duration_ms(every),
                timezone=timezone,
                workflow=workflow,
                input=input,
            )
        )

    async def add(self, schedule: Schedule) -> None:
        """Store a schedule and begin to fire it; see `call` and `run`.

        Raises:
            ConfigError: Not exactly one of `cron` and `every_ms`, or not valid.
        """
        if (schedule.cron is None) == (schedule.every_ms is None):
            message = f"schedule {schedule.name!r}: give cron or every, one of them"
            raise ConfigError(message)
        _ = schedule.timetable  # refuses what is not valid, before it is stored
        self._arm(await self._table.save(schedule))

    async def remove(self, name: str) -> bool:
        """Forget a schedule; was there one?"""
        self._host.recurring.remove(_job_name(name))
        return await self._table.remove(name)

    async def pause(self, name: str) -> bool:
        """Stop firing until `resume`; was there such a schedule?"""
        return await self._table.pause(name, is_paused=True)

    async def resume(self, name: str) -> bool:
        """Fire again, from the next time on."""
        return await self._table.pause(name, is_paused=False)

    async def all(self) -> Mapping[str, Schedule]:
        """Return the schedules by name."""
        return {schedule.name: schedule for schedule in await self._table.everything()}

    async def look(self, name: str) -> bool:
        """Deliver what is owed or due of one schedule; was there anything?

        What cannot be delivered stays owed, and is tried again soon.
        """
        owed = await self._table.owe(name)
        if owed is None or owed.owed_at_ms is None:
            return False
        try:
            await self._deliver(owed, owed.owed_at_ms)
        except HostClosedError:
            return False
        except DurableActorError as error:
            if error.retryable or error.outcome == "unknown":
                log.warning("schedule.postponed", name=name, error=str(error))
                self._look_later(name)
                return False
            log.warning("schedule.failed", name=name, error=str(error))
        except Exception as error:  # noqa: BLE001  # the target's own; it has run
            log.warning(
                "schedule.failed", name=name, error=f"{type(error).__name__}: {error}"
            )
        await self._table.strike_off(name, owed.owed_at_ms)
        return True

    async def _deliver(self, schedule: Schedule, at_ms: int) -> None:
        if schedule.workflow is not None:
            if self._start_run is None:
                message = f"schedule {schedule.name!r}: this host serves no workflows"
                raise ConfigError(message)
            run_id = f"{schedule.name}-{at_ms}"
            await self._start_run(schedule.workflow, schedule.input, run_id)
            return
        namespace = self._host.namespace_by_name(schedule.object_class or "")
        options = CallOptions(request_id=f"schedule:{schedule.name}:{at_ms}")
        target = namespace.id_from_name(schedule.object_name or "")
        await self._host.call(target, schedule.method or "", schedule.args, {}, options)

    def _arm(self, schedule: Schedule) -> None:
        async def look() -> None:
            await self.look(schedule.name)

        self._host.recurring.add(_job_name(schedule.name), schedule.timetable, look)
        self._armed.add(schedule.name)

    def _look_later(self, name: str) -> None:
        clock = self._host.clock
        timer = clock.call_at(clock.now_ms() + RETRY_MS, lambda: self._look_soon(name))
        self._timers[name] = timer

    def _look_soon(self, name: str) -> None:
        async def look() -> None:
            try:
                await self.look(name)
            except DurableActorError as error:
                log.warning("schedule.postponed", name=name, error=str(error))

        task = asyncio.get_running_loop().create_task(look(), name=f"schedule {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _job_name(name: str) -> str:
    return f"schedule:{name}"
