"""The process: opens the host, serves, drains on a signal, chooses the exit status.

On SIGTERM or SIGINT readiness fails and new work is refused with 503, while the socket
still listens; accepted work finishes within the grace; then the host is closed, which
flushes everything. A second signal skips the waiting: what was acknowledged is on disk
anyway. uvicorn parses HTTP and nothing else: signals, sockets and the end are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from durable_actor.breadcrumbs import Breadcrumbs
from durable_actor.config import Config, WebSocketsConfig
from durable_actor.daemon.accepting import Acceptor, Room
from durable_actor.daemon.app import Traffic, build_app
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.listening import BACKLOG, Listen, bind, hosts_of, url_of
from durable_actor.daemon.livez import LivezThread
from durable_actor.daemon.loader import Served, load
from durable_actor.daemon.metrics import make_metrics
from durable_actor.daemon.ports import RUNS_HOOK, RunsApi
from durable_actor.daemon.protocol import (
    BoundedProtocol,
    BoundedWebSocketProtocol,
    bounded,
)
from durable_actor.daemon.starts import Starts
from durable_actor.daemon.tls import make_context
from durable_actor.daemon.token_book import TOKENS_FILE, TokenBook
from durable_actor.daemon.tokens import TOKEN_FILE, token_of
from durable_actor.daemon.watchdog import Watchdog
from durable_actor.delivery import Delivery
from durable_actor.descriptors import connections_max
from durable_actor.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryInUseError,
    StorageError,
)
from durable_actor.host import Host
from durable_actor.log import get_logger
from durable_actor.schedules import Schedules
from durable_actor.schedules import apply as apply_schedules

log = get_logger("durable_actor.daemon")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_ANSWERS_SECONDS = 1  # for answers being written when the grace is over
_PAGE_RUNS = 1_000
_START_LINE_BYTES = 32  # of a request, beside its target: method, version, spaces


class Exit(IntEnum):
    """Exit statuses of `serve`, those of sysexits.h."""

    DRAINED = 0
    USAGE = 64
    INTERNAL = 70
    STORAGE_FAILED = 74
    DATA_DIRECTORY_IN_USE = 75
    CONFIG = 78

    @classmethod
    def of(cls, error: BaseException) -> Exit:
        """Return the status that tells of an exception."""
        match error:
            case ConfigError() | PermissionError():
                return cls.CONFIG
            case DataDirectoryInUseError():
                return cls.DATA_DIRECTORY_IN_USE
            case StorageError() | CorruptionError():
                return cls.STORAGE_FAILED
            case _:
                return cls.INTERNAL


async def serve(
    config: Config,
    announce: Callable[[Mapping[str, object]], None],
    *,
    listen: Listen | None = None,
) -> None:
    """Serve until a signal asks for the end.

    Args:
        config: Everything that can be set.
        announce: Told once, when requests are answered, where and by whom.
        listen: Where, if not where the configuration says.

    Raises:
        ConfigError: Something in the configuration, the module or the address is wrong.
        DataDirectoryInUseError: Another process has the data directory.
        StorageError: The disk failed, at the start or later.
    """
    os.umask(0o077)  # every file of ours is ours alone
    # What is in memory is not for a file that nobody expects (S21).
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    for name in ("uvicorn", "apscheduler"):  # what they do, we tell ourselves
        logging.getLogger(name).setLevel(logging.WARNING)
    listen = listen or Listen.configured(config.http)
    tls = None if listen.path is not None else make_context(config.http)
    if listen.is_public and tls is None and not config.http.allow_public:
        message = (
            f"{listen.host} can be reached by others, who could read along; set"
            " http.tls_certificate_file, or listen on 127.0.0.1, or, if something in"
            " front of it does the TLS, set http.allow_public = true"
        )
        raise ConfigError(message)
    served = load(
        config.main,
        directory=Path(config.directory),
        bindings=config.durable_objects.bindings,
    )
    host = _make_host(config, served)
    signals = Signals()
    with signals.handled():
        await host.open(is_paused=True)
        starts = Starts(host.directory, config.crashes, now_ms=host.clock.now_ms())
        try:
            host.breadcrumbs = _breadcrumbs(host, config)
            if not starts.are_too_many:
                await host.resume()
            await _serve_host(
                host,
                served,
                config,
                listen=listen,
                tls=tls,
                signals=signals,
                announce=announce,
            )
        finally:
            await host.close(grace_ms=0)  # if it did not come to serving
            if host.breadcrumbs is not None:
                host.breadcrumbs.close()
    if host.failure is not None:
        raise host.failure
    starts.ended_in_order()


def _make_host(config: Config, served: Served) -> Host:
    driver = config.storage.driver
    host = Host(
        config=config,
        classes=[served.cls for served in served.classes.values()],
        env=config.vars,
        # User code that holds the interpreter must not hold up commits as well.
        driver="process" if driver == "auto" else driver,
    )

    for name, bound in served.bindings.items():
        host.bind(name, host.namespace(bound.cls))
    for workflow in config.workflows:
        engine = served.engine_of(workflow.name, workflow.class_name)
        host.bind(workflow.binding, host.namespace(engine))
    return host


async def _serve_host(
    host: Host,
    served: Served,
    config: Config,
    *,
    listen: Listen,
    tls: ssl.SSLContext | None,
    signals: Signals,
    announce: Callable[[Mapping[str, object]], None],
) -> None:
    http = config.http
    runs = [
        getattr(found.cls, RUNS_HOOK)(host)
        for found in served.classes.values()
        if hasattr(found.cls, RUNS_HOOK)
    ]
    recovered = 0 if host.is_paused else await _interrupted(runs)
    schedules = None if host.is_paused else await _schedules(host, config, runs)
    token_file = Path(http.token_file or host.directory / TOKEN_FILE)
    token = token_of(token_file)
    book = TokenBook(Path(http.tokens_file or host.directory / TOKENS_FILE))
    watchdog = Watchdog(config.watchdog, reset=_reset)
    livez = _livez(config, watchdog)
    listener = bind(listen)
    traffic = Traffic(
        in_flight_max=http.in_flight_max, per_token_max=http.in_flight_per_token_max
    )
    traffic.on_drain.append(host.close_web_sockets)
    app, _ = build_app(
        host,
        served,
        runs,
        GuardPolicy(
            token=token,
            grants=book.grants,
            hosts=hosts_of(listener, is_tls=tls is not None)
            | {name.lower() for name in http.allowed_hosts},
            origins=frozenset(http.allowed_origins),
            body_bytes_max=http.body_bytes_max,
            bodies_bytes_max=http.bodies_bytes_max,
            fetch_body_bytes_max=http.fetch_body_bytes_max,
            header_bytes_max=http.header_bytes_max,
            headers_max=http.headers_max,
            target_bytes_max=http.header_bytes_max,
            body_timeout_ms=http.body_timeout_ms,
            memory=host.memory,
        ),
        traffic,
        debug=config.debug and not listen.is_public,
        reasons=lambda: _reasons(host),
        metrics=make_metrics(
            host.stats,
            state=lambda: host.state,
            in_flight=lambda: traffic.in_flight,
            loop=watchdog.stats,
        ),
    )

    def started() -> None:
        facts = {
            "event": "ready",
            "pid": os.getpid(),
            "listen": url_of(listener, is_tls=tls is not None),
            "epoch": host.epoch,
            "recovered_runs": recovered,
            "data_dir": str(host.directory.absolute()),
            "token_file": str(token_file.absolute()),
        }
        if livez is not None:
            facts["livez"] = livez.url
        if host.is_paused:
            facts["safe_mode"] = True
        log.info("daemon.ready", **{key: facts[key] for key in ("listen", "epoch")})
        announce(facts)

    server = make_server(
        app,
        protocol=bounded(
            BoundedProtocol,
            head_timeout_ms=http.header_timeout_ms,
            head_bytes_max=2 * http.header_bytes_max + _START_LINE_BYTES,
            connections_max=_connections_max(host, config),
            write_timeout_ms=http.write_timeout_ms,
        ),
        socket_protocol=bounded(
            BoundedWebSocketProtocol,
            write_timeout_ms=http.write_timeout_ms,
            fragments_max=config.web_sockets.fragments_max,
        ),
        sockets=config.web_sockets,
        idle_timeout_ms=http.idle_timeout_ms,
        on_started=started,
        tls=tls,
        room=Room(
            spoken_for=lambda: (
                host.databases.descriptors_to_come if host.has_databases else 0
            )
        ),
    )
    watchdog.start()
    if livez is not None:
        livez.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        if schedules is not None:
            await schedules.start()
        await _first(signals.stop.wait(), host.failed.wait(), serving)
        if schedules is not None:
            await schedules.stop()
        drained = await _drain(host, traffic, signals, config.shutdown_grace_ms)
        log.info("daemon.drained" if drained else "daemon.not_drained")
    finally:
        traffic.is_draining = True
        if schedules is not None:
            await schedules.stop()
        # Whatever was to be waited for, was. The host first: who still waits for an
        # object is told that it was reset, and that needs the server.
        await host.close(grace_ms=0)
        server.should_exit = True
        await serving
        if listen.path is not None:
            listen.path.unlink(missing_ok=True)
        if livez is not None:
            livez.stop()
        watchdog.stop()


def _connections_max(host: Host, config: Config) -> int:
    """Return how many connections there are descriptors for (G16)."""
    wanted = config.http.connections_max
    databases = host.databases.open_max if host.has_databases else 0
    found = connections_max(wanted, databases=databases)
    if found < wanted:
        log.info("daemon.few_descriptors", connections=found, databases=databases)
    return found


def _breadcrumbs(host: Host, config: Config) -> Breadcrumbs | None:
    deaths_max = config.crashes.deaths_max
    if not deaths_max:
        return None
    try:
        return Breadcrumbs(host.directory, deaths_max=deaths_max)
    except OSError as error:  # a full disk keeps nobody from starting
        log.warning("daemon.no_breadcrumbs", error=str(error))
        return None


def _reasons(host: Host) -> list[str]:
    """Return why the daemon is not ready."""
    reasons = ["safe_mode"] if host.is_paused else []
    return reasons if host.state == "ok" else [*reasons, f"storage_{host.state}"]


def _livez(config: Config, watchdog: Watchdog) -> LivezThread | None:
    address = config.watchdog.livez_listen
    return None if address is None else LivezThread(Listen.parse(address), watchdog)


def _reset(delivery: Delivery, reason: str) -> None:
    """Throw the object away whose code was interrupted."""
    delivery.activation.break_off(reason, outcome="failed", counts=True)


async def _interrupted(runs: Sequence[RunsApi]) -> int:
    """Return how many runs the process before left at work; they go on now."""
    count = 0
    for api in runs:
        cursor: str | None = None
        while True:
            page = await api.list(
                status="Running", workflow=None, limit=_PAGE_RUNS, cursor=cursor
            )
            count += len(cast("list[object]", page["runs"]))
            cursor = cast("str | None", page["cursor"])
            if cursor is None:
                break
    return count


async def _schedules(host: Host, config: Config, runs: Sequence[RunsApi]) -> Schedules:
    """Return the schedules of the host, with those of the configuration."""
    api_by_name = {name: api for api in runs for name in api.names()}

    async def start_run(workflow: str, value: object, run_id: str) -> None:
        api = api_by_name[workflow]
        await api.start(workflow, value, run_id=run_id, is_async=True)

    schedules = Schedules(host, start_run=start_run if api_by_name else None)
    await apply_schedules(schedules, config, workflows=api_by_name)
    return schedules


async def _drain(host: Host, traffic: Traffic, signals: Signals, grace_ms: int) -> bool:
    """Let accepted work finish; tell whether all of it did."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + grace_ms / 1_000

    async def finish() -> bool:
        await traffic.drain()
        return await host.drain(max(int((give_up_at - loop.time()) * 1_000), 0))

    finishing = asyncio.create_task(finish(), name="drain")
    try:
        async with asyncio.timeout_at(give_up_at + 1):
            await _first(finishing, signals.now.wait(), host.failed.wait())
    except TimeoutError:
        return False
    finally:
        if not finishing.done():
            finishing.cancel()
            await asyncio.wait([finishing])
    return not finishing.cancelled() and finishing.result()


