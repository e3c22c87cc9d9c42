"""G7, G8 and the statuses of runs against their models, for a second."""

from __future__ import annotations

import pytest

from durable_actor import DurableObjectStorage
from tests.fuzz.state_machines import FOLLOWS, MACHINES, run
from workflows import machine


@pytest.mark.parametrize("name", MACHINES)
def test_g7_what_happens_is_what_the_model_says(name: str) -> None:
    run(name, examples=3 if name == "alarms" else 50, steps=15)


def test_an_alarm_that_is_not_deleted_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DurableObjectStorage, "delete_alarm", lambda self: None)
    with pytest.raises(AssertionError):
        run("alarms", examples=20, steps=15, shrinks=False)


def test_a_run_that_goes_on_after_its_end_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loose = {**machine.ALLOWED, machine.Completed: frozenset({machine.Resume})}
    monkeypatch.setattr(machine, "ALLOWED", loose)
    with pytest.raises(AssertionError):
        run("statuses", examples=90, shrinks=False)


def test_every_change_that_is_allowed_is_drawn() -> None:
    allowed = {
        (status.__name__, change.__name__)
        for status, changes in machine.ALLOWED.items()
        for change in changes
    }
    assert allowed == set(FOLLOWS)
