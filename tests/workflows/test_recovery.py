"""What becomes of a run that was under way when the process died."""

import pytest

from workflows.journal import RunRecord
from workflows.machine import Completed, Paused, Queued, Running, Status
from workflows.recovery import Finish, GiveUp, LeaveAlone, Recovery, TakeUp, decide

RECOVERY = Recovery(max_attempts=2, delay="1 second", stale_threshold="10 seconds")


def record(
    status: Status,
    *,
    recoveries: int = 0,
    recover_at_ms: int | None = None,
    cancel_requested: bool = False,
) -> RunRecord:
    return RunRecord(
        run_id="r1",
        workflow="w",
        status=status,
        created_at_ms=1,
        recoveries=recoveries,
        recover_at_ms=recover_at_ms,
        cancel_requested=cancel_requested,
        cancel_reason="why" if cancel_requested else None,
    )


@pytest.mark.parametrize("status", [Queued(1), Paused(5), Completed(1)])
def test_what_was_not_running_is_left_alone(status: Status) -> None:
    assert decide(record(status), RECOVERY, now_ms=9) == LeaveAlone()


def test_what_was_running_is_taken_up_after_the_delay() -> None:
    assert decide(record(Running(1)), RECOVERY, now_ms=100) == TakeUp(1_100)


def test_how_long_ago_it_was_started_does_not_matter() -> None:
    """A run younger than the threshold is not overlooked, nor one of the future."""
    for started_at_ms in (100, 99, 5_000, 0):
        decision = decide(record(Running(started_at_ms)), RECOVERY, now_ms=100)
        assert decision == TakeUp(1_100)


def test_a_recovery_that_is_due_already_keeps_its_time() -> None:
    found = record(Running(1), recover_at_ms=700)
    assert decide(found, RECOVERY, now_ms=100) == TakeUp(700)
    assert decide(found, RECOVERY, now_ms=900) == TakeUp(700)


def test_a_clock_that_was_put_back_makes_no_recovery_wait_longer() -> None:
    found = record(Running(1), recover_at_ms=9_000_000)
    assert decide(found, RECOVERY, now_ms=100) == TakeUp(1_100)


def test_after_too_many_recoveries_it_is_given_up() -> None:
    decision = decide(record(Running(1), recoveries=2), RECOVERY, now_ms=100)
    assert decision == GiveUp(2)


def test_a_run_that_had_promised_to_stop_does() -> None:
    decision = decide(record(Running(1), cancel_requested=True), RECOVERY, now_ms=1)
    assert decision == Finish("why")


def test_no_recovery_at_all_may_be_asked_for() -> None:
    recovery = Recovery(max_attempts=0)
    assert decide(record(Running(1)), recovery, now_ms=1) == GiveUp(0)


def test_the_delay_doubles_up_to_the_threshold() -> None:
    assert [RECOVERY.delay_ms(n) for n in range(1, 7)] == [
        1_000,
        2_000,
        4_000,
        8_000,
        10_000,
        10_000,
    ]
    assert RECOVERY.delay_ms(10_000) == 10_000


def test_less_than_no_attempt_is_refused() -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        Recovery(max_attempts=-1)
