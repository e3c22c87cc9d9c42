"""Instances come apart and are put together again, if their class changed too."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import msgspec
import pytest

from durable_actor import codec
from durable_actor.errors import (
    DecodeError,
    EncodeError,
)
from tests.durable_actor.codec.samples import (
    BUILTIN_ERRORS,
    Box,
    Doubled,
    Line,
    Loose,
    Normal,
    Outer,
    Plain,
    round_trip,
    same,
)


def test_a_dataclass_is_restored_without_its_own_code() -> None:
    value = Doubled(2)

    assert same(round_trip(value), value)
    assert same(codec.clone(value), value)


def test_a_struct_is_restored_to_what_it_was_whatever_its_constructor_thinks() -> None:
    value = Normal("x")
    value.text = "  spaced  "

    assert round_trip(value).text == "  spaced  "


def test_what_a_cached_property_computed_is_left_out() -> None:
    value = Doubled(2)
    assert value.half == 2.0

    assert "half" not in vars(round_trip(value))


def test_a_generic_dataclass_and_a_nested_class_come_back() -> None:
    assert same(round_trip(Box[int](5)), Box(5))
    assert same(round_trip(Outer.Inner(5)), Outer.Inner(5))


def test_an_attribute_that_is_no_field_is_refused_rather_than_lost() -> None:
    value = Plain("a", 1)
    assert same(round_trip(value), value)

    value.colour = "red"  # type: ignore[attr-defined]  # the mistake under test
    with pytest.raises(EncodeError, match="colour"):
        codec.encode(value)


def test_a_field_that_was_never_set_is_refused() -> None:
    value = object.__new__(Line)
    with pytest.raises(EncodeError) as caught:
        codec.encode([value])
    assert caught.value.path == "value[0].sku"


def test_a_field_gained_since_takes_its_default(shop: Any) -> None:
    data = codec.encode(shop.Cart("ann"))
    shop.Cart = dataclasses.make_dataclass(
        "Cart",
        [
            ("owner", str),
            ("lines", list, dataclasses.field(default_factory=list)),
            ("open", bool, True),
        ],
        namespace={"__module__": "codec_shop"},
    )

    found = codec.decode(data)

    assert (found.owner, found.lines, found.open) == ("ann", [], True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [([("owner", str), ("size", int)], "size"), ([], "owner")],
    ids=["gained without a default", "lost"],
)
def test_a_class_that_no_longer_fits_is_an_error_naming_the_field(
    shop: Any, fields: list[Any], named: str
) -> None:
    data = codec.encode(shop.Cart("ann"))
    shop.Cart = dataclasses.make_dataclass("Cart", fields)
    with pytest.raises(DecodeError, match=named):
        codec.decode(data)


def test_a_struct_gains_fields_like_a_dataclass(shop: Any) -> None:
    shop.Cart = msgspec.defstruct("Cart", [("owner", str)], module="codec_shop")
    data = codec.encode(shop.Cart("ann"))
    shop.Cart = msgspec.defstruct(
        "Cart", [("owner", str), ("lines", list, [])], module="codec_shop"
    )
    assert codec.decode(data).lines == []

    shop.Cart = msgspec.defstruct("Cart", [("size", int)], module="codec_shop")
    with pytest.raises(DecodeError, match="owner"):
        codec.decode(data)


def test_a_class_of_another_kind_is_an_error(shop: Any) -> None:
    data = codec.encode(shop.Cart("ann"))
    vars(shop)["Cart"] = enum.Enum("Cart", {"owner": 1}, module="codec_shop")
    with pytest.raises(DecodeError, match="kind"):
        codec.decode(data)

    shop.Cart = Loose
    with pytest.raises(DecodeError, match="Loose"):
        codec.decode(data)


def test_an_enum_member_is_kept_by_name(shop: Any) -> None:
    vars(shop)["State"] = enum.Enum(
        "State", {"OPEN": 1, "SHUT": 2}, module="codec_shop"
    )
    data = codec.encode([shop.State.OPEN, {shop.State.SHUT: 1}])
    vars(shop)["State"] = enum.Enum(
        "State", {"OPEN": "open", "SHUT": 1}, module="codec_shop"
    )
    assert codec.decode(data) == [shop.State.OPEN, {shop.State.SHUT: 1}]

    vars(shop)["State"] = enum.Enum("State", {"OPEN": 1}, module="codec_shop")
    with pytest.raises(DecodeError, match="SHUT"):
        codec.decode(data)


@pytest.mark.parametrize("error", BUILTIN_ERRORS, ids=lambda e: type(e).__name__)
def test_an_exception_is_a_value_like_another(error: BaseException) -> None:
    vars(error)["__notes__"] = ["while testing"]
    for found in (round_trip(error), codec.clone(error)):
        assert same(found, error)
        assert str(found) == str(error)
        for name in ("errno", "strerror", "filename", "filename2", "name", "path"):
            assert getattr(found, name, None) == getattr(error, name, None)
        assert not getattr(found, "remote", False)
