"""Names to definitions."""

import pytest

from workflows import InvalidNameError, Step, UnknownWorkflowError, workflow
from workflows.registry import Registry


@workflow
async def ship(step: Step) -> None: ...


@workflow
async def refund(step: Step) -> None: ...


def test_a_definition_is_found_by_the_name_it_is_registered_under() -> None:
    registry = Registry({"ship": ship, "give back": refund})
    assert registry.find("give back") is refund
    assert registry.name_of(refund) == "give back"
    assert registry.name_of("ship") == "ship"
    assert list(registry) == ["ship", "give back"]
    assert len(registry) == 2


def test_an_unknown_name_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(UnknownWorkflowError) as caught:
        Registry({"ship": ship}).find("shpi")
    assert (caught.value.name, caught.value.nearest) == ("shpi", "ship")
    with pytest.raises(UnknownWorkflowError) as caught:
        Registry({"ship": ship}).find("something else")
    assert caught.value.nearest is None


def test_a_definition_that_is_not_registered_is_refused() -> None:
    with pytest.raises(UnknownWorkflowError):
        Registry({"ship": ship}).name_of(refund)


def test_what_is_no_workflow_is_refused() -> None:
    with pytest.raises(TypeError, match="@workflow"):
        Registry({"len": len})  # type: ignore[dict-item]


def test_a_name_with_a_colon_is_refused() -> None:
    with pytest.raises(InvalidNameError):
        Registry({"a:b": ship})
