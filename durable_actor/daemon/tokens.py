"""The bearer token of a daemon: made at the first start, in a file of its owner only.

256 random bits. The file is written whole or not at all, is never followed through a
symbolic link, and is refused if others may read it.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from durable_actor.errors import ConfigError

TOKEN_FILE = "token"  # noqa: S105  # a file's name
TOKEN_BYTES = 32
_TOKEN_CHARS_MIN = 16  # of a token someone chose; ours have 43
_FILE_BYTES_MAX = 4_096
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


def token_of(path: Path) -> str:
    """Return the token in the file; make both at the first start.

    Raises:
        ConfigError: The file is not ours alone, or holds no token; says what to do.
    """
    try:
        return read_token(path)
    except FileNotFoundError:
        return _create(path)


def read_token(path: Path) -> str:
    """Return the token in the file.

    Raises:
        ConfigError: The file is not ours alone, or holds no token.
        FileNotFoundError: There is none.
    """
    data = read_private(path, _FILE_BYTES_MAX)
    token = data.decode("ascii", "replace").strip()
    if len(token) < _TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable():
        message = f"the token file {path} holds no token; delete it to get a new one"
        raise ConfigError(message)
    return token


def read_private(path: Path, bytes_max: int) -> bytes:
    """Return the content of a file that is ours alone, up to a size.

    Raises:
        ConfigError: It cannot be read, is a symbolic link or no file, or others may
            touch it.
        FileNotFoundError: There is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN_FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        message = f"the token file {path} cannot be read: {error.strerror}"
        raise ConfigError(message) from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            message = f"the token file {path} is not a regular file; remove it"
            raise ConfigError(message)
        if facts.st_mode & 0o077 or facts.st_uid not in (os.geteuid(), 0):
            message = (
                f"the token file {path} may be read by others (mode"
                f" {stat.S_IMODE(facts.st_mode):04o}); run: chmod 600 {path}"
            )
            raise ConfigError(message)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(bytes_max)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file, whole or not at all, by one that only its owner may touch.

    Raises:
        ConfigError: It cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)  # of a process with our id that died here
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS
        descriptor = os.open(fresh, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
    except OSError as error:
        message = f"the token file {path} cannot be written: {error.strerror}"
        raise ConfigError(message) from error


def _create(path: Path) -> str:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    write_private(path, f"{token}\n".encode())
    return token
