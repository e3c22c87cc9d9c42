"""Members of a chat room with real WebSocket clients, through the real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.durable_actor.daemon.process import Daemon

T = TypeVar("T")
PATIENCE_SECONDS = 20
CONFIG = """\
main = "tests.scenarios.apps.chat"
[objects]
idle_ms = 200
[http]
allowed_origins = ["https://chat.example"]
[web_sockets]
message_bytes_max = 65_536
queue_bytes_max = 1_048_576
"""


ROOMS = itertools.count()


class House(Daemon):
    """A daemon with rooms; each test has one of its own."""

    room = "a%2Fb"

    @classmethod
    def open(cls, folder: Path, settings: str = "") -> House:
        config = folder / "config.toml"
        config.write_text(CONFIG + settings)
        house = cls("--data-dir", str(folder / "data"), config=config)
        house.wait_ready()
        return house

    def close(self) -> None:
        self.kill()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House.open(tmp_path_factory.mktemp("house"))
    yield house
    house.kill()


@pytest.fixture
def daemon(house: House) -> House:
    house.room = f"a%2F{next(ROOMS)}"
    return house


def url(daemon: House, member: str = "ann") -> str:
    return (
        f"{daemon.url.replace('http', 'ws')}/objects/Room/{daemon.room}/join?{member}"
    )


def join(daemon: House, member: str = "ann", **options: Any) -> connect:
    headers = {"Authorization": f"Bearer {daemon.token}"}
    options = {"additional_headers": headers, "proxy": None, **options}
    return connect(url(daemon, member), **options)


def call(daemon: House, method: str, *args: Any) -> Any:
    with daemon.http() as http:
        path = f"/v1/objects/Room/{daemon.room}/{method}"
        return http.post(path, json={"args": args}).json()["result"]


async def until(
    daemon: House, question: Callable[[], Any], expected: Callable[[Any], bool]
) -> Any:
    """Return the answer once it is as expected."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not expected(answer := await asyncio.to_thread(question)):
            assert daemon.process.poll() is None
        return answer


def resident(daemon: House) -> int:
    with daemon.http() as http:
        lines = http.get("/metrics").text.splitlines()
    [line] = [line for line in lines if line.startswith("durable_objects_resident ")]
    return int(float(line.split()[1]))


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await awaitable


async def ask(member: ClientConnection, message: str) -> str | bytes:
    await member.send(message)
    return await soon(member.recv())


async def status_of(connecting: connect) -> int:
    with pytest.raises(InvalidStatus) as caught:
        async with connecting:
            pass
    return caught.value.response.status_code


async def test_what_one_says_all_hear_and_a_tag_hears_what_is_meant_for_it(
    daemon: House,
) -> None:
    async with join(daemon, "ann&cooks") as ann, join(daemon, "bob&cooks&red") as bob:
        await ann.send("say hello")
        assert await soon(ann.recv()) == "ann: hello"
        assert await soon(bob.recv()) == "ann: hello"
        await ann.send("to red only bob")
        assert await soon(bob.recv()) == "ann to red: only bob"
        await bob.send("to cooks both")
        assert await soon(ann.recv()) == "bob to cooks: both"
        assert await soon(bob.recv()) == "bob to cooks: both"
        await ann.send(b"\x00\xff")
        assert await soon(ann.recv()) == b"\x00\xff"
        assert call(daemon, "get", "last") == "ann: hello"
        assert call(daemon, "members") == ["ann", "bob"]


async def test_the_room_leaves_memory_and_its_members_stay(daemon: House) -> None:
    async with join(daemon, "ann") as ann, join(daemon, "bob") as bob:
        assert json.loads(await ask(ann, "facts"))["events"] == 1
        await until(daemon, lambda: resident(daemon), lambda found: found == 0)
        # Answered without waking it.
        assert await ask(bob, "ping") == "pong"
        assert resident(daemon) == 0
        # The next message wakes it: the constructor has run again.
        facts = json.loads(await ask(bob, "facts"))
        assert facts == {"events": 1, "name": "bob"}
        await bob.send("say awake")
        assert await soon(ann.recv()) == "bob: awake"


async def test_a_close_is_told_to_the_room_whoever_begins_it(daemon: House) -> None:
    async with join(daemon, "ann") as ann:
        await ann.close(4002, "enough")
        expected = ["ann", 4002, "enough", True]
        closed = lambda: call(daemon, "get", "closed")  # noqa: E731  # short
        await until(daemon, closed, lambda found: found == expected)
    async with join(daemon, "bob") as bob:
        await bob.send("bye")
        with pytest.raises(ConnectionClosed):
            await soon(bob.recv())
        assert (bob.close_code, bob.close_reason) == (4000, "bye bob")
        expected = ["bob", 4000, "bye bob", True]
        await until(daemon, closed, lambda found: found == expected)
    assert call(daemon, "members") == []


