"""What tests of an object's storage share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.owners import Disk, Owner


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path)
    await disk.open()
    yield disk
    await disk.crash()


@pytest.fixture
async def owner(disk: Disk) -> Owner:
    return await disk.activate()
