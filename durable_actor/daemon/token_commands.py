"""`durable-actor tokens`: make, list and revoke tokens that may do a part of it all.

The commands write the tokens file, which a daemon need not be running for; one that
runs follows the file. Exit statuses are those of `cli`: 0, 2 (the file or an argument),
3 (no such token).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter

from durable_actor.daemon.grants import Verb
from durable_actor.daemon.token_book import (
    TOKENS_FILE,
    create_token,
    read_tokens,
    revoke_token,
)
from durable_actor.errors import ConfigError

_DONE: Final = 0
_USAGE: Final = 2
_NOT_FOUND: Final = 3

tokens = App(name="tokens", help="Tokens that cover some classes and workflows only.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Book:
    """Where the tokens file is."""

    data_dir: Annotated[Path, Parameter(env_var="DURABLE_ACTOR_DATA_DIR")] = Path(
        "data"
    )
    tokens_file: Annotated[
        Path | None, Parameter(help="If it is not the one of the data directory.")
    ] = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.tokens_file or self.data_dir / TOKENS_FILE


_HERE = Book()


@tokens.command(name="create")
def create(
    name: str,
    /,
    *,
    namespace: list[str],
    verb: list[Verb],
    book: Book = _HERE,
) -> int:
    """Make a token and print it; it is not shown again.

    Args:
        name: What the log calls it: letters, digits, dots, dashes.
        namespace: A class, a binding, `workflow:` and a workflow, or `*`; repeatable.
        verb: `read`, `write` or `admin`; repeatable. None includes another.
        book: Which file.
    """

    def make() -> int:
        print(create_token(book.path, name, namespaces=namespace, verbs=verb))
        return _DONE

    return _told(make)


@tokens.command(name="list")
def show(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    book: Book = _HERE,
) -> int:
    """List the tokens by name, with what each may do. The tokens are not in the file.

    Args:
        as_json: One line of JSON, for programs.
        book: Which file.
    """

    def list_all() -> int:
        entries = read_tokens(book.path)
        if as_json:
            told = [{**msgspec.to_builtins(e), "sha256": e.sha256[:8]} for e in entries]
            print(json.dumps(told))
            return _DONE
        for entry in entries:
            verbs, covered = ",".join(entry.verbs), ",".join(entry.namespaces)
            print(f"{entry.name}: {verbs} on {ascii(covered)[1:-1]}")
        return _DONE

    return _told(list_all)


@tokens.command(name="revoke")
def revoke(name: str, /, *, book: Book = _HERE) -> int:
    """Take a token back; a daemon that runs refuses it from the next request on.

    Args:
        name: As it was created.
        book: Which file.
    """

    def take_back() -> int:
        if revoke_token(book.path, name):
            return _DONE
        print(f"not_found: {book.path} has no token {name!r}", file=sys.stderr)
        return _NOT_FOUND

    return _told(take_back)


def _told(act: Callable[[], int]) -> int:
    try:
        return act()
    except ConfigError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return _USAGE
