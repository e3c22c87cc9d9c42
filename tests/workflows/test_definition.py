"""Workflows as their authors write them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from workflows import InvalidInputError, InvalidNameError, Step, workflow
from workflows.definition import WorkflowDefinition


@dataclass(frozen=True)
class Order:
    id: str
    total: Decimal
    placed_at: datetime
    items: tuple[str, ...] = ()


@workflow
async def with_order(step: Step, order: Order) -> str:
    """Take an order."""
    return order.id


@workflow
async def without_input(step: Step) -> int:
    return 1


@workflow(name="another name")
async def renamed(step: Step, value: Any) -> Any:
    return value


def test_a_definition_has_the_name_of_its_function_or_the_one_it_is_given() -> None:
    assert (with_order.name, renamed.name) == ("with_order", "another name")
    assert with_order.__doc__ == "Take an order."


def test_an_input_of_json_becomes_what_the_function_takes() -> None:
    value = {"id": "o1", "total": "9.50", "placed_at": "2027-01-01T00:00:00Z"}
    assert with_order.convert_input(value) == Order(
        "o1", Decimal("9.50"), datetime(2027, 1, 1, tzinfo=UTC)
    )


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"id": 1}, "$.id"),
        ({"id": "o1", "total": "9", "placed_at": "yesterday"}, "$.placed_at"),
        ("o1", "object"),
        (None, "object"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_and_says_where(
    value: Any, where: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        with_order.convert_input(value)
    assert caught.value.workflow == "with_order"
    assert where in caught.value.detail


def test_a_workflow_without_an_input_takes_none() -> None:
    assert without_input.convert_input(None) is None
    assert without_input.convert_input({}) is None
    with pytest.raises(InvalidInputError):
        without_input.convert_input({"x": 1})


def test_an_input_without_a_type_is_taken_as_it_is() -> None:
    assert renamed.convert_input([1, {"a": None}]) == [1, {"a": None}]


def test_an_annotation_nobody_can_resolve_takes_what_it_gets() -> None:
    class Local:
        """Known inside this function only."""

    async def fn(step: Step, value: "Local") -> None: ...

    assert workflow(fn).convert_input(7) == 7  # type: ignore[comparison-overlap]


def test_a_definition_can_be_called_as_the_function_it_is() -> None:
    step: Any = object()
    waiting = renamed(step, 7)
    with pytest.raises(StopIteration) as caught:
        waiting.__await__().send(None)
    assert caught.value.value == 7


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "new\nline", "x" * 129])
def test_a_name_that_could_not_be_part_of_an_objects_name_is_refused(
    name: str,
) -> None:
    async def fn(step: Step) -> None: ...

    with pytest.raises(InvalidNameError):
        WorkflowDefinition(fn, name=name)


def test_only_async_functions_of_a_step_are_workflows() -> None:
    def plain(step: Step) -> None: ...

    async def without_a_step() -> None: ...

    async def too_much(step: Step, a: int, b: int) -> None: ...

    wrong: list[Any] = [plain, without_a_step, too_much]
    for fn in wrong:
        with pytest.raises(TypeError):
            workflow(fn)
