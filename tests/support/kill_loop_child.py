"""A process that embeds a host and takes requests as lines of JSON, for the kill loop.

    python -m tests.support.kill_loop_child DIRECTORY [--driver DRIVER] [--app MODULE]

One JSON object a line: `{"n": 1, "op": "increment", "name": "a", "key": "k"}` on
stdin, `{"n": 1, "result": 7}` or `{"n": 1, "error": "..."}` on stdout, after a ready
line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog

from durable_actor import Host
from tests.support.kill_loop_app import (
    COUNTERS,
    Note,
    WorkflowClient,
    Workflows,
)
from workflows import Completed, RunNotFoundError


class Child:
    """Answers requests over a host."""

    def __init__(self, host: Host) -> None:
        self._counters = {name: host.namespace(COUNTERS[name]) for name in COUNTERS}
        self._runs = WorkflowClient.from_binding(host.namespace(Workflows))

    async def answer(self, request: Mapping[str, Any]) -> object:
        match request["op"]:
            case "increment":
                counters = self._counters[request["cls"]]
                stub = counters.get_by_name(request["name"], request_id=request["key"])
                return await stub.increment()
            case "value":
                counters = self._counters[request["cls"]]
                return await counters.get_by_name(request["name"]).value()
            case "start":
                run = request["run"]
                await self._runs.run_async("note", Note(run=run), id=run)
                return None
            case "state":
                handle = self._runs.get("note", request["run"])
                try:
                    status = await handle.status()
                except RunNotFoundError:
                    return [None, None]
                is_done = isinstance(status, Completed)
                output = await handle.result() if is_done else None
                return [type(status).__name__, output]
            case other:
                message = f"unknown op {other!r}"
                raise ValueError(message)


async def _main(options: argparse.Namespace) -> None:
    import_module(options.app)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with Host(options.directory, driver=options.driver) as host:
        child = Child(host)
        tasks: set[asyncio.Task[None]] = set()
        print(json.dumps({"event": "ready", "epoch": host.epoch}), flush=True)
        while line := await reader.readline():
            task = asyncio.ensure_future(_serve(child, json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def _serve(child: Child, request: Mapping[str, Any]) -> None:
    answer: dict[str, object] = {"n": request["n"]}
    try:
        answer["result"] = await child.answer(request)
    except Exception as error:  # noqa: BLE001  # whatever it is, the kill loop decides
        answer["error"] = repr(error)
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Run the child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--driver", choices=["thread", "process"], default="thread")
    parser.add_argument("--app", default="tests.support.kill_loop_app")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
