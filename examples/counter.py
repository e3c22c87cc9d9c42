"""The smallest object: a counter that survives the program that counts.

A subclass of `DurableObject` is a class of objects. Each name is one object, with
storage of its own; it comes to life when it is first called, and nothing has to be
created. Calls run one at a time, so `get` and `put` need no lock. A reply means that
what was written before it is on disk.

    python examples/counter.py [DIRECTORY]

With a directory of your own it goes on counting from one start to the next.

Expected output:
    visits to the front page: 1, 2, 3
    the host is closed and opened again
    visits to the front page: 3, and one more makes 4
    visits to the page about us: 0
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import structlog

from durable_actor import DurableObject, Host


class Counter(DurableObject):
    """Counts."""

    async def increment(self, by: int = 1) -> int:
        """Add to the value and return it."""
        value = await self.value() + by
        self.ctx.storage.put("value", value)
        return value

    async def value(self) -> int:
        """Return how far it has come."""
        value: int = await self.ctx.storage.get("value", 0)
        return value


async def count(directory: Path) -> None:
    """Count, close the host, and look what is left."""
    async with Host(directory) as host:
        front = host.namespace(Counter).get_by_name("front page")
        visits = [str(await front.increment()) for _ in range(3)]
        print("visits to the front page:", ", ".join(visits))

    print("the host is closed and opened again")
    async with Host(directory) as host:
        counters = host.namespace(Counter)
        front = counters.get_by_name("front page")
        before, after = await front.value(), await front.increment()
        print(f"visits to the front page: {before}, and one more makes {after}")
        about = counters.get_by_name("about us")
        print("visits to the page about us:", await about.value())


def main() -> None:
    """Count in the directory given, or in one that is gone afterwards."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(count(Path(sys.argv[1] if sys.argv[1:] else temporary)))


if __name__ == "__main__":
    main()
