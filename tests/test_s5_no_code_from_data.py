"""S5: nothing that is stored or sent becomes code: no pickle, no eval, no import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for package in ("durable_actor", "workflows")
    for path in (ROOT / package).rglob("*.py")
)
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "yaml",
    "jsonpickle",
    "code",
    "codeop",
    "runpy",
}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
IMPORTERS = {"import_module", "spec_from_file_location", "exec_module", "resolve_name"}
# The modules an operator names in the configuration; and the demo, by a constant.
MAY_IMPORT = {
    "durable_actor/daemon/loader.py",
    "durable_actor/daemon/cli.py",
    "workflows/demo.py",
}


def called(node: ast.Call) -> tuple[str | None, str]:
    """Return what a call is made on, if on anything, and the name it has."""
    if isinstance(node.func, ast.Name):
        return None, node.func.id
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return (owner.id if isinstance(owner, ast.Name) else "?"), node.func.attr
    return "?", "?"


def findings(source: str, name: str) -> Iterator[str]:
    """Yield what would make code of data."""
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            if module.partition(".")[0] in MODULES:
                yield f"{name}:{node.lineno}: imports {module}"  # type: ignore[attr-defined]  # an import has a line
        if isinstance(node, ast.Call):
            owner, function = called(node)
            if function in FUNCTIONS and owner in (None, "builtins"):
                yield f"{name}:{node.lineno}: calls {function}"
            if function in IMPORTERS and name not in MAY_IMPORT:
                yield f"{name}:{node.lineno}: imports by name"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import yaml.loader",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "builtins.eval(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "import_module(name)",
    ],
)
def test_s5_the_search_finds_what_it_is_for(source: str) -> None:
    assert len(list(findings(source, "x.py"))) == 1


def test_s5_no_module_of_ours_makes_code_of_data() -> None:
    found = [
        finding
        for path in SOURCES
        for finding in findings(path.read_text(), str(path.relative_to(ROOT)))
    ]

    assert found == []
    assert len(SOURCES) > 100
