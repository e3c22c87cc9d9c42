"""Export, import, backup and restore: what comes out is what went in."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from durable_actor import DurableObject
from durable_actor.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryInUseError,
    DecodeError,
)
from durable_actor.maintenance.backups import back_up, restore
from durable_actor.maintenance.copies import locked
from durable_actor.maintenance.export import export_lines
from durable_actor.maintenance.importing import import_lines
from durable_actor.maintenance.inspection import damages
from durable_actor.testing import open_test_host
from tests.support.relics import SMALL, Ledger, Shelf, fill
from tests.support.shards import change_file


class Odd(DurableObject, storage="sqlite"):
    """Has one of every kind of thing that SQL can keep."""

    async def make(self) -> None:
        sql = self.ctx.storage.sql
        sql.exec(
            "CREATE TABLE item (n INTEGER PRIMARY KEY AUTOINCREMENT, v, w AS (n * 2));"
            " CREATE TABLE pair (a TEXT, b REAL, PRIMARY KEY (a, b)) WITHOUT ROWID;"
            " CREATE INDEX item_by_v ON item (v);"
            " CREATE VIEW wide AS SELECT n FROM item;"
            " CREATE TABLE seen (n);"
            " CREATE TRIGGER see AFTER INSERT ON item"
            " BEGIN INSERT INTO seen VALUES (NEW.n); END"
        )
        for value in (None, 1, -1.5, float("inf"), "t\u00e9xt\n\"'", b"\x00\xff"):
            sql.exec("INSERT INTO item (v) VALUES (?)", value)
        sql.exec("DELETE FROM item WHERE n = 2")
        sql.exec("INSERT INTO pair VALUES ('b', 0.1), ('a', 2.5)")
        self.ctx.storage.put("k\u00e9y", {"deep": [1, b"2", None]})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    asyncio.run(fill(directory, killed=True))
    return directory


def exported(directory: Path) -> list[str]:
    with locked(directory):
        return list(export_lines(directory))


def test_an_export_of_an_import_is_the_same_byte_for_byte(
    directory: Path, tmp_path: Path
) -> None:
    lines = exported(directory)

    import_lines(tmp_path / "again", lines)

    assert exported(tmp_path / "again") == lines
    with locked(tmp_path / "again"):
        assert damages(tmp_path / "again") == []


def test_a_difference_shows_in_the_export(directory: Path, tmp_path: Path) -> None:
    """The control: an export that says the same of everything would pass the others."""
    lines = exported(directory)
    (key,) = [n for n, line in enumerate(lines) if '"key":"book 005"' in line][:1]
    changed = json.loads(lines[key])
    changed["raw"] = json.loads(lines[key + 1])["raw"].replace("x", "y", 1)
    changed["key"] = "book 999"
    lines[key] = json.dumps(changed, separators=(",", ":"))

    import_lines(tmp_path / "again", lines)

    assert exported(tmp_path / "again") != exported(directory)


async def test_an_import_keeps_every_kind_of_sql_value(tmp_path: Path) -> None:
    async with open_test_host(tmp_path / "data", classes=[Odd], config=SMALL) as test:
        await test.host.namespace(Odd).get_by_name("a").make()
    lines = await asyncio.to_thread(exported, tmp_path / "data")

    await asyncio.to_thread(import_lines, tmp_path / "again", lines)

    assert await asyncio.to_thread(exported, tmp_path / "again") == lines
    kinds = [json.loads(line).get("type") for line in lines]
    assert {"table", "index", "view", "trigger"} <= set(kinds)


def test_an_export_is_sorted_and_says_what_everything_is(directory: Path) -> None:
    lines = [json.loads(line) for line in exported(directory)]

    heads = [line for line in lines if "alarm" in line]
    assert [(line["class"], line["name"]) for line in heads] == [
        ("Ledger", "closed"),
        ("Ledger", "open"),
        ("Shelf", "a"),
        ("Shelf", "b"),
        ("Shelf", "c"),
        ("Shelf", "full"),
        ("Shelf", "large"),
    ]
    words = {word for line in lines for word in line}
    assert {"key", "value", "table", "row", "schema", "reply", "event"} <= words


def test_looking_at_a_directory_changes_nothing_in_it(directory: Path) -> None:
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}

    exported(directory)
    with locked(directory):
        damages(directory)

    after = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    before.pop(directory / "lock", None)
    after.pop(directory / "lock")
    assert after == before


async def test_an_imported_directory_is_used_like_any_other(tmp_path: Path) -> None:
    await fill(tmp_path / "data", killed=True)
    lines = await asyncio.to_thread(exported, tmp_path / "data")
    await asyncio.to_thread(import_lines, tmp_path / "again", lines)

    async with open_test_host(
        tmp_path / "again", classes=[Shelf, Ledger], config=SMALL
    ) as test:
        ledgers = test.host.namespace(Ledger)
        assert await ledgers.get_by_name("closed").count() == 22
        await ledgers.get_by_name("closed").enter(1)
        await test.restart()
        ledgers = test.host.namespace(Ledger)
        assert await ledgers.get_by_name("closed").count() == 23
        shelf = test.host.namespace(Shelf).get_by_name("a", request_id="r1")
        assert await shelf.fill(1) == 12, "the kept reply"


def test_g25_a_restored_backup_is_what_was_there_then(
    directory: Path, tmp_path: Path
) -> None:
    then = exported(directory)
    with locked(directory):
        back_up(directory, tmp_path / "backup")
    asyncio.run(change(directory))
    assert exported(directory) != then

    restore(tmp_path / "backup", tmp_path / "again")

    assert exported(tmp_path / "again") == then
    asyncio.run(change(tmp_path / "again"))
    with locked(tmp_path / "again"):
        assert damages(tmp_path / "again") == []


async def change(directory: Path) -> None:
    async with open_test_host(directory, classes=[Shelf, Ledger], config=SMALL) as test:
        await test.host.namespace(Shelf).get_by_name("later").fill(3)
        await test.host.namespace(Ledger).get_by_name("open").enter(1)


@pytest.mark.parametrize("damage", ["a bit", "a file", "the end", "the list"])
def test_g25_a_damaged_backup_is_not_restored(
    directory: Path, tmp_path: Path, damage: str
) -> None:
    backup = tmp_path / "backup"
    with locked(directory):
        back_up(directory, backup)
    victim = backup / "shard-00.db-wal"
    data = bytearray(victim.read_bytes())
    match damage:
        case "a bit":
            data[len(data) // 2] ^= 1
            victim.write_bytes(data)
        case "the end":
            victim.write_bytes(data[:-1])
        case "a file":
            victim.unlink()
        case _:
            (backup / "backup.json").unlink()

    with pytest.raises((CorruptionError, ConfigError)):
        restore(backup, tmp_path / "again")

    assert not (tmp_path / "again").exists()


def test_nothing_is_ever_replaced(directory: Path, tmp_path: Path) -> None:
    lines = exported(directory)
    with locked(directory):
        back_up(directory, tmp_path / "backup")
        with pytest.raises(ConfigError, match="there already"):
            back_up(directory, tmp_path / "backup")
    with pytest.raises(ConfigError, match="holds data"):
        import_lines(directory, lines)
    with pytest.raises(ConfigError, match="holds data"):
        restore(tmp_path / "backup", directory)

    assert exported(directory) == lines


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["no json"],
        ['{"export":99}'],
        ['{"export":1}', '{"key":"a"}'],
        ['{"export":1}', '{"class":"A","id":"zz"}'],
    ],
)
def test_what_is_no_export_leaves_nothing_behind(
    tmp_path: Path, lines: list[str]
) -> None:
    with pytest.raises(DecodeError):
        import_lines(tmp_path / "again", lines)

    assert [path.name for path in (tmp_path / "again").iterdir()] == ["lock"]


async def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    async with open_test_host(tmp_path, classes=[Shelf], config=SMALL) as test:
        await test.host.namespace(Shelf).get_by_name("a").fill(1)
        with pytest.raises(DataDirectoryInUseError):
            await asyncio.to_thread(exported, tmp_path)


def test_g11_a_database_without_its_wal_is_found(directory: Path) -> None:
    (wal,) = sorted(directory.glob("objects/*/*.db-wal"))[:1]
    wal.unlink()

    with locked(directory):
        assert {damage.check for damage in damages(directory)} & {"database.opens"}


def test_g11_a_page_of_a_closed_database_that_changed_is_found(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path, killed=False))
    (path,) = tmp_path.glob("objects/*/*.db")
    data = bytearray(path.read_bytes())
    place = data.index(b"line 7")
    data[place] ^= 1
    path.write_bytes(data)

    with locked(tmp_path):
        (damage,) = damages(tmp_path)
    assert damage.check == "database.opens"
    assert damage.object_id == path.stem


def test_an_export_of_damaged_data_is_refused(directory: Path) -> None:
    shutil.copytree(directory, directory.with_name("whole"))
    import_lines(directory.with_name("closed"), exported(directory))
    closed = directory.with_name("closed")
    change_file(closed, ("UPDATE kv SET crc = crc + 1 WHERE key = 'book 001'", ()))

    with pytest.raises(CorruptionError):
        exported(closed)
