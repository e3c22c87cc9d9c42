"""When to try again: policies as values, and pure arithmetic on them.

Promises
    The same policy, attempt and random source give the same delay.
    A delay is never negative and never beyond its bound, however many attempts there
    were.

Does not know steps, clocks or storage.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from durable_actor import Duration, duration_ms
from workflows.errors import NonRetryableError

Curve = Literal["constant", "linear", "exponential"]

# A delay that nobody bounded ends here: a day is patient enough for a retry.
DELAY_MS_MAX = 86_400_000

# Keeps the arithmetic inside a float; nobody means more.
FACTOR_MAX = 1_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How the delay grows from one retry to the next. Made by its class methods."""

    curve: Curve
    base_ms: int
    growth: float = 1.0  # milliseconds added (linear), or factor (exponential)
    max_ms: int | None = None
    jitter: float = 0.0  # up to this share is added at random, so that retries spread

    def __post_init__(self) -> None:
        if not 0.0 <= self.jitter <= 1.0:
            raise ValueError(f"jitter must be between 0 and 1, got {self.jitter}")
        if self.curve == "exponential" and not 1.0 <= self.growth <= FACTOR_MAX:
            raise ValueError(
                f"factor must be between 1 and {FACTOR_MAX}, got {self.growth}"
            )

    @classmethod
    def constant(cls, delay: Duration, *, jitter: float = 0.0) -> Backoff:
        """Wait the same time before each retry."""
        return cls(curve="constant", base_ms=duration_ms(delay), jitter=jitter)

    @classmethod
    def linear(
        cls,
        initial: Duration,
        *,
        increment: Duration | None = None,
        max: Duration | None = None,  # noqa: A002  # reads as the sentence it is part of
        jitter: float = 0.0,
    ) -> Backoff:
        """Wait a little longer before each retry: by `increment`, or by `initial`."""
        base_ms = duration_ms(initial)
        return cls(
            curve="linear",
            base_ms=base_ms,
            growth=base_ms if increment is None else duration_ms(increment),
            max_ms=DELAY_MS_MAX if max is None else duration_ms(max),
            jitter=jitter,
        )

    @classmethod
    def exponential(
        cls,
        base: Duration,
        *,
        factor: float = 2.0,
        max: Duration | None = None,  # noqa: A002  # reads as the sentence it is part of
        jitter: float = 0.0,
    ) -> Backoff:
        """Multiply the wait by `factor` before each further retry."""
        return cls(
            curve="exponential",
            base_ms=duration_ms(base),
            growth=factor,
            max_ms=DELAY_MS_MAX if max is None else duration_ms(max),
            jitter=jitter,
        )

    @classmethod
    def standard(cls) -> Backoff:
        """For most external services: 1 s doubling to 30 s, with jitter."""
        return cls.exponential("1 second", max="30 seconds", jitter=0.25)

    @classmethod
    def aggressive(cls) -> Backoff:
        """For services nearby: 100 ms doubling to 5 s, with jitter."""
        return cls.exponential("100 ms", max="5 seconds", jitter=0.25)

    @classmethod
    def patient(cls) -> Backoff:
        """For services under rate limits: 5 s doubling to 2 minutes, with jitter."""
        return cls.exponential("5 seconds", max="2 minutes", jitter=0.25)

    @classmethod
    def simple(cls) -> Backoff:
        """One second, always."""
        return cls.constant("1 second")

    def delay_ms(self, failures: int, source: random.Random) -> int:
        """Return the wait after the n-th failure in a row (from 1)."""
        if self.curve == "constant":
            delay: float = self.base_ms
        elif self.curve == "linear":
            delay = self.base_ms + self.growth * (failures - 1)
        else:
            # Far beyond every bound long before the 64th doubling, and still a float.
            delay = self.base_ms * self.growth ** min(failures - 1, 64)
        delay *= 1 + self.jitter * source.random()
        return round(delay if self.max_ms is None else min(delay, self.max_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how patiently, a step is tried again."""

    max_attempts: int = 5  # the first try counts
    delay: Backoff | Duration = "1 second"  # a plain duration is the same each time
    max_duration: Duration | None = None  # from the first attempt; None: no bound
    is_retryable: Callable[[Exception], bool] | None = None  # None: every error is

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(
                f"max_attempts must be at least 1, got {self.max_attempts}"
            )
        if not isinstance(self.delay, Backoff):
            duration_ms(self.delay)
        if self.max_duration is not None:
            duration_ms(self.max_duration)

    def next_delay_ms(
        self, failures: int, error: Exception, elapsed_ms: int, source: random.Random
    ) -> int | None:
        """Return the wait before the next attempt, or None to give up.

        Args:
            failures: How many attempts have failed, this one included.
            error: What the last one raised.
            elapsed_ms: Since the first attempt began.
            source: Where jitter comes from.
        """
        if failures >= self.max_attempts or isinstance(error, NonRetryableError):
            return None
        if self.is_retryable is not None and not self.is_retryable(error):
            return None
        backoff = self.delay
        if not isinstance(backoff, Backoff):
            backoff = Backoff.constant(backoff)
        delay = backoff.delay_ms(failures, source)
        is_too_late = (
            self.max_duration is not None
            and elapsed_ms + delay > duration_ms(self.max_duration)
        )
        return None if is_too_late else delay


NO_RETRY = Retry(max_attempts=1)
