"""Schedules: recurring calls of an object, or starts of a run, that survive restarts.

Theory of operation
    A schedule is a record of a system object, `ScheduleTable`. APScheduler says when to
    look. A firing is first recorded as owed, together with the time it is for, in one
    turn; only then is it delivered, under an identity made of the schedule's name and
    that time; and only when it has arrived is it struck off. So a crash at any point
    leaves either nothing or a firing that is owed, which the next start delivers under
    the same identity: a call with a known identity runs once (G6), and a run is
    started once by its id.

    Times that passed while no host was open, or while an earlier firing was owed, are
    made up by one firing, for the latest of them.

Promises
    Each time fires once, as long as the target keeps its replies (`reply_ttl_ms`) and a
    run is remembered: what was delivered just before a crash is known to its target.
    A target that fails has had its firing; one that cannot be reached gets it later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from durable_actor.clock import Duration, Timer, duration_ms
from durable_actor.codec import convert_arguments, encode
from durable_actor.config import Config
from durable_actor.entrypoints import DurableObject, Method, interleave
from durable_actor.errors import (
    ConfigError,
    DurableActorError,
    HostClosedError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.host import Host
from durable_actor.log import get_logger
from durable_actor.recurring import Cron, Every, Timetable
from durable_actor.rpc import CallOptions
from durable_actor.seldom import Seldom

log = get_logger("durable_actor.schedules")

StartRun = Callable[[str, Any, str], Awaitable[object]]
"""Start a run: the workflow's name, its input, and the id of the run."""

