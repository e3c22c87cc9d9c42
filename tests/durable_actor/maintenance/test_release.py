"""A damaged object is refused until it is released, and then serves what is left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from durable_actor.daemon.cli import run_command
from durable_actor.errors import ConfigError, CorruptionError
from durable_actor.maintenance.copies import locked
from durable_actor.maintenance.inspection import damages
from durable_actor.maintenance.release import quarantined, release
from durable_actor.testing import open_test_host
from tests.support.relics import SMALL, Ledger, Shelf, fill
from tests.support.shards import change_file, rows_of


def id_of(directory: Path, name: str) -> str:
    found = rows_of(directory, f"SELECT hex(id) FROM object WHERE name = '{name}'")
    return str(found[0][0]).lower()


async def test_g11_a_released_object_serves_what_can_be_read(tmp_path: Path) -> None:
    await fill(tmp_path, killed=False)
    change_file(
        tmp_path,
        ("UPDATE kv SET value = x'00' WHERE key = 'book 002' AND object = 1", ()),
        ("UPDATE alarm SET retries = 9 WHERE object = 1", ()),
    )
    object_id = id_of(tmp_path, "a")
    async with open_test_host(tmp_path, classes=[Shelf, Ledger], config=SMALL) as test:
        with pytest.raises(CorruptionError):
            await test.host.namespace(Shelf).get_by_name("a").drop(0)
        assert await test.host.namespace(Shelf).get_by_name("b").fill(1) == 1

    with locked(tmp_path):
        assert [*quarantined(tmp_path)] == [object_id]
        assert release(tmp_path, object_id) == 2
        assert damages(tmp_path) == []

    async with open_test_host(tmp_path, classes=[Shelf, Ledger], config=SMALL) as test:
        await test.host.namespace(Shelf).get_by_name("a").drop(0)
    left = rows_of(tmp_path, "SELECT count(*) FROM kv WHERE object = 1")
    assert left == [(10,)]
    kept = (tmp_path / f"released-{object_id}.jsonl").read_text().splitlines()
    assert [json.loads(line)["table"] for line in kept] == ["kv", "alarm"]


def test_g11_a_released_database_serves_its_pages_as_they_are(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path, killed=False))
    (path,) = tmp_path.glob("objects/*/*.db")
    data = bytearray(path.read_bytes())
    data[data.index(b"line 7")] ^= 1
    path.write_bytes(data)
    with locked(tmp_path):
        assert [*quarantined(tmp_path)] == [path.stem]

    with locked(tmp_path):
        assert release(tmp_path, path.stem) == 0

    assert asyncio.run(count(tmp_path)) == 20


async def count(directory: Path) -> int:
    async with open_test_host(directory, classes=[Shelf, Ledger], config=SMALL) as test:
        return await test.host.namespace(Ledger).get_by_name("closed").count()


def test_what_is_whole_is_not_released(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path, killed=False))

    with locked(tmp_path), pytest.raises(ConfigError):
        release(tmp_path, id_of(tmp_path, "a"))


def test_the_commands_list_and_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(fill(tmp_path, killed=False))
    object_id = id_of(tmp_path, "b")
    change_file(tmp_path, ("UPDATE object SET used_at_ms = 5 WHERE name = 'b'", ()))
    capsys.readouterr()

    assert run_command(["quarantine", "list", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == object_id
    assert run_command(["quarantine", "release", str(tmp_path), object_id]) == 0
    assert run_command(["quarantine", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
