"""A program that commits numbered turns and says which are durable, until it is killed.

Run as `python -m tests.support.writer DIRECTORY DRIVER`; each line of its output is a
turn that was acknowledged. `DURABLE_ACTOR_FAILPOINTS` says where it dies.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import cast

from durable_actor.errors import StorageError
from durable_actor.storage.committer import Committer
from durable_actor.storage.store import DriverKind, open_store
from tests.support.shards import raw_id, seal_of, shard_options

TURNS = 40
OBJECTS = 3


async def _main(directory: Path, kind: DriverKind) -> None:
    store = await open_store(directory, shard_options(directory), kind)
    committer = Committer(store.driver, on_failure=lambda error, _: None)
    begin = committer.last_ticket
    for turn in range(begin + 1, begin + TURNS + 1):
        value = b"%d" % turn
        num = turn % OBJECTS + 1
        keys = {"first": value, f"turn {turn}": value, "last": value}
        ticket = committer.seal(seal_of(num, keys), raw_id(num))

        def settled(error: StorageError | None, turn: int = turn) -> None:
            if error is None:
                os.write(1, b"%d\n" % turn)

        committer.when_durable(ticket, settled)
        if turn % 3:
            await committer.wait(ticket)
        if turn % 8 == 0:
            await committer.fold()
    await committer.close()
    store.release()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), cast("DriverKind", sys.argv[2])))