async def _first(*awaitables: Awaitable[object]) -> None:
    """Return when the first of them is done; leave tasks alone, end the rest."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, awaitable in zip(tasks, awaitables, strict=True):
            if task is not awaitable:
                task.cancel()


class Server(uvicorn.Server):
    """uvicorn without its signal handling, which raises the signal again at the end."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        *,
        protocol: type[BoundedProtocol],
        tls: ssl.SSLContext | None,
        room: Room,
    ) -> None:
        super().__init__(config)
        self._room = room
        self._acceptors: list[Acceptor] = []
        self._on_started = on_started
        self._protocol = protocol
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        assert sockets is not None
        await self.lifespan.startup()  # which is off, but keeps a state
        # Not uvicorn's own, which gives a handshake of TLS a minute, nor the loop's,
        # for which one descriptor is like another.
        self.servers = []
        self._acceptors = [
            Acceptor(
                sock,
                self._make_protocol,
                room=self._room,
                tls=self._tls,
                handshake_seconds=self._protocol.head_timeout_ms / 1_000,
            )
            for sock in sockets
        ]
        for acceptor in self._acceptors:
            acceptor.start()
        self.started = True
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody any more, and let those go who are connected."""
        for acceptor in self._acceptors:
            acceptor.close()
        await super().shutdown(sockets)

    def _make_protocol(self) -> asyncio.Protocol:
        return self._protocol(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def make_server(
    app: ASGIApp,
    *,
    protocol: type[BoundedProtocol],
    idle_timeout_ms: int,
    on_started: Callable[[], None],
    socket_protocol: type[BoundedWebSocketProtocol] = BoundedWebSocketProtocol,
    sockets: WebSocketsConfig = WebSocketsConfig(),  # noqa: B008  # frozen
    tls: ssl.SSLContext | None = None,
    room: Room | None = None,
) -> Server:
    """Return a server of the application."""
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws=socket_protocol,
            ws_max_size=sockets.message_bytes_max,
            ws_ping_interval=sockets.ping_interval_ms / 1_000,
            ws_ping_timeout=sockets.ping_timeout_ms / 1_000,
            ws_per_message_deflate=False,  # what is compressed has no size to check
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=-(-idle_timeout_ms // 1_000),
            timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
        ),
        on_started,
        protocol=protocol,
        tls=tls,
        room=room or Room(),
    )


class Signals:
    """SIGTERM and SIGINT as events: the first means drain, the second means now."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()

    def received(self, number: int) -> None:
        """Take note of a signal."""
        name = signal.Signals(number).name
        if self.stop.is_set():
            log.warning("daemon.stop_now", signal=name)
            self.now.set()
        else:
            log.info("daemon.stop", signal=name)
            self.stop.set()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals while the block runs."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.received, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
