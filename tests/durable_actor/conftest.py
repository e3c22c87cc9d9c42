"""What tests of the runtime share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs


@pytest.fixture(scope="session")
def small_heap() -> None:
    """Take what is alive now out of every later collection, so that each is quick."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def nothing_left_behind(small_heap: None) -> AsyncIterator[None]:
    """Fail a test that leaves a task, or an exception that nobody has seen."""
    loop = asyncio.get_running_loop()
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    before = asyncio.all_tasks()
    with capture_logs():  # what is expected to fail would print long tracebacks
        yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not left, f"tasks were left behind: {left}"
    assert not unseen, f"exceptions were never retrieved: {unseen}"
