"""The trees of errors: each has something to say, and says it over the wire too."""

from __future__ import annotations

import inspect

import pytest

import workflows.errors
from durable_actor import errors
from durable_actor.errors import DurableActorError


def _tree(module: object) -> list[type[DurableActorError]]:
    return [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, DurableActorError)
        and value.__module__ == getattr(module, "__name__", "")
    ]


ALL = [*_tree(errors), *_tree(workflows.errors)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_says_what_happened_and_has_a_code(
    kind: type[DurableActorError],
) -> None:
    assert kind.__doc__
    assert kind.code
    assert kind.outcome in {"not_executed", "failed", "unknown"}


@pytest.mark.parametrize("module", [errors, workflows.errors], ids=lambda m: m.__name__)
def test_the_tree_in_the_docstring_names_every_error(module: object) -> None:
    drawn = module.__doc__ or ""

    absent = [kind.__name__ for kind in _tree(module) if kind.__name__ not in drawn]

    assert absent == []


def test_no_two_errors_share_a_code() -> None:
    by_code: dict[str, list[str]] = {}
    for kind in ALL:
        by_code.setdefault(kind.code, []).append(kind.__name__)

    assert {code: names for code, names in by_code.items() if len(names) > 1} == {}
