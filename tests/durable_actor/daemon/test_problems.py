"""Exceptions as problems, and back."""

from __future__ import annotations

import msgspec
import pytest

from durable_actor import errors
from durable_actor.daemon import wire
from durable_actor.daemon.problems import (
    STATUS_BY_CODE,
    HandlerError,
    ProblemError,
    nearest,
    problem_of,
    refuse,
)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class ExtensionError(Exception):
    """As the errors of an extension are: ours by what they answer."""

    code = "run_exists"
    retryable = False
    overloaded = False
    outcome = "not_executed"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ObjectOverloadedError("x"), 429),
        (errors.ObjectResetError("x"), 503),
        (errors.ObjectDeadlockError("x"), 409),
        (errors.MethodNotFoundError("x"), 404),
        (errors.BadArgumentsError("x"), 400),
        (errors.CorruptionError("x"), 500),
        (errors.StorageError("put"), 503),
        (errors.StorageFullError("put"), 507),
        (errors.StorageFailedError("put"), 503),
        (errors.StorageLimitError("put"), 413),
        (errors.EncodeError("x"), 400),  # an argument; an answer would have run
        (errors.InvalidIdError("x"), 400),
        (errors.ForeignIdError("x"), 400),
        (errors.HostClosedError("x"), 503),
        (errors.CallTimeoutError("x"), 504),
        (ExtensionError(), 409),
    ],
)
def test_an_error_of_ours_has_a_status_and_keeps_its_answers(
    error: errors.DurableActorError, status: int
) -> None:
    problem = problem_of(HandlerError(error))

    assert problem.status == status
    assert problem.code == error.code
    assert problem.retryable == error.retryable
    assert problem.overloaded == error.overloaded
    assert problem.outcome == error.outcome


@pytest.mark.parametrize(
    "original",
    [
        ValueError("x"),
        KeyError("x"),
        TimeoutError(),
        UnprintableError(),
        errors.RemoteError("shop.SoldOutError", "x"),
    ],
)
def test_any_other_error_of_the_handler_is_a_500(original: Exception) -> None:
    problem = problem_of(HandlerError(original))

    assert (problem.status, problem.code) == (500, "handler_error")
    assert problem.error is not None
    assert "traceback" not in problem.error


def test_what_user_code_calls_its_fields_does_not_make_it_ours() -> None:
    class HttpError(Exception):
        code = "unauthorized"

    assert problem_of(HandlerError(HttpError())).code == "handler_error"


def test_an_error_of_the_daemon_tells_nothing() -> None:
    problem = problem_of(RuntimeError("secret"))

    assert (problem.status, problem.code) == (500, "internal")
    assert problem.outcome == "unknown"
    assert b"secret" not in problem.body("trace")


def test_text_that_cannot_be_sent_is_escaped() -> None:
    problem = problem_of(HandlerError(ValueError("\ud800")))

    assert msgspec.json.decode(problem.body(None))["detail"].endswith("\\ud800")


@pytest.mark.parametrize("code", sorted(STATUS_BY_CODE))
def test_every_code_comes_back_as_an_exception(code: str) -> None:
    problem = refuse(code, "what", "what to do").problem

    error = wire.error_of(problem.status, problem.body(None))

    assert error.code == code
    assert error.remote
    assert error.outcome == "not_executed"
    assert "what to do" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"\xff"])
def test_a_body_that_is_no_problem_is_a_broken_transport(body: bytes) -> None:
    error = wire.error_of(502, body)

    assert isinstance(error, errors.TransportError)
    assert "502" in str(error)


def test_a_refusal_carries_headers() -> None:
    error = refuse("method_not_allowed", "x", "y", Allow="GET")

    assert isinstance(error, ProblemError)
    assert error.problem.headers_to_send()["Allow"] == "GET"


def test_the_nearest_name_is_named_or_all_of_them() -> None:
    assert nearest("Cuonter", ["Counter", "Cart"]) == "Did you mean 'Counter'?"
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."
    assert nearest("zzz", []) == "Known: none."