async def test_a_member_that_is_killed_is_noticed(daemon: House) -> None:
    async with join(daemon, "ann") as ann:
        assert await ask(ann, "ping") == "pong"
        ann.transport.abort()
        closed = await until(
            daemon, lambda: call(daemon, "get", "closed"), lambda found: found
        )
    assert closed[:2] == ["ann", 1006]
    assert closed[3] is False
    assert call(daemon, "members") == []


async def test_a_member_that_answers_no_ping_is_given_up(tmp_path: Path) -> None:
    settings = "ping_interval_ms = 50\nping_timeout_ms = 50\n"
    with contextlib.closing(House.open(tmp_path, settings)) as daemon:
        await hears_no_answer(daemon)


async def hears_no_answer(daemon: House) -> None:
    host, port = daemon.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = [
        "GET /objects/Room/a%2Fb/join?ann HTTP/1.1",
        f"Host: {host}:{port}",
        f"Authorization: Bearer {daemon.token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
    with contextlib.suppress(ConnectionError):
        await soon(reader.read())  # to the end: the daemon hangs up
    closed = await until(
        daemon, lambda: call(daemon, "get", "closed"), lambda found: found
    )
    assert closed[:2] == ["ann", 1006]
    writer.close()


async def test_a_message_that_is_too_large_ends_the_connection(
    daemon: House,
) -> None:
    async with join(daemon, "ann") as ann:
        assert len(await ask(ann, "headers 65536")) == 65_536
        await ann.send("x" * 65_537)
        with pytest.raises(ConnectionClosed):
            await soon(ann.recv())
        assert ann.close_code == 1009
        error = await until(
            daemon, lambda: call(daemon, "get", "error"), lambda found: found
        )
    assert error[0] == "ann"
    assert call(daemon, "members") == []


async def test_a_member_that_does_not_read_is_given_up(daemon: House) -> None:
    async with join(daemon, "ann", max_queue=1) as ann, join(daemon, "bob") as bob:
        await ann.send("flood")
        members = lambda: call(daemon, "members")  # noqa: E731  # short
        await until(daemon, members, lambda found: found == ["bob"])
        assert await ask(bob, "ping") == "pong"


async def test_a_reset_room_loses_its_members(daemon: House) -> None:
    async with join(daemon, "ann") as ann, join(daemon, "bob") as bob:
        await bob.send("abort")
        for member in (ann, bob):
            with pytest.raises(ConnectionClosed):
                await soon(member.recv())
            assert member.close_code == 1011


async def test_a_draining_daemon_says_goodbye(tmp_path: Path) -> None:
    with contextlib.closing(House.open(tmp_path)) as daemon:
        await says_goodbye(daemon)


async def says_goodbye(daemon: House) -> None:
    async with join(daemon, "ann") as ann:
        assert await ask(ann, "ping") == "pong"
        daemon.signal()
        with pytest.raises(ConnectionClosed):
            await soon(ann.recv())
        assert ann.close_code == 1001
    status, errors = daemon.wait()
    assert status == 0, errors
    assert "Traceback" not in errors


async def test_nobody_comes_in_without_the_token(daemon: House) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert await status_of(join(daemon, additional_headers=headers)) == 401
    assert call(daemon, "members") == []


async def test_the_token_may_come_as_a_subprotocol(daemon: House) -> None:
    def offering(*protocols: str) -> connect:
        offered = [Subprotocol(protocol) for protocol in protocols]
        return join(daemon, additional_headers={}, subprotocols=offered)

    async with offering("durable-actor", f"bearer.{daemon.token}") as ann:
        assert ann.subprotocol == "durable-actor"
        assert await ask(ann, "ping") == "pong"
    async with offering("chat", f"bearer.{daemon.token}") as ann:
        assert ann.subprotocol == "chat"
    assert await status_of(offering("chat", "bearer.wrong")) == 401


async def test_a_page_comes_in_only_if_its_origin_is_named(daemon: House) -> None:
    for origin in ("https://evil.example", "http://chat.example", "null"):
        assert await status_of(join(daemon, origin=origin)) == 403
    async with join(daemon, origin="https://chat.example") as ann:
        assert await ask(ann, "ping") == "pong"


async def test_a_foreign_host_is_refused(daemon: House) -> None:
    token = {"Authorization": f"Bearer {daemon.token}"}
    address = daemon.url.removeprefix("http://").split(":")
    connecting = connect(
        f"ws://evil.example:{address[1]}/objects/Room/a/join?ann",
        host=address[0],
        port=int(address[1]),
        additional_headers=token,
        proxy=None,
    )
    assert await status_of(connecting) == 403


async def test_where_there_is_no_socket_the_answer_says_so(daemon: House) -> None:
    def to(path: str) -> connect:
        headers = {"Authorization": f"Bearer {daemon.token}"}
        address = daemon.url.replace("http", "ws") + path
        return connect(address, additional_headers=headers, proxy=None)

    assert await status_of(to("/v1/classes")) == 400
    assert await status_of(to("/objects/Nothing/a/")) == 404
    assert await status_of(to("/nowhere")) == 404
    with daemon.http() as http:
        answer = http.get("/objects/Room/a/join")
        assert (answer.status_code, answer.text) == (426, "knock with a WebSocket")
