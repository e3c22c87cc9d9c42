"""Which tries follow which failures, and when. No network, and no waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import stamina
import structlog
from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

from durable_actor.errors import (
    CallTimeoutError,
    CorruptionError,
    DurableActorError,
    HostClosedError,
    ObjectOverloadedError,
    ObjectResetError,
    RemoteError,
    ReplyExpiredError,
    SqlError,
    StorageFailedError,
    StorageFullError,
    TransportError,
    UnauthorizedError,
)
from durable_actor.retries import (
    Try,
    log_retries_as_we_do,
    may_repeat,
    send_until_known,
)


class Waits:
    """Stands in for `asyncio.sleep`, and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(asyncio, "sleep", waits.sleep)
    return waits


class Daemon:
    """Fails with these errors, one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.tries: list[Try] = []

    async def send(self, attempt: Try) -> str:
        self.tries.append(attempt)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def refused() -> TransportError:
    return TransportError("no daemon", outcome="not_executed")


def lost() -> TransportError:
    return TransportError("reset", outcome="unknown")


def shed(retry_after_ms: int | None = None) -> ObjectOverloadedError:
    error = ObjectOverloadedError("1000 events wait")
    error.retry_after_ms = retry_after_ms
    return error


@pytest.mark.parametrize(
    ("error", "without_identity", "with_identity"),
    [
        (refused(), True, True),
        (lost(), False, True),
        (shed(), True, True),
        (HostClosedError("draining"), True, True),
        (ObjectResetError("broke", outcome="not_executed"), True, True),
        (ObjectResetError("broke", outcome="unknown"), False, True),
        (ObjectResetError("broke", outcome="failed"), False, False),
        (StorageFailedError("commit"), False, True),
        (StorageFullError("commit"), False, False),
        (CallTimeoutError("50 ms"), False, False),
        (ReplyExpiredError("late"), False, False),
        (UnauthorizedError("token"), False, False),
        (RemoteError("Till", "no"), False, False),
        (SqlError("exec", "syntax"), False, False),
        (ValueError("no"), False, False),
        (asyncio.CancelledError(), False, False),
    ],
    ids=repr,
)
def test_g6_only_what_cannot_run_twice_is_sent_again(
    error: BaseException,
    without_identity: bool,
    with_identity: bool,
) -> None:
    assert may_repeat(error, runs_once=False) is without_identity
    assert may_repeat(error, runs_once=True) is with_identity


async def test_the_first_try_needs_no_loop_and_no_wait(waits: Waits) -> None:
    daemon = Daemon()
    assert await send_until_known(daemon.send, retries=3, runs_once=True) == "done"
    assert daemon.tries == [Try(None, 0)]
    assert waits.seconds == []


async def test_waits_double_and_have_jitter(waits: Waits) -> None:
    daemon = Daemon(*(refused() for _ in range(8)))
    assert await send_until_known(daemon.send, retries=8, runs_once=True) == "done"
    assert len(waits.seconds) == 8
    for number, seconds in enumerate(waits.seconds):
        expected = min(0.1 * 2**number, 5.0)
        assert min(expected, 4.9) <= seconds <= min(expected + 0.1, 5.0)
    assert len(set(waits.seconds)) > 4


@pytest.mark.parametrize(
    ("error", "at_least"),
    [(shed(3_000), 3.0), (shed(), 1.0), (HostClosedError("draining"), 0.1)],
)
async def test_g19_whoever_is_overloaded_is_left_alone_as_long_as_it_said(
    waits: Waits, error: DurableActorError, at_least: float
) -> None:
    daemon = Daemon(error)
    assert await send_until_known(daemon.send, retries=1, runs_once=True) == "done"
    [seconds] = waits.seconds
    assert at_least <= seconds <= at_least * 1.25 + 0.1


async def test_a_wait_that_would_outlast_the_call_is_not_begun(waits: Waits) -> None:
    daemon = Daemon(shed(3_000))
    with pytest.raises(ObjectOverloadedError):
        await send_until_known(daemon.send, retries=5, timeout_ms=2_000, runs_once=True)
    assert waits.seconds == []


async def test_each_try_gets_what_is_left_of_the_time(waits: Waits) -> None:
    daemon = Daemon(refused(), refused())
    await send_until_known(daemon.send, retries=2, timeout_ms=60_000, runs_once=True)
    first, *later = daemon.tries
    assert first == Try(60_000, 0)
    for attempt in later:
        assert attempt.timeout_ms is not None
        assert 50_000 < attempt.timeout_ms <= 60_000
        assert attempt.sent_ms_ago >= 1


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ((refused(), refused()), "not_executed"),
        ((refused(), lost()), "unknown"),
        ((lost(), refused()), "unknown"),
        ((lost(), shed()), "unknown"),
        ((lost(), UnauthorizedError("token")), "unknown"),
        ((lost(), StorageFullError("commit")), "unknown"),
        ((lost(), CorruptionError("crc")), "unknown"),
        ((lost(), ReplyExpiredError("late")), "unknown"),
        ((lost(), SqlError("exec", "syntax")), "failed"),  # of the method: an answer
        ((refused(), StorageFullError("commit")), "failed"),
    ],
    ids=repr,
)
async def test_g4_what_may_have_run_stays_unknown(
    waits: Waits, errors: tuple[DurableActorError, ...], outcome: str
) -> None:
    daemon = Daemon(*errors)
    with pytest.raises(type(errors[-1])) as caught:
        await send_until_known(daemon.send, retries=1, runs_once=True)
    assert len(daemon.tries) == 2
    assert caught.value.outcome == outcome


@pytest.mark.parametrize("error", [refused, lost])
async def test_g4_time_that_is_over_between_two_tries_tells_what_is_known(
    error: Callable[[], TransportError],
) -> None:
    daemon = Daemon(*(error() for _ in range(50)))
    with pytest.raises(CallTimeoutError) as caught:
        await send_until_known(daemon.send, retries=50, timeout_ms=30, runs_once=True)
    assert caught.value.outcome == error().outcome
    assert isinstance(caught.value.__cause__, TransportError)


async def test_g4_time_that_is_over_during_a_try_is_unknown() -> None:
    async def send(attempt: Try) -> None:
        if not attempt.sent_ms_ago:
            raise refused()
        await asyncio.Event().wait()

    with pytest.raises(CallTimeoutError) as caught:
        await send_until_known(send, retries=1, timeout_ms=300, runs_once=True)
    assert caught.value.outcome == "unknown"


async def test_a_timeout_that_the_object_raised_is_passed_on(waits: Waits) -> None:
    daemon = Daemon(refused(), TimeoutError("of the object"))
    with pytest.raises(TimeoutError, match="of the object"):
        await send_until_known(
            daemon.send, retries=1, timeout_ms=60_000, runs_once=True
        )


async def test_no_retries_are_none(waits: Waits) -> None:
    daemon = Daemon(refused())
    with pytest.raises(TransportError):
        await send_until_known(daemon.send, retries=0, runs_once=True)
    assert len(daemon.tries) == 1


async def test_a_program_can_switch_all_retries_off(waits: Waits) -> None:
    daemon = Daemon(refused())
    stamina.set_active(False)
    try:
        with pytest.raises(TransportError):
            await send_until_known(daemon.send, retries=3, runs_once=True)
    finally:
        stamina.set_active(True)
    assert len(daemon.tries) == 1


async def test_a_retry_is_logged_and_not_printed(
    waits: Waits,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not structlog.is_configured()
    caplog.set_level("INFO")
    set_on_retry_hooks(None)
    try:
        log_retries_as_we_do()
        daemon = Daemon(TransportError("token=secret", outcome="not_executed"))
        await send_until_known(daemon.send, retries=1, runs_once=True)
    finally:
        set_on_retry_hooks(None)
    assert capsys.readouterr().out == ""
    assert "call.retried" in caplog.text
    assert "TransportError" in caplog.text
    assert "secret" not in caplog.text


def test_what_a_program_has_chosen_to_hear_of_retries_is_left_alone() -> None:
    def mine(details: object) -> None: ...

    set_on_retry_hooks([mine])
    try:
        log_retries_as_we_do()
        assert get_on_retry_hooks() == (mine,)
    finally:
        set_on_retry_hooks(None)
