"""The commands for a data directory: what they do, and with which status they end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from durable_actor.daemon.cli import run_command
from durable_actor.daemon.doctor import examine
from durable_actor.storage.integrity import DirectoryLock
from durable_actor.storage.mark import mark_path
from durable_actor.storage.store import SHARD_NAME
from tests.support.relics import fill
from tests.support.shards import change_file, change_format


@pytest.fixture
def data(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path / "data", killed=False))
    return tmp_path / "data"


def test_export_import_backup_and_restore_end_with_0(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.jsonl"
    assert run_command(["export", str(data), "--output", str(lines)]) == 0
    assert run_command(["import", str(lines), str(tmp_path / "imported")]) == 0
    assert run_command(["backup", str(data), str(tmp_path / "backup")]) == 0
    assert run_command(["restore", str(tmp_path / "backup"), str(tmp_path / "r")]) == 0
    capsys.readouterr()

    assert run_command(["export", str(tmp_path / "r")]) == 0
    assert capsys.readouterr().out == lines.read_text()
    assert run_command(["export", str(tmp_path / "imported")]) == 0
    assert capsys.readouterr().out == lines.read_text()
    assert lines.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "command",
    [
        ["export", "DATA"],
        ["backup", "DATA", "NEW"],
        ["import", "LINES", "DATA"],
        ["restore", "BACKUP", "DATA"],
        ["accept-rollback", "DATA"],
    ],
)
def test_a_directory_in_use_ends_every_command_with_75(
    data: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text('{"export":1}\n')
    assert run_command(["backup", str(data), str(tmp_path / "backup")]) == 0
    places = {
        "DATA": str(data),
        "NEW": str(tmp_path / "new"),
        "LINES": str(tmp_path / "lines"),
        "BACKUP": str(tmp_path / "backup"),
    }
    lock = DirectoryLock(data)

    assert run_command([places.get(word, word) for word in command]) == 75

    assert "data_directory_in_use" in capsys.readouterr().err
    lock.release()


def test_what_is_refused_ends_with_78_and_damage_with_74(
    data: Path, tmp_path: Path
) -> None:
    assert run_command(["export", str(tmp_path)]) == 78, "no data directory"
    assert run_command(["restore", str(tmp_path), str(tmp_path / "r")]) == 78
    change_file(data, ("UPDATE meta SET value = 77 WHERE key = 'last_num'", ()))
    assert run_command(["export", str(data)]) == 74
    change_format(data, 99)
    assert run_command(["export", str(data)]) == 78, "G24: a newer format"


def test_the_doctor_finds_damage_and_says_whose_it_is(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not [f for f in examine(data).findings if f.check.startswith("object.")]
    change_file(data, ("UPDATE kv SET crc = crc + 1 WHERE key = 'book 001'", ()))

    status = run_command(["doctor", str(data), "--json"])

    report = json.loads(capsys.readouterr().out)
    assert status == report["status"] == 1
    assert "sqlite" in report["versions"]
    assert "object.key" in {f["check"] for f in report["findings"]}


def test_the_doctor_leaves_data_alone_that_is_in_use(data: Path) -> None:
    lock = DirectoryLock(data)

    checks = {finding.check for finding in examine(data).findings}

    assert "data.in_use" in checks
    lock.release()


def test_g11_a_rollback_is_accepted_by_a_command_of_its_own(data: Path) -> None:
    older = (data / SHARD_NAME).read_bytes()
    asyncio.run(fill(data, killed=False))
    (data / SHARD_NAME).write_bytes(older)
    assert run_command(["export", str(data)]) == 74

    assert run_command(["accept-rollback", str(data)]) == 0

    assert not mark_path(data / SHARD_NAME).exists()
    assert "shard.opens" not in {f.check for f in examine(data).findings}
