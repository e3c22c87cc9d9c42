"""A line that is first in, first out, and bounded."""

from __future__ import annotations

from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor.errors import ObjectResetError, StorageFailedError
from durable_actor.mailbox import Envelope, Mailbox, MailboxBounds
from durable_actor.memory import Memory

BOUNDS = MailboxBounds(events_max=3, bytes_max=100, age_ms_max=1_000)


def room() -> Memory:
    return Memory(bytes_max=1_000_000, queued_bytes_max=1_000_000)


async def envelope(size_bytes: int = 0, label: str = "event") -> Envelope:
    made = Envelope(label, lambda: None, (), {})
    made.size_bytes = size_bytes
    return made


async def filled(count: int, *, size_bytes: int = 0, at: float = 0.0) -> Mailbox:
    mailbox = Mailbox(BOUNDS, room())
    for _ in range(count):
        mailbox.put(await envelope(size_bytes), at)
    return mailbox


# -- order ----------------------------------------------------------------------


async def test_events_leave_in_the_order_they_came() -> None:
    mailbox = Mailbox(BOUNDS, room())
    for label in "abc":
        mailbox.put(await envelope(label=label), 0.0)

    taken = [mailbox.take() for _ in range(4)]
    assert [item.label if item else None for item in taken] == ["a", "b", "c", None]


async def test_whose_sender_has_gone_is_not_delivered() -> None:
    mailbox = Mailbox(BOUNDS, room())
    for label in "abc":
        mailbox.put(await envelope(10, label), 0.0)
    for item in mailbox:
        if item.label != "b":
            item.reply.cancel()

    assert [item.label for item in (mailbox.take(),) if item] == ["b"]
    assert mailbox.take() is None
    assert len(mailbox) == 0
    mailbox.put(await envelope(), 0.0)
    assert mailbox.refusal(100, 0.0) is None, "the bytes of the gone are not counted"


async def test_taking_all_empties_the_line() -> None:
    mailbox = await filled(3, size_bytes=33)

    assert len(mailbox.take_all()) == 3
    assert (len(mailbox), mailbox.take(), mailbox.take_all()) == (0, None, [])
    mailbox.put(await envelope(), 0.0)
    assert mailbox.refusal(100, 0.0) is None


# -- bounds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "is_refused"),
    [(0, False), (1, False), (2, False), (3, True), (4, True)],
)
async def test_events_are_bounded(waiting: int, is_refused: bool) -> None:
    refusal = (await filled(waiting)).refusal(0, 0.0)

    assert (refusal is not None) == is_refused
    if refusal is not None:
        assert refusal == f"{waiting} events are waiting (at most 3)"


@pytest.mark.parametrize(
    ("size_bytes", "is_refused"), [(59, False), (60, False), (61, True)]
)
async def test_bytes_are_bounded(size_bytes: int, is_refused: bool) -> None:
    refusal = (await filled(1, size_bytes=40)).refusal(size_bytes, 0.0)

    assert (refusal is not None) == is_refused
    if refusal is not None:
        assert refusal == "40 bytes are waiting (at most 100)"


@pytest.mark.parametrize(
    ("now", "is_refused"), [(5.999, False), (6.0, False), (6.002, True)]
)
async def test_age_is_bounded(now: float, is_refused: bool) -> None:
    refusal = (await filled(1, at=5.0)).refusal(0, now)

    assert (refusal is not None) == is_refused
    if refusal is not None:
        assert refusal == "the oldest event has waited 1002 ms"


async def test_an_empty_line_takes_any_event() -> None:
    """What is larger than the bound was refused at the edge, or never can be sent."""
    assert Mailbox(BOUNDS, room()).refusal(1_000_000, 0.0) is None


async def test_the_age_is_that_of_the_oldest_who_waits() -> None:
    mailbox = Mailbox(BOUNDS, room())
    mailbox.put(await envelope(), 0.0)
    mailbox.put(await envelope(), 5.0)
    assert mailbox.refusal(0, 5.5) is not None
    mailbox.take()

    assert mailbox.refusal(0, 5.5) is None


@given(
    steps=st.lists(st.sampled_from(["put", "take", "leave", "take_all"]), max_size=40)
)
async def test_the_line_counts_right_whatever_happens(steps: list[str]) -> None:
    memory = room()
    mailbox, line = Mailbox(BOUNDS, memory), list[Envelope]()
    for number, step in enumerate(steps):
        if step == "put":
            line.append(await envelope(number))
            mailbox.put(line[-1], float(number))
        elif step == "leave" and line:
            line[number % len(line)].reply.cancel()
        elif step == "take_all":
            assert mailbox.take_all() == line
            line = []
        elif step == "take":
            while line and line[0].reply.done():
                line.pop(0)
            assert mailbox.take() is (line.pop(0) if line else None)
        assert list(mailbox) == line
        waiting_bytes = sum(item.size_bytes for item in line)
        assert mailbox._bytes == memory.queued_bytes == waiting_bytes


# -- answers ----------------------------------------------------------------------


async def test_an_envelope_is_answered_with_its_result_or_its_error() -> None:
    good, bad = await envelope(), await envelope()
    good.result, bad.error = 1, LookupError("no")
    good.release(None)
    bad.release(None)

    assert await good.reply == 1
    with pytest.raises(LookupError):
        await bad.reply


async def test_a_failure_of_what_an_answer_rested_on_comes_before_the_answer() -> None:
    for result in ({"result": 1}, {"error": LookupError("no")}):
        item: Any = await envelope()
        for name, value in result.items():
            setattr(item, name, value)
        item.release(StorageFailedError("commit"))
        with pytest.raises(StorageFailedError):
            await item.reply


async def test_a_sender_that_has_gone_is_not_answered() -> None:
    item = await envelope()
    item.reply.cancel()
    item.release(None)
    item.fail(ObjectResetError("reset"))

    assert item.reply.cancelled()


async def test_the_first_answer_stands() -> None:
    item = await envelope()
    item.fail(ObjectResetError("reset"))
    item.release(None)
    item.fail(LookupError("late"))

    with pytest.raises(ObjectResetError):
        await item.reply


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize("value", [Colour.RED, UUID(int=7), [{"a": Colour.RED}], int])
async def test_a_value_that_leads_to_its_class_has_a_size(value: Any) -> None:
    made = await envelope()
    made.args = (value,)
    made.measure()
    assert 0 < made.size_bytes < 200
