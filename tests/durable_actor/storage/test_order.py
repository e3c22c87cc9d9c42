"""The keys of a dict stay in order while it changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from durable_actor.storage import order as order_module
from durable_actor.storage.order import KeyOrder

keys = st.text("ab\uffff\U00010000", max_size=3)
rounds = st.lists(
    st.tuples(
        st.lists(st.tuples(st.booleans(), keys), max_size=6), keys, st.none() | keys
    ),
    max_size=8,
)


@given(before=st.lists(keys, max_size=200), rounds=rounds, reverse=st.booleans())
def test_s7_a_range_is_what_sorting_all_keys_would_give(
    before: list[str],
    rounds: list[tuple[list[tuple[bool, str]], str, str | None]],
    reverse: bool,
) -> None:
    entries = dict.fromkeys(before)
    order = KeyOrder(entries)
    for changes, start, end in rounds:
        for is_there, key in changes:
            if is_there:
                entries[key] = None
            else:
                entries.pop(key, None)
            order.note(key)
        found = list(order.between(start, end, reverse=reverse))
        inside = [key for key in entries if key >= start and (end is None or key < end)]
        assert found == sorted(inside, reverse=reverse)


def test_a_few_changes_do_not_go_through_all_keys() -> None:
    entries = {f"{n:05}": None for n in range(10_000)}
    order = KeyOrder(entries)
    before = order._keys
    for number in range(10_000 // order_module._KEYS_PER_CHANGE):
        entries[f"{number:05}!"] = None
        order.note(f"{number:05}!")

    assert next(order.between("00000!", None)) == "00000!"
    assert order._keys is before, "shifted, not made anew"
