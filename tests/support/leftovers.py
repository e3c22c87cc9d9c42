"""What is there before something runs, and whether it is gone again afterwards."""

from __future__ import annotations

import asyncio
import gc
import threading

_LOOKS_MAX = 100
_END_SECONDS = 10


class Leftovers:
    """Tasks, threads and timers; made before, checked after."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = _threads()
        self._timers = set(_timers())

    async def check(self) -> None:
        """Fail if there is one more, once everything that was cancelled has ended."""
        for _ in range(_LOOKS_MAX):
            await asyncio.sleep(0)
        gc.collect()
        tasks = asyncio.all_tasks() - self._tasks
        assert not tasks, f"tasks were left behind: {tasks}"
        threads = _threads() - self._threads
        for thread in threads:
            # One that was told to end may take a moment.
            await asyncio.to_thread(thread.join, _END_SECONDS)
        threads = {thread for thread in threads if thread.is_alive()}
        assert not threads, f"threads were left behind: {threads}"
        timers = set(_timers()) - self._timers
        assert not timers, f"timers were left behind: {timers}"


def _threads() -> set[threading.Thread]:
    # The loop's own pool stays as long as the loop.
    found = threading.enumerate()
    return {thread for thread in found if not thread.name.startswith("asyncio_")}


def _timers() -> list[asyncio.TimerHandle]:
    # The loop's own list; there is no public way to ask.
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in scheduled if not timer.cancelled()]
