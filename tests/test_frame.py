"""The frame of the project: locks, container, targets, and what lies at the top."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")

# In two halves, so that this file does not hold what it looks for.
HOSTS = tuple(
    "".join(halves)
    for halves in (
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("registry.np", "mjs.org"),
        ("deb.", "debian.org"),
        ("crates", ".io"),
        ("proxy.golang", ".org"),
        ("docker", ".io"),
        ("ghcr", ".io"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}/])/(?:home|root|Users|" + "wo" + r"rk)/\w")

TOP = {
    ".ci",
    ".gitignore",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "config.toml",
    "docker-compose.yml",
    "docs",
    "durable_actor",
    "examples",
    "pyproject.toml",
    "requirements-dev.lock",
    "requirements.lock",
    "tests",
    "workflows",
}
TARGETS = {
    "bench",
    "check",
    "clean",
    "demo",
    "flips",
    "fuzz",
    "help",
    "kill",
    "lint",
    "lock",
    "overload",
    "parity",
    "programs",
    "recovery",
    "run",
    "setup",
    "simulate",
    "sweep",
    "test",
}


def run(*command: str) -> str:
    # A make above this test would hand its own flags and variables down.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def project_files() -> list[str]:
    """Return what is committed, and what would be if everything were added."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout, so nothing says which files are the project's")
    listed = run(
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    )
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def pins(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Return each package of a lock with its version and its hashes."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pin = re.match(r"([a-z0-9][a-z0-9.-]*)==(\S+)", line)
        assert pin, f"{lock}: not pinned: {line}"
        found[pin[1]] = (pin[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return found


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the last stage."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    instructions: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            instructions.clear()
        instructions.append((word, " ".join(rest.split())))
    return instructions


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("lock", LOCKS)
def test_s20_every_locked_requirement_has_hashes(lock: str) -> None:
    found = pins(lock)
    assert found
    assert [name for name, (_, hashes) in found.items() if not hashes] == []


def test_the_runtime_lock_agrees_with_the_development_lock() -> None:
    runtime, development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: development.get(name) for name in runtime} == runtime


def test_the_locks_hold_what_the_project_asks_for() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=!~\[; ]", each)[0].lower() for each in requirements}

    asked = pyproject()
    runtime = names(asked["project"]["dependencies"])
    development = names(asked["dependency-groups"]["dev"])
    assert runtime <= pins("requirements.lock").keys()
    assert runtime | development <= pins("requirements-dev.lock").keys()
    assert not (development - runtime) & pins("requirements.lock").keys()


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = []
    for name in project_files():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # stored bytes, such as a data directory kept for the tests
        for number, line in enumerate(text.splitlines(), 1):
            if any(host in line for host in HOSTS) or MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_nothing_else_lies_at_the_top() -> None:
    top = {name.partition("/")[0] for name in project_files()}
    assert top - TOP == set()


def test_both_packages_say_that_they_are_typed() -> None:
    assert (ROOT / "durable_actor" / "py.typed").is_file()
    assert (ROOT / "workflows" / "py.typed").is_file()


def test_a_wheel_holds_both_packages_and_nothing_else(tmp_path: Path) -> None:
    run(
        sys.executable,
        *("-m", "hatchling", "build", "--target", "wheel"),
        *("--directory", str(tmp_path)),
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        script = archive.read(entry_points).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "durable_actor",
        "workflows",
    }
    assert {"durable_actor/py.typed", "workflows/py.typed"} <= set(names)
    assert "durable-actor = durable_actor.daemon.cli:main" in script


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMakefile:
    def test_help_lists_every_target(self) -> None:
        listed = {line.split()[1] for line in run("make", "help").splitlines()}
        assert listed == TARGETS

    def test_the_demo_needs_only_the_runtime_lock(self, tmp_path: Path) -> None:
        plan = run("make", "--dry-run", "demo", f"VENV={tmp_path / 'none'}")
        assert "--require-hashes -r requirements.lock" in plan
        assert "requirements-dev.lock" not in plan

    def test_the_tests_need_the_development_lock(self, tmp_path: Path) -> None:
        plan = run("make", "--dry-run", "test", f"VENV={tmp_path / 'none'}")
        assert "--require-hashes -r requirements-dev.lock" in plan
        assert "-m pytest" in plan


def test_ci_runs_the_targets_a_person_would_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    run("bash", "-n", str(script))
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert {"make lint", "make test"} <= set(lines)


class TestImage:
    def test_it_does_not_run_as_root(self) -> None:
        users = [rest for word, rest in dockerfile() if word == "USER"]
        assert users
        uid = users[-1].partition(":")[0]
        assert uid.isdecimal()  # a number, so that an orchestrator can check it
        assert int(uid) > 0

    def test_s20_it_installs_only_what_the_lock_has_hashes_for(self) -> None:
        runs = " && ".join(rest for word, rest in dockerfile() if word == "RUN")
        installs = [each for each in runs.split("&&") if "pip install" in each]
        assert installs
        for each in installs:
            assert "--require-hashes" in each or "--no-index" in each

    def test_it_keeps_objects_in_one_volume_that_its_user_owns(self) -> None:
        words = dockerfile()
        assert [rest for word, rest in words if word == "VOLUME"] == ["/data"]
        at = {word: index for index, (word, _) in enumerate(words)}
        made = [
            index
            for index, (word, rest) in enumerate(words)
            if word == "RUN" and "/data" in rest
        ]
        assert made[0] < at["USER"] < at["VOLUME"]

    def test_it_can_be_asked_whether_it_is_ready_and_told_to_stop(self) -> None:
        words = dict(dockerfile())
        assert "/readyz" in words["HEALTHCHECK"]
        assert words["STOPSIGNAL"] == "SIGTERM"
        assert words["EXPOSE"] == "8787"

    def test_it_starts_the_daemon_without_a_shell(self) -> None:
        words = dict(dockerfile())
        entrypoint: list[str] = yaml.safe_load(words["ENTRYPOINT"])
        command: list[str] = yaml.safe_load(words["CMD"])
        assert entrypoint == ["durable-actor"]  # first process, so it gets the signal
        assert command[0] == "serve"
        assert command[command.index("--data-dir") + 1] == "/data"

    def test_everything_it_copies_exists(self) -> None:
        for word, rest in dockerfile():
            if word == "COPY" and not rest.startswith("--from="):
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source


class TestCompose:
    def test_the_daemon_is_published_on_loopback_only(self) -> None:
        assert compose()["services"]["daemon"]["ports"] == ["127.0.0.1:8787:8787"]
        assert "ports" not in compose()["services"]["collector"]

    def test_objects_live_in_the_one_named_volume(self) -> None:
        loaded = compose()
        (volume,) = loaded["volumes"]
        assert loaded["services"]["daemon"]["volumes"] == [f"{volume}:/data"]
        assert "volumes" not in loaded["services"]["collector"]

    def test_the_daemon_is_watched_and_given_time_to_drain(self) -> None:
        daemon = compose()["services"]["daemon"]
        assert "/readyz" in daemon["healthcheck"]["test"][-1]
        assert daemon["stop_signal"] == "SIGTERM"
        assert int(daemon["stop_grace_period"].removesuffix("s")) > 30

    @pytest.mark.parametrize("name", ["daemon", "collector"])
    def test_a_service_can_do_little(self, name: str) -> None:
        service = compose()["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "/tmp" in service["tmpfs"]
        assert service["restart"] == "unless-stopped"
        assert "privileged" not in service
        assert "user" not in service  # the image's own, which is not root
