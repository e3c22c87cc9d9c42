"""The host: the map from id to activation, and everything they share.

`Host` is the embedded face of the package and a `Router`. It opens a data directory,
activates objects when events come, lets idle ones go, reminds them of their alarms,
carries their events to the sinks, and stops everything when a write fails.

It installs no signal handlers, no log configuration and no event loop policy: it is a
guest in the program that embeds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from durable_actor.activation import (
    Activation,
    ActivationCounters,
    ActivationSettings,
    Lifecycle,
    current_delivery,
    is_unicode,
)
from durable_actor.alarms import AlarmWheel
from durable_actor.clock import Clock, SystemClock, Timer, deadline
from durable_actor.codec import clone
from durable_actor.config import Config
from durable_actor.directory import (
    HostStats,
    ObjectEntry,
    ObjectPage,
    make_cursor,
    open_cursor,
)
from durable_actor.entrypoints import ClassInfo, DurableObject
from durable_actor.env import Env
from durable_actor.errors import (
    CallTimeoutError,
    ConfigError,
    HostClosedError,
    HostMisuseError,
    ObjectError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.ids import IdSpace, ObjectId
from durable_actor.log import get_logger
from durable_actor.mailbox import Envelope, MailboxBounds
from durable_actor.namespace import DurableObjectNamespace
from durable_actor.outbox import Outbox
from durable_actor.recurring import Every, Recurring
from durable_actor.replies import KeptRepliesLimits
from durable_actor.rpc import CallOptions
from durable_actor.storage.batch import AlarmRow, Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.kv import KeyValueLimits
from durable_actor.storage.ports import (
    ExpireReplies,
    ReadAlarms,
    ReadDirectory,
    ReadStatus,
    ShardDriver,
    ShardOptions,
)
from durable_actor.storage.store import SHARD_NAME, DriverKind, Store, open_store

T = TypeVar("T", bound=DurableObject)
HostState = Literal["ok", "full", "failed"]

_CLOSE_GRACE_MS = 25_000
_EVENTS_GRACE_SECONDS = 1.0  # what has not left by then leaves at the next start
_REQUEST_ID_CHARACTERS_MAX = 256  # four UUIDs and some words
_CANCEL_SECONDS = 2.0  # what was cancelled has so long to clean up
_DRAINS_MAX = 64  # objects drained in one go; then other callbacks have their turn
_SWEEP_PARTS = 4  # looks for idle objects so often in the time they may idle

log = get_logger("durable_actor.host")


class Host:
    """Durable objects in this process.

    ```
    async with Host("data/") as host:
        counter = host.namespace(Counter).get_by_name("a")
        await counter.increment()
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        classes: Iterable[type[DurableObject]] = (),
        env: Mapping[str, object] | None = None,
        config: Config | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        driver: DriverKind | None = None,
        storage_uri: str | None = None,
    ) -> None:
        """Describe a host; `async with` or `open` starts it.

        Args:
            directory: Where the data lives; default: the configuration's.
            classes: Classes whose alarms are to fire before anyone asks for them.
            env: What objects find as attributes of `self.env`.
            config: Limits and times; see `config.toml`.
            clock: Whose time it is; a test hands in a manual one.
            rng: Source of jitter and ids; a test hands in a seeded one.
            driver: `thread` (the default when embedded) or `process`.
            storage_uri: Opens the shard by this SQLite URI instead of its path.
        """
        self._config = config or Config()
        self._directory = Path(directory or self._config.storage.dir)
        chosen = self._config.storage.driver
        self._driver_kind: DriverKind = driver or (
            "process" if chosen == "process" else "thread"
        )
        self._storage_uri = storage_uri
        self.clock: Clock = clock or SystemClock()
        self.random = rng or random.Random()  # noqa: S311  # jitter, not secrets
        self.settings = _settings(self._config)
        self.counters = ActivationCounters()
        self.context = contextvars.Context()
        self._bindings: dict[str, object] = dict(env or {})
        self.env = Env(self._namespace, self._bindings)
        self.failed = asyncio.Event()
        self.failure: StorageError | None = None
        self._classes: dict[str, ClassInfo] = {}
        self._spaces: dict[str, IdSpace] = {}
        self._resident: dict[bytes, Activation] = {}
        self._drains: deque[Activation] = deque()  # those with events in their line
        # Invariant: a task to drain them is planned, or under way and not suspended,
        # or there are none.
        self._drain_is_planned = False
        self._drainers: set[asyncio.Task[None]] = set()
        self._turns: list[Activation] = []  # those whose turn ends after this step
        self._owed_alarms: dict[bytes, AlarmRow] = {}
        self._parked_alarms: dict[str, dict[ObjectId, int]] = {}
        # The last ticket of a broken activation, until the next one has started.
        self._last_tickets: dict[bytes, int] = {}
        self._is_draining = False
        self._is_open = False
        self._sweep_timer: Timer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self.recurring = Recurring()
        self._sizes: Mapping[str, int] = {}  # of storage, sampled now and then
        self._store: Store
        self.driver: ShardDriver
        self.committer: Committer
        self._outbox = Outbox(
            self.clock,
            self.random,
            events_max=self._config.storage.outbox_events_max,
        )
        self._wheel = AlarmWheel(
            self.clock,
            fill=self._due_alarms,
            fire=self._fire_alarm,
            window_ms=self._config.alarms.window_ms,
        )
        for cls in classes:
            self.register(cls)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # -- life ---------------------------------------------------------------------

    async def open(self) -> None:
        """Open the data directory and begin to deliver alarms and events.

        Raises:
            DataDirectoryInUseError: Another process has it open.
            ConfigError: The directory cannot be used.
            StorageError: The shard is damaged, or the disk is.
            HostMisuseError: It was opened before.
        """
        if self._loop is not None:
            message = "a host is opened once; make another one for the directory"
            raise HostMisuseError(message)
        storage = self._config.storage
        options = ShardOptions(
            path=str(self._directory / SHARD_NAME),
            uri=self._storage_uri,
            wal_bytes_max=storage.wal_bytes_max,
            wal_grow_bytes=storage.wal_grow_bytes,
        )
        self._store = await open_store(self._directory, options, self._driver_kind)
        self.driver = self._connect(self._store.driver)
        self.committer = Committer(
            self.driver,
            on_failure=self._storage_failed,
            on_events=self._outbox.add,
            log_bytes_max=storage.log_bytes_max,
            group_rows_max=storage.group_rows_max,
        )
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._is_open = True
        try:
            await self._outbox.start(self.committer, self.driver)
        except BaseException:
            await self.drop()
            raise
        self._wheel.start()
        self.recurring.add("expire replies", Every("1 hour"), self.expire_replies)
        self.recurring.add("sample storage", Every("15 seconds"), self.sample_storage)
        self.recurring.start()
        log.info(
            "host.opened",
            directory=str(self._directory),
            epoch=self.epoch,
            driver=self._driver_kind,
        )

    async def drain(self, grace_ms: int = _CLOSE_GRACE_MS) -> bool:
        """Refuse new work from outside and let accepted work finish.

        Returns:
            Whether everything finished within the grace.
        """
        self._is_draining = True
        self.recurring.stop()
        await self._wheel.stop()
        for activation in list(self._resident.values()):
            activation.release(is_draining=True)
        try:
            async with deadline(self.clock, grace_ms):
                while any(not a.is_idle for a in self._resident.values()):
                    if self.failure is not None:
                        return False
                    await self._some_activity()
        except TimeoutError:
            return False
        return True

    async def close(self, grace_ms: int = _CLOSE_GRACE_MS) -> None:
        """Finish what was accepted, make it durable, and let the directory go."""
        if not self._is_open:
            return
        await self.drain(grace_ms)
        await self._let_go_of_all("the host is closing")
        if self.failure is None:
            await self._settled(self.committer.last_ticket)
            await self._outbox.flush(_EVENTS_GRACE_SECONDS)
        self._is_open = False
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        await self._outbox.stop()
        try:
            await self.committer.close()
        except StorageError as error:
            if self.failure is None:
                raise
            log.warning("host.close_after_failure", error=str(error))
        finally:
            self._store.release()
            log.info("host.closed", directory=str(self._directory))

    async def drop(self) -> None:
        """Let go of everything without finishing or flushing anything.

        What a crash leaves is what is on disk then; for tests, and after a failure.
        """
        self._is_open = False
        self._is_draining = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self.recurring.stop()
        await self._wheel.stop()
        await self._outbox.stop()
        await self._let_go_of_all("the host was dropped")
        await self.committer.drop()
        self._store.release()

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self._is_draining

    @property
    def directory(self) -> Path:
        """Where the data lives."""
        return self._directory

    @property
    def epoch(self) -> int:
        """How many times this data directory has been opened."""
        return self.driver.opened.epoch

    @property
    def state(self) -> HostState:
        """Whether storage takes writes: `ok`, `full` or `failed`."""
        if self.failure is not None:
            return "failed"
        return "full" if self._is_open and self.committer.is_full else "ok"

    # -- objects ------------------------------------------------------------------

    def register(self, cls: type[DurableObject], name: str | None = None) -> None:
        """Make a class known, under its own name or another.

        Raises:
            ConfigError: Another class has the name.
        """
        name = name or cls.__name__
        known = self._classes.get(name)
        if known is not None:
            if known.cls is not cls:
                message = (
                    f"two classes are called {name!r}: {known.cls!r} and {cls!r};"
                    " register one of them under another name"
                )
                raise ConfigError(message)
            return
        self._classes[name] = ClassInfo(cls, name)
        self._spaces[name] = IdSpace(name)
        if cls.event_sink is not None:
            self._outbox.register(name, cls.event_sink)
        for object_id, due_at_ms in self._parked_alarms.pop(name, {}).items():
            self._wheel.remind(object_id, due_at_ms)

    def bind(self, name: str, value: object) -> None:
        """Let objects find something as `env.NAME`: a namespace, or any value.

        Raises:
            ConfigError: The name is taken.
        """
        if name in self._bindings:
            message = f"env.{name} is bound already; choose another name"
            raise ConfigError(message)
        self._bindings[name] = value

    @property
    def class_names(self) -> list[str]:
        """The names of the known classes."""
        return sorted(self._classes)

    def class_info(self, name: str) -> ClassInfo | None:
        """Return what is known of a class, by the name it is registered under."""
        return self._classes.get(name)

    def namespace(
        self, cls: type[T], name: str | None = None
    ) -> DurableObjectNamespace[T]:
        """Return the namespace of a class, registering it if need be.

        Raises:
            TypeError: Not a subclass of `DurableObject`.
        """
        given: object = cls
        if not isinstance(given, type) or not issubclass(given, DurableObject):
            message = f"{cls!r} is not a subclass of DurableObject"
            raise TypeError(message)
        self.register(given, name)
        return DurableObjectNamespace(self, name or cls.__name__)

    def namespace_by_name(self, name: str) -> DurableObjectNamespace[Any]:
        """Return the namespace of a registered class, by name.

        Raises:
            ObjectError: No class has the name.
        """
        self._class(name)
        return DurableObjectNamespace(self, name)

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        """Run one method of one object and return its answer; see `rpc.Router`."""
        self._check_use()
        info = self._class(target.namespace)
        found = info.method(method)
        envelope = Envelope(
            method,
            found.function,
            clone(args) if args else args,
            clone(kwargs) if kwargs else kwargs,
        )
        if options.request_id is not None:
            envelope.request_id = _check_request_id(options.request_id)
        sender = current_delivery.get()
        if sender is not None and sender.activation.lifecycle is Lifecycle.COLD:
            sender = None  # code that outlived its object is a caller like any other
        if sender is not None:
            sender.activation.check_unbroken()
            if sender.activation.host is not self:
                # Leaves this host, so it waits for what it depends on.
                activation = sender.activation
                await activation.wait_durable(activation.end_turn())
                sender = None
            else:
                envelope.sender = sender
                envelope.chain = sender.chain
                envelope.ticket = sender.activation.end_turn()
        if sender is None and self._is_draining:
            message = "the host is draining; nothing was delivered"
            raise HostClosedError(message)
        activation = self._activation(target, info)
        activation.accept(envelope, may_overlap=found.interleaves)
        if sender is None and options.timeout_ms is None:
            return await envelope.reply
        if options.timeout_ms is not None:
            try:
                async with deadline(self.clock, options.timeout_ms):
                    return await self._answer(envelope, activation)
            except TimeoutError as error:
                if isinstance(error, CallTimeoutError) or envelope.error is error:
                    raise
                message = f"{method} of {target!r} took over {options.timeout_ms} ms"
                raise CallTimeoutError(message) from None
        return await self._answer(envelope, activation)

    async def evict(self, object_id: ObjectId) -> bool:
        """Let an object go from memory if it is idle; was it there, and is it gone?"""
        self._check_use()
        activation = self._resident.get(object_id.raw)
        if activation is None:
            return False
        await self.committer.wait(activation.end_turn())
        await asyncio.sleep(0)
        if not activation.is_idle:
            return False
        activation.evict()
        del self._resident[object_id.raw]
        return True

    async def list_objects(
        self,
        object_class: str | None = None,
        *,
        prefix: str = "",
        where: Mapping[str, str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> ObjectPage:
        """Return objects that have ever stored something, in order of class and name.

        Args:
            object_class: Only of this class.
            prefix: Only names that begin with it.
            where: Only those that published all of these attributes.
            limit: At most so many, 1 to 1,000.
            cursor: From an earlier page, to go on behind it.

        Raises:
            ValueError: A wrong limit or cursor.
        """
        self._check_use()
        if not 1 <= limit <= 1_000:  # noqa: PLR2004  # named in the docstring
            message = f"limit must be between 1 and 1000, got {limit}"
            raise ValueError(message)
        with contextlib.suppress(StorageFullError):
            # With a full disk the page shows what was folded before; reads go on.
            await self.committer.fold()
        rows = await self.driver.read(
            ReadDirectory(
                object_class, prefix, dict(where or {}), open_cursor(cursor), limit + 1
            )
        )
        entries = [
            ObjectEntry(
                object_class=entry.row.object_class,
                name=entry.row.name,
                id=entry.row.id.hex(),
                created_at_ms=entry.row.created_at_ms,
                used_at_ms=entry.row.used_at_ms,
                size_bytes=entry.size_bytes,
                alarm_at_ms=entry.alarm_at_ms,
                attributes=entry.row.attributes,
            )
            for entry in rows[:limit]
        ]
        more = len(rows) > limit
        return ObjectPage(
            objects=entries, cursor=make_cursor(entries[-1]) if more else None
        )

    async def delete(self, object_id: ObjectId) -> bool:
        """Delete an object with everything it stored; had it stored anything?

        An event that is under way is told that the object was reset.
        """
        self._check_use()
        self._end_for_deletion(object_id)
        await self._settled(self._last_tickets.get(object_id.raw, 0))
        loaded = await self.committer.load(object_id.raw)
        if not loaded.num:
            return False
        # Nothing runs between these two: an activation that began meanwhile must not
        # go on with what is deleted under it.
        self._end_for_deletion(object_id)
        ticket = self.committer.seal(Seal(num=loaded.num, deleted=True), object_id.raw)
        self._last_tickets[object_id.raw] = ticket
        self._wheel.set(object_id, None)
        self._owed_alarms.pop(object_id.raw, None)
        await self.committer.wait(ticket)
        return True

    async def expire_replies(self) -> int:
        """Drop kept replies whose time is over; return how many."""
        self._check_use()
        await self.committer.fold()
        return await self.driver.read(ExpireReplies(self.clock.now_ms()))

    def stats(self) -> HostStats:
        """Return counters and sizes, without touching the disk."""
        resident = list(self._resident.values())
        waiting = [activation.waiting for activation in resident]
        counters = self.counters
        return HostStats(
            objects_resident=len(resident),
            objects_waiting_events=sum(waiting),
            mailbox_depth_max=max(waiting, default=0),
            cached_bytes=sum(activation.cached_bytes for activation in resident),
            calls=counters.calls,
            calls_failed=counters.calls_failed,
            shed=counters.shed,
            activated=counters.activated,
            reset=counters.reset,
            alarms_delivered=counters.alarms_delivered,
            alarms_failed=counters.alarms_failed,
            alarms_abandoned=counters.alarms_abandoned,
            alarms_near=len(self._wheel),
            groups_committed=self.committer.groups,
            turns_committed=self.committer.seals,
            durable_ticket=self.committer.durable_ticket,
            events_waiting=self._outbox.waiting,
            events_delivered=self._outbox.delivered,
            events_dropped=counters.events_dropped,
            epoch=self.epoch,
            objects_stored=self._sizes.get("objects", 0),
            alarms_stored=self._sizes.get("alarms", 0),
            database_bytes=self._sizes.get("database_bytes", 0),
            wal_bytes=self._sizes.get("wal_bytes", 0),
            log_rows=self._sizes.get("log_rows", 0),
        )

    async def sample_storage(self) -> None:
        """Bring the sizes of storage in `stats` up to date; done every 15 seconds."""
        if self._is_open and self.failure is None:
            self._sizes = await self.storage_status()

    async def storage_status(self) -> Mapping[str, int]:
        """Return the sizes of the shard: bytes, rows, checkpoints."""
        self._check_use()
        status = await self.driver.read(ReadStatus())
        return {name: getattr(status, name) for name in status.__struct_fields__}

    # -- what activations ask (activation.Surroundings) -----------------------------

    def plan_turn_end(self, activation: Activation) -> None:
        """End the activation's turn as soon as the running step is over.

        One callback serves all objects that write in the same round of the loop. The
        first of them plans it; for the others it comes earlier than their own would,
        but never before the end of their step.
        """
        if not self._turns:
            asyncio.get_running_loop().call_soon(self._end_turns)
        self._turns.append(activation)

    def plan_drain(self, activation: Activation) -> None:
        """Let the activation run the events in its line.

        One task drains the objects that have events in this round of the loop, one
        after the other. Before it begins with one it plans another task for the rest,
        so whoever suspends has its task to itself and holds nobody up; a thousand that
        do not suspend share a few tasks.
        """
        self._drains.append(activation)
        if not self._drain_is_planned:
            self._plan_drain()

    def _plan_drain(self) -> None:
        self._drain_is_planned = True
        task = asyncio.get_running_loop().create_task(
            self._drain(), name="drain", context=self.context.copy()
        )
        self._drainers.add(task)
        task.add_done_callback(self._drainers.discard)

    async def _drain(self) -> None:
        self._drain_is_planned = False
        task = asyncio.current_task()
        assert task is not None
        fresh, drains = contextvars.copy_context(), self._drains
        for _ in range(_DRAINS_MAX):
            if not drains:
                return
            activation = drains.popleft()
            if drains and not self._drain_is_planned:
                self._plan_drain()
            await activation.drain(task)
            # What a handler left behind must not reach the next object's.
            if task.cancelling() or contextvars.copy_context() != fresh:
                break
        if drains and not self._drain_is_planned:
            self._plan_drain()

    def _end_turns(self) -> None:
        turns, self._turns = self._turns, []
        for activation in turns:
            activation.turn_ended()

    def forget(self, activation: Activation) -> None:
        """Let the next event start another activation."""
        raw = activation.id.raw
        if self._resident.get(raw) is activation:
            del self._resident[raw]
            self._last_tickets[raw] = activation.ticket

    def alarm_changed(self, object_id: ObjectId, due_at_ms: int | None) -> None:
        """Move the reminder; the change is durable."""
        self._wheel.set(object_id, due_at_ms)

    def alarm_owed(self, object_id: ObjectId, alarm: AlarmRow) -> None:
        """Remember how to deliver an alarm again whose handler broke the activation."""
        self._owed_alarms[object_id.raw] = alarm

    def alarm_undelivered(self, object_id: ObjectId) -> None:
        """Remind an object again whose alarm could not be delivered."""
        owed = self._owed_alarms.get(object_id.raw)
        delay_ms = self.settings.alarm_retry_base_ms
        due_at_ms = self.clock.now_ms() + delay_ms if owed is None else owed.due_at_ms
        self._wheel.remind(object_id, due_at_ms)

    def take_owed_alarm(self, object_id: ObjectId) -> AlarmRow | None:
        """Return what `alarm_owed` left."""
        return self._owed_alarms.pop(object_id.raw, None)

    def reserve_event(self) -> bool:
        """Take room for one event in the outbox, if there is any."""
        return self._outbox.reserve()

    def release_events(self, count: int) -> None:
        """Give room back: these events are in the outbox now, or are lost."""
        self._outbox.reserved -= count

    # -- inside ---------------------------------------------------------------------

    async def _let_go_of_all(self, reason: str) -> None:
        """End every activation, and wait for the tasks of those that were at work."""
        tasks: list[asyncio.Future[Any]] = []
        for activation in list(self._resident.values()):
            if activation.is_idle:
                activation.evict()
            else:
                tasks += activation.pending_tasks
                activation.break_off(reason)
        self._resident.clear()
        here = asyncio.current_task()
        ending = [task for task in tasks if task is not here]
        if ending:
            # One that ignores its cancellation is left to itself.
            await asyncio.wait(ending, timeout=_CANCEL_SECONDS)

    def _end_for_deletion(self, object_id: ObjectId) -> None:
        activation = self._resident.get(object_id.raw)
        if activation is not None:
            activation.end_turn()
            activation.break_off("the object was deleted", outcome="failed")

    def _connect(self, driver: ShardDriver) -> ShardDriver:
        """Return the driver to use; a host for tests puts a watch in between."""
        return driver

    def _namespace(self, cls: type[Any] | str) -> DurableObjectNamespace[Any]:
        return (
            self.namespace_by_name(cls) if isinstance(cls, str) else self.namespace(cls)
        )

    def _class(self, name: str) -> ClassInfo:
        info = self._classes.get(name)
        if info is None:
            known = ", ".join(sorted(self._classes)) or "none"
            raise ObjectError(f"no class is registered as {name!r}; known: {known}")
        return info

    def _check_use(self) -> None:
        if not self._is_open:
            if self.failure is not None:
                raise self.failure
            message = "the host is not open; use it inside `async with`"
            raise HostClosedError(message)
        if self.failure is not None:
            raise self.failure
        if asyncio.get_running_loop() is not self._loop:
            message = (
                "this host belongs to another event loop; use it in the loop that"
                " opened it, or connect() to a daemon"
            )
            raise HostMisuseError(message)

    def _activation(self, target: ObjectId, info: ClassInfo) -> Activation:
        activation = self._resident.get(target.raw)
        if activation is None:
            activation = Activation(self, info, target)
            self._resident[target.raw] = activation
            self._plan_sweep()
            activation.start(self._last_tickets.pop(target.raw, 0))
        return activation

    async def _answer(self, envelope: Envelope, activation: Activation) -> object:
        sender = envelope.sender
        if sender is None:
            return await envelope.reply
        if asyncio.current_task() is not sender.task:
            return await envelope.reply
        sender.awaits = (activation, envelope)
        try:
            return await envelope.reply
        finally:
            sender.awaits = None

    def _fire_alarm(self, object_id: ObjectId, due_at_ms: int) -> None:
        info = self._classes.get(object_id.namespace)
        if info is None:
            # Its class comes with a later register(), or is gone from the application.
            self._parked_alarms.setdefault(object_id.namespace, {})[object_id] = (
                due_at_ms
            )
            return
        if self._is_open and self.failure is None:
            self._activation(object_id, info).fire_alarm()

    async def _due_alarms(
        self, after_ms: int, until_ms: int, limit: int
    ) -> list[tuple[ObjectId, int]]:
        # What is not folded yet would be missed by the index.
        await self.committer.fold()
        found = await self.driver.read(ReadAlarms(after_ms, until_ms, limit))
        return [
            (ObjectId(alarm.object_class, alarm.id, alarm.name), alarm.due_at_ms)
            for alarm in found
        ]

    def _storage_failed(self, error: StorageError, first_failed: int) -> None:
        """Break every activation whose memory is ahead of the disk."""
        is_full = isinstance(error, StorageFullError)
        if not is_full:
            self.failure = error
            self.failed.set()
        for activation in list(self._resident.values()):
            if activation.ticket >= first_failed or not is_full:
                activation.break_off(
                    str(error), outcome="failed" if is_full else "unknown"
                )

    async def _settled(self, ticket: int) -> None:
        try:
            await self.committer.wait(ticket)
        except StorageFailedError:
            raise
        except StorageError:
            pass  # given up; what it wrote is not there

    async def _some_activity(self) -> None:
        """Return when something may have become idle."""
        busy = [a for a in self._resident.values() if not a.is_idle]
        waits = [task for activation in busy for task in activation.pending_tasks]
        if waits:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        else:
            # Only a commit is missing.
            await self._settled(self.committer.last_ticket)
            await asyncio.sleep(0)

    def _plan_sweep(self) -> None:
        if self._sweep_timer is not None or not self._resident:
            return  # a host that nobody uses has nothing to look for
        idle_ms = self._config.objects.idle_ms
        at_ms = self.clock.now_ms() + max(idle_ms // _SWEEP_PARTS, 1)
        self._sweep_timer = self.clock.call_at(at_ms, self._sweep)

    def _sweep(self) -> None:
        """Let go of what is idle for long, or of the oldest if memory is short."""
        self._sweep_timer = None
        if not self._is_open:
            return
        objects, storage = self._config.objects, self._config.storage
        idle_since_ms = self.clock.now_ms() - objects.idle_ms
        resident = list(self._resident.values())
        idle = [activation for activation in resident if activation.is_idle]
        too_many = len(resident) - objects.resident_max
        too_large = sum(a.cached_bytes for a in resident) - storage.cache_bytes_max
        if too_many > 0 or too_large > 0:
            idle.sort(key=lambda activation: activation.used_at_ms)
            if too_many > len(idle):
                # Not enough are idle: ask the others, and look again next time.
                for activation in resident:
                    activation.release(is_draining=False)
        for activation in idle:
            is_old = activation.used_at_ms <= idle_since_ms
            if is_old or too_many > 0 or too_large > 0:
                too_many -= 1
                too_large -= activation.cached_bytes
                activation.evict()
                del self._resident[activation.id.raw]
        self._plan_sweep()


def _settings(config: Config) -> ActivationSettings:
    storage, objects, alarms = config.storage, config.objects, config.alarms
    return ActivationSettings(
        limits=KeyValueLimits(
            key_bytes_max=storage.key_bytes_max,
            value_bytes_max=storage.value_bytes_max,
            batch_entries_max=storage.batch_entries_max,
        ),
        bounds=MailboxBounds(
            events_max=objects.mailbox_events_max,
            bytes_max=objects.mailbox_bytes_max,
            age_ms_max=objects.mailbox_age_ms_max,
        ),
        constructor_timeout_ms=objects.constructor_timeout_ms,
        alarm_retry_limit=alarms.retry_limit,
        alarm_retry_base_ms=alarms.retry_base_ms,
        replies=KeptRepliesLimits(
            ttl_ms=storage.reply_ttl_ms, replies_max=storage.replies_per_object_max
        ),
    )


def _check_request_id(request_id: str) -> str:
    if not 0 < len(request_id) <= _REQUEST_ID_CHARACTERS_MAX or not is_unicode(
        request_id
    ):
        message = (
            f"request_id must be text of 1 to {_REQUEST_ID_CHARACTERS_MAX} characters,"
            f" got {request_id!a:.60}"
        )
        raise ValueError(message)
    return request_id
