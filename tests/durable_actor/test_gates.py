"""What is let in, and what is let out when."""

from __future__ import annotations

import pytest

from durable_actor.errors import StorageError, StorageFailedError
from durable_actor.gates import Effect, InputGate, OutputGate

FAILURE = StorageFailedError("commit", "SQLITE_IOERR_FSYNC")


class Disk:
    """A `Durability` that settles tickets when the test says so."""

    def __init__(self) -> None:
        self.durable_ticket = 0
        self.waiting: list[tuple[int, Effect]] = []

    def when_durable(self, ticket: int, settled: Effect) -> None:
        if ticket <= self.durable_ticket:
            settled(None)
        else:
            self.waiting.append((ticket, settled))

    def settle(self, ticket: int, failure: StorageError | None = None) -> None:
        if failure is None:
            self.durable_ticket = ticket
        ready = [item for item in self.waiting if item[0] <= ticket]
        self.waiting = [item for item in self.waiting if item[0] > ticket]
        for _, settled in ready:
            settled(failure)


# -- the input gate -----------------------------------------------------------


def test_a_gate_is_open_until_it_is_held() -> None:
    gate = InputGate(lambda: None)
    assert gate.is_open

    gate.hold()
    assert not gate.is_open


def test_a_gate_opens_with_the_last_of_its_releases() -> None:
    opened: list[bool] = []
    gate = InputGate(lambda: opened.append(gate.is_open))
    for _ in range(3):
        gate.hold()
    gate.release()
    gate.release()
    assert (gate.is_open, opened) == (False, [])

    gate.release()
    assert (gate.is_open, opened) == (True, [True]), "open before anyone is told"


def test_whoever_is_let_in_may_hold_the_gate_again() -> None:
    gate = InputGate(lambda: gate.hold())
    gate.hold()
    gate.release()

    assert not gate.is_open


def test_a_release_without_a_hold_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="more often than held"):
        InputGate(lambda: None).release()


# -- the output gate ------------------------------------------------------------


def test_what_depends_on_nothing_goes_out_at_once() -> None:
    said: list[StorageError | None] = []
    gate = OutputGate(Disk())
    gate.let_out(said.append)

    assert gate.is_open
    assert said == [None]


def test_what_depends_on_a_ticket_goes_out_when_it_is_durable() -> None:
    disk, said = Disk(), list[str]()
    gate = OutputGate(disk)
    gate.depend_on(2)
    gate.let_out(lambda _: said.append("first"))
    gate.depend_on(3)
    gate.let_out(lambda _: said.append("second"))
    disk.settle(1)
    assert (gate.is_open, said) == (False, [])

    disk.settle(2)
    assert (gate.is_open, said) == (False, ["first"])
    disk.settle(3)
    assert (gate.is_open, said) == (True, ["first", "second"])


def test_a_lower_ticket_does_not_undo_a_higher_one() -> None:
    disk, said = Disk(), list[StorageError | None]()
    gate = OutputGate(disk)
    gate.depend_on(5)
    gate.depend_on(3)
    gate.let_out(said.append)
    disk.settle(3)
    assert said == []

    disk.settle(5)
    assert said == [None]


def test_what_rested_on_a_failed_ticket_hears_of_it_once() -> None:
    disk, said = Disk(), list[StorageError | None]()
    gate = OutputGate(disk)
    gate.depend_on(1)
    gate.let_out(said.append)
    disk.settle(1, FAILURE)
    disk.settle(1, FAILURE)

    assert said == [FAILURE]
    assert not gate.is_open


def test_what_was_let_out_earlier_does_not_wait_for_later_tickets() -> None:
    disk, said = Disk(), list[StorageError | None]()
    gate = OutputGate(disk)
    gate.depend_on(1)
    gate.let_out(said.append)
    gate.depend_on(9)
    disk.settle(1)

    assert said == [None]
