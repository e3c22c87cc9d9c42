"""The mailbox: the line of events that wait for one object.

Promises
    Events leave in the order they came.
    The line is bounded in events, bytes and age; whoever meets a bound is told at once,
    and nothing is put in the line.

Does not know what an event does, nor when it may run: the activation takes the next one
when its gates and its mode allow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import Struct, field


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxBounds:
    """How much may wait for one object. Ages are milliseconds of the event loop."""

    events_max: int = 1_000
    bytes_max: int = 16 * 1024 * 1024
    age_ms_max: int = 10_000


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

    __slots__ = ("_bounds", "_bytes", "_line")

    def __init__(self, bounds: MailboxBounds) -> None:
        self._bounds = bounds
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

    def put(self, envelope: Envelope, now: float) -> None:
        """Add an envelope at the end of the line."""
        if self._line is None:
            self._line = deque()
        envelope.queued_at = now
        self._bytes += envelope.size_bytes
        self._line.append(envelope)

    def take(self) -> Envelope | None:
        """Remove and return the oldest envelope whose sender still waits."""
        line = self._line
        while line:
            envelope = line.popleft()
            self._bytes -= envelope.size_bytes
            if not envelope.reply.done():
                return envelope
        self._line = None
        return None

    def take_all(self) -> list[Envelope]:
        """Empty the line and return what was in it."""
        line, self._line, self._bytes = self._line, None, 0
        return list(line or ())


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
        else:
            fields = [*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())]
            total += _SCALAR_BYTES
            total += _size_bytes(getattr(value, name, None) for name in fields)
    return total


_SCALAR_BYTES = 8  # numbers, dates and what else is small
