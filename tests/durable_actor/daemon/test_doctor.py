"""What the doctor finds."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from durable_actor.daemon import doctor
from durable_actor.daemon.doctor import examine
from durable_actor.daemon.tokens import token_of
from durable_actor.entrypoints import DurableObject
from durable_actor.host import Host


class Till(DurableObject):
    async def fill(self) -> None:
        self.ctx.storage.put("coins", 1)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data directory without findings, on a machine without any."""
    monkeypatch.setattr(doctor, "_file_system", lambda _: "ext4")
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 0)
    monkeypatch.setattr(doctor, "OPEN_FILES_MIN", 0)
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


def checks(directory: Path) -> dict[str, str]:
    return {found.check: found.severity for found in examine(directory).findings}


def test_a_clean_directory_has_status_0(data: Path) -> None:
    token_of(data / "token")

    report = examine(data)

    assert [f for f in report.findings if f.severity != "info"] == []
    assert report.status == 0
    assert {"durable-actor", "python", "sqlite", "system"} <= set(report.versions)


def test_a_directory_that_is_not_there_has_status_2(tmp_path: Path) -> None:
    report = examine(tmp_path / "missing")

    assert report.status == 2
    assert "directory.readable" in checks(tmp_path / "missing")


def test_modes_that_are_too_wide_are_found(data: Path) -> None:
    token_of(data / "token")
    (data / "token").chmod(0o644)
    data.chmod(0o755)
    assert checks(data)["token.mode"] == "error"
    assert checks(data)["directory.mode"] == "warning"

    data.chmod(0o777)
    assert checks(data)["directory.mode"] == "error"
    assert examine(data).status == 1


def test_every_finding_that_matters_has_a_remedy(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.chmod(0o777)
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 62)
    monkeypatch.setattr(doctor, "OPEN_FILES_MIN", 1 << 40)
    monkeypatch.setattr(doctor, "_file_system", lambda _: "nfs4")
    monkeypatch.setattr(
        resource, "getrlimit", lambda _: (1_024, resource.RLIM_INFINITY)
    )

    findings = examine(data).findings

    assert {"disk.free", "disk.kind", "limits.open_files", "directory.mode"} <= {
        finding.check for finding in findings
    }
    assert all(finding.remedy for finding in findings if finding.severity != "info")


async def test_a_directory_in_use_names_its_holder_and_is_left_alone(
    data: Path,
) -> None:
    async with Host(data) as host:
        found = {finding.check: finding for finding in examine(data).findings}
        await host.namespace(Till).get_by_name("a").fill()

    assert found["directory.lock"].severity == "info"
    assert "process" in found["directory.lock"].detail
    assert "directory.lock" not in checks(data)


def test_the_file_system_of_a_folder_is_known() -> None:
    assert doctor._file_system(Path("/proc")) == "proc"
