"""Where the daemon listens: TCP or a Unix socket, and the names it answers to there.

A Unix socket has mode 0600 and lies in a directory that is for its owner only; who
connects nevertheless, because a mode was changed or a descriptor was handed over, is
recognised by the user the kernel names (S1).
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from durable_actor.config import HttpConfig
from durable_actor.errors import ConfigError

BACKLOG = 2_048
_PORT_MAX = 65_535
_HTTP_PORT, _HTTPS_PORT = 80, 443  # left out of `Host` by those who use them
_PEER = struct.Struct("3i")  # what the kernel tells of a peer: process, user, group


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where to listen: a TCP address or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read `HOST:PORT`, `[V6]:PORT` or `unix:PATH`.

        Raises:
            ConfigError: None of these.
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(path=Path(text.removeprefix("unix:")).absolute())
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if (
            separator
            and host
            and (bracketed or ":" not in host)
            and (port.isascii() and port.isdigit() and int(port[:6]) <= _PORT_MAX)
        ):
            return cls(host=host, port=int(port))
        message = (
            f"{text!r} is no address; write 127.0.0.1:8787 or unix:/path/to/socket"
        )
        raise ConfigError(message)

    @classmethod
    def configured(cls, http: HttpConfig) -> Listen:
        """Return what the configuration says."""
        if http.uds is not None:
            return cls(path=Path(http.uds).absolute())
        return cls(host=http.host, port=http.port)

    @property
    def is_public(self) -> bool:
        """Whether others than this machine could connect."""
        if self.path is not None or self.host == "localhost":
            return False
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return True  # a name: whatever it resolves to today, it may not tomorrow


def bind(listen: Listen) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: The address cannot be bound.
    """
    try:
        if listen.path is not None:
            return _bind_path(listen.path)
        return _bind_tcp(listen)
    except (OSError, UnicodeError) as error:
        where = listen.path or f"{listen.host}:{listen.port}"
        message = f"cannot listen on {where}: {error}; choose another with --listen"
        raise ConfigError(message) from error


def _bind_tcp(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    # With its protocol said aloud, or asyncio does not recognise TCP and leaves Nagle's
    # algorithm on: every answer would wait 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((listen.host, listen.port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_path(path: Path) -> socket.socket:
    _check_folder(path.parent)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                message = f"another process listens on {path}"
                raise OSError(message)
        path.unlink()  # left by a process that died
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # before listen(): until then nobody can connect
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_folder(folder: Path) -> None:
    """Make the directory of a socket if it is absent; refuse one others can enter."""
    if not folder.exists():
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # whatever the umask
    facts = folder.stat()
    if facts.st_uid not in (os.geteuid(), 0) or facts.st_mode & 0o077:
        message = (
            f"{folder} is not for its owner only (mode"
            f" {stat.S_IMODE(facts.st_mode):04o}); chmod 700 it, or put the socket into"
            " a directory of its own"
        )
        raise OSError(message)


def is_foreign(accepted: socket.socket) -> bool:
    """Whether a connection through a Unix socket comes from another user.

    Not root, who may do everything here anyway. Where the kernel does not say who it
    is, the modes of socket and directory have to do.
    """
    if accepted.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return False
    told = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, user, _ = _PEER.unpack(told)
    return user not in (os.geteuid(), 0)


def url_of(listener: socket.socket, *, is_tls: bool = False) -> str:
    """Return the address clients use."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{'https' if is_tls else 'http'}://{host}:{name[1]}"


def hosts_of(listener: socket.socket, *, is_tls: bool = False) -> frozenset[str]:
    """Return the values of `Host` that mean this socket, from this machine."""
    if listener.family == socket.AF_UNIX:
        return frozenset({"localhost"})
    host, port = listener.getsockname()[:2]
    names = {"127.0.0.1", "localhost", "[::1]"}
    if not ip_address(host).is_unspecified:  # which is the name of nobody
        names.add(f"[{host}]" if ":" in host else host)
    with_port = {f"{name}:{port}" for name in names}
    default = _HTTPS_PORT if is_tls else _HTTP_PORT
    return frozenset(with_port | (names if port == default else set()))
