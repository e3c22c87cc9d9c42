"""Steps: recorded exactly once, retried as asked, and refused where they cannot be."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from durable_actor import InvalidTimeError, RemoteError
from durable_actor.testing import START_MS
from tests.workflows.support import Bench
from workflows import (
    Backoff,
    Completed,
    Failed,
    InvalidNameError,
    NonRetryableError,
    NotInStepError,
    Paused,
    Retry,
    Step,
    StepFailedError,
    StepNestingError,
    StepTimeoutError,
    workflow,
)


class Outside:
    """What steps do to the world: a list of it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def do(self, value: Any) -> Any:
        self.seen.append(value)
        return value

    def flaky(self, failures: int) -> Callable[[], Awaitable[str]]:
        async def attempt() -> str:
            self.seen.append("attempt")
            if len(self.seen) <= failures:
                raise OSError(f"failure {len(self.seen)}")
            return "done"

        return attempt


@pytest.fixture
def outside() -> Outside:
    return Outside()


async def bench_of(*args: Any, **kwargs: Any) -> Bench:
    bench = Bench(*args, **kwargs)
    await bench.activate()
    return bench


async def test_a_result_is_what_the_function_returned(outside: Outside) -> None:
    @workflow
    async def one(step: Step) -> Any:
        return await step.run("it", outside.do, (1, Decimal("2.50"), {3}))

    bench = await bench_of(one)
    result = await bench.run("one")
    assert result.completed
    assert result.output == (1, Decimal("2.50"), {3})


async def test_a_plain_function_may_be_a_step() -> None:
    @workflow
    async def one(step: Step) -> int:
        return await step.run("sum", sum, [1, 2, 3])

    bench = await bench_of(one)
    assert (await bench.run("one")).output == 6


async def test_g5_a_replay_returns_the_result_and_does_not_run_the_step(
    outside: Outside,
) -> None:
    @workflow
    async def two(step: Step) -> list[str]:
        a = await step.run("a", outside.do, "a")
        await step.sleep("nap", "1 hour")
        b = await step.run("b", outside.do, "b")
        return [a, b]

    bench = await bench_of(two)
    await bench.run("two")
    await bench.crash()
    await bench.advance("1 hour")
    assert bench.status == Completed(START_MS + 3_600_000)
    assert await bench.output() == ["a", "b"]
    assert outside.seen == ["a", "b"]


async def test_a_name_used_again_is_another_step(outside: Outside) -> None:
    @workflow
    async def loop(step: Step) -> list[Any]:
        results = [await step.run("x", outside.do, n) for n in range(3)]
        await step.sleep("1 hour")
        return results

    bench = await bench_of(loop)
    await bench.run("loop")
    await bench.advance("1 hour")
    assert await bench.output() == [0, 1, 2]
    assert await bench.orchestrator.completed_steps() == ["x", "x#2", "x#3"]


async def test_a_name_that_looks_like_an_occurrence_is_not_confused_with_one(
    outside: Outside,
) -> None:
    @workflow
    async def names(step: Step) -> list[Any]:
        given = ["x", "x#2", "x", "x#2"]
        results = [await step.run(n, outside.do, k) for k, n in enumerate(given)]
        await step.sleep("1 hour")
        return results

    bench = await bench_of(names)
    await bench.run("names")
    await bench.advance("1 hour")
    assert await bench.output() == [0, 1, 2, 3]
    assert outside.seen == [0, 1, 2, 3]


async def test_a_step_begins_only_after_the_one_before_is_durable(
    outside: Outside,
) -> None:
    """The name of the invariant is result-before-progress."""
    durable: list[bool] = []

    @workflow
    async def two(step: Step) -> None:
        await step.run("a", outside.do, "a")
        await step.run("b", check)

    async def check() -> None:
        durable.append("step:a" in bench.disk.keys)

    bench = await bench_of(two)
    await bench.run("two")
    assert durable == [True]


async def test_one_step_costs_two_commits() -> None:
    @workflow
    async def one(step: Step) -> int:
        return await step.run("it", len, "four")

    bench = await bench_of(one, tracker=False)
    await bench.run("one")
    assert bench.disk.commits == 2


