"""A damaged object is refused, the others work, and its alarm does not spin."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_actor import CorruptionError, DurableObject
from durable_actor.testing import START_MS, TestHost, open_test_host
from tests.support.relics import SMALL
from tests.support.shards import change_file, rows_of

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

BROKEN = "SELECT num FROM object WHERE name = 'broken'"
RUNG: list[str] = []


class Bell(DurableObject):
    async def set(self, seconds: int) -> None:
        self.ctx.storage.put("seconds", seconds)
        self.ctx.storage.set_alarm(START_MS + seconds * 1_000)

    async def alarm(self) -> None:
        RUNG.append(str(self.ctx.id.name))


async def damaged(test: TestHost) -> None:
    """Set two alarms, and damage the object of one of them."""
    bells = test.host.namespace(Bell)
    for name in ("broken", "whole"):
        await bells.get_by_name(name).set(60)
    await test.host.close()
    change_file(
        test.directory,
        (f"UPDATE kv SET crc = crc + 1 WHERE object IN ({BROKEN})", ()),
    )
    await test.start()


async def test_g11_the_alarm_of_a_damaged_object_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RUNG.clear()
    async with open_test_host(tmp_path, classes=[Bell], config=SMALL) as test:
        await damaged(test)
        loads: list[bytes] = []
        load = test.host.committer.load

        async def counted(raw_id: bytes) -> object:
            loads.append(raw_id)
            return await load(raw_id)

        monkeypatch.setattr(test.host.committer, "load", counted)
        await test.advance("2 minutes")

        assert RUNG == ["whole"]
        broken = test.host.namespace(Bell).id_from_name("broken").raw
        tries = loads.count(broken)
        assert 1 <= tries <= 60, "it is looked at again, at most every second"
    kept = rows_of(tmp_path, "SELECT count(*) FROM alarm")
    assert kept == [(1,)], "nothing is deleted by itself"


async def test_g11_a_damaged_object_is_refused_and_nothing_is_made_again(
    tmp_path: Path,
) -> None:
    async with open_test_host(tmp_path, classes=[Bell], config=SMALL) as test:
        await damaged(test)
        bells = test.host.namespace(Bell)
        for _ in range(2):
            with pytest.raises(CorruptionError):
                await bells.get_by_name("broken").set(1)
        await bells.get_by_name("whole").set(5)
        await bells.get_by_name("new").set(5)

    assert rows_of(tmp_path, "SELECT count(*) FROM object") == [(3,)]
