"""What holds in every test, what makes all quick, and the file system of a few."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpcore2
import pytest
import structlog
import uvicorn.server
from hypothesis import settings

# A busy machine is not a failing test; pytest's own timeout catches one that hangs.
# A failure prints what repeats it. The parent keeps Hypothesis's habits under CI.
settings.register_profile(
    "suite", parent=settings.default, deadline=None, print_blob=True
)
settings.load_profile("suite")

MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 * 1024**3
BYTECODE = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"


def work_in_memory() -> None:
    """Have `tmp_path` in memory, where a sync costs nothing.

    What a test claims of syncs it proves by other means than a slow disk: by counting
    them, or by a disk that forgets (`tests/support/iofaults.c`). Somebody who wants a
    real one names a folder of it in PYTEST_DEBUG_TEMPROOT.
    """
    with suppress(OSError):
        if shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def keep_bytecode() -> None:
    """Compile each module once, also for the many processes that tests start."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(BYTECODE))
    sys.dont_write_bytecode = False


# As early as can be: other workers inherit it, and so does the import of the tests.
work_in_memory()
keep_bytecode()


@pytest.fixture(scope="session", autouse=True)
def authorities_are_read_once() -> Iterator[None]:
    """Share what each HTTP client would parse anew, even one that speaks no TLS."""
    with pytest.MonkeyPatch.context() as patch:
        read_once = functools.cache(httpcore2.default_ssl_context)
        patch.setattr(httpcore2, "default_ssl_context", read_once)
        yield


class Hurried:
    """The module `asyncio` for a server that looks ten times a second for its end."""

    def __getattr__(self, name: str) -> object:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))


@pytest.fixture(scope="session", autouse=True)
def servers_end_at_once() -> Iterator[None]:
    """Have uvicorn, where it runs in the process of the test, look more often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", Hurried())
        yield


@pytest.fixture(autouse=True)
def logging_is_nobodys() -> Iterator[None]:
    """Let no test inherit what another has configured for structlog."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system of its own: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
