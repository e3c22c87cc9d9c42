"""docs/guarantees.md: every guarantee and rule has a test of its name, or a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
IDS = [f"G{n}" for n in range(1, 30)] + [f"S{n}" for n in range(1, 25)]
_ROW = re.compile(r"^\| ([GS]\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
_ID = re.compile(r"(?<![a-z0-9])([gs]\d{1,2})(?![a-z0-9])")


def rows() -> dict[str, tuple[str, str]]:
    found = _ROW.findall(PAGE.read_text())
    assert len(found) == len({row[0] for row in found}), "an id has two rows"
    return {name: (promise, proof) for name, promise, proof in found}


def files_by_id() -> dict[str, set[str]]:
    """Return the files with tests whose name carries an id."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("test_"):
                for name in _ID.findall(node.name.replace("_", " ")):
                    file = str(path.relative_to(ROOT))
                    found.setdefault(name.upper(), set()).add(file)
    return found


def test_every_id_has_one_row() -> None:
    assert list(rows()) == IDS


def test_what_is_proved_has_tests_of_its_name_and_names_their_files() -> None:
    by_id = files_by_id()
    for name, (_, proof) in rows().items():
        named = set(re.findall(r"`(tests/[\w/]+\.py)`", proof))
        if proof.startswith("waits: "):
            assert len(proof) > len("waits: ") + 20, f"{name}: say why it waits"
            assert not named, f"{name} waits, and has tests"
        else:
            assert named, f"{name} names no file of tests"
            assert named <= by_id.get(name, set()), (
                f"{name}: no test there is named after it:"
                f" {sorted(named - by_id.get(name, set()))}"
            )


def test_no_test_carries_an_id_that_is_not_on_the_page() -> None:
    assert set(files_by_id()) <= set(IDS)