RETRY_MS = 5_000  # after a delivery that could not be made


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
    is_configured: bool = False  # comes from the configuration, and goes with it

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
        timetable = self.timetable
        latest_ms = timetable.next_after(self.last_at_ms or self.created_at_ms)
        if latest_ms is None or latest_ms > now_ms:
            return None
        # Invariant: latest_ms is a time, and there is none after until_ms up to now.
        # Halving, as a year may have been missed of a schedule of seconds.
        until_ms = now_ms
        while latest_ms < until_ms:
            middle_ms = (latest_ms + until_ms) // 2
            found_ms = timetable.next_after(middle_ms)
            if found_ms is None or found_ms > now_ms:
                until_ms = middle_ms
            else:
                latest_ms = found_ms
        return latest_ms


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
        if known.is_paused == is_paused:
            return True
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
        self._tasks: set[asyncio.Task[bool]] = set()
        self._timers: dict[str, Timer] = {}
        self._full_lines = Seldom()
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
        self._timers.clear()
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
            ObjectError: No class is registered under the name.
            MethodNotFoundError: The class has no such method.
            EncodeError: An argument cannot be stored.
        """
        class_name = cls if isinstance(cls, str) else cls.__name__
        if not isinstance(cls, str):
            self._host.register(cls)
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
            EncodeError: The input cannot be stored.
        """
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
            ConfigError: Not exactly one of `cron` and `every_ms`, or not valid; or the
                host has no workflows.
            ObjectError: No class is registered under the name.
            MethodNotFoundError: The class has no such method.
            EncodeError: An argument or the input cannot be stored.
        """
        self._check(schedule)
        self._arm(await self._table.save(schedule))

    async def remove(self, name: str) -> bool:
        """Forget a schedule; was there one?"""
        self._host.recurring.remove(_job_name(name))
        self._armed.discard(name)
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

    def fit(self, schedule: Schedule) -> Schedule:
        """Check a schedule; return it with arguments as its method wants them.

        For schedules that were written in JSON or TOML, which have no sets or
        dataclasses.

        Raises:
            DurableActorError: As `add`, or the arguments do not fit the method.
        """
        self._check(schedule)
        if schedule.object_class is None:
            return schedule
        function = self._method(schedule).function
        args, _ = convert_arguments(function, list(schedule.args), {})
        return replace(schedule, args=args)

    async def look(self, name: str) -> bool:
        """Deliver what is owed or due of one schedule; did anything arrive?

        What cannot be delivered stays owed, and is tried again soon.
        """
        has_fired = False
        try:
            while (owed := await self._table.owe(name)) is not None:
                assert owed.owed_at_ms is not None
                await self._deliver(owed, owed.owed_at_ms)
                await self._table.strike_off(name, owed.owed_at_ms)
                has_fired = True
        except (HostClosedError, StorageFailedError):
            pass  # the next start delivers it
        except DurableActorError as error:
            is_full = isinstance(error, StorageFullError)  # a matter of all of them
            kept_back = self._full_lines.kept_back() if is_full else 0
            if kept_back is not None:
                log.warning("schedule.postponed", name=name, error=str(error))
            if not self._host.is_draining:
                self._look_later(name)
        return has_fired

    def _check(self, schedule: Schedule) -> None:
        """Refuse what could never fire, before it is stored."""
        try:
            if (schedule.cron is None) == (schedule.every_ms is None):
                message = "give cron or every, one of them"
                raise ConfigError(message)
            _ = schedule.timetable
            if schedule.workflow is not None and self._start_run is None:
                message = "this host serves no workflows"
                raise ConfigError(message)
        except ConfigError as error:
            message = f"schedule {schedule.name!r}: {error}"
            raise ConfigError(message) from error
        if schedule.workflow is None:
            self._method(schedule)
        encode(schedule)

    def _method(self, schedule: Schedule) -> Method:
        class_name = schedule.object_class or ""
        self._host.namespace_by_name(class_name)  # refuses a name nobody has
        info = self._host.class_info(class_name)
        assert info is not None
        return info.method(schedule.method or "")

    async def _deliver(self, schedule: Schedule, at_ms: int) -> None:
        """Let a firing arrive; a failure of the target's own is only told.

        Raises:
            DurableActorError: It has not arrived, or nobody knows.
        """
        try:
            if schedule.workflow is None:
                await self._call(schedule, at_ms)
            else:
                await self._run(schedule.workflow, schedule, at_ms)
        except DurableActorError as error:
            if _may_arrive_later(error):
                raise
            log.warning("schedule.failed", name=schedule.name, error=str(error))
        except Exception as error:  # noqa: BLE001  # the target's own; it has run
            text = f"{type(error).__name__}: {error}"
            log.warning("schedule.failed", name=schedule.name, error=text)

    async def _call(self, schedule: Schedule, at_ms: int) -> None:
        namespace = self._host.namespace_by_name(schedule.object_class or "")
        options = CallOptions(request_id=f"schedule:{schedule.name}:{at_ms}")
        target = namespace.id_from_name(schedule.object_name or "")
        await self._host.call(target, schedule.method or "", schedule.args, {}, options)

    async def _run(self, workflow: str, schedule: Schedule, at_ms: int) -> None:
        if self._start_run is None:
            message = "this host serves no workflows"
            raise ConfigError(message)
        await self._start_run(workflow, schedule.input, f"{schedule.name}-{at_ms}")

    def _arm(self, schedule: Schedule) -> None:
        async def look() -> None:
            # Not awaited itself: `stop` ends it, and that is no failure of the job.
            await asyncio.wait([self._look_soon(schedule.name)])

        self._armed.add(schedule.name)
        self._host.recurring.add(_job_name(schedule.name), schedule.timetable, look)

    def _look_later(self, name: str) -> None:
        earlier = self._timers.pop(name, None)
        if earlier is not None:
            earlier.cancel()

        def look() -> None:
            self._look_soon(name)

        clock = self._host.clock
        self._timers[name] = clock.call_later(RETRY_MS, look)

    def _look_soon(self, name: str) -> asyncio.Task[bool]:
        task = asyncio.get_running_loop().create_task(
            self.look(name),
            name=f"schedule {name}",
            # Not that of an object which happened to make the schedule.
            context=self._host.context.copy(),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def schedules_from_config(config: Config) -> list[Schedule]:
    """Return the schedules that a configuration names."""
    found = []
    for named in config.schedules:
        object_class, _, object_name = (named.object or "").partition("/")
        found.append(
            Schedule(
                name=named.name,
                cron=named.cron,
                every_ms=None if named.every is None else duration_ms(named.every),
                timezone=named.timezone,
                object_class=object_class or None,
                object_name=object_name or None,
                method=named.method,
                args=named.args,
                workflow=named.workflow,
                input=named.input,
                is_configured=True,
            )
        )
    return found


async def apply(
    schedules: Schedules, config: Config, *, workflows: Collection[str] = ()
) -> None:
    """Make what recurs what the configuration says; what code has made stays.

    Call it before `Schedules.start`, so that what is gone from the configuration does
    not fire once more.

    Args:
        schedules: Of the host that serves the configuration.
        config: Where `[[schedules]]` are.
        workflows: The names that runs can be started by.

    Raises:
        ConfigError: One of them could never fire; names it. Nothing was changed.
    """
    wanted = []
    for schedule in schedules_from_config(config):
        try:
            if schedule.workflow is not None and schedule.workflow not in workflows:
                known = ", ".join(sorted(workflows)) or "none"
                message = f"no workflow is called {schedule.workflow!r}; known: {known}"
                raise ConfigError(message)
            wanted.append(schedules.fit(schedule))
        except DurableActorError as error:
            message = f"schedule {schedule.name!r}: {error}"
            raise ConfigError(message) from error
    names = {schedule.name for schedule in wanted}
    for name, stored in (await schedules.all()).items():
        if stored.is_configured and name not in names:
            await schedules.remove(name)
    for schedule in wanted:
        await schedules.add(schedule)


def _may_arrive_later(error: DurableActorError) -> bool:
    # A reply that was kept comes back as `remote`: the target has run, and raised it.
    return not error.remote and (
        error.retryable or error.overloaded or error.outcome == "unknown"
    )


def _job_name(name: str) -> str:
    return f"schedule:{name}"
