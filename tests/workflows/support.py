"""One run on a storage of dictionaries: what the host does for it, in a page.

`Bench` delivers alarms, moves the clock and can be crashed: what was not committed is
gone. `Disk` commits at the end of each turn and can be stopped after any commit, which
is how the tests crash a run at every place where a crash makes a difference.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any

from durable_actor import Env, decode, duration_ms, encode
from durable_actor.testing import ManualClock
from workflows.announcer import Announcer
from workflows.answers import CancelResult, RunResult, WorkflowCall
from workflows.definition import WorkflowDefinition
from workflows.journal import Journal
from workflows.orchestrator import Orchestrator, Policies
from workflows.recovery import Recovery, Trials
from workflows.registry import Registry

ALARM_RUNNING = -1


class Done:
    """An awaitable that already has its result."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __await__(self) -> Any:
        return self.value
        yield


class Disk:
    """Keys, one alarm and an outbox; committed together at the end of each turn."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.alarm: int | None = None
        self.events: list[Mapping[str, object]] = []
        self.attributes: dict[str, str] = {}
        self.commits = 0

    def copy(self) -> Disk:
        other = Disk()
        other.keys = dict(self.keys)
        other.alarm = self.alarm
        other.events = list(self.events)
        other.attributes = dict(self.attributes)
        other.commits = self.commits
        return other


class FakeStorage:
    """The storage of one activation: its writes reach the disk at the end of a turn."""

    def __init__(self, disk: Disk, *, commits_max: int | None = None) -> None:
        self.disk = disk
        self.now = disk.copy()
        self.commits_max = commits_max
        self.reads = 0
        self.handled: int | None = None  # the alarm whose handler runs
        self._turn: asyncio.Future[None] | None = None

    @property
    def is_stopped(self) -> bool:
        return self.commits_max is not None and self.disk.commits >= self.commits_max

    def get(self, key: str, default: Any = None, /) -> Awaitable[Any]:
        self.reads += 1
        data = self.now.keys.get(key)
        return Done(default if data is None else decode(data))

    def put(self, key: str, value: Any, /) -> Awaitable[None]:
        self.now.keys[key] = encode(value)
        return self._wrote()

    def list(self, *, prefix: str) -> Awaitable[Mapping[str, Any]]:
        self.reads += 1
        found = {
            key: decode(data)
            for key, data in sorted(self.now.keys.items())
            if key.startswith(prefix)
        }
        return Done(found)

    def delete_all(self) -> Awaitable[None]:
        self.now.keys.clear()
        self.now.alarm = None
        return self._wrote()

    def set_alarm(self, when: int, /) -> Awaitable[None]:
        self.now.alarm = when
        self.handled = None
        return self._wrote()

    def delete_alarm(self) -> Awaitable[None]:
        self.now.alarm = None
        self.handled = None
        return self._wrote()

    def emit(self, event: Mapping[str, object]) -> None:
        self.now.events.append(event)
        self._wrote()

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        self.now.attributes = dict(attributes)
        self._wrote()

    async def sync(self) -> None:
        if self._turn is not None:
            await asyncio.shield(self._turn)

    def _wrote(self) -> Awaitable[None]:
        if self._turn is None:
            loop = asyncio.get_running_loop()
            self._turn = loop.create_future()
            loop.call_soon(self._commit)
        return Done()

    def _commit(self) -> None:
        assert self._turn is not None
        if self.is_stopped:
            return  # the process died here: nobody who waits will hear of it
        turn, self._turn = self._turn, None
        commits = self.disk.commits + 1
        vars(self.disk).update(vars(self.now.copy()))
        self.disk.commits = self.now.commits = commits
        if not turn.done():
            turn.set_result(None)


class Bench:
    """One run of some workflows, with everything around it that it needs."""

    def __init__(
        self,
        *workflows: WorkflowDefinition[Any, Any],
        recovery: Recovery | None = None,
        retention: str | None = None,
        resident_sleep: str = "60 seconds",
        tracker: bool = True,
    ) -> None:
        self.clock = ManualClock()
        self.disk = Disk()
        self.workflows = {definition.name: definition for definition in workflows}
        self.has_tracker = tracker
        self.policies = Policies(
            recovery=recovery or Recovery(),
            retention_ms=None if retention is None else duration_ms(retention),
            resident_sleep_ms=duration_ms(resident_sleep),
        )
        self.activations = 0
        self.storage: FakeStorage
        self.orchestrator: Orchestrator
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handler: asyncio.Task[None] | None = None

    async def activate(self, *, commits_max: int | None = None) -> None:
        """Start an activation on what is on the disk."""
        self.activations += 1
        self.storage = FakeStorage(self.disk, commits_max=commits_max)
        journal = Journal(self.storage)
        source = random.Random(self.activations)
        announcer = Announcer(
            self.storage.emit if self.has_tracker else None,
            self.clock,
            source,
            next_seq=journal.next_event_seq,
        )
        self.journal = journal
        self.orchestrator = Orchestrator(
            journal,
            Registry(self.workflows),
            announcer,
            clock=self.clock,
            source=source,
            env=Env(self._no_namespace),
            label="bench",
            policies=self.policies,
            trials=Trials(),
            spawn=self._spawn,
            publish=self.storage.set_attributes,
        )
        await self.orchestrator.open()

    async def crash(self, *, commits_max: int | None = None) -> None:
        """Kill the activation and start another one from the disk."""
        await self.kill()
        await self.activate(commits_max=commits_max)

    async def kill(self) -> None:
        self.storage.commits_max = self.disk.commits  # what it still writes is lost
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._handler = None

    async def run(self, name: str, value: object = None) -> RunResult[Any]:
        """Call `run` and keep the clock where it is."""
        await self.start(name, value, is_queued=False)
        asking = asyncio.ensure_future(self.orchestrator.result(is_final=False))
        await self.settle()
        if not asking.done():
            asking.cancel()
            raise AssertionError(f"did not settle: {self.status}")
        return await asking

    async def start(
        self, name: str, value: object = None, *, is_queued: bool = True
    ) -> None:
        call = WorkflowCall(workflow=name, input=value, id="r1")
        await self.orchestrator.start(call, "r1", is_queued=is_queued)

    async def cancel(self, reason: str | None = None) -> CancelResult:
        result = await self.orchestrator.cancel(reason)
        await self.storage.sync()
        return result

    async def settle(self) -> None:
        """Deliver what is due and let everything happen that can."""
        await self.clock.settle()
        while self._deliver_alarm():
            await self.clock.settle()

    async def advance(self, by: str | int) -> None:
        """Move the clock, stopping at each alarm and each timer."""
        until_ms = self.clock.now_ms() + duration_ms(by)
        await self.settle()
        while (due_at_ms := self._next_ms()) is not None and due_at_ms <= until_ms:
            self.clock.jump(max(due_at_ms, self.clock.now_ms()))
            await self.settle()
        self.clock.jump(until_ms)
        await self.settle()

    async def finish(self, *, within: str = "2 days") -> Any:
        """Move the clock until nothing is planned any more."""
        await self.advance(within)
        return self.status

    @property
    def status(self) -> Any:
        """The status; Any, so that mypy does not think it stays what it was."""
        return self.orchestrator.status

    @property
    def events(self) -> list[str]:
        return [str(event["type"]) for event in self.disk.events]

    async def output(self) -> Any:
        return await self.journal.read_output()

    def _next_ms(self) -> int | None:
        times = [self.clock.next_timer_at_ms]
        if self._handler is None and not self.storage.is_stopped:
            times.append(self.disk.alarm)
        found = [time for time in times if time is not None]
        return min(found, default=None)

    def _deliver_alarm(self) -> bool:
        alarm = self.disk.alarm
        if self._handler is not None or self.storage.is_stopped:
            return False
        if alarm is None or alarm > self.clock.now_ms():
            return False
        self._handler = asyncio.create_task(self._handle(alarm))
        self._tasks.add(self._handler)
        self._handler.add_done_callback(self._tasks.discard)
        return True

    async def _handle(self, alarm: int) -> None:
        try:
            self.storage.handled = alarm
            await self.orchestrator.alarm()
            if self.storage.handled == alarm:
                self.storage.delete_alarm()
        finally:
            self._handler = None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _no_namespace(self, cls: Any) -> Any:
        raise AssertionError(f"no namespace of {cls} here")
