"""G16: nobody but storage takes one of the last descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from durable_actor import Config, DurableObject, Host, descriptors
from durable_actor.config import SqlConfig
from durable_actor.daemon import accepting
from durable_actor.daemon.accepting import Acceptor, Room
from durable_actor.databases import Databases
from durable_actor.descriptors import RESERVED

OBJECTS = 12
OPEN_MAX = 3


class Echo(asyncio.Protocol):
    """Answers what it gets."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class CountingRoom(Room):
    """Counts those it has let in, as the kernel does with their descriptors."""

    taken = 0

    def take(self) -> None:
        super().take()
        self.taken += 1


class Accepting:
    """An acceptor on a real socket, with as many descriptors as the test says."""

    def __init__(self, *, free: int) -> None:
        self.served: list[Echo] = []
        self.free = free
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.writers: list[asyncio.StreamWriter] = []
        self.room = CountingRoom(
            limit=lambda: RESERVED + self.free, count=self._open_count
        )
        self.acceptor = Acceptor(self.listener, self._make, room=self.room)
        self.acceptor.start()

    def _open_count(self) -> int:
        transports = [echo.transport for echo in self.served if echo.transport]
        return self.room.taken - sum(found.is_closing() for found in transports)

    def _make(self) -> Echo:
        self.served.append(Echo())
        return self.served[-1]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.listener.getsockname())
        writer.write(b"ping")
        self.writers.append(writer)
        return reader, writer


@asynccontextmanager
async def open_acceptor(*, free: int) -> AsyncIterator[Accepting]:
    found = Accepting(free=free)
    try:
        yield found
    finally:
        found.acceptor.close()
        found.listener.close()
        for echo in found.served:
            if echo.transport is not None:
                echo.transport.abort()
        for writer in found.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_g16_when_none_is_free_who_connects_waits_and_is_served_later() -> None:
    async with open_acceptor(free=2) as daemon:
        callers = [await daemon.connect() for _ in range(2)]
        for reader, _ in callers:
            assert await reader.readexactly(4) == b"ping"
        late, _ = await daemon.connect()
        while not daemon.acceptor.is_paused:
            await asyncio.sleep(0)
        assert len(daemon.served) == 2
        callers[0][1].close()  # and one is free again
        assert await late.readexactly(4) == b"ping"
        assert len(daemon.served) == 3


async def test_g16_more_than_are_free_are_never_accepted_at_once() -> None:
    async with open_acceptor(free=5) as daemon:
        for _ in range(40):
            await daemon.connect()
        while not daemon.acceptor.is_paused:
            await asyncio.sleep(0)
            assert daemon.room.taken <= 5
        assert daemon.room.taken == 5


async def test_g16_a_pause_that_lasts_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        accepting.log, "warning", lambda event, **_: lines.append(event)
    )
    monkeypatch.setattr(accepting, "_PAUSE_SECONDS", 0.0)
    looks = 0
    async with open_acceptor(free=0) as daemon:

        def none() -> int:
            nonlocal looks
            looks += 1
            return 0

        monkeypatch.setattr(daemon.room, "free", none)
        await daemon.connect()
        while looks < 20:
            await asyncio.sleep(0)

    assert lines == ["daemon.accepting_paused"]


async def test_g16_half_of_what_is_free_is_let_in_on_one_count() -> None:
    counts = 0

    def count() -> int:
        nonlocal counts
        counts += 1
        return 4

    room = Room(limit=lambda: RESERVED + 110, count=count, spoken_for=lambda: 6)
    assert room.free() == 50
    for _ in range(50):
        assert room.free()
        room.take()
    assert counts == 1
    assert room.free() == 50
    assert counts == 2


@pytest.mark.parametrize(
    ("soft", "databases", "connections"),
    [(256, 17, 101), (1_024, 103, 611), (20_000, 256, 10_000), (64, 1, 1)],
)
def test_g16_databases_get_a_third_and_connections_the_rest(
    monkeypatch: pytest.MonkeyPatch, soft: int, databases: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 1 << 20))

    found = descriptors.databases_max(256)
    assert found == databases
    assert descriptors.connections_max(10_000, databases=found) == connections


def test_g16_open_descriptors_are_counted() -> None:
    before = descriptors.open_count()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Path("/dev/null").open("rb"))
        assert descriptors.open_count() == before + 5


# -- databases ----------------------------------------------------------------------


class Ledger(DurableObject, storage="sqlite"):
    async def book(self) -> int:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS entry (n INTEGER PRIMARY KEY)")
        sql.exec("INSERT INTO entry DEFAULT VALUES")
        row = sql.exec("SELECT count(*) AS n FROM entry").one()
        return int(str(row["n"]))


async def most_open(host: Host, monkeypatch: pytest.MonkeyPatch) -> int:
    """Book in all objects at once, twice; return how many databases were open."""
    files = host.databases._files
    note_open, most = files.note_open, [0]

    def noted(file: object) -> None:
        note_open(file)  # type: ignore[arg-type]
        most.append(files.open_count)

    monkeypatch.setattr(files, "note_open", noted)
    ledgers = host.namespace(Ledger)
    for count in (1, 2):
        calls = [ledgers.get_by_name(str(n)).book() for n in range(OBJECTS)]
        assert await asyncio.gather(*calls) == [count] * OBJECTS
    return max(most)


async def test_g16_no_more_databases_are_open_than_there_are_descriptors_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(sql=SqlConfig(open_max=OPEN_MAX))
    async with Host(tmp_path, config=config) as host:
        assert await most_open(host, monkeypatch) <= OPEN_MAX


async def test_g16_without_waiting_for_room_more_would_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""

    async def at_once(_: Databases) -> None:
        return

    monkeypatch.setattr(Databases, "wait_for_room", at_once)
    config = Config(sql=SqlConfig(open_max=OPEN_MAX))
    async with Host(tmp_path, config=config) as host:
        assert await most_open(host, monkeypatch) > OPEN_MAX
