"""A program that embeds a host and forks; its child uses what it has inherited.

Prints one JSON line: what the child was told, and what the parent found afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from durable_actor import DurableObject, Host


class Counter(DurableObject):
    async def increment(self) -> int:
        count: int = await self.ctx.storage.get("count") or 0
        self.ctx.storage.put("count", count + 1)
        return count + 1


class SqlCounter(Counter, storage="sqlite"):
    """The same, with a database of its own."""


def told_in_child(host: Host) -> dict[str, str]:
    told: dict[str, str] = {}
    uses: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "call": host.namespace(Counter).get_by_name("a").increment,
        "close": host.close,
        "list": host.list_objects,
    }
    for name, use in uses.items():
        try:
            use().send(None)  # no loop runs in a child
        except StopIteration:
            told[name] = "nothing"
        except Exception as error:  # noqa: BLE001  # the question is which one
            told[name] = type(error).__name__
    return told


async def run(directory: Path) -> dict[str, object]:
    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}

    async with Host(directory) as host:
        counters = [
            host.namespace(cls).get_by_name("a") for cls in (Counter, SqlCounter)
        ]
        for counter in counters:
            await counter.increment()
        await host.committer.fold()
        before = files()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            told = told_in_child(host)
            os.write(writer, json.dumps(told).encode())
            os._exit(0)  # the event loop is the parent's
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = json.loads(pipe.read())
        os.waitpid(child, 0)  # noqa: ASYNC222  # it has ended
        is_untouched = files() == before
        counts = [await counter.increment() for counter in counters]
    async with Host(directory) as host:
        counters = [
            host.namespace(cls).get_by_name("a") for cls in (Counter, SqlCounter)
        ]
        counts += [await counter.increment() for counter in counters]
    return {"told": told, "is_untouched": is_untouched, "counts": counts}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1])))))
