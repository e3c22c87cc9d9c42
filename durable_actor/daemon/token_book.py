"""The tokens file: further tokens beside the owner's, each with a grant of its own.

It holds the SHA-256 of each token, never a token: whoever reads the file, or a backup
of it, cannot use it. `durable-actor tokens` writes it, whole or not at all; a running
daemon sees the change with the next request, so a token that is revoked is revoked at
once. A file that cannot be trusted, or read, grants nothing until it can.

    {"version": 1,
     "tokens": [{"name": "shop", "sha256": "...", "verbs": ["read", "write"],
                 "namespaces": ["Cart", "workflow:checkout"], "created_at_ms": ...}]}

A namespace is the name of a class or of a binding, or `workflow:` and the name of a
workflow; `*` stands for all of both, and for what belongs to neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from durable_actor.clock import SystemClock
from durable_actor.daemon.grants import Grant, Grants, Verb
from durable_actor.daemon.tokens import TOKEN_BYTES, read_private, write_private
from durable_actor.errors import ConfigError
from durable_actor.log import get_logger

TOKENS_FILE: Final = "tokens.json"
EVERYTHING: Final = "*"
WORKFLOW_PREFIX: Final = "workflow:"
_VERSION: Final = 1
_FILE_BYTES_MAX: Final = 1_048_576  # some thousand tokens, each read at every change
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

log = get_logger("durable_actor.daemon")


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of one token."""

    name: str
    sha256: str  # of the token, in hexadecimal digits
    namespaces: list[str]
    verbs: list[Verb]
    created_at_ms: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a token cannot be called {self.name[:80]!a}")
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"the sha256 of {self.name} is none")
        if not self.namespaces or not all(self.namespaces):
            raise ValueError(
                f"the token {self.name} has no namespaces, or an empty one"
            )
        if not self.verbs:
            raise ValueError(f"the token {self.name} has no verbs")

    @property
    def grant(self) -> Grant:
        """What the token allows."""
        names = set(self.namespaces)
        workflows = {name for name in names if name.startswith(WORKFLOW_PREFIX)}
        return Grant(
            name=self.name,
            verbs=frozenset(self.verbs),
            is_full=EVERYTHING in names,
            classes=frozenset(names - workflows - {EVERYTHING}),
            workflows=frozenset(w.removeprefix(WORKFLOW_PREFIX) for w in workflows),
        )


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    tokens: list[TokenEntry]


class TokenBook:
    """The grants of a tokens file, as the file is now."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one.

        Raises:
            ConfigError: It is not ours alone, or does not say what it should.
        """
        self._path = path
        self._seen = _signature(path)
        self._grants: Grants = _grants_of(read_tokens(path))

    def grants(self) -> Grants:
        """Return what each token allows, by its SHA-256.

        Looks whether the file has changed, which is one call to the system.
        """
        seen = _signature(self._path)
        if seen != self._seen:
            self._seen = seen
            try:
                self._grants = _grants_of(read_tokens(self._path))
            except ConfigError as error:
                self._grants = {}
                log.error("tokens.refused", reason=str(error))  # noqa: TRY400  # the file's fault
        return self._grants


def read_tokens(path: Path) -> Sequence[TokenEntry]:
    """Return what is known of each token; nothing if there is no file.

    Raises:
        ConfigError: The file is not ours alone, or does not say what it should.
    """
    try:
        data = read_private(path, _FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return ()
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"the tokens file {path} cannot be understood: {error}"
        raise ConfigError(message) from None
    if document.version != _VERSION:
        message = f"the tokens file {path} is of version {document.version}, not 1"
        raise ConfigError(message)
    for kind in ("name", "sha256"):
        values = [getattr(entry, kind) for entry in document.tokens]
        if len(set(values)) != len(values):
            raise ConfigError(f"the tokens file {path} has the same {kind} twice")
    return document.tokens


def create_token(
    path: Path, name: str, *, namespaces: Sequence[str], verbs: Sequence[Verb]
) -> str:
    """Add a token to the file and return it. It cannot be read from there again.

    Raises:
        ConfigError: There is one of that name, or what it shall allow makes no sense.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        entry = TokenEntry(
            name=name,
            sha256=hashlib.sha256(token.encode()).hexdigest(),
            namespaces=sorted(set(namespaces)),
            verbs=sorted(set(verbs)),
            created_at_ms=SystemClock().now_ms(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with _edited(path) as entries:
        if name in entries:
            message = f"{path} has a token {name!r}; revoke it, or take another name"
            raise ConfigError(message)
        entries[name] = entry
    return token


def revoke_token(path: Path, name: str) -> bool:
    """Take a token out of the file; tell whether it was there.

    Raises:
        ConfigError: The file cannot be read or written.
    """
    with _edited(path) as entries:
        return entries.pop(name, None) is not None


@contextlib.contextmanager
def _edited(path: Path) -> Iterator[dict[str, TokenEntry]]:
    """Write down what the block changes, with nobody else changing it meanwhile."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"{path.parent} cannot be opened: {error.strerror}"
        raise ConfigError(message) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = {entry.name: entry for entry in read_tokens(path)}
        before = dict(entries)
        yield entries
        if entries != before:
            document = _Document(_VERSION, list(entries.values()))
            data = msgspec.json.format(msgspec.json.encode(document), indent=2)
            write_private(path, data + b"\n")
            os.fsync(folder)
    finally:
        os.close(folder)


def _grants_of(entries: Sequence[TokenEntry]) -> Mapping[bytes, Grant]:
    return {bytes.fromhex(entry.sha256): entry.grant for entry in entries}


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)
