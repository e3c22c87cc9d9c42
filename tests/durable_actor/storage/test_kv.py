"""Prefixes are ranges, in the order of UTF-8."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from durable_actor.storage.kv import after_prefix, key_range

# Weighted towards the ends of ranges: around the surrogates, and the last code point.
edges = st.sampled_from("\x00a\x7f\x80\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff")
texts = st.text(edges | st.characters(exclude_categories=["Cs"]), max_size=4)


@given(prefix=texts.filter(bool), text=texts)
@example(prefix="\ud7ff", text="\ue000")
@example(prefix="\U0010ffff", text="\U0010ffff\U0010ffff")
@example(prefix="a\U0010ffff", text="b")
def test_s7_a_text_has_a_prefix_exactly_if_it_lies_in_its_range(
    prefix: str, text: str
) -> None:
    for candidate in (text, prefix + text):
        wanted = key_range(
            prefix=prefix,
            start=None,
            start_after=None,
            end=None,
            limit=None,
            reverse=False,
        )
        is_inside = wanted.start <= candidate and (
            wanted.end is None or candidate < wanted.end
        )
        assert is_inside == candidate.startswith(prefix)


@given(prefix=texts.filter(bool))
def test_the_text_after_a_prefix_can_be_stored(prefix: str) -> None:
    after = after_prefix(prefix)
    if after is not None:
        after.encode()
        assert after > prefix
        assert not after.startswith(prefix)


@given(left=texts, right=texts)
def test_texts_are_ordered_as_their_bytes(left: str, right: str) -> None:
    """Python compares code points, SQLite bytes; both orders must be one."""
    assert (left < right) == (left.encode() < right.encode())


@given(start=texts, text=texts)
def test_start_after_leaves_out_the_key_itself_and_nothing_else(
    start: str, text: str
) -> None:
    wanted = key_range(
        prefix=None, start=None, start_after=start, end=None, limit=None, reverse=False
    )
    assert (wanted.start <= text) == (text > start)
