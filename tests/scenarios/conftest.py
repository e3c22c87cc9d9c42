"""What stories need: daemons that are stopped, and somebody who answers."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.durable_actor.daemon.process import Daemon

PATIENCE_SECONDS = 20


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Return a folder on a disk: whoever is killed is to have something in flight."""
    with tempfile.TemporaryDirectory(prefix="durable-actor-") as directory:
        yield Path(directory)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start a daemon on the test's data directory; all of them end with the test."""
    daemons: list[Daemon] = []

    def start_one(config: Path | None = None) -> Daemon:
        arguments = ["--data-dir", str(tmp_path / "data")]
        daemon = (
            Daemon(*arguments) if config is None else Daemon(*arguments, config=config)
        )
        daemons.append(daemon)
        return daemon.wait_ready()

    yield start_one
    for daemon in daemons:
        daemon.kill()


@pytest.fixture
def app_config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration that serves one module, found by its dotted name."""

    def write(module: str) -> Path:
        config = tmp_path / "config.toml"
        config.write_text(f'main = "{module}"\n')
        return config

    return write


class Answering:
    """Takes the questions of steps, one after the other, and answers when told to."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[tuple[str, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.heard: list[str] = []

    async def open(self) -> asyncio.Server:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def next(self) -> tuple[str, asyncio.StreamWriter]:
        """Return the next question and where its answer goes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._asked.get()

    async def answer(self, words: str) -> str:
        """Answer the next question; return it."""
        question, writer = await self.next()
        writer.write(f"{words}\n".encode())
        await writer.drain()
        return question

    async def close(self) -> None:
        """Hang up on everybody."""
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writers.append(writer)
        question = (await reader.readline()).decode().strip()
        self.heard.append(question)
        self._asked.put_nowait((question, writer))


@pytest.fixture
async def answering() -> AsyncIterator[Answering]:
    """Somebody who answers the steps of `apps/asking.py`."""
    someone = Answering()
    server = await someone.open()
    yield someone
    await someone.close()
    server.close()
    await server.wait_closed()
