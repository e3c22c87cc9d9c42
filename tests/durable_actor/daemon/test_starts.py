"""A daemon that crashes again and again begins to leave everything alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from durable_actor.config import CrashesConfig
from durable_actor.daemon.starts import STARTS_FILE, Starts
from durable_actor.entrypoints import DurableObject
from durable_actor.errors import SafeModeError
from durable_actor.host import Host
from durable_actor.testing import open_test_host
from tests.durable_actor.daemon.process import Daemon

NOW_MS = 1_800_000_000_000
CONFIG = CrashesConfig()


def crash(directory: Path, *at_ms: int) -> Starts:
    """Start at these times, and never end in order; return the last start."""
    return [Starts(directory, CONFIG, now_ms=now_ms) for now_ms in at_ms][-1]


def test_g21_five_unclean_starts_within_a_minute_are_too_many(tmp_path: Path) -> None:
    fifth = crash(tmp_path, *range(NOW_MS, NOW_MS + 50_000, 10_000))
    sixth = crash(tmp_path, NOW_MS + 50_000)

    assert (fifth.crashes, fifth.are_too_many) == (4, False)
    assert (sixth.crashes, sixth.are_too_many) == (5, True)
    assert (tmp_path / STARTS_FILE).stat().st_mode & 0o777 == 0o600


def test_g21_starts_that_lie_further_apart_are_not(tmp_path: Path) -> None:
    last = crash(tmp_path, *range(NOW_MS, NOW_MS + 200_000, 20_000))

    assert (last.crashes, last.are_too_many) == (3, False)


def test_g21_an_end_in_order_forgets_them(tmp_path: Path) -> None:
    crash(tmp_path, *[NOW_MS] * 8).ended_in_order()

    assert crash(tmp_path, NOW_MS).crashes == 0


def test_g21_starts_of_a_time_that_is_yet_to_come_do_not_count(tmp_path: Path) -> None:
    crash(tmp_path, *[NOW_MS + 3_600_000] * 8)

    assert crash(tmp_path, NOW_MS).crashes == 0


@pytest.mark.parametrize("content", [b"", b"[1, 2", b'{"a": 1}', b"\xff\xfe"])
def test_g21_a_damaged_file_keeps_nobody_from_starting(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / STARTS_FILE).write_bytes(content)

    assert crash(tmp_path, NOW_MS).crashes == 0
    assert json.loads((tmp_path / STARTS_FILE).read_bytes()) == [NOW_MS]


def test_g21_zero_switches_it_off(tmp_path: Path) -> None:
    crash(tmp_path, *[NOW_MS] * 9)

    assert not Starts(tmp_path, CrashesConfig(starts_max=0), now_ms=NOW_MS).are_too_many


class Bell(DurableObject):
    rung: ClassVar[list[str]] = []

    async def ring_in(self, delay_ms: int) -> None:
        self.ctx.storage.put("set", True)
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms() + delay_ms)

    async def alarm(self) -> None:
        self.rung.append(str(self.ctx.id.name))


async def test_g21_a_paused_host_shows_what_is_stored_and_runs_nothing(
    tmp_path: Path,
) -> None:
    Bell.rung.clear()
    async with open_test_host(tmp_path / "data", classes=[Bell]) as test:
        bells = test.host.namespace(Bell)
        for name in "ab":
            await bells.get_by_name(name).ring_in(1_000)
    host = Host(tmp_path / "data", classes=[Bell], clock=test.clock)
    await host.open(is_paused=True)
    await test.clock.advance("1 hour")
    bell = host.namespace(Bell).get_by_name("a")

    assert host.is_paused
    with pytest.raises(SafeModeError) as raised:
        await bell.ring_in(1)
    assert (raised.value.outcome, raised.value.retryable) == ("not_executed", True)
    assert len((await host.list_objects()).objects) == 2
    assert len((await host.alarms()).alarms) == 2
    stored = await host.stored_keys(host.namespace(Bell).id_from_name("a"))
    assert [key.key for key in stored.keys] == ["set"]
    assert await host.delete(host.namespace(Bell).id_from_name("b"))
    assert Bell.rung == []

    await host.resume()
    await test.clock.settle()
    await test.clock.advance("1 second")
    while not Bell.rung:  # nobody knows when its storage is at work
        await test.clock.settle()
    assert Bell.rung == ["a"]
    await host.close()


LETHAL = """
import os
from durable_actor import DurableObject

class Lethal(DurableObject):
    async def arm(self) -> None:
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms() + 100)

    async def alarm(self) -> None:
        os._exit(9)
"""


def test_g21_an_application_that_kills_its_process_ends_in_safe_mode(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    (tmp_path / "lethal_app.py").write_text(LETHAL)
    config = tmp_path / "config.toml"
    # The event is not quarantined here, so that nothing else stops the loop.
    text = 'main = "lethal_app.py"\ncrashes.deaths_max = 0\ncrashes.starts_max = 2\n'
    config.write_text(text)
    first = start_daemon(config=config).wait_ready()
    with first.http() as http:
        http.post("/v1/objects/Lethal/a/arm")
    assert first.wait()[0] == 9
    assert start_daemon(config=config).wait()[0] == 9

    safe = start_daemon(config=config).wait_ready()
    with safe.http() as http:
        refused = http.post("/v1/objects/Lethal/b/arm")
        listed = http.get("/v1/objects").json()["objects"]
        ready = http.get("/readyz")
        alarms = http.get("/v1/alarms").json()["alarms"]
        deleted = http.delete("/v1/objects/Lethal/a").json()
    assert safe.ready["safe_mode"] is True
    assert (refused.status_code, refused.json()["code"]) == (503, "safe_mode")
    assert refused.headers["retry-after"]
    assert [found["name"] for found in listed] == ["a"]
    assert len(alarms) == 1
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["safe_mode"])
    assert deleted == {"deleted": True}
    safe.signal(signal.SIGTERM)
    assert safe.wait()[0] == 0

    well = start_daemon(config=config).wait_ready()
    assert "safe_mode" not in well.ready
    assert well.stop()[0] == 0
