"""Objects and workflows inside a Starlette application, with nothing beside it.

The host is opened and closed by the application's lifespan. Routes find a namespace and
a client in `request.state` and call objects as they would call anything else. A test
gives `create_app` a directory of its own: `TestClient(create_app(tmp_path))`.

    python examples/embedded_starlette.py [DIRECTORY]

Serves itself on a free port of the loopback interface, makes some requests, and stops.
One process at a time may have a directory open, so run such an application with one
worker.

Expected output:
    POST /pages/front/visits   200 {'visits': 1}
    POST /pages/front/visits   200 {'visits': 2}
    GET  /pages/front          200 {'visits': 2}
    GET  /signups/ada          404 {'detail': 'nobody signed up as ada'}
    POST /signups/ada          202 {'id': 'ada'}
    GET  /signups/ada?wait=1   200 {'status': 'Completed', 'output': 'ada is member 1'}
"""

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict

import httpx2
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from durable_actor import DurableObject, DurableObjectNamespace, Host
from workflows import RunNotFoundError, Step, create_durable_workflows, workflow
from workflows import WorkflowClient as Client


class Counter(DurableObject):
    """Counts visits, and members."""

    async def increment(self) -> int:
        """Add one and return the value."""
        value = await self.value() + 1
        self.ctx.storage.put("value", value)
        return value

    async def value(self) -> int:
        """Return the value."""
        value: int = await self.ctx.storage.get("value", 0)
        return value


@workflow
async def sign_up(step: Step, name: str) -> str:
    """Give somebody a number, after a moment to reconsider."""
    await step.sleep("reconsider", "200 ms")
    number = await step.run("take a number", take_number, step)
    return f"{name} is member {number}"


async def take_number(step: Step) -> int:
    """Return the next number."""
    counters = step.env.namespace(Counter)
    # A step that is interrupted runs again; a call with the same identity does not.
    members = counters.get_by_name("members", request_id=step.idempotency_key)
    return await members.increment()


Workflows, WorkflowClient = create_durable_workflows({"sign_up": sign_up})


class State(TypedDict):
    """What routes find in `request.state`."""

    counters: DurableObjectNamespace[Counter]
    client: Client


def create_app(directory: Path) -> Starlette:
    """Return the application, with its data in a directory."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        del app
        # Runs that were under way when the last process ended go on by themselves.
        async with Host(directory, classes=[Counter, Workflows]) as host:
            client = WorkflowClient.from_binding(host.namespace(Workflows))
            yield {"counters": host.namespace(Counter), "client": client}

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/pages/{name}", show_page),
            Route("/pages/{name}/visits", visit_page, methods=["POST"]),
            Route("/signups/{name}", show_signup),
            Route("/signups/{name}", begin_signup, methods=["POST"]),
        ],
    )


async def visit_page(request: Request) -> JSONResponse:
    """Count a visit."""
    page = _counters(request).get_by_name(request.path_params["name"])
    return JSONResponse({"visits": await page.increment()})


async def show_page(request: Request) -> JSONResponse:
    """Tell how many visits there were."""
    page = _counters(request).get_by_name(request.path_params["name"])
    return JSONResponse({"visits": await page.value()})


async def begin_signup(request: Request) -> JSONResponse:
    """Start a run; the same name again finds the same run."""
    name = request.path_params["name"]
    run = await _client(request).start(sign_up, name, id=name)
    return JSONResponse({"id": run.id}, status_code=202)


async def show_signup(request: Request) -> JSONResponse:
    """Tell how far a run is; with `?wait=1`, once it has ended."""
    name = request.path_params["name"]
    run = _client(request).get(sign_up, name)
    try:
        status = await run.status()
    except RunNotFoundError:
        detail = f"nobody signed up as {name}"
        return JSONResponse({"detail": detail}, status_code=404)
    output = None
    if request.query_params.get("wait"):
        output = await run.result()
        status = await run.status()
    return JSONResponse({"status": type(status).__name__, "output": output})


def _counters(request: Request) -> DurableObjectNamespace[Counter]:
    counters: DurableObjectNamespace[Counter] = request.state.counters
    return counters


def _client(request: Request) -> Client:
    client: Client = request.state.client
    return client


async def serve(directory: Path) -> None:
    """Serve on a free port, ask a few things, and stop."""
    # Listening before the server starts: the first request waits instead of failing.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(directory), lifespan="on", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        host, port = listener.getsockname()
        try:
            await ask(f"http://{host}:{port}")
        finally:
            server.should_exit = True
            await serving


async def ask(base_url: str) -> None:
    """Make some requests, and print the answers."""
    async with httpx2.AsyncClient(base_url=base_url, trust_env=False) as client:
        for method, path in (
            ("POST", "/pages/front/visits"),
            ("POST", "/pages/front/visits"),
            ("GET", "/pages/front"),
            ("GET", "/signups/ada"),
            ("POST", "/signups/ada"),
            ("GET", "/signups/ada?wait=1"),
        ):
            answer = await client.request(method, path)
            print(f"{method:4} {path:21} {answer.status_code}", answer.json())


def main() -> None:
    """Serve from the directory given, or from one that is gone afterwards."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(serve(Path(sys.argv[1] if sys.argv[1:] else temporary)))


if __name__ == "__main__":
    main()
