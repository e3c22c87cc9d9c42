"""Checksums of pages: what a checkpoint left is compared, and what is hidden is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_actor.errors import CorruptionError
from durable_actor.storage.sql.sums import (
    PAGE_BYTES,
    Sums,
    check_pages,
    merged,
    read_sums,
    sums_of,
    sums_path,
    write_sums,
)

PAGES = b"".join(bytes([number]) * PAGE_BYTES for number in range(4))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    path.write_bytes(PAGES)
    write_sums(path, Sums(b"12345678", 99, sums_of(path)))
    return path


def change(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_was_written_is_read_again(path: Path) -> None:
    sums = read_sums(path)

    assert sums is not None
    assert (sums.generation, sums.end, list(sums.pages)) == (
        b"12345678",
        99,
        sums_of(path),
    )
    assert read_sums(path.with_name("b.db")) is None


@pytest.mark.parametrize("place", [0, 8, 20, 30, -1])
def test_g11_a_changed_byte_of_the_checksums_is_found(path: Path, place: int) -> None:
    change(sums_path(path), place)

    with pytest.raises(CorruptionError):
        read_sums(path)


def test_g11_a_changed_or_missing_page_is_found(path: Path) -> None:
    sums = read_sums(path)
    check_pages(path, sums, {}, 4)

    change(path, 2 * PAGE_BYTES + 5)
    with pytest.raises(CorruptionError, match="page 3"):
        check_pages(path, sums, {}, 4)
    path.write_bytes(PAGES[:-1])
    with pytest.raises(CorruptionError, match="page 4"):
        check_pages(path, sums, {}, 4)


def test_a_page_that_the_wal_hides_may_be_anything(path: Path) -> None:
    change(path, 5)

    check_pages(path, read_sums(path), {1: 0, 9: 0, 10: 0, 11: 0, 12: 0}, 4)


def test_a_page_hidden_by_nothing_is_compared_however_much_the_wal_has(
    path: Path,
) -> None:
    change(path, 5)

    with pytest.raises(CorruptionError, match="page 1"):
        check_pages(path, read_sums(path), {8: 0, 9: 0, 10: 0, 11: 0, 12: 0}, 4)


def test_a_checkpoint_adds_what_it_copied_and_forgets_what_was_cut_off() -> None:
    old = Sums(bytes(8), 0, [1, 2, 3])

    assert merged(old, {2: 22, 4: 44}, 4) == [1, 22, 3, 44]
    assert merged(old, {2: 22}, 2) == [1, 22]
    with pytest.raises(CorruptionError, match="page 4"):
        merged(old, {5: 55}, 5)
