"""The control of the kill loop: the same application, acknowledging before the commit.

A kill cannot lose what has reached SQLite (the kernel keeps its pages), so it is no
use to commit without a sync. Here every answer leaves as soon as the handler is done. A
kill loop that finds nothing wrong with this would find nothing at all.
"""

from __future__ import annotations

from durable_actor.storage.committer import Committer, Settled
from tests.support.kill_loop_app import Counter, SqlCounter, Workflows

__all__ = ["Counter", "SqlCounter", "Workflows"]


def _at_once(self: Committer, ticket: int, settled: Settled) -> None:
    del self, ticket
    settled(None)


Committer.when_durable = _at_once  # type: ignore[method-assign]  # that is the fault