async def test_a_failing_step_without_a_policy_fails_at_once(outside: Outside) -> None:
    @workflow
    async def one(step: Step) -> str:
        return await step.run("it", outside.flaky(9))

    bench = await bench_of(one)
    result = await bench.run("one")
    assert outside.seen == ["attempt"]
    assert isinstance(result.status, Failed)
    assert result.status.error.type == "OSError"
    assert result.status.error.step == "it"


async def test_a_step_is_tried_again_after_its_delays(outside: Outside) -> None:
    retry = Retry(max_attempts=4, delay=Backoff.exponential("1 second"))

    @workflow
    async def one(step: Step) -> str:
        return await step.run("it", outside.flaky(3), retry=retry)

    bench = await bench_of(one)
    await bench.run("one")
    assert bench.status == Paused(START_MS + 1_000)
    await bench.advance("1 second")
    assert bench.status == Paused(START_MS + 3_000)
    await bench.advance("2 seconds")
    assert bench.status == Paused(START_MS + 7_000)
    await bench.advance("4 seconds")
    assert bench.status == Completed(START_MS + 7_000)
    assert len(outside.seen) == 4


async def test_a_retry_goes_on_counting_after_a_crash(outside: Outside) -> None:
    numbers: list[int] = []

    @workflow
    async def one(step: Step) -> None:
        async def attempt() -> None:
            numbers.append(step.attempt)
            raise OSError

        await step.run("it", attempt, retry=Retry(max_attempts=3, delay="1 hour"))

    bench = await bench_of(one)
    await bench.run("one")
    await bench.crash()
    await bench.advance("1 hour")
    await bench.crash()
    await bench.advance("1 hour")
    assert numbers == [1, 2, 3]
    assert isinstance(bench.status, Failed)


async def test_a_step_that_gave_up_raises_the_same_error_in_a_replay(
    outside: Outside,
) -> None:
    caught: list[StepFailedError] = []

    @workflow
    async def one(step: Step) -> str:
        try:
            await step.run("it", outside.flaky(9))
        except StepFailedError as error:
            caught.append(error)
            await step.sleep("1 hour")
        return await step.run("compensate", outside.do, "compensated")

    bench = await bench_of(one)
    await bench.run("one")
    await bench.crash()
    await bench.advance("1 hour")
    assert await bench.output() == "compensated"
    first, second = caught
    assert (first.step, first.attempts, first.error) == ("it", 1, second.error)
    assert type(first.__cause__) is type(second.__cause__) is OSError
    assert second.__cause__.args == ("failure 1",)
    assert outside.seen == ["attempt", "compensated"]


async def test_an_error_that_cannot_be_kept_is_the_same_text_at_once_and_later() -> (
    None
):
    class LocalError(Exception):
        """A class that nothing could find again."""

    causes: list[BaseException | None] = []

    @workflow
    async def one(step: Step) -> None:
        try:
            await step.run("it", fail)
        except StepFailedError as error:
            causes.append(error.__cause__)
        await step.sleep("1 hour")

    async def fail() -> None:
        raise LocalError("what happened")

    bench = await bench_of(one)
    await bench.run("one")
    await bench.advance("1 hour")
    assert [type(cause) for cause in causes] == [RemoteError, RemoteError]
    assert {str(cause) for cause in causes} == {"LocalError: what happened"}


async def test_an_error_that_says_so_is_not_retried() -> None:
    attempts: list[int] = []

    @workflow
    async def one(step: Step) -> None:
        async def attempt() -> None:
            attempts.append(step.attempt)
            raise NonRetryableError("the card is stolen")

        await step.run("it", attempt, retry=Retry())

    bench = await bench_of(one)
    await bench.run("one")
    assert attempts == [1]
    assert isinstance(bench.status, Failed)


async def test_a_result_that_cannot_be_kept_fails_the_step_and_names_the_value() -> (
    None
):
    @workflow
    async def one(step: Step) -> None:
        async def make() -> dict[str, object]:
            return {"handle": object()}

        await step.run("it", make, retry=Retry())

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == "EncodeError"
    assert "handle" in bench.status.error.message
    assert bench.events.count("step.started") == 1


