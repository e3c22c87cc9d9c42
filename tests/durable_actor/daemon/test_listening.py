"""Addresses, and the names that mean them."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import pytest

from durable_actor.config import HttpConfig
from durable_actor.daemon.listening import Listen, bind, hosts_of, url_of
from durable_actor.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("127.0.0.1:8787", Listen(host="127.0.0.1", port=8_787)),
        ("localhost:0", Listen(host="localhost", port=0)),
        ("[::1]:80", Listen(host="::1", port=80)),
        ("unix:/run/x", Listen(path=Path("/run/x"))),
        ("unix:x", Listen(path=Path("x").absolute())),
    ],
)
def test_an_address_is_read(text: str, listen: Listen) -> None:
    assert Listen.parse(text) == listen


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "x:", ":80", "::1:80", "x:80x", "x:-1", "x:65536", "x:²", "unix:"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        Listen.parse(text)


def test_the_configuration_says_where() -> None:
    assert Listen.configured(HttpConfig(port=1)) == Listen(host="127.0.0.1", port=1)
    assert Listen.configured(HttpConfig(uds="/x")) == Listen(path=Path("/x"))


@pytest.mark.parametrize(
    ("host", "is_public"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104  # nothing is bound
        ("::", True),
        ("10.0.0.1", True),
        ("example.com", True),
        ("localhost.example.com", True),
    ],
)
def test_s3_only_loopback_is_not_public(host: str, *, is_public: bool) -> None:
    assert Listen(host=host).is_public is is_public


def test_a_socket_has_the_names_of_loopback_with_its_port() -> None:
    with bind(Listen(host="127.0.0.1", port=0)) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert hosts_of(listener) == {
            f"127.0.0.1:{port}",
            f"localhost:{port}",
            f"[::1]:{port}",
        }


async def test_answers_are_sent_at_once() -> None:
    """A small answer must not wait for the acknowledgement of the one before."""
    accepted: list[socket.socket] = []

    async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer.get_extra_info("socket"))
        assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.write(b"yes")
        writer.close()

    listener = bind(Listen(host="127.0.0.1", port=0))
    server = await asyncio.start_server(look, sock=listener)
    async with server:
        address = listener.getsockname()
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b"yes"
        writer.close()


def test_s1_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with bind(Listen(path=path)) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert url_of(listener) == f"unix:{path}"
        assert hosts_of(listener) == {"localhost"}


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    bind(Listen(path=path)).close()

    bind(Listen(path=path)).close()


def test_a_socket_that_is_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with bind(Listen(path=path)), pytest.raises(ConfigError, match="another process"):
        bind(Listen(path=path))


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    path.write_text("precious")

    with pytest.raises(ConfigError, match="cannot listen"):
        bind(Listen(path=path))

    assert path.read_text() == "precious"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            bind(Listen(host="127.0.0.1", port=port))
