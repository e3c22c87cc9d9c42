"""What tests of a database file share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import database_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return database_path(tmp_path / "data", bytes(range(32)))


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    database = Database.open(path, None)
    yield database
    database.abandon()
