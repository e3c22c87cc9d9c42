"""The commands, against a daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from durable_actor.daemon.cli import run_command
from tests.durable_actor.daemon.process import Daemon


class Shell:
    """Runs commands against one daemon."""

    def __init__(self, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._remote = ["--url", daemon.url, "--token-file", daemon.ready["token_file"]]

    def run(self, *tokens: str) -> tuple[int, str, str]:
        """Return status, stdout and stderr."""
        status = run_command([*tokens, *self._remote])
        out, errors = self._capsys.readouterr()
        return status, out, errors

    def json(self, *tokens: str) -> Any:
        """Return what a command that succeeds prints with `--json`."""
        status, out, errors = self.run(*tokens, "--json")
        assert status == 0, errors
        assert out.count("\n") == 1
        return json.loads(out)


@pytest.fixture
def shell(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(daemon, capsys)


def test_a_method_is_called(shell: Shell) -> None:
    assert shell.run("call", "Counter", "cli/a", "increment") == (0, "1\n", "")
    assert shell.json("call", "Counter", "cli/a", "increment", "4") == 5
    assert shell.json("call", "COUNTERS", "cli/a", "value") == 5
    assert shell.json("call", "Counter", "x", "increment", "--kwargs", '{"by": 2}') == 2


def test_objects_are_listed_and_deleted(shell: Shell) -> None:
    for name in ("list/a", "list/b", "other"):
        shell.json("call", "Counter", name, "increment")

    page = shell.json("objects", "list", "Counter", "--prefix", "list/", "--limit", "1")
    assert [found["name"] for found in page["objects"]] == ["list/a"]
    rest = shell.json(
        *("objects", "list", "COUNTERS"),
        *("--prefix", "list/", "--cursor", page["cursor"]),
    )
    assert [found["name"] for found in rest["objects"]] == ["list/b"]
    assert rest["cursor"] is None

    found_id = rest["objects"][0]["id"]
    assert shell.json("objects", "delete", "Counter", "list/a") == {"deleted": True}
    assert shell.json("objects", "delete", "Counter", found_id, "--id")["deleted"]
    assert shell.json("objects", "list", "--prefix", "list/")["objects"] == []
    status, out, _ = shell.run("objects", "delete", "Counter", "list/a", "--json")
    assert (status, json.loads(out)) == (3, {"deleted": False})


def test_what_an_object_has_stored_is_shown(shell: Shell) -> None:
    shell.json("call", "Counter", "show/a", "increment", "5")

    assert shell.run("objects", "show", "Counter", "show/a") == (0, "value: 5\n", "")
    page = shell.json("objects", "show", "COUNTERS", "show/a")
    assert [(stored["key"], stored["value"]) for stored in page["keys"]] == [
        ("value", 5)
    ]
    listed = shell.json("objects", "list", "Counter", "--prefix", "show/a")
    found_id = listed["objects"][0]["id"]
    assert shell.json("objects", "show", "Counter", found_id, "--id") == page
    assert shell.run("objects", "show", "Counter", "show/a", "--prefix", "w")[:2] == (
        0,
        "",
    )


def test_what_is_long_is_shortened_but_not_as_json(shell: Shell) -> None:
    text = "\x1b[2J" + "ä" * 500
    words = json.dumps({"items": [text]})
    shell.json("workflows", "run", "steps", "--id", "show", "--input", words)

    status, out, errors = shell.run("objects", "show", "Workflows", "steps:show")
    page = shell.json("objects", "show", "Workflows", "steps:show")

    assert (status, errors) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(page["keys"])
    assert max(map(len, lines)) < 250
    assert any(line.endswith(" bytes)") for line in lines)
    assert {"type": "app:Items", "items": [text]} in [
        stored["value"] for stored in page["keys"]
    ]
    assert "\x1b" not in out


def test_a_page_of_keys_says_how_to_go_on(shell: Shell) -> None:
    words = json.dumps({"items": ["a", "b", "c"]})
    shell.json("workflows", "run", "steps", "--id", "pages", "--input", words)
    show = ["objects", "show", "Workflows", "steps:pages"]

    status, first, errors = shell.run(*show, "--limit", "1")

    assert (status, first.count("\n")) == (0, 1)
    assert errors.startswith("there is more: --cursor ")
    cursor = errors.split()[-1]
    _, rest, _ = shell.run(*show, "--cursor", cursor)
    assert first + rest == shell.run(*show)[1]


def test_an_object_that_stored_nothing_is_not_found(shell: Shell) -> None:
    status, out, _ = shell.run("objects", "show", "Counter", "never")
    assert (status, out) == (3, "Counter never has stored nothing\n")
    status, out, _ = shell.run("objects", "show", "Counter", "never", "--json")
    assert (status, json.loads(out)["exists"]) == (3, False)


def test_alarms_are_listed(shell: Shell) -> None:
    shell.json("workflows", "run", "sleeping", "--id", "alarms")

    page = shell.json("alarms", "list", "--limit", "1000")

    due = {found["name"]: found["due_at_ms"] for found in page["alarms"]}
    assert "sleeping:alarms" in due
    assert list(due.values()) == sorted(due.values())
    assert {"class", "id", "scheduled_at_ms", "retries"} <= page["alarms"][0].keys()
    before = shell.json("alarms", "list", "--before", str(due["sleeping:alarms"]))
    assert "sleeping:alarms" not in [found["name"] for found in before["alarms"]]
    assert shell.json("alarms", "list", "Counter") == {"alarms": [], "cursor": None}


def test_workflows_are_run_and_asked_after(shell: Shell) -> None:
    assert shell.run("workflows", "list")[1].split() == [
        "simple",
        "sleeping",
        "slow",
        "steps",
    ]
    done = shell.json("workflows", "run", "simple", "--input", '{"value": 21}')
    assert (done["completed"], done["output"]) == (True, 42)

    queued = shell.json("workflows", "run", "slow", "--id", "cli", "--async")
    assert (queued["id"], queued["completed"]) == ("cli", False)
    assert shell.json("workflows", "status", "slow", "cli")["exists"] is True
    cancelled = shell.json("workflows", "cancel", "slow", "cli", "--reason", "late")
    assert cancelled["cancelled"] is True
    page = shell.json("workflows", "runs", "--workflow", "slow", "--limit", "1")
    assert page["runs"][0]["id"] == "cli"


@pytest.mark.parametrize(
    ("tokens", "status", "code"),
    [
        (["call", "Counter", "a", "nope"], 3, "method_not_found"),
        (["call", "Nope", "a", "value"], 3, "unknown_class"),
        (["objects", "list", "Nope"], 3, "unknown_class"),
        (["objects", "list", "--limit", "0"], 2, "bad_request"),
        (["objects", "delete", "Nope", "a"], 3, "unknown_class"),
        (["objects", "show", "Nope", "a"], 3, "unknown_class"),
        (["objects", "show", "Counter", "a", "--cursor", "zz"], 2, "bad_request"),
        (["objects", "show", "Counter", "zz", "--id"], 2, "invalid_id"),
        (["objects", "delete", "Counter", "zz", "--id"], 2, "invalid_id"),
        (["alarms", "list", "--cursor", "zz"], 2, "bad_request"),
        (["workflows", "run", "nope"], 3, "unknown_workflow"),
        (["workflows", "status", "simple", "nope"], 3, "run_not_found"),
        (["call", "Counter", "a", "increment", "x"], 2, "bad_arguments"),
        (["call", "Counter", "a", "value", "--kwargs", "{"], 2, "config"),
        (["workflows", "run", "simple", "--input", "{}"], 2, "invalid_input"),
    ],
)
def test_the_status_says_what_went_wrong(
    shell: Shell, tokens: list[str], status: int, code: str
) -> None:
    plain = shell.run(*tokens)
    told = shell.run(*tokens, "--json")

    assert plain[0] == told[0] == status
    assert plain[2].startswith(code + ": ")
    assert json.loads(told[2])["code"] == code
    assert plain[1] == told[1] == ""


def test_a_run_that_cannot_be_cancelled_is_refused(shell: Shell) -> None:
    shell.json("workflows", "run", "simple", "--id", "over", "--input", '{"value": 1}')

    status, out, _ = shell.run("workflows", "cancel", "simple", "over", "--json")

    assert status == 5
    assert json.loads(out)["cancelled"] is False


def test_no_daemon_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    status = run_command(["workflows", "list", "--url", "http://127.0.0.1:1"])

    assert status == 4
    assert "durable-actor serve" in capsys.readouterr().err


def test_a_wrong_token_is_refused(
    shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    url = shell._remote[1]

    status = run_command(
        ["workflows", "list", "--url", url, "--token-file", str(wrong)]
    )

    assert status == 5
    assert "unauthorized" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tokens",
    [
        ["nope"],
        ["workflows", "nope"],
        ["call", "Counter"],
        ["call", "Counter", "a", "value", "--nope"],
        ["workflows", "list", "--url", "nonsense"],
        ["workflows", "list", "--timeout", "soon"],
    ],
)
def test_wrong_usage_has_status_2(
    tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(tokens) == 2
    assert capsys.readouterr().err


def test_help_and_version_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    assert "serve" in capsys.readouterr().out
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_the_doctor_reports_as_json(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run_command(["doctor", daemon.ready["data_dir"], "--json"])
    report = json.loads(capsys.readouterr().out)

    assert status == report["status"] in (0, 1)
    assert "directory.lock" in {finding["check"] for finding in report["findings"]}
    assert run_command(["doctor", str(tmp_path / "missing")]) == 2
