"""How an exception is written down."""

import pytest

from workflows.errors import ErrorInfo, StepFailedError


def test_an_exception_is_its_type_and_its_text() -> None:
    assert ErrorInfo.of(ValueError("no")) == ErrorInfo(type="ValueError", message="no")


def test_a_failed_step_is_what_made_it_fail() -> None:
    info = ErrorInfo(type="OSError", message="away", step="charge")
    assert ErrorInfo.of(StepFailedError("charge", 3, info)) == info


def test_a_group_is_its_first_error() -> None:
    info = ErrorInfo(type="OSError", message="away", step="charge")
    inner = ExceptionGroup("inner", [StepFailedError("charge", 1, info)])
    assert ErrorInfo.of(ExceptionGroup("outer", [inner])) == info
    two = ExceptionGroup("outer", [inner, ValueError("too")])
    assert ErrorInfo.of(two) == ErrorInfo(
        type="OSError", message="away (and 1 more)", step="charge"
    )


def test_a_long_text_is_cut() -> None:
    info = ErrorInfo.of(ValueError("x" * 10_000))
    assert len(info.message) == 2_000
    assert info.message.endswith("...")


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [MuteError(), ValueError("lone \udc80")])
def test_an_exception_with_a_broken_text_can_still_be_told(error: Exception) -> None:
    info = ErrorInfo.of(error)
    assert info.message.encode()
