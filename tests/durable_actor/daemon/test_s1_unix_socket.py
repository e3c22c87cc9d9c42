"""S1: a Unix socket is for the user who runs the daemon, and for nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from durable_actor.daemon import listening
from durable_actor.daemon.listening import Listen, bind, is_foreign
from durable_actor.errors import ConfigError
from tests.durable_actor.daemon.raw import end_of, open_raw, statuses_of

NOBODY = 65_534
CONNECT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    try:
        client.connect(sys.argv[1])
    except PermissionError:
        print("refused by mode")
        sys.exit()
    try:
        client.sendall(b"GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    except BrokenPipeError:
        pass
    print(client.recv(12).decode())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


def test_s1_the_socket_and_its_new_directory_are_private_whatever_the_umask(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "daemon.sock"
    before = os.umask(0)
    try:
        with bind(Listen(path=path)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o711, 0o701, 0o1777])
def test_s1_a_directory_that_others_can_enter_is_refused(
    folder: Path, mode: int
) -> None:
    folder.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 700"):
        bind(Listen(path=folder / "daemon.sock"))

    assert list(folder.iterdir()) == []


def test_s1_a_directory_of_another_user_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)

    with pytest.raises(ConfigError, match="owner only"):
        bind(Listen(path=folder / "daemon.sock"))


async def connect_as_nobody(path: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONNECT, str(path), stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().strip()


async def test_s1_another_user_is_refused_by_mode_and_then_by_the_kernels_word() -> (
    None
):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; the next test needs no root")
    # Not in the folder of the test, whose parents let no other user pass.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "daemon.sock"
        async with open_raw(listen=Listen(path=path)):
            by_mode = await connect_as_nobody(path)
            Path(folder).chmod(0o711)
            by_mode_alone = await connect_as_nobody(path)
            path.chmod(0o666)
            by_peer = await connect_as_nobody(path)
            mine = await greet(path)

    assert by_mode == by_mode_alone == "refused by mode"
    assert by_peer == "HTTP/1.1 403"
    assert statuses_of(mine) == [200]


async def greet(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await reader.readuntil(b"\r\n")
    writer.close()
    return answer


async def test_s1_whoever_the_kernel_names_as_another_user_is_told_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "daemon.sock"
    async with open_raw(listen=Listen(path=path)):
        real = os.geteuid()
        peers = listening._PEER.pack(1, real + 1, real + 1)
        monkeypatch.setattr(
            "asyncio.trsock.TransportSocket.getsockopt", lambda *_: peers
        )
        reader, writer = await asyncio.open_unix_connection(path)
        answer = await end_of(reader)
        writer.close()

    assert statuses_of(answer) == [403]


def test_s1_the_owner_and_those_who_come_over_tcp_are_not_foreign() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert not is_foreign(here)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_foreign(server)
