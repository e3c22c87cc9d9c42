"""Staging: what a world begins with, and the ears that listen meanwhile."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator

from durable_actor.config import AlarmsConfig, Config, ObjectsConfig, StorageConfig
from durable_actor.storage.ports import ShardOptions
from durable_actor.storage.shard import Shard
from tests.simulation.edges import SimulatedConnection, SimulatedMarks, simulated_edges
from tests.simulation.loop import Elsewhere, SimulatedLoop
from tests.simulation.plans import Plan
from tests.support.simulated_disk import SimulatedDisk

DATABASE = "/simulated/shard.db"
LOGGER = logging.getLogger("durable_actor")
_EXPECTED = frozenset(("alarm.failed", "storage.commit_failed", "alarm.fill_failed"))
_templates: dict[str, bytes] = {}  # a disk on which a shard was made and closed


def config_of(plan: Plan) -> Config:
    """Return the configuration of a plan's hosts."""
    settings = plan.settings
    return Config(
        storage=StorageConfig(
            log_bytes_max=settings.log_bytes_max,
            wal_bytes_max=settings.wal_bytes_max,
            wal_grow_bytes=settings.wal_grow_bytes,
            group_rows_max=settings.group_rows_max,
            group_bytes_max=settings.group_bytes_max,
            hydrate_bytes_max=1 if settings.is_partial else 256 * 1024,
        ),
        objects=ObjectsConfig(idle_ms=settings.idle_ms),
        alarms=AlarmsConfig(retry_base_ms=40),
    )


def template() -> bytes:
    """Return the file of a shard that was made and closed; it is made once."""
    if not _templates:
        disk = SimulatedDisk()
        loop = SimulatedLoop(random.Random(0), 0.0)

        async def connect() -> SimulatedConnection:
            thread = Elsewhere(loop, random.Random(0), slow=0.0)
            return await SimulatedConnection(loop, disk, thread)

        async def make() -> None:
            options = ShardOptions(
                path=DATABASE, uri=disk.uri(DATABASE), wal_grow_bytes=1
            )
            shard = await Shard.open(options)
            await shard.close()

        with simulated_edges(connect, SimulatedMarks()):
            main = loop.create_task(make())
            loop.run_life(main)
            main.result()
        loop.bury()
        _templates["shard"] = disk.read(DATABASE)
    return _templates["shard"]


class Errors(logging.Handler):
    """Hears of exceptions that the product caught and nobody else saw."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.unseen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not any(name in text for name in _EXPECTED):
            self.unseen.append(text)


@contextlib.contextmanager
def listening() -> Iterator[Errors]:
    """Hear of every error that the product logs, in the length of this context."""
    logger = LOGGER
    errors, before, propagates = Errors(), logger.level, logger.propagate
    logger.addHandler(errors)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield errors
    finally:
        logger.removeHandler(errors)
        logger.setLevel(before)
        logger.propagate = propagates
