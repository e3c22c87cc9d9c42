"""JSON arguments become what the annotations ask for, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest

from durable_actor import codec
from durable_actor.errors import (
    BadArgumentsError,
)
from tests.durable_actor.codec.samples import (
    Line,
    Loose,
    same,
)


class Shop:
    async def order(
        self,
        line: Line,
        when: datetime,
        /,
        labels: set[str],
        ids: tuple[UUID, ...] = (),
        *,
        price: Decimal | None = None,
        by_day: dict[date, int] | None = None,
        size: Annotated[int, msgspec.Meta(ge=1)] = 1,
    ) -> None: ...

    async def loose(self, a, b: Any, c: NoSuchType) -> None: ...  # type: ignore[no-untyped-def, name-defined]  # noqa: F821, ANN001  # what is under test

    async def many(self, *lines: Line, **counts: float) -> None: ...

    async def odd(self, thing: Loose) -> None: ...


def test_json_arguments_become_what_the_annotations_say() -> None:
    args, kwargs = codec.convert_arguments(
        Shop.order,
        [{"sku": "a", "quantity": 1, "price": "1.10"}, "2024-01-02T03:04:05Z"],
        {
            "labels": ["x"],
            "ids": [str(UUID(int=1))],
            "price": "2.5",
            "by_day": {"2024-01-02": 1},
        },
    )

    assert same(
        args,
        (
            Line("a", 1, Decimal("1.10")),
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
            {"x"},
            (UUID(int=1),),
        ),
    )
    assert same(kwargs, {"price": Decimal("2.5"), "by_day": {date(2024, 1, 2): 1}})


def test_an_argument_without_a_known_type_passes_as_it_is() -> None:
    odd = {"a": [1]}
    assert codec.convert_arguments(Shop.loose, [odd, odd], {"c": odd}) == (
        (odd, odd, odd),
        {},
    )


def test_collected_arguments_are_converted_one_by_one() -> None:
    args, kwargs = codec.convert_arguments(
        Shop().many, [{"sku": "a", "quantity": 1}], {"a": 1}
    )
    assert same((args, kwargs), ((Line("a", 1),), {"a": 1.0}))


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "told"),
    [
        (Shop.order, [], {}, ["line"]),
        (Shop.order, [1, 2, 3, 4, 5], {}, ["too many"]),
        (Shop.order, [{"sku": "a", "quantity": 1}, "soon"], {"labels": []}, ["when"]),
        (
            Shop.order,
            [{"sku": "a", "quantity": "x"}, "2024-01-02T03:04:05Z", []],
            {},
            ["line.quantity", "int", "str", "Line"],
        ),
        (
            Shop.order,
            [{"sku": "a", "quantity": 1}, "2024-01-02T03:04:05Z", []],
            {"size": 0},
            ["size", ">= 1"],
        ),
        (Shop.many, [{"sku": "a", "quantity": 1}, {}], {}, ["lines[1]", "sku"]),
        (Shop.many, [], {"apples": "x"}, ["apples", "float"]),
        (Shop.odd, [{}], {}, ["thing", "Loose"]),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    method: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(BadArgumentsError) as caught:
        codec.convert_arguments(method, args, kwargs)
    for word in told:
        assert word in str(caught.value)
