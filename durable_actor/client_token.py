"""The client's token: where it is looked for when nobody has given one.

In this order: `DURABLE_ACTOR_TOKEN`, the file `DURABLE_ACTOR_TOKEN_FILE`; for a daemon
on this machine also the file `token` in `DURABLE_ACTOR_DATA_DIR`, in the `storage.dir`
of `./config.toml`, or in `./data`.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from durable_actor.errors import ConfigError


def find_token(token_file: str | Path | None, *, is_local: bool) -> str | None:
    """Return the token to use when none was given, or None if there is none.

    A token found on this machine's disk is only for a daemon on this machine.

    Raises:
        ConfigError: The file that was named cannot be read.
    """
    if token_file is None:
        if token := os.environ.get("DURABLE_ACTOR_TOKEN"):
            return token
        token_file = os.environ.get("DURABLE_ACTOR_TOKEN_FILE")
    if token_file is not None:
        try:
            return Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"the token file {str(token_file)!r} cannot be read: {error}"
            raise ConfigError(message) from error
    if is_local:
        for directory in _data_directories():
            try:
                return (directory / "token").read_text().strip()
            except (OSError, UnicodeDecodeError):
                continue
    return None


def _data_directories() -> list[Path]:
    directories = []
    if named := os.environ.get("DURABLE_ACTOR_DATA_DIR"):
        directories.append(Path(named))
    try:
        config = tomllib.loads(Path("config.toml").read_text())
        directories.append(Path(config["storage"]["dir"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no such file, or one that says nothing of it: look where it usually is
    directories.append(Path("data"))
    return directories
