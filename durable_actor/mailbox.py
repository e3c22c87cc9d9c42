"""The mailbox: the line of events that wait for one object.

Promises
    Events leave in the order they came.
    The line is bounded in events, bytes and age, and if so configured in the rate of
    arrivals; whoever meets a bound is told at once, and nothing is put in the line.
    What waits is counted in the memory of the process, until it is taken out.

Does not know what an event does, nor when it may run: the activation takes the next one
when its gates and its mode allow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from msgspec import Struct, field

from durable_actor.memory import Memory

RATE_SECONDS = 10.0  # arrivals are counted over so long


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxBounds:
    """How much may wait for one object. Ages are milliseconds of the event loop."""

    events_max: int = 1_000
    bytes_max: int = 16 * 1024 * 1024
    age_ms_max: int = 10_000
    rate_max: int = 0  # arrivals within ten seconds; 0: no bound


def _new_reply() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


class Envelope(Struct, eq=False):
    """One event on its way to an object, and where its answer goes.

    A struct, because one is made for every call: C fills in the defaults in a quarter
    of the time that an `__init__` takes.
    """

    label: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reply: asyncio.Future[Any] = field(default_factory=_new_reply)
    chain: tuple[int, ...] = ()  # deliveries that wait for this one
    ticket: int = 0  # what the message itself depends on
    sender: Any = None  # the delivery it came from, if any
    request_id: str | None = None
    first_sent_ms: int = 0  # of a repeat, in the wall clock's time
    size_bytes: int = 0
    queued_at: float = 0.0  # loop time, seconds
    is_internal: bool = False  # an alarm: not shed, not counted
    result: Any = None
    error: BaseException | None = None

    def measure(self) -> None:
        """Note how large the message is; asked only of those that wait."""
        self.size_bytes = _size_bytes((*self.args, *self.kwargs.values()))

    def release(self, failure: BaseException | None) -> None:
        """Give the sender its answer; or the failure of what the answer rested on."""
        reply = self.reply
        if reply.done():
            return  # the sender has gone
        error = failure or self.error
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(self.result)

    def fail(self, error: BaseException) -> None:
        """Give the sender an error instead of an answer."""
        if not self.reply.done():
            self.reply.set_exception(error)


class Mailbox:
    """A bounded first-in-first-out line of envelopes."""

    __slots__ = ("_arrivals", "_bounds", "_bytes", "_line", "_memory")

    def __init__(self, bounds: MailboxBounds, memory: Memory) -> None:
        self._bounds = bounds
        self._memory = memory
        self._arrivals: Arrivals | None = None
        # Most objects have an empty line most of the time, and a deque is large.
        self._line: deque[Envelope] | None = None
        self._bytes = 0

    def __len__(self) -> int:
        return 0 if self._line is None else len(self._line)

    def __iter__(self) -> Iterator[Envelope]:
        return iter(self._line or ())

    def refusal(self, size_bytes: int, now: float) -> str | None:
        """Return why one more event may not wait here, or None if it may."""
        line, bounds = self._line, self._bounds
        if not line:
            return None
        if len(line) >= bounds.events_max:
            return f"{len(line)} events are waiting (at most {bounds.events_max})"
        if self._bytes + size_bytes > bounds.bytes_max:
            return f"{self._bytes} bytes are waiting (at most {bounds.bytes_max})"
        age_ms = (now - line[0].queued_at) * 1_000
        if age_ms > bounds.age_ms_max:
            return f"the oldest event has waited {age_ms:.0f} ms"
        return None

    def rate_refusal(self, now: float) -> str | None:
        """Count an arrival; return why it is one too many, or None if it is not."""
        rate_max = self._bounds.rate_max
        if not rate_max:
            return None
        if self._arrivals is None:
            self._arrivals = Arrivals(now)
        count = self._arrivals.count(now)
        if count >= rate_max:
            return (
                f"{count:.0f} events came in the last {RATE_SECONDS:.0f} s"
                f" (at most {rate_max})"
            )
        self._arrivals.add()
        return None

    def put(self, envelope: Envelope, now: float) -> None:
        """Add an envelope at the end of the line."""
        if self._line is None:
            self._line = deque()
        envelope.queued_at = now
        self._bytes += envelope.size_bytes
        self._memory.queued_bytes += envelope.size_bytes
        self._line.append(envelope)

    def take(self) -> Envelope | None:
        """Remove and return the oldest envelope whose sender still waits."""
        line = self._line
        while line:
            envelope = line.popleft()
            self._bytes -= envelope.size_bytes
            self._memory.queued_bytes -= envelope.size_bytes
            if not envelope.reply.done():
                return envelope
        self._line = None
        return None

    def take_all(self) -> list[Envelope]:
        """Empty the line and return what was in it."""
        self._memory.queued_bytes -= self._bytes
        line, self._line, self._bytes = self._line, None, 0
        return list(line or ())


class Arrivals:
    """How many events came in the last ten seconds, in two numbers.

    Counted in windows side by side; of the one before, as much is taken as the ten
    seconds still reach into it, as if its events had come evenly.
    """

    __slots__ = ("_before", "_begun_at", "_here")

    def __init__(self, now: float) -> None:
        self._begun_at = now
        self._here = 0
        self._before = 0

    def add(self) -> None:
        """Note one more."""
        self._here += 1

    def count(self, now: float) -> float:
        """Return how many came; at most one window's worth off."""
        passed = now - self._begun_at
        if passed >= 2 * RATE_SECONDS:
            self._begun_at, self._before, self._here = now, 0, 0
            return 0
        if passed >= RATE_SECONDS:
            self._begun_at += RATE_SECONDS
            self._before, self._here = self._here, 0
            passed -= RATE_SECONDS
        return self._here + self._before * (1 - passed / RATE_SECONDS)


def _size_bytes(values: Iterable[object]) -> int:
    """Return about how many bytes these values take, without looking at each scalar."""
    total = 0
    for value in values:
        if isinstance(value, (str, bytes, bytearray)):
            total += len(value)
        elif isinstance(value, dict):
            total += _size_bytes(value.keys()) + _size_bytes(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            total += _size_bytes(value)
        elif isinstance(value, (Enum, type)):
            total += _SCALAR_BYTES  # a name; what it leads to is not in the message
        else:
            fields = [*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())]
            total += _SCALAR_BYTES
            total += _size_bytes(getattr(value, name, None) for name in fields)
    return total


_SCALAR_BYTES = 8  # numbers, dates and what else is small
