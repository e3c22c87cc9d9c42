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
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from durable_actor.config import Config, WebSocketsConfig
from durable_actor.daemon.app import Traffic, build_app
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.listening import BACKLOG, Listen, bind, hosts_of, url_of
from durable_actor.daemon.loader import Served, load
from durable_actor.daemon.metrics import make_metrics
from durable_actor.daemon.ports import RUNS_HOOK, RunsApi
from durable_actor.daemon.protocol import (
    BoundedProtocol,
    BoundedWebSocketProtocol,
    bounded,
)
from durable_actor.daemon.tokens import TOKEN_FILE, token_of
from durable_actor.errors import (
    ConfigError,
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
            case StorageError():
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
    for name in ("uvicorn", "apscheduler"):  # what they do, we tell ourselves
        logging.getLogger(name).setLevel(logging.WARNING)
    listen = listen or Listen.configured(config.http)
    if listen.is_public and not config.http.allow_public:
        message = (
            f"{listen.host} can be reached by others; listen on 127.0.0.1, or set"
            " http.allow_public = true (and think of TLS in front of it)"
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
        await host.open()
        try:
            await _serve_host(
                host,
                served,
                config,
                listen=listen,
                signals=signals,
                announce=announce,
            )
        finally:
            await host.close(grace_ms=0)  # if it did not come to serving
    if host.failure is not None:
        raise host.failure


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
    signals: Signals,
    announce: Callable[[Mapping[str, object]], None],
) -> None:
    http = config.http
    runs = [
        getattr(found.cls, RUNS_HOOK)(host)
        for found in served.classes.values()
        if hasattr(found.cls, RUNS_HOOK)
    ]
    schedules = await _schedules(host, config, runs)
    token_file = Path(http.token_file or host.directory / TOKEN_FILE)
    token = token_of(token_file)
    listener = bind(listen)
    traffic = Traffic(in_flight_max=http.in_flight_max)
    traffic.on_drain.append(host.close_web_sockets)
    app, _ = build_app(
        host,
        served,
        runs,
        GuardPolicy(
            token=token,
            hosts=hosts_of(listener) | {name.lower() for name in http.allowed_hosts},
            origins=frozenset(http.allowed_origins),
            body_bytes_max=http.body_bytes_max,
            fetch_body_bytes_max=http.fetch_body_bytes_max,
            header_bytes_max=http.header_bytes_max,
            headers_max=http.headers_max,
            target_bytes_max=http.header_bytes_max,
            body_timeout_ms=http.body_timeout_ms,
        ),
        traffic,
        debug=config.debug and not listen.is_public,
        reasons=lambda: [] if host.state == "ok" else [f"storage_{host.state}"],
        metrics=make_metrics(
            host.stats, state=lambda: host.state, in_flight=lambda: traffic.in_flight
        ),
    )

    def started() -> None:
        facts = {
            "event": "ready",
            "pid": os.getpid(),
            "listen": url_of(listener),
            "epoch": host.epoch,
            "data_dir": str(host.directory.absolute()),
            "token_file": str(token_file.absolute()),
        }
        log.info("daemon.ready", **{key: facts[key] for key in ("listen", "epoch")})
        announce(facts)

    server = make_server(
        app,
        protocol=bounded(
            BoundedProtocol,
            head_timeout_ms=http.header_timeout_ms,
            head_bytes_max=2 * http.header_bytes_max + _START_LINE_BYTES,
            connections_max=http.connections_max,
            write_timeout_ms=http.write_timeout_ms,
        ),
        socket_protocol=bounded(
            BoundedWebSocketProtocol, write_timeout_ms=http.write_timeout_ms
        ),
        sockets=config.web_sockets,
        idle_timeout_ms=http.idle_timeout_ms,
        on_started=started,
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        await schedules.start()
        await _first(signals.stop.wait(), host.failed.wait(), serving)
        await schedules.stop()
        drained = await _drain(host, traffic, signals, config.shutdown_grace_ms)
        log.info("daemon.drained" if drained else "daemon.not_drained")
    finally:
        traffic.is_draining = True
        await schedules.stop()
        # Whatever was to be waited for, was. The host first: who still waits for an
        # object is told that it was reset, and that needs the server.
        await host.close(grace_ms=0)
        server.should_exit = True
        await serving
        if listen.path is not None:
            listen.path.unlink(missing_ok=True)


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

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._on_started()


def make_server(
    app: ASGIApp,
    *,
    protocol: type[BoundedProtocol],
    idle_timeout_ms: int,
    on_started: Callable[[], None],
    socket_protocol: type[BoundedWebSocketProtocol] = BoundedWebSocketProtocol,
    sockets: WebSocketsConfig = WebSocketsConfig(),  # noqa: B008  # frozen
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
