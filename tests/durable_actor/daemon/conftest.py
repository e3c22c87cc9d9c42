"""Real daemons: processes on a free port, stopped when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.durable_actor.daemon.certificates import (
    Certificates,
    make_certificates,
)
from tests.durable_actor.daemon.process import FIXTURE_CONFIG, Daemon


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons of the fixture application, by default on `tmp_path / "data"`."""
    started: list[Daemon] = []

    def start(
        *arguments: str,
        config: Path | None = FIXTURE_CONFIG,
        listen: str = "127.0.0.1:0",
    ) -> Daemon:
        data_dir = str(tmp_path / "data")
        daemon = Daemon(
            "--data-dir", data_dir, *arguments, config=config, listen=listen
        )
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.kill()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Return a daemon that the tests of a module share."""
    daemon = Daemon("--data-dir", str(tmp_path_factory.mktemp("shared") / "data"))
    daemon.wait_ready()
    yield daemon
    daemon.kill()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return files that TLS can be spoken with."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
