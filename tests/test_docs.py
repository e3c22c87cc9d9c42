"""The documentation is executed: every Python block and every shell block of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEADLINE_SECONDS = 45


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(language: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, language, match[2])
        for page in PAGES
        for text in [page.read_text()]
        for match in BLOCK.finditer(text)
        if match[1] == language
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DURABLE_ACTOR_DATA_DIR": str(folder / "data"),
    }


def _output_of(command: list[str], folder: Path) -> str:
    """Return what a command prints, which must succeed."""
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )

    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder that has the examples, as a checkout has."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """The port of a daemon that serves the fixture."""
    command = "durable-actor serve --config examples/fixture/config.toml"
    with subprocess.Popen(
        [*command.split(), "--data-dir", "data", "--listen", "127.0.0.1:0"],
        cwd=folder,
        env=_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        ready = daemon.stdout.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", ready)
        assert match, f"the daemon did not get ready: {ready!r}"
        yield int(match[1])
        daemon.terminate()
        daemon.wait(DEADLINE_SECONDS)


@pytest.mark.parametrize("block", _blocks("python"), ids=str)
def test_a_python_block_runs(
    block: Block, folder: Path, request: pytest.FixtureRequest
) -> None:
    text = block.text
    if "8787" in text:
        text = text.replace("8787", str(request.getfixturevalue("port")))

    assert _output_of([sys.executable, "-c", text], folder).strip()


@pytest.mark.parametrize("block", _blocks("sh"), ids=str)
def test_a_shell_block_runs(block: Block, folder: Path) -> None:
    port = _free_port()
    text = block.text.replace("8787", str(port)).replace(
        "--data-dir data", f"--data-dir data --listen 127.0.0.1:{port}"
    )

    script = f"trap 'kill $(jobs -p) 2> /dev/null' EXIT\n{text}"
    output = _output_of(["bash", "-eu", "-c", script], folder)

    answers = [line for line in output.splitlines() if line.startswith("{")]
    problems = [line for line in answers if '"status":4' in line or '"code"' in line]
    assert answers
    assert problems == []


def test_there_are_blocks_to_run() -> None:
    assert len(_blocks("python")) >= 3
    assert len(_blocks("sh")) >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_files_that_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    paths = re.findall(r"`((?:tests|docs|examples)/[\w./-]+)`", text)

    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]

    assert missing == []


def test_every_named_invariant_is_cited_by_the_code_or_a_test() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    names = re.findall(r"^- \*([a-z-]+)\*:", text, re.MULTILINE)
    sources = [
        path.read_text()
        for folder in ("durable_actor", "workflows", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]

    assert names
    uncited = [
        name
        for name in names
        if not any(
            name in source or name.replace("-", "_") in source for source in sources
        )
    ]
    assert uncited == []
