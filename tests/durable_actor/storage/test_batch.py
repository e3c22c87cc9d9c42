"""A batch comes back as it was written, and is recognised if it is none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from durable_actor.errors import DecodeError
from durable_actor.storage.batch import (
    AlarmRow,
    EventRow,
    ObjectRow,
    ReplyRow,
    Seal,
    decode_batch,
    encode_batch,
)

numbers = st.integers(0, (1 << 63) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
data = st.binary(max_size=8)
seals = st.builds(
    Seal,
    num=numbers,
    keys=st.dictionaries(texts, st.none() | data, max_size=4),
    cleared=st.booleans(),
    deleted=st.booleans(),
    row=st.none()
    | st.builds(
        ObjectRow,
        data,
        texts,
        st.none() | texts,
        numbers,
        numbers,
        st.dictionaries(texts, texts, max_size=3),
    ),
    alarm=st.just(UNSET)
    | st.none()
    | st.builds(AlarmRow, numbers, numbers, numbers, numbers),
    events=st.lists(st.builds(EventRow, numbers, data, texts, data), max_size=2).map(
        tuple
    ),
    replies=st.lists(st.builds(ReplyRow, texts, data, numbers), max_size=2).map(tuple),
    delivered=st.lists(numbers, max_size=3).map(tuple),
)


@given(batch=st.lists(seals, max_size=4))
def test_a_batch_comes_back_as_it_was(batch: list[Seal]) -> None:
    assert decode_batch(encode_batch(batch)) == batch


@given(seal=seals)
def test_no_alarm_and_nothing_said_about_it_are_different(seal: Seal) -> None:
    (again,) = decode_batch(encode_batch([seal]))
    assert (again.alarm is UNSET) == (seal.alarm is UNSET)


def test_what_a_turn_did_not_touch_takes_no_room() -> None:
    assert len(encode_batch([Seal(num=1, keys={"a": b"1"})])) <= 13


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x91", b"\x01", b"\x91\x80", b"\xc1", b"\x91\x82\xa1\xff\x01"),
        msgspec.msgpack.encode([{"o": "x"}]),
    ],
)
def test_what_is_no_batch_is_recognised(data: bytes) -> None:
    with pytest.raises(DecodeError, match="not a batch"):
        decode_batch(data)
