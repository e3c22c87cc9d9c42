"""An id belongs to one namespace, and a name always leads to the same one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor.errors import ForeignIdError, InvalidIdError
from durable_actor.ids import NAME_BYTES_MAX, IdSpace, ObjectId

SPACE, OTHER = IdSpace("Counter"), IdSpace("Account")
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20
)


@given(name=names, other=names)
def test_a_name_always_leads_to_the_same_id_and_no_other_name_does(
    name: str, other: str
) -> None:
    found = SPACE.from_name(name)

    assert found == IdSpace("Counter").from_name(name)
    assert (found == SPACE.from_name(other)) == (name == other)
    assert found != OTHER.from_name(name)
    assert (found.name, found.namespace, len(found.raw)) == (name, "Counter", 32)


def test_ids_are_what_they_were_in_the_first_release() -> None:
    """Directories of old hold them: a change here would lose every named object."""
    assert str(SPACE.from_name("a")) == (
        "a3e40572c960df9c40f202fbab4d72cc210b256bf52473b0cbad2257c87efeee"
    )


@given(name=names)
def test_an_id_is_read_back_from_its_text(name: str) -> None:
    found = SPACE.from_name(name)

    for text in (str(found), str(found).upper()):
        again = SPACE.parse(text)
        assert again == found
        assert hash(again) == hash(found)
        assert again.name is None
    assert SPACE.adopt(found.raw, name).name == name


@pytest.mark.parametrize(
    "text",
    ["", "a", "0" * 63, "0" * 65, "g" * 64, " " * 64, "٠" * 64, "0x" * 32, None, 5],
)
def test_s6_what_is_not_64_hex_digits_is_invalid(text: Any) -> None:
    with pytest.raises(InvalidIdError, match="must be 64 hex digits"):
        SPACE.parse(text)


@given(place=st.integers(0, 63), by=st.integers(1, 15))
def test_a_mistyped_digit_is_noticed(place: int, by: int) -> None:
    text = str(SPACE.from_name("a"))
    digit = f"{(int(text[place], 16) + by) % 16:x}"

    with pytest.raises(ForeignIdError):
        SPACE.parse(text[:place] + digit + text[place + 1 :])


def test_s6_an_id_of_another_namespace_is_noticed() -> None:
    for foreign in (OTHER.from_name("a"), OTHER.new_unique()):
        with pytest.raises(ForeignIdError, match="not valid for this namespace"):
            SPACE.parse(str(foreign))
        with pytest.raises(ForeignIdError):
            SPACE.adopt(foreign.raw, None)
    with pytest.raises(ForeignIdError):
        SPACE.adopt(b"short", None)


def test_unique_ids_are_unique_nameless_and_of_their_namespace() -> None:
    found = {SPACE.new_unique() for _ in range(100)}

    assert len(found) == 100
    assert {object_id.name for object_id in found} == {None}
    assert {SPACE.parse(str(object_id)) for object_id in found} == found


def test_unique_ids_can_be_made_repeatable() -> None:
    made = [SPACE.new_unique(lambda count: b"\x07" * count) for _ in range(2)]
    assert made[0] == made[1]


@pytest.mark.parametrize("character", ["a", "é", "😀"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_s6_names_are_bounded_in_bytes(character: str, extra: int) -> None:
    count, rest = divmod(NAME_BYTES_MAX + extra, len(character.encode()))
    name = character * count + "x" * rest

    if extra <= 0:
        assert SPACE.from_name(name).name == name
    else:
        with pytest.raises(InvalidIdError, match=f"{NAME_BYTES_MAX + extra} bytes"):
            SPACE.from_name(name)


@pytest.mark.parametrize("name", ["a\x00b", "\ud800", "a\udfff", b"a", None, 7, ["a"]])
def test_s6_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(InvalidIdError):
        SPACE.from_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "%s", "{0}", "a'; DROP TABLE kv", "\n", " a ", "Ａ"],
)
def test_s6_a_name_is_only_a_name(name: str) -> None:
    found = SPACE.from_name(name)
    assert str(found).isalnum()
    assert repr(found) == f"ObjectId(Counter:{name!r})"


def test_s6_names_that_only_look_alike_are_different() -> None:
    assert SPACE.from_name("é") != SPACE.from_name("e\u0301")


def test_an_id_without_a_name_shows_the_beginning_of_its_digits() -> None:
    found = SPACE.new_unique()
    assert repr(found) == f"ObjectId(Counter:{str(found)[:16]})"


def test_ids_are_ordered_by_their_bytes() -> None:
    made = [ObjectId("Counter", bytes([first]) * 32, None) for first in (3, 1, 2)]

    assert [object_id.raw[0] for object_id in sorted(made)] == [1, 2, 3]
    assert made[0] > made[1]
    assert (made[0] == "text") is False
    with pytest.raises(TypeError):
        assert made[0] < "text"
