"""How many durable calls a second are left when the event loop is busy?

Busy: a callback that takes 50 us of processor time and schedules itself again, for the
whole measurement. What suffers is a storage thread, which has to win the interpreter
lock back at every step; a storage process competes with nobody. The daemon's driver is
the process, so that is the figure with the plain name.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.measuring import (
    Answer,
    Counter,
    Scale,
    data_directory,
    rate_of_callers,
    take_turns,
)
from durable_actor import Host
from durable_actor.storage.store import DriverKind

OBJECTS = 200
SLICE_SECONDS = 50e-6
MEASURED_SECONDS = 0.25


async def measure(scale: Scale) -> dict[str, Answer]:
    """Return the busy and the quiet rate of both drivers."""
    thread = await _measure(scale, "thread")
    process = await _measure(scale, "process")
    return {
        "busy_loop_vs_quiet_thread": thread,
        "busy_loop_vs_quiet_process": process,
        "busy_loop_vs_quiet": process,
    }


async def _measure(scale: Scale, driver: DriverKind) -> Answer:
    with data_directory() as folder:
        async with Host(folder, driver=driver) as host:
            namespace = host.namespace(Counter)
            stubs = [namespace.get_by_name(f"c{n}") for n in range(OBJECTS)]

            async def quiet() -> float:
                rate = await _rate(stubs)
                await host.committer.fold()
                return rate

            async def busy() -> float:
                load = _Load(asyncio.get_running_loop())
                rate = await _rate(stubs)
                load.stop()
                await host.committer.fold()
                return rate

            await rate_of_callers(lambda n: stubs[n].increment(), OBJECTS, 1)
            return await take_turns(scale, "calls/s", busy, quiet)


async def _rate(stubs: list[Counter]) -> float:
    """Return calls a second over a fixed time; a slow driver must not take for ever."""
    calls = 0
    started = time.perf_counter()
    ends = started + MEASURED_SECONDS

    async def caller(stub: Counter) -> None:
        nonlocal calls
        while time.perf_counter() < ends:
            await stub.increment()
            calls += 1

    await asyncio.gather(*(caller(stub) for stub in stubs))
    return calls / (time.perf_counter() - started)


class _Load:
    """Keeps the loop busy until stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_on = True
        loop.call_soon(self._spin)

    def stop(self) -> None:
        self._is_on = False

    def _spin(self) -> None:
        ends = time.perf_counter() + SLICE_SECONDS
        while time.perf_counter() < ends:
            pass
        if self._is_on:
            self._loop.call_soon(self._spin)
