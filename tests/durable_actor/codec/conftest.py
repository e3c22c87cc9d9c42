"""A module that comes and goes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOP = """
import dataclasses
@dataclasses.dataclass
class Cart:
    owner: str
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module on disk, imported; the tests write it anew."""
    (tmp_path / "codec_shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("codec_shop")
    sys.modules.pop("codec_shop", None)
