"""Gates: when events may come in, and when effects may go out.

An object has two gates. While the input gate is held, no new event is delivered. The
output gate holds back everything the object says until every write it may rest on is on
disk.

Promises
    What is let out leaves after every ticket it depends on is durable, in the order
    in which it was let out.
    If such a ticket fails, the effect hears of the failure instead, once.

Does not know about SQLite, mailboxes, HTTP or user code, and can be tested without
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from durable_actor.errors import StorageError

Effect = Callable[[StorageError | None], None]


class InputGate:
    """Held while an object starts, waits for its storage or blocks concurrency."""

    __slots__ = ("_holds", "_on_open")

    def __init__(self, on_open: Callable[[], None]) -> None:
        self._holds = 0
        self._on_open = on_open

    @property
    def is_open(self) -> bool:
        """Whether an event may be delivered now."""
        return self._holds == 0

    def hold(self) -> None:
        """Keep events out until as many releases."""
        self._holds += 1

    def release(self) -> None:
        """Undo one hold; the last one lets waiting events in."""
        assert self._holds > 0, "released more often than held"
        self._holds -= 1
        if self._holds == 0:
            self._on_open()


class Durability(Protocol):
    """What knows which tickets are on disk."""

    durable_ticket: int

    def when_durable(self, ticket: int, settled: Effect) -> None:
        """Call `settled` once the ticket is on disk, or with its failure."""
        ...


class OutputGate:
    """Lets effects out once the writes before them are durable.

    `ticket` is the last one this object depends on: its own last seal, or a higher one
    that came with a message.
    """

    __slots__ = ("_durability", "ticket")

    def __init__(self, durability: Durability) -> None:
        self._durability = durability
        self.ticket = 0

    @property
    def is_open(self) -> bool:
        """Whether everything the object depends on is durable."""
        return self.ticket <= self._durability.durable_ticket

    def depend_on(self, ticket: int) -> None:
        """Let nothing out from now on before this ticket is durable."""
        if ticket > self.ticket:  # noqa: PLR1730  # max() costs three times as much
            self.ticket = ticket

    def let_out(self, effect: Effect) -> None:
        """Run `effect` as soon as what it depends on is durable, perhaps at once."""
        self._durability.when_durable(self.ticket, effect)
