"""The observed cases, and one verdict on each.

What real Durable Objects do was observed on their open-source runtime, workerd, in
August 2026, and is kept in `tests/data/observed.json`: 148 cases, each with what was
done and what was seen. A test of a case gets what was seen and compares it with what
ours does. Every case has one verdict:

- `equal`: ours does the same, under the rules of `translate.py`;
- `different`: ours does something else, for a reason, and a test says what;
- `not applicable`: there is nothing here that the case could ask.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

Verdict = Literal["equal", "different", "not applicable"]
Test = TypeVar("Test", bound=Callable[..., Any])

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "observed.json"
RUNTIME_NAMESPACE = "probe-key"  # of the objects whose ids were written down


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that was done to the real runtime, and what was seen."""

    name: str
    area: str
    what: str
    observed: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How ours compares in one case."""

    case: str
    verdict: Verdict
    reason: str = ""  # in one line, unless ours is equal
    test: str = ""  # none if there is nothing to run


def _load() -> dict[str, Case]:
    rows = json.loads(DATA.read_text())["cases"]
    return {
        row["case"]: Case(
            name=row["case"],
            area=row["area"],
            what=row["what"],
            observed=row["observed"],
        )
        for row in rows
    }


CASES = _load()
FINDINGS: dict[str, Finding] = {}
NOTED: dict[str, str] = {}  # facts that were noted beside the cases, and their tests


def same(name: str) -> Callable[[Test], Test]:
    """Mark the test of a case in which ours does what was observed.

    The test is given what was seen, as `observed`.
    """
    return _tested(name, "equal", "")


def differs(name: str, reason: str) -> Callable[[Test], Test]:
    """Mark the test of a case in which ours does something else on purpose."""
    return _tested(name, "different", reason)


def not_applicable(name: str, reason: str) -> None:
    """Note that there is nothing to compare."""
    _add(Finding(case=name, verdict="not applicable", reason=reason))


def noted(fact: str) -> Callable[[Test], Test]:
    """Mark the test of a fact that was noted of the real runtime beside the cases."""

    def mark(test: Test) -> Test:
        where = _place(test)
        if NOTED.setdefault(fact, where) != where:
            message = f"{fact!r} has two tests"
            raise ValueError(message)
        return test

    return mark


def load_findings() -> dict[str, Finding]:
    """Import every test module beside this one, and return what they found."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.parity.{path.stem}")
    return FINDINGS


def _tested(name: str, verdict: Verdict, reason: str) -> Callable[[Test], Test]:
    def mark(test: Test) -> Test:
        finding = Finding(
            case=name, verdict=verdict, reason=reason, test=f"{_place(test)}[{name}]"
        )
        _add(finding)
        given = pytest.param(CASES[name].observed, id=name)
        marked: Test = pytest.mark.parametrize("observed", [given])(test)
        return marked

    return mark


def _place(test: Callable[..., Any]) -> str:
    return f"{test.__module__.rpartition('.')[2]}.py::{test.__name__}"


def _add(finding: Finding) -> None:
    if finding.case not in CASES:
        message = f"there is no case {finding.case!r}"
        raise ValueError(message)
    # A module may be imported twice, by pytest and by the report.
    if FINDINGS.setdefault(finding.case, finding) != finding:
        message = f"{finding.case!r} has two verdicts"
        raise ValueError(message)
