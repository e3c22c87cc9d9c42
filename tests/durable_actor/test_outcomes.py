"""Every error says whether the call ran, here and on the other side of the wire: G4."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import workflows.errors
from durable_actor import codec, errors
from durable_actor.daemon import wire
from durable_actor.daemon.problems import problem_of
from durable_actor.errors import DurableActorError, Outcome
from durable_actor.transport import Answer, error_of

SAMPLES: dict[str, Any] = {
    "int": 1,
    "bool": True,
    "ErrorInfo": workflows.errors.ErrorInfo(type="ValueError", message="no"),
}
OUTCOMES: tuple[Outcome, ...] = ("not_executed", "failed", "unknown")


def tree(kind: type[DurableActorError]) -> list[type[DurableActorError]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in tree(sub))]


ALL = sorted(
    {
        kind
        for kind in tree(DurableActorError)
        if kind.__module__ in (errors.__name__, workflows.errors.__name__)
    },
    key=lambda kind: kind.__name__,
)


def make(kind: type[DurableActorError]) -> DurableActorError:
    """Make one, with something for each argument that has to be given."""
    if not inspect.isfunction(kind.__init__):
        return kind("text")
    given = {
        name: SAMPLES.get(str(parameter.annotation), "text")
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
    }
    return kind(**given)


def test_the_whole_tree_is_walked() -> None:
    assert len(ALL) > 35


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_g4_an_error_has_one_of_three_outcomes(kind: type[DurableActorError]) -> None:
    assert make(kind).outcome in OUTCOMES
    if kind.overloaded:
        assert kind.outcome == "not_executed"  # what was shed did not run


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_g4_the_outcome_crosses_with_the_exact_error(
    kind: type[DurableActorError], outcome: Outcome
) -> None:
    error = make(kind)
    error.outcome = outcome
    body = codec.dumps_error(error)
    arrived = error_of(
        Answer(
            status=500,
            media_type=wire.EXACT_ERROR,
            body=body,
            retry_after_ms=2_000,
        )
    )
    assert isinstance(arrived, DurableActorError)
    assert arrived.outcome == outcome
    assert arrived.retry_after_ms == 2_000


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_g4_the_outcome_crosses_with_a_problem(
    kind: type[DurableActorError], outcome: Outcome
) -> None:
    error = make(kind)
    error.outcome = outcome
    problem = problem_of(error)
    answer = Answer(
        status=problem.status, media_type=wire.PROBLEM, body=problem.body(None)
    )
    arrived = error_of(answer)
    assert isinstance(arrived, DurableActorError)
    assert arrived.retryable == problem.retryable
    assert arrived.overloaded == problem.overloaded
    assert arrived.retry_after_ms == problem.retry_after_ms
    if not isinstance(error, errors.RemoteError):  # an exception of the user's own
        assert arrived.outcome == outcome


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (200, "text/html", b"<p>"),
        (502, "text/html", b"<p>"),
        (503, wire.PROBLEM, b"{"),
        (503, wire.PROBLEM, b"[]"),
        (503, wire.PROBLEM, b'{"code": "x", "outcome": "maybe"}'),
        (503, wire.PROBLEM, b"\xff"),
    ],
)
def test_g4_an_answer_that_says_nothing_is_unknown(
    status: int, media_type: str, body: bytes
) -> None:
    arrived = error_of(Answer(status=status, media_type=media_type, body=body))
    assert isinstance(arrived, errors.TransportError)
    assert arrived.outcome == "unknown"
