"""The benchmarks run and answer in the form that `python -m benchmarks` promises."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import idle_object, large_object, ready_seconds
from benchmarks.__main__ import AIMS, FIGURES
from benchmarks.measuring import Answer, Scale

ROOT = Path(__file__).parents[1]
BRIEFLY = Scale(rounds=1, is_quick=True)


@pytest.mark.parametrize("module", FIGURES)
async def test_a_benchmark_answers_with_its_figures(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_object, "OBJECTS", 1_000)
    monkeypatch.setattr(large_object, "KEYS_QUICK", 10_000)
    monkeypatch.setattr(ready_seconds, "OBJECTS", 5_000)
    monkeypatch.setattr(ready_seconds, "ALARMS", 500)
    monkeypatch.setattr(ready_seconds, "STARTS", 1)
    answers: dict[str, Answer] = await import_module(f"benchmarks.{module}").measure(
        BRIEFLY
    )

    assert tuple(answers) == FIGURES[module]
    assert all(answer.value > 0 and answer.ratio > 0 for answer in answers.values())


@pytest.mark.parametrize("module", FIGURES)
def test_a_benchmark_begins_with_its_question(module: str) -> None:
    doc = import_module(f"benchmarks.{module}").__doc__ or ""
    assert doc.splitlines()[0].endswith("?")


def test_every_aim_is_that_of_a_figure() -> None:
    assert set(AIMS) <= {name for names in FIGURES.values() for name in names}


def test_the_json_is_one_object_with_value_baseline_ratio_and_unit() -> None:
    name = "single_caller_latency_vs_bare_commit"
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", "--only", name],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout

    answer = json.loads(printed)
    assert list(answer) == [name]
    assert set(answer[name]) == {"value", "baseline", "ratio", "unit"}
    assert answer[name]["ratio"] == pytest.approx(
        answer[name]["value"] / answer[name]["baseline"]
    )
