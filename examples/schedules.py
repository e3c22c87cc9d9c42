"""A schedule: an object that is called every 100 ms, through a restart of the host.

A schedule is stored like everything else. A host that is opened on the directory later
goes on with it, without being told what it was; times that passed while no host was
open are made up for by one call.

    python examples/schedules.py [DIRECTORY]

Expected output:
    every 100 ms, call Heart/main beat
    beat 1
    beat 2
    beat 3
    the host is closed for a while: no beat
    another host: it has the schedule ['pulse']
    one more beat
    and another
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import structlog

from durable_actor import DurableObject, Host, Schedules


class Heart(DurableObject):
    """Counts its beats."""

    async def beat(self) -> None:
        """Count one beat. Called by the schedule."""
        self.ctx.storage.put("beats", await self.beats() + 1)

    async def beats(self) -> int:
        """Return how many there were."""
        beats: int = await self.ctx.storage.get("beats", 0)
        return beats


async def beat(directory: Path) -> None:
    """Make a schedule, close the host, and open another."""
    async with Host(directory, classes=[Heart]) as host:
        heart = host.namespace(Heart).get_by_name("main")
        schedules = Schedules(host)
        await schedules.start()
        await schedules.call("pulse", Heart, "main", "beat", every="100 ms")
        print("every 100 ms, call Heart/main beat")
        before = await heart.beats()
        for count in (1, 2, 3):
            await _until_beats(heart, before + count)
            print("beat", count)
        await schedules.stop()

    await asyncio.sleep(0.5)
    async with Host(directory, classes=[Heart]) as host:
        heart = host.namespace(Heart).get_by_name("main")
        before = await heart.beats()
        print("the host is closed for a while: no beat")

        schedules = Schedules(host)
        await schedules.start()
        print("another host: it has the schedule", list(await schedules.all()))
        await _until_beats(heart, before + 1)
        print("one more beat")
        await _until_beats(heart, before + 2)
        print("and another")
        await schedules.stop()


async def _until_beats(heart: Heart, beats: int) -> None:
    while await heart.beats() < beats:  # noqa: ASYNC110  # asks as a client would
        await asyncio.sleep(0.01)


def main() -> None:
    """Beat in the directory given, or in one that is gone afterwards."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(beat(Path(sys.argv[1] if sys.argv[1:] else temporary)))


if __name__ == "__main__":
    main()
