"""A flipped bit anywhere is found or harmless.

Some bits here; `python -m tests.support.flips --flips 10000` for more.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from durable_actor.maintenance.export import export_lines
from tests.support.flips import judge, run, unchecked
from tests.support.relics import fill


def test_g11_no_flipped_bit_is_silent() -> None:
    seen, silent = run(40, seed=3)

    assert silent == []
    assert seen["found"] > 5, "the flips hit something"
    assert seen["harmless"] > 0, "not everything is taken for damage"


@pytest.mark.parametrize(
    ("file", "text"),
    [("shard-00.db", b"x{2500,}"), ("objects/*/*.db", b"line 7line 7")],
)
def test_g11_a_flipped_bit_that_is_found_would_be_silent_without_checksums(
    tmp_path: Path, file: str, text: bytes
) -> None:
    """The control: it is the checksums that find it, and nothing else would."""
    asyncio.run(fill(tmp_path, killed=False))
    whole = list(export_lines(tmp_path))
    (path,) = tmp_path.glob(file)
    data = path.read_bytes()
    # Some are in pages that are free again, where a flip harms nobody.
    for found in reversed([*re.finditer(text, data)]):
        damaged = bytearray(data)
        damaged[found.start()] ^= 1
        path.write_bytes(damaged)
        if judge(tmp_path, whole) == "found":
            break

    assert judge(tmp_path, whole) == "found"
    with unchecked():
        assert judge(tmp_path, whole) == "silent"
