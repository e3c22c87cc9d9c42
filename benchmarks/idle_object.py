"""How much memory does an idle object take?

Ten thousand counters with one cached key, resident and without work. The figure is what
tracemalloc saw allocated for them and still alive after a collection, divided by their
number; the objects' ids and names are part of it, the callers' stubs are not. The
baseline is the budget, 2,048 bytes.
"""

from __future__ import annotations

import gc
import tracemalloc

from benchmarks.measuring import (
    Answer,
    Counter,
    Scale,
    data_directory,
    rate_of_callers,
)
from durable_actor import Host
from durable_actor.config import Config, ObjectsConfig

OBJECTS = 10_000
CALLERS = 500
BUDGET_BYTES = 2_048
_STAYS_MS = 3_600_000  # nothing is let go while we look


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return bytes for each object; one count is enough, it hardly varies."""
    del scale
    config = Config(objects=ObjectsConfig(idle_ms=_STAYS_MS))
    with data_directory() as folder:
        async with Host(folder, config=config) as host:
            namespace = host.namespace(Counter)
            await namespace.get_by_name("first").increment()
            await host.committer.fold()
            gc.collect()
            tracemalloc.start()
            try:
                for first in range(0, OBJECTS, CALLERS):
                    await rate_of_callers(
                        lambda n, first=first: namespace.get_by_name(  # type: ignore[misc]
                            f"c{first + n}"
                        ).increment(),
                        CALLERS,
                        1,
                    )
                # What is durable but not in the tables is not the object's memory.
                await host.committer.fold()
                gc.collect()
                taken_bytes, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            resident = host.stats().objects_resident
    assert resident == OBJECTS + 1, f"{resident} objects are resident"
    answer = Answer(
        value=taken_bytes / OBJECTS, baseline=BUDGET_BYTES, unit="bytes/object"
    )
    return {"idle_object_bytes": answer}
