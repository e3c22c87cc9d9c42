"""The host: everything the objects of one process share.

`Host` is the embedded face of the package and a `Router`. It opens a data directory,
activates objects when events come, lets idle ones go, reminds them of their alarms,
carries their events to the sinks, and stops everything when a write fails.

What has a module of its own: which objects are in memory (`residents`), what they share
in a round of the loop (`rounds`), that none misses its alarm (`reminders`).

It installs no signal handlers, no log configuration and no event loop policy: it is a
guest in the program that embeds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from durable_actor.breadcrumbs import Breadcrumbs, EventDeaths, EventKey
from durable_actor.clock import Clock, Instant, SystemClock, deadline, instant_ms
from durable_actor.codec import clone
from durable_actor.config import Config
from durable_actor.database_keys import DatabaseKeys
from durable_actor.databases import Databases
from durable_actor.delivery import Delivery, Place, current_delivery
from durable_actor.descriptors import databases_max
from durable_actor.directory import AlarmPage, HostStats, ObjectPage, StoredPage
from durable_actor.entrypoints import ClassInfo, DurableObject, Method
from durable_actor.env import Env
from durable_actor.errors import (
    CallTimeoutError,
    ConfigError,
    HostClosedError,
    HostMisuseError,
    ObjectError,
    SafeModeError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.exchange import Exchange, unless_failed
from durable_actor.fetch import Request, Response
from durable_actor.ids import ObjectId, id_bytes
from durable_actor.lifecycle import Lifecycle
from durable_actor.listing import read_alarms, read_page, read_stored
from durable_actor.log import get_logger
from durable_actor.mailbox import Envelope
from durable_actor.memory import Memory, default_bytes_max
from durable_actor.namespace import DurableObjectNamespace
from durable_actor.outbox import Outbox
from durable_actor.recurring import Every, Recurring
from durable_actor.reminders import Reminders
from durable_actor.residents import Residents
from durable_actor.rounds import Rounds
from durable_actor.rpc import CallOptions
from durable_actor.sockets import Sockets
from durable_actor.storage.batch import DatabaseTurn, Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import (
    ExpireReplies,
    ReadStatus,
    ShardDriver,
    ShardOptions,
)
from durable_actor.storage.sql.statements import SqlLimits
from durable_actor.storage.store import SHARD_NAME, DriverKind, Store, open_store
from durable_actor.storage.watches import Watch
from durable_actor.surroundings import ActivationCounters, ActivationSettings
from durable_actor.texts import check_request_id
from durable_actor.websockets import BROKEN, GOING_AWAY, SocketBounds

T = TypeVar("T", bound=DurableObject)
HostState = Literal["ok", "full", "failed"]

_CLOSE_GRACE_MS = 25_000
_EVENTS_GRACE_SECONDS = 1.0  # what has not left by then leaves at the next start

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
        self.settings = ActivationSettings.of(self._config)
        self.counters = ActivationCounters()
        self.context = contextvars.Context()
        self._bindings: dict[str, object] = dict(env or {})
        self.env = Env(self._namespace, self._bindings)
        self.failed = asyncio.Event()
        self.failure: StorageError | None = None
        self._classes: dict[str, ClassInfo] = {}
        self.memory = Memory(
            bytes_max=self._config.objects.memory_bytes_max or default_bytes_max(),
            queued_bytes_max=self._config.objects.queued_bytes_max,
        )
        self._rounds = Rounds(self.context, slice_ms=self.settings.slice_ms)
        self._residents = Residents(
            self,
            idle_ms=self._config.objects.idle_ms,
            objects_max=self._config.objects.resident_max,
            cache_bytes_max=self._config.storage.cache_bytes_max,
        )
        # Asked for each event, and so without a method in between.
        self._activation = self._residents.activation
        self.plan_turn_end = self._rounds.plan_turn_end
        self.plan_drain = self._rounds.plan_drain
        self.forget = self._residents.forget
        self._is_draining = False
        self._is_open = False
        self._is_paused = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.recurring = Recurring()
        self.breadcrumbs: Breadcrumbs | None = None  # of a daemon; set before `resume`
        self._sizes: Mapping[str, int] = {}  # of storage, sampled now and then
        self._store: Store
        self.driver: ShardDriver
        self.committer: Committer
        self._outbox = Outbox(
            self.clock,
            self.random,
            events_max=self._config.storage.outbox_events_max,
        )
        self.reminders = Reminders(
            self.clock,
            wake=self._wake,
            window_ms=self._config.alarms.window_ms,
            batch_max=self._config.alarms.batch_max,
            pause_ms=self._config.alarms.retry_base_ms,
        )
        sql = self._config.sql
        self.databases = Databases(
            self._directory,
            open_max=databases_max(sql.open_max),
            limits=SqlLimits(
                database_bytes_max=sql.database_bytes_max,
                statement_ms_max=sql.statement_ms_max,
            ),
            list_bytes_max=self._config.storage.list_bytes_max,
        )
        self.sockets = Sockets(self, _bounds_of(self._config))
        self._streams: set[asyncio.Future[None]] = set()  # bodies of callers outside
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

    async def open(self, *, is_paused: bool = False) -> None:
        """Open the data directory and begin to deliver alarms and events.

        Args:
            is_paused: Run no object's code before `resume`; what is stored can be read.

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
            hydrate_bytes_max=storage.hydrate_bytes_max,
            ballast_bytes=storage.ballast_bytes,
            history_bytes_max=self._config.sql.history_bytes_max,
            history_ms_max=self._config.sql.history_ms_max,
        )
        self._store = await open_store(self._directory, options, self._driver_kind)
        self.driver = self._connect(self._store.driver)
        self.committer = Committer(
            self.driver,
            on_failure=self._storage_failed,
            on_space=self.reminders.resume,
            on_events=self._outbox.add,
            on_folded=self.databases.folded,
            log_bytes_max=storage.log_bytes_max,
            group_rows_max=storage.group_rows_max,
            group_bytes_max=storage.group_bytes_max,
        )
        self.memory.cached = lambda: self.committer.cached_bytes
        self.databases.start(
            self.committer, self.driver, self.clock, rest=self._residents.rest
        )
        self._database_keys = DatabaseKeys(
            self._residents, self.databases, self.committer
        )
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._is_paused = True
        self.recurring.add("expire replies", Every("1 hour"), self.expire_replies)
        self.recurring.add("sample storage", Every("15 seconds"), self.sample_storage)
        self.recurring.start()
        log.info(
            "host.opened",
            directory=str(self._directory),
            epoch=self.epoch,
            driver=self._driver_kind,
        )
        if not is_paused:
            await self.resume()

    async def resume(self) -> None:
        """Begin to deliver alarms and events, in a host that was opened paused."""
        self._check_use()
        try:
            await self._outbox.start(self.committer, self.driver)
        except BaseException:
            await self.drop()
            raise
        self._is_paused = False
        self.reminders.start(self.committer, self.driver)

    @property
    def is_paused(self) -> bool:
        """Whether no object's code is run, as `resume` was not called yet."""
        return self._is_paused

    async def drain(self, grace_ms: int = _CLOSE_GRACE_MS) -> bool:
        """Refuse new work from outside and let accepted work finish.

        Returns:
            Whether everything finished within the grace.
        """
        self._is_draining = True
        self.close_web_sockets()
        self.recurring.stop()
        await self.reminders.stop()
        for activation in self._residents:
            activation.release(is_draining=True)
        try:
            async with deadline(self.clock, grace_ms):
                while any(not a.is_idle for a in self._residents):
                    if self.failure is not None:
                        return False
                    await self._some_activity()
        except TimeoutError:
            return False
        return True

    async def close(self, grace_ms: int = _CLOSE_GRACE_MS) -> None:
        """Finish what was accepted, make it durable, and let the directory go.

        Raises:
            HostMisuseError: From another loop, thread or process; nothing is done.
        """
        if not self._is_open:
            return
        self._check_loop()
        await self.drain(grace_ms)
        await self._residents.let_go_of_all("the host is closing")
        self._end_streams()
        if self.failure is None:
            await self._settled(self.committer.last_ticket)
            await self._outbox.flush(_EVENTS_GRACE_SECONDS)
        self._is_open = False
        self._residents.stop_sweeping()
        await self._outbox.stop()
        try:
            await self.committer.close()
        except StorageError as error:
            if self.failure is None:
                raise
            log.warning("host.close_after_failure", error=str(error))
        finally:
            failure = self.failure
            self.databases.close()
            self._store.release()
            log.info("host.closed", directory=str(self._directory))
        if self.failure is not None and self.failure is not failure:
            raise self.failure  # met when the databases were closed

    async def drop(self) -> None:
        """Let go of everything without finishing or flushing anything.

        What a crash leaves is what is on disk then; for tests, and after a failure.
        """
        self._is_open = False
        self._is_draining = True
        self.close_web_sockets()
        self._residents.stop_sweeping()
        self.recurring.stop()
        await self.reminders.stop()
        await self._outbox.stop()
        await self._residents.let_go_of_all("the host was dropped")
        self._end_streams()
        self.databases.drop()
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
        if cls.event_sink is not None:
            self._outbox.register(name, cls.event_sink)
        self.reminders.class_is_known(name)

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
    def has_databases(self) -> bool:
        """Whether a class has objects with databases of their own."""
        return any(info.has_database for info in self._classes.values())

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
            envelope.request_id = check_request_id(options.request_id)
            if options.sent_ms_ago:
                envelope.first_sent_ms = self.clock.now_ms() - options.sent_ms_ago
        sender = current_delivery.get()
        if sender is not None:
            sender = await self._sender_here(sender)
        activation = self._deliver(
            target, info, envelope, sender, may_overlap=found.interleaves
        )
        if sender is None and options.timeout_ms is None:
            return await envelope.reply
        return await self._reply(envelope, activation, options)

    async def fetch(
        self, target: ObjectId, request: Request, options: CallOptions
    ) -> Response:
        """Let one object answer a request; see `rpc.Router`."""
        self._check_use()
        info = self._class(target.namespace)
        method = info.fetch()
        sender = current_delivery.get()
        if sender is not None:
            sender = await self._sender_here(sender)
        exchange = Exchange(method, request, sender, start=self._start_stream)
        try:
            activation = self._deliver(
                target,
                info,
                exchange.envelope,
                sender,
                may_overlap=method.interleaves,
            )
            await self._reply(exchange.envelope, activation, options)
        except BaseException:
            await exchange.give_up()
            raise
        return exchange.take()

    def watch(self, target: ObjectId, prefix: str = "") -> Watch:
        """Follow one object's state from now on; see `DurableObject.watch`.

        Raises:
            ObjectError: No class has the name.
            HostClosedError: The host is draining or closed.
        """
        self._check_use()
        if self._is_draining:
            message = "the host is draining; nothing can be watched any more"
            raise HostClosedError(message)
        raw_id = target.raw
        if not self._class(target.namespace).has_database:
            return self.committer.watch(raw_id, prefix)

        async def read_state(prefix: str) -> Mapping[str, bytes]:
            return await self._database_keys.state(raw_id, prefix)

        return self.committer.watch(raw_id, prefix, read_state=read_state)

    async def evict(self, object_id: ObjectId) -> bool:
        """Let an object go from memory if it is idle; was it there, and is it gone?"""
        self._check_use()
        activation = self._residents.find(object_id)
        if activation is None:
            return False
        await self.committer.wait(activation.end_turn())
        await asyncio.sleep(0)
        if not activation.is_idle:
            return False
        self._residents.evict(activation)
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
        return await read_page(
            self.committer,
            self.driver,
            object_class,
            prefix=prefix,
            where=where or {},
            limit=limit,
            cursor=cursor,
        )

    async def alarms(
        self,
        object_class: str | None = None,
        *,
        before: Instant | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> AlarmPage:
        """Return the alarms that are set, those that fire first before the others.

        One that is moved while the pages are read may be on two of them, or on none.

        Args:
            object_class: Only of this class.
            before: Only those due before it.
            limit: At most so many, 1 to 1,000.
            cursor: From an earlier page, to go on behind it.

        Raises:
            ValueError: A wrong limit or cursor.
        """
        self._check_use()
        now_ms = self.clock.now_ms()
        return await read_alarms(
            self.committer,
            self.driver,
            object_class,
            before_ms=None if before is None else instant_ms(before, now_ms=now_ms),
            limit=limit,
            cursor=cursor,
        )

    async def stored_keys(
        self,
        object_id: ObjectId | str,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage:
        """Return the keys an object has stored, in order, with readable values.

        The object is not activated, and its class need not be known. What is shown is
        durable, and all of a page was there at the same moment. A page ends early, with
        a cursor, once its values have more than 1 MiB.

        Args:
            object_id: Which object; as text, the id that `list_objects` shows.
            prefix: Only keys that begin with it.
            limit: At most so many, 1 to 1,000.
            cursor: From an earlier page, to go on behind it.

        Raises:
            ValueError: A wrong limit or cursor.
            InvalidIdError: Not an id.
            CorruptionError: The disk holds something else than was written.
        """
        self._check_use()
        raw_id = id_bytes(object_id) if isinstance(object_id, str) else object_id.raw
        return await read_stored(
            self.committer,
            self.driver,
            raw_id,
            prefix=prefix,
            limit=limit,
            cursor=cursor,
            read_database=self._database_keys.page,
        )

    async def delete(self, object_id: ObjectId) -> bool:
        """Delete an object with everything it stored; had it stored anything?

        An event that is under way is told that the object was reset.
        """
        self._check_use()
        self._end_for_deletion(object_id)
        await self._settled(self._residents.last_ticket(object_id.raw))
        loaded = await self.committer.load(object_id.raw)
        if not loaded.num:
            return False
        # Nothing runs between these two: an activation that began meanwhile must not
        # go on with what is deleted under it.
        self._end_for_deletion(object_id)
        seal = Seal(num=loaded.num, deleted=True)
        has_database = loaded.position is not None
        if has_database:
            seal.database = DatabaseTurn(object_id.raw, self.clock.now_ms())
        ticket = self.committer.seal(seal, object_id.raw)
        self._residents.start_after(object_id, ticket)
        self.reminders.deleted(object_id)
        await self.committer.wait(ticket)
        if has_database:
            await self.databases.deleted(object_id.raw)
        return True

    def quarantined(self) -> list[EventDeaths]:
        """Return the events that are refused, as the process died running them."""
        return [] if self.breadcrumbs is None else self.breadcrumbs.quarantined

    def release_event(self, key: EventKey) -> bool:
        """Let an event run again that is quarantined; was it?"""
        if self.breadcrumbs is None or not self.breadcrumbs.release(key):
            return False
        self.reminders.released(key)
        return True

    async def expire_replies(self) -> int:
        """Drop kept replies whose time is over; return how many."""
        self._check_use()
        await self.committer.fold()
        return await self.driver.read(ExpireReplies(self.clock.now_ms()))

    def stats(self) -> HostStats:
        """Return counters and sizes, without touching the disk."""
        resident = list(self._residents)
        waiting = [activation.waiting for activation in resident]
        counters = self.counters
        return HostStats(
            objects_resident=len(resident),
            objects_waiting_events=sum(waiting),
            mailbox_depth_max=max(waiting, default=0),
            cached_bytes=self.committer.cached_bytes,
            calls=counters.calls,
            calls_failed=counters.calls_failed,
            shed=counters.shed,
            activated=counters.activated,
            reset=counters.reset,
            alarms_delivered=counters.alarms_delivered,
            alarms_failed=counters.alarms_failed,
            alarms_abandoned=counters.alarms_abandoned,
            alarms_near=len(self.reminders),
            starts_failing=self.reminders.failing,
            groups_committed=self.committer.groups,
            turns_committed=self.committer.seals,
            durable_ticket=self.committer.durable_ticket,
            events_waiting=self._outbox.waiting,
            events_delivered=self._outbox.delivered,
            events_dropped=counters.events_dropped,
            replies_kept=counters.replies.kept,
            replies_repeated=counters.replies.repeated,
            replies_dropped=counters.replies.dropped,
            replies_expired=counters.replies.expired,
            web_sockets=len(self.sockets),
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

    def close_web_sockets(self) -> None:
        """Close the sockets of all objects with 1001: the host is going away."""
        self.sockets.close_all(GOING_AWAY, "the host is closing")

    # -- what activations ask (surroundings.Surroundings) ----------------------------

    def reserve_event(self) -> bool:
        """Take room for one event in the outbox, if there is any."""
        return self._outbox.reserve()

    def release_events(self, count: int) -> None:
        """Give room back: these events are in the outbox now, or are lost."""
        self._outbox.reserved -= count

    # -- what sockets ask (sockets.Objects) -------------------------------------------

    def socket_handler(self, object_id: ObjectId, name: str) -> Method | None:
        """Return the handler that the object's class has for this, if it has one."""
        return self._class(object_id.namespace).socket_handlers[name]

    def deliver_event(
        self, object_id: ObjectId, envelope: Envelope, *, may_overlap: bool
    ) -> None:
        """Put an event in the object's mailbox, waking it if need be."""
        self._check_use()
        self._check_resumed()
        activation = self._activation(object_id, self._class(object_id.namespace))
        activation.accept(envelope, may_overlap=may_overlap)

    def let_out(self, object_id: ObjectId, effect: Callable[[], None]) -> None:
        """Run an effect once what the object wrote before is durable."""
        activation = self._residents.find(object_id)
        if activation is None:
            effect()  # all it wrote was durable when it left memory
        else:
            activation.let_out(unless_failed(effect))

    # -- inside ---------------------------------------------------------------------

    async def _sender_here(self, sender: Delivery) -> Delivery | None:
        """Return the delivery a call comes from, if its object is one of this host."""
        if sender.activation.lifecycle is Lifecycle.COLD:
            return None  # code that outlived its object is a caller like any other
        sender.activation.check_unbroken()
        if sender.activation.host is self:
            return sender
        # Leaves that host, so it waits for what it depends on.
        await sender.activation.wait_durable(sender.activation.end_turn())
        return None

    def _deliver(
        self,
        target: ObjectId,
        info: ClassInfo,
        envelope: Envelope,
        sender: Delivery | None,
        *,
        may_overlap: bool,
    ) -> Place:
        """Put an event in the object's mailbox."""
        if sender is not None:
            envelope.sender = sender
            envelope.chain = sender.chain
            envelope.ticket = sender.activation.end_turn()
        elif self._is_draining:
            message = "the host is draining; nothing was delivered"
            raise HostClosedError(message)
        self._check_resumed()
        activation = self._activation(target, info)
        activation.accept(envelope, may_overlap=may_overlap)
        return activation

    async def _reply(
        self, envelope: Envelope, activation: Place, options: CallOptions
    ) -> object:
        """Return an event's answer, or say that it took too long."""
        if options.timeout_ms is None:
            return await self._answer(envelope, activation)
        try:
            async with deadline(self.clock, options.timeout_ms):
                return await self._answer(envelope, activation)
        except TimeoutError as error:
            if isinstance(error, CallTimeoutError) or envelope.error is error:
                raise
            message = (
                f"{envelope.label} of {activation.id!r} took over"
                f" {options.timeout_ms} ms"
            )
            raise CallTimeoutError(message) from None

    def _start_stream(self, making: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(making)
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return task

    def _end_streams(self) -> None:
        for task in self._streams:
            task.cancel()

    def _end_for_deletion(self, object_id: ObjectId) -> None:
        self.sockets.close(object_id, BROKEN, "the object was deleted")
        activation = self._residents.find(object_id)
        if activation is not None:
            with contextlib.suppress(StorageError):  # what cannot be written goes too
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
        self._check_loop()

    def _check_loop(self) -> None:
        """Refuse other loops, threads, and children of a fork (G26).

        In a child the files belong to the parent still: nothing may be written.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None  # so it is in a child, too
        if loop is not self._loop:
            message = (
                "this host belongs to another event loop, thread or process; use it in"
                " the loop that opened it, or connect() to a daemon"
            )
            raise HostMisuseError(message)

    def _check_resumed(self) -> None:
        if self._is_paused:
            message = (
                "the host runs no object's code, as it has crashed too often; it is in"
                " safe mode until it is stopped in order and started again"
            )
            raise SafeModeError(message)

    async def _answer(self, envelope: Envelope, activation: Place) -> object:
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

    def _wake(self, object_id: ObjectId) -> asyncio.Future[Any] | None:
        """Let an object look at its alarm; None if its class is not known."""
        info = self._classes.get(object_id.namespace)
        if info is None:
            return None
        if self._is_open and self.failure is None:
            return self._activation(object_id, info).fire_alarm()
        nobody: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        nobody.set_result(None)  # the next process delivers it
        return nobody

    def _storage_failed(self, error: StorageError, first_failed: int) -> None:
        """Break every activation whose memory is ahead of the disk."""
        is_full = isinstance(error, StorageFullError)
        if not is_full:
            self.failure = error
            self.failed.set()
        else:
            self.reminders.pause()  # until the committer finds space
        for activation in self._residents:
            if activation.ticket >= first_failed or not is_full:
                activation.break_off(
                    str(error),
                    outcome="failed" if is_full else "unknown",
                    cause=error,
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
        busy = [a for a in self._residents if not a.is_idle]
        waits = [task for activation in busy for task in activation.pending_tasks]
        if waits:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        else:
            # Only a commit is missing.
            await self._settled(self.committer.last_ticket)
            await asyncio.sleep(0)


def _bounds_of(config: Config) -> SocketBounds:
    sockets = config.web_sockets
    return SocketBounds(
        message_bytes_max=sockets.message_bytes_max,
        queue_messages_max=sockets.queue_messages_max,
        queue_bytes_max=sockets.queue_bytes_max,
        sockets_max=sockets.sockets_per_object_max,
    )