async def test_a_judgement_that_fails_itself_ends_the_retries() -> None:
    def judge(error: Exception) -> bool:
        raise KeyError("judge")

    @workflow
    async def one(step: Step) -> None:
        await step.run("it", int, "x", retry=Retry(is_retryable=judge))

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == "KeyError"


async def test_an_attempt_that_takes_too_long_is_cancelled_and_tried_again() -> None:
    attempts: list[str] = []

    @workflow
    async def one(step: Step) -> int:
        async def attempt() -> int:
            attempts.append("begun")
            if step.attempt == 1:
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    attempts.append("cancelled")
            return step.attempt

        retry = Retry(max_attempts=2, delay="1 second")
        return await step.run("it", attempt, retry=retry, timeout="10 seconds")

    bench = await bench_of(one)
    await bench.start("one")
    await bench.advance("9 seconds")
    assert attempts == ["begun"]
    await bench.advance("2 seconds")
    assert attempts == ["begun", "cancelled", "begun"]
    assert await bench.output() == 2
    assert bench.events.count("timeout.set") == 2
    assert bench.events.count("timeout.exceeded") == 1


async def test_a_timeout_is_measured_from_the_attempt_and_not_from_the_first() -> None:
    loop = asyncio.get_running_loop()

    @workflow
    async def one(step: Step) -> None:
        async def hang() -> None:
            await loop.create_future()

        retry = Retry(max_attempts=3, delay="5 seconds")
        await step.run("it", hang, retry=retry, timeout="10 seconds")

    bench = await bench_of(one)
    await bench.start("one")
    await bench.advance("39 seconds")
    assert not isinstance(bench.status, Failed)
    await bench.advance("1 second")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == "StepTimeoutError"


async def test_a_timeout_error_of_the_step_itself_is_not_ours() -> None:
    @workflow
    async def one(step: Step) -> None:
        async def impatient() -> None:
            raise TimeoutError("the bank said so")

        await step.run("it", impatient, timeout="10 seconds")

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == "TimeoutError"
    assert bench.status.error.message == "the bank said so"


async def test_a_late_step_can_be_caught_with_its_fields() -> None:
    causes: list[BaseException | None] = []

    @workflow
    async def one(step: Step) -> None:
        async def hang() -> None:
            await asyncio.get_running_loop().create_future()

        try:
            await step.run("it", hang, timeout="1 second")
        except StepFailedError as error:
            causes.append(error.__cause__)

    bench = await bench_of(one)
    await bench.start("one")
    await bench.advance("1 second")
    [late] = causes
    assert isinstance(late, StepTimeoutError)
    assert (late.step, late.timeout_ms) == ("it", 1_000)


async def test_code_that_cancels_itself_fails_its_step() -> None:
    @workflow
    async def one(step: Step) -> None:
        async def cancel_itself() -> None:
            raise asyncio.CancelledError

        await step.run("it", cancel_itself)

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert "cancelled from inside" in bench.status.error.message


async def test_a_step_inside_a_step_is_refused() -> None:
    @workflow
    async def one(step: Step) -> None:
        async def outer() -> None:
            await step.run("inner", len, "x")

        await step.run("outer", outer)

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == StepNestingError.__name__
    assert "'inner'" in bench.status.error.message
    assert "'outer'" in bench.status.error.message


async def test_a_step_in_a_child_task_of_a_step_is_refused_too() -> None:
    @workflow
    async def one(step: Step) -> None:
        async def outer() -> None:
            await asyncio.create_task(step.sleep("1 hour"))

        await step.run("outer", outer)

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == StepNestingError.__name__


async def test_every_attempt_of_a_step_has_the_same_key_and_no_other_step_has_it() -> (
    None
):
    keys: list[tuple[int, str]] = []

    @workflow
    async def two(step: Step) -> None:
        async def attempt() -> None:
            keys.append((step.attempt, step.idempotency_key))
            if len(keys) == 1:
                raise OSError

        await step.run("it", attempt, retry=Retry(delay="1 hour"))
        await step.run("it", attempt)

    bench = await bench_of(two)
    await bench.run("two")
    await bench.crash()
    await bench.advance("1 hour")
    (one, key), (two_, same), (other, another) = keys
    assert (one, two_, other) == (1, 2, 1)
    assert key == same != another
    assert key.isascii()


