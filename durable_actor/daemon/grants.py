"""Grants: what the holder of a token may do, and to whose objects.

A grant names object classes and workflows, and verbs: `read` looks, `write` calls and
starts, `admin` is for operators. The token of the data directory has the full grant;
further tokens have what the tokens file gives them. The daemon asks in one place,
`access.py`; an object that hands a stub to somebody hands over no right with it, as
whoever calls through a daemon is asked for a grant of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from starlette.types import Scope

Verb = Literal["read", "write", "admin"]
VERBS: Final[tuple[Verb, ...]] = ("read", "write", "admin")

_SCOPE_KEY: Final = "durable_actor.grant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one token allows. Tells nothing of the token itself."""

    name: str  # of the token, for logs
    verbs: frozenset[Verb] = frozenset()
    is_full: bool = False  # all classes, all workflows, and what belongs to none
    classes: frozenset[str] = frozenset()  # class names, or names of bindings
    workflows: frozenset[str] = frozenset()

    def covers_class(self, *names: str) -> bool:
        """Whether a class of this name, or with one of these names, is covered."""
        return self.is_full or not self.classes.isdisjoint(names)

    def covers_workflow(self, name: str) -> bool:
        """Whether the runs of this workflow are covered."""
        return self.is_full or name in self.workflows


NOBODY: Final = Grant(name="nobody")
OWNER: Final = Grant(name="owner", verbs=frozenset(VERBS), is_full=True)

# The SHA-256 of each token, and what it allows. 256 random bits need no slow digest.
Grants = Mapping[bytes, Grant]


def set_grant(scope: Scope, grant: Grant) -> None:
    """Note whose request it is. For the guard only, which has seen the token."""
    scope[_SCOPE_KEY] = grant


def grant_of(scope: Scope) -> Grant:
    """Return what the caller may do: nothing, unless the guard has said otherwise."""
    grant: Grant = scope.get(_SCOPE_KEY, NOBODY)
    return grant
