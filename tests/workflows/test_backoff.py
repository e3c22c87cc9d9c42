"""Policies as values, and the arithmetic on them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor import InvalidTimeError
from workflows.backoff import DELAY_MS_MAX, NO_RETRY, Backoff, Retry
from workflows.errors import NonRetryableError

RANDOM = random.Random(0)


def delays(backoff: Backoff, count: int = 5) -> list[int]:
    return [backoff.delay_ms(n, RANDOM) for n in range(1, count + 1)]


def test_a_constant_delay_stays_the_same() -> None:
    assert delays(Backoff.constant("2 seconds")) == [2_000] * 5


def test_a_linear_delay_grows_by_its_increment() -> None:
    backoff = Backoff.linear("1 second", increment="500 ms", max="2 seconds")
    assert delays(backoff) == [1_000, 1_500, 2_000, 2_000, 2_000]


def test_a_linear_delay_without_an_increment_grows_by_itself() -> None:
    assert delays(Backoff.linear("1 second"), 3) == [1_000, 2_000, 3_000]


def test_an_exponential_delay_doubles_up_to_its_bound() -> None:
    backoff = Backoff.exponential("1 second", max="5 seconds")
    assert delays(backoff) == [1_000, 2_000, 4_000, 5_000, 5_000]


def test_an_exponential_delay_takes_another_factor() -> None:
    assert delays(Backoff.exponential("1 second", factor=3), 3) == [
        1_000,
        3_000,
        9_000,
    ]


@pytest.mark.parametrize(
    ("preset", "first", "bound"),
    [
        (Backoff.standard(), 1_000, 30_000),
        (Backoff.aggressive(), 100, 5_000),
        (Backoff.patient(), 5_000, 120_000),
        (Backoff.simple(), 1_000, 1_000),
    ],
)
def test_a_preset_starts_and_ends_where_it_says(
    preset: Backoff, first: int, bound: int
) -> None:
    assert first <= preset.delay_ms(1, RANDOM) <= first * 1.25
    assert preset.delay_ms(50, RANDOM) == bound


@given(
    failures=st.integers(1, 10**9),
    base_ms=st.integers(0, DELAY_MS_MAX),
    factor=st.floats(1.0, 1_000.0),
    jitter=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
)
def test_a_delay_is_never_negative_nor_beyond_its_bound(
    failures: int, base_ms: int, factor: float, jitter: float, seed: int
) -> None:
    backoff = Backoff.exponential(base_ms, factor=factor, jitter=jitter)
    assert 0 <= backoff.delay_ms(failures, random.Random(seed)) <= DELAY_MS_MAX


def test_jitter_only_ever_adds() -> None:
    backoff = Backoff.constant("1 second", jitter=0.5)
    seen = [backoff.delay_ms(1, RANDOM) for _ in range(100)]
    assert min(seen) >= 1_000
    assert max(seen) <= 1_500
    assert len(set(seen)) > 50


def test_the_same_source_gives_the_same_delays() -> None:
    backoff = Backoff.standard()
    assert backoff.delay_ms(1, random.Random(7)) == backoff.delay_ms(
        1, random.Random(7)
    )


def test_the_first_try_counts_as_an_attempt() -> None:
    retry = Retry(max_attempts=3, delay="1 second")
    error = ValueError()
    assert retry.next_delay_ms(1, error, 0, RANDOM) == 1_000
    assert retry.next_delay_ms(2, error, 0, RANDOM) == 1_000
    assert retry.next_delay_ms(3, error, 0, RANDOM) is None


def test_without_a_policy_there_is_one_attempt() -> None:
    assert NO_RETRY.next_delay_ms(1, ValueError(), 0, RANDOM) is None


def test_an_error_that_says_so_is_not_retried() -> None:
    assert Retry().next_delay_ms(1, NonRetryableError("no"), 0, RANDOM) is None


def test_the_author_decides_which_errors_are_retried() -> None:
    retry = Retry(is_retryable=lambda error: isinstance(error, OSError))
    assert retry.next_delay_ms(1, OSError(), 0, RANDOM) == 1_000
    assert retry.next_delay_ms(1, ValueError(), 0, RANDOM) is None


def test_no_attempt_begins_after_the_longest_duration() -> None:
    retry = Retry(delay="10 seconds", max_duration="30 seconds")
    assert retry.next_delay_ms(1, OSError(), 20_000, RANDOM) == 10_000
    assert retry.next_delay_ms(1, OSError(), 20_001, RANDOM) is None


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_policy_without_attempts_is_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        Retry(max_attempts=attempts)


def test_a_delay_that_is_none_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidTimeError):
        Retry(delay="soon")


@pytest.mark.parametrize("jitter", [-0.1, 1.1])
def test_a_share_of_jitter_lies_between_none_and_all(jitter: float) -> None:
    with pytest.raises(ValueError, match="jitter"):
        Backoff.constant("1 second", jitter=jitter)


@pytest.mark.parametrize("factor", [0.5, 1e6])
def test_a_factor_that_would_shrink_or_explode_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor"):
        Backoff.exponential("1 second", factor=factor)