async def test_an_attempt_is_unknown_outside_of_a_step() -> None:
    errors: list[str] = []

    @workflow
    async def one(step: Step) -> None:
        for ask in (lambda: step.attempt, lambda: step.idempotency_key):
            try:
                ask()
            except NotInStepError as error:
                errors.append(error.attribute)

    bench = await bench_of(one)
    await bench.run("one")
    assert errors == ["attempt", "idempotency_key"]


@pytest.mark.parametrize("name", ["", "x" * 513, None, "lone \ud800"])
async def test_a_name_that_cannot_be_a_key_is_refused(name: Any) -> None:
    @workflow
    async def one(step: Step) -> None:
        await step.run(name, len, "x")

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == InvalidNameError.__name__


async def test_a_sleep_may_have_a_name_or_none() -> None:
    @workflow
    async def naps(step: Step) -> None:
        await step.sleep("named", timedelta(seconds=10))
        await step.sleep("10 seconds")
        await step.sleep_until(
            "until", datetime.fromtimestamp(START_MS / 1e3 + 30, UTC)
        )
        await step.sleep_until(START_MS + 40_000)

    bench = await bench_of(naps)
    await bench.run("naps")
    await bench.advance("39 seconds")
    assert bench.status == Paused(START_MS + 40_000)
    await bench.advance("1 second")
    assert bench.status == Completed(START_MS + 40_000)
    assert [e.step for e in await bench.journal.read_steps()] == [
        "named",
        "sleep",
        "until",
        "sleep#2",
    ]


async def test_a_sleep_until_a_time_that_is_past_does_not_sleep() -> None:
    @workflow
    async def late(step: Step) -> str:
        await step.sleep_until(START_MS - 1)
        await step.sleep(0)
        return "awake"

    bench = await bench_of(late)
    assert (await bench.run("late")).output == "awake"


async def test_a_duration_that_is_none_is_refused() -> None:
    @workflow
    async def one(step: Step) -> None:
        await step.sleep("a name without a duration")

    bench = await bench_of(one)
    await bench.run("one")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == InvalidTimeError.__name__


async def test_a_sleep_ends_when_it_would_have_ended_without_the_crash() -> None:
    @workflow
    async def nap(step: Step) -> None:
        await step.sleep("1 hour")

    bench = await bench_of(nap)
    await bench.run("nap")
    await bench.advance("30 minutes")
    await bench.crash()
    await bench.advance("29 minutes")
    assert bench.status == Paused(START_MS + 3_600_000)
    await bench.advance("1 minute")
    assert bench.status == Completed(START_MS + 3_600_000)


async def test_values_that_differ_each_time_are_the_same_in_a_replay() -> None:
    seen: list[Any] = []

    @workflow
    async def values(step: Step) -> None:
        seen.append((await step.now(), await step.random(), await step.uuid()))
        await step.sleep("1 hour")

    bench = await bench_of(values)
    await bench.run("values")
    await bench.advance("1 hour")
    first, second = seen
    assert first == second
    assert first[0] == datetime.fromtimestamp(START_MS / 1e3, UTC)
    assert 0 <= first[1] < 1
    assert first[2].version == 7


async def test_a_run_may_not_have_more_steps_than_its_journal_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workflows.context.STEPS_MAX", 10)

    @workflow
    async def endless(step: Step) -> None:
        while True:
            await step.random()

    bench = await bench_of(endless)
    await bench.run("endless")
    assert isinstance(bench.status, Failed)
    assert bench.status.error.type == "StepLimitError"


async def test_a_step_knows_its_run() -> None:
    @workflow
    async def who(step: Step) -> tuple[str, str]:
        return step.workflow, step.run_id

    bench = await bench_of(who)
    assert (await bench.run("who")).output == ("who", "r1")
