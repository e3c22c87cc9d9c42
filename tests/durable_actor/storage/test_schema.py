"""Rows that are gone or changed are seen, and earlier formats are brought over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from durable_actor.errors import CorruptionError, FormatTooNewError
from durable_actor.maintenance.copies import locked
from durable_actor.maintenance.export import export_lines
from durable_actor.maintenance.inspection import damages
from durable_actor.storage.schema import CREATE, TABLES
from durable_actor.testing import open_test_host
from tests.support.relics import SMALL, Ledger, Shelf, fill, unpack
from tests.support.shards import (
    change_file,
    change_format,
    load_one,
    open_shard,
    rows_of,
)

GOLDEN = Path(__file__).parents[2] / "data"
UNWATCHED = [
    (f"DROP TRIGGER {table}_{event}", ())
    for table in ("kv", *TABLES)
    for event in ("insert", "update", "delete")
]
TRIGGERS = [(sql, ()) for sql in CREATE if sql.startswith("CREATE TRIGGER")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path / "data", killed=False))
    return tmp_path / "data"


def lose(directory: Path, sql: str) -> None:
    """Change rows as a damaged page would, which no trigger hears of."""
    assert rows_of(directory, f"SELECT count(*) {sql}") != [(0,)]
    change_file(directory, *UNWATCHED, (f"DELETE {sql}", ()), *TRIGGERS)


def found(directory: Path) -> set[str]:
    with locked(directory):
        return {damage.check for damage in damages(directory)}


@pytest.mark.parametrize("table", [*TABLES, "kv"])
def test_g11_a_row_that_is_gone_from_any_table_is_found(
    directory: Path, table: str
) -> None:
    assert found(directory) == set()

    lose(directory, f"FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")

    assert found(directory) & {f"{table}.digest", "object.digest"}


def test_g11_without_the_digests_a_row_that_is_gone_is_not_missed(
    directory: Path,
) -> None:
    """The control: a row that its triggers see leave is no damage."""
    change_file(directory, ("DELETE FROM alarm", ()))

    assert found(directory) == set()


async def test_g11_an_object_that_lost_a_key_is_not_served_and_others_are(
    tmp_path: Path,
) -> None:
    await fill(tmp_path, killed=False)
    one = rows_of(tmp_path, "SELECT object FROM kv WHERE key = 'book 001' LIMIT 1")
    num = one[0][0]
    lose(tmp_path, f"FROM kv WHERE object = {num} AND key = 'book 001'")

    async with open_test_host(tmp_path, classes=[Shelf, Ledger], config=SMALL) as test:
        shelves = test.host.namespace(Shelf)
        with pytest.raises(CorruptionError):
            await shelves.get_by_name("a").fill(1)
        assert await shelves.get_by_name("b").fill(2) == 2


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("object", "used_at_ms"),
        ("alarm", "due_at_ms"),
        ("reply", "expires_at_ms"),
        ("database", "wal_end"),
    ],
)
def test_g11_a_row_that_changed_is_found(
    directory: Path, table: str, column: str
) -> None:
    change_file(directory, (f"UPDATE {table} SET {column} = {column} + 1", ()))

    assert found(directory) & {f"{table}.row", "database.opens"}


async def test_g11_a_changed_number_of_the_shard_is_found(tmp_path: Path) -> None:
    await fill(tmp_path, killed=False)
    change_file(tmp_path, ("UPDATE meta SET value = 1 WHERE key = 'last_num'", ()))

    with pytest.raises(CorruptionError, match="last_num"):
        async with open_shard(tmp_path):
            pass


async def test_g11_a_changed_description_of_a_table_is_found(tmp_path: Path) -> None:
    await fill(tmp_path, killed=False)
    change_file(tmp_path, ("DROP TRIGGER kv_delete", ()))

    with pytest.raises(CorruptionError, match="kv_delete"):
        async with open_shard(tmp_path):
            pass


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_g24_a_directory_of_the_first_format_opens_with_all_it_has(
    tmp_path: Path, how: str
) -> None:
    directory = unpack(GOLDEN / f"format-1-{how}.tar.gz", tmp_path)

    with locked(directory):
        assert damages(directory) == []
        before = list(export_lines(directory))
    asyncio.run(use(directory, killed=how == "killed"))

    with locked(directory):
        assert damages(directory) == []
        after = [line for line in export_lines(directory) if '"reply"' not in line]
    kept = [line for line in before if '"key":"book' in line]
    assert len(kept) == {"closed": 18, "killed": 22}[how]
    assert set(kept) <= set(after)


async def use(directory: Path, *, killed: bool) -> None:
    """Open a directory for good, and look at what its databases hold."""
    async with open_test_host(directory, classes=[Shelf, Ledger], config=SMALL) as test:
        ledgers = test.host.namespace(Ledger)
        assert await ledgers.get_by_name("closed").count() == (22 if killed else 20)
        assert await ledgers.get_by_name("open").count() == (6 if killed else 0)
        assert await test.host.namespace(Shelf).get_by_name("new").fill(1) == 1


async def test_g24_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    await fill(tmp_path, killed=False)
    change_format(tmp_path, 99)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    with pytest.raises(FormatTooNewError):
        async with open_shard(tmp_path) as shard:
            await load_one(shard, 1)

    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before
