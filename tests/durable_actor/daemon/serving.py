"""A host behind HTTP, in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from durable_actor.daemon.app import Traffic, build_app
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.listening import Listen, bind, hosts_of, url_of
from durable_actor.daemon.loader import Served
from durable_actor.daemon.ports import RUNS_HOOK
from durable_actor.daemon.protocol import BoundedProtocol
from durable_actor.daemon.server import make_server
from durable_actor.entrypoints import DurableObject
from durable_actor.host import Host

TOKEN = "correct-horse-battery-staple"


@dataclass(frozen=True)
class Serving:
    url: str
    token: str
    host: Host
    traffic: Traffic


@asynccontextmanager
async def open_serving(
    directory: Path, *classes: type[DurableObject], listen: Listen | None = None
) -> AsyncIterator[Serving]:
    """Serve these classes on a free port."""
    started = asyncio.Event()
    async with Host(directory, classes=classes) as host:
        runs = [
            getattr(cls, RUNS_HOOK)(host) for cls in classes if hasattr(cls, RUNS_HOOK)
        ]
        listener = bind(listen or Listen(host="127.0.0.1", port=0))
        url = url_of(listener)
        traffic = Traffic()
        app, _ = build_app(
            host,
            Served(classes),
            runs,
            GuardPolicy(token=TOKEN, hosts=hosts_of(listener)),
            traffic,
        )
        server = make_server(
            app,
            protocol=BoundedProtocol,
            idle_timeout_ms=10_000,
            on_started=started.set,
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await started.wait()
        try:
            yield Serving(url, TOKEN, host, traffic)
        finally:
            await host.close(grace_ms=0)
            server.should_exit = True
            await task
