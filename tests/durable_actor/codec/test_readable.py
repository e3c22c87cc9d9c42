"""What people are shown of a value."""

from __future__ import annotations

import math
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_actor import codec
from durable_actor.errors import DecodeError
from tests.durable_actor.codec.samples import (
    Colour,
    Line,
    Run,
    Size,
    same,
    values,
)

NAME = Line.__module__


@given(values)
def test_every_value_has_a_readable_form_in_json(value: Any) -> None:
    shown = codec.to_json(value)
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (-(10**5_000), hex(-(10**5_000))),
        (math.nan, None),
        (math.inf, None),
        (b"hi", "aGk="),
        (bytearray(b"hi"), "aGk="),
        (datetime(2024, 1, 2, tzinfo=UTC), "2024-01-02T00:00:00+00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        (timedelta(seconds=90), "PT90S"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, frozenset({2})), [1, [2]]),
        (Colour.RED, "red"),
        (Size.LARGE, 2),
        (Line("a", 1), {"sku": "a", "quantity": 1, "price": "0"}),
        (Run(name="a"), {"name": "a", "attempts": [], "result": None}),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "null": "b", "[1, 2]": "c"}),
        ({1: "a", "1": "b"}, [[1, "a"], ["1", "b"]]),
        (ValueError("x"), {"type": "ValueError", "message": "x"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_readable_form_of_a_value(value: object, shown: object) -> None:
    assert same(codec.to_json(value), shown)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, (2, date(2024, 1, 2))]}, {"a": [1, [2, "2024-01-02"]]}),
        (
            Line("a", 1),
            {"type": f"{NAME}:Line", "sku": "a", "quantity": 1, "price": "0"},
        ),
        ({Colour.RED}, [{"type": f"{NAME}:Colour", "value": "RED"}]),
        (
            [ValueError("x")],
            [
                {
                    "type": "builtins:ValueError",
                    "args": ["x"],
                    "state": {},
                    "fields": {},
                    "notes": [],
                }
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_stored_is_shown_without_its_classes(
    value: object, shown: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codec.encode(value)
    monkeypatch.delitem(sys.modules, NAME)

    assert codec.stored_to_json(data) == shown


@given(values)
def test_whatever_is_stored_can_be_shown(value: Any) -> None:
    shown = codec.stored_to_json(codec.encode(value))
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown


@given(st.binary(max_size=40))
def test_damaged_bytes_are_shown_or_a_decode_error(data: bytes) -> None:
    try:
        codec.stored_to_json(b"\x01" + data)
    except DecodeError:
        pass
