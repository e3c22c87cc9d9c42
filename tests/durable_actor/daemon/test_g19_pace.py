"""G19, S11: a few requests begin in each round of the loop, object by object."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from durable_actor.daemon.pace import Pace
from tests.durable_actor.daemon.fakes import open_web
from tests.durable_actor.daemon.test_s11_overload import check_shape


async def begin(pace: Pace, line: bytes, log: list[bytes]) -> None:
    await pace.turn(line)
    log.append(line)


async def a_round() -> None:
    """Let everything that is ready have its turn, once."""
    await asyncio.sleep(0)


async def test_g19_so_many_begin_in_a_round_and_no_more() -> None:
    pace, log = Pace(begin_max=4), list[bytes]()
    tasks = [asyncio.ensure_future(begin(pace, b"a", log)) for _ in range(10)]
    begun, rounds = [0], 0
    while len(log) < 10:
        await a_round()
        begun.append(len(log))
        rounds += 1
    steps = [after - before for before, after in pairwise(begun)]

    assert max(steps) <= 4
    assert rounds < 10, "those who wait begin soon nevertheless"
    await asyncio.gather(*tasks)


async def test_g19_a_crowd_at_one_object_waits_for_itself() -> None:
    pace, log = Pace(begin_max=2), list[bytes]()
    names = [*[b"hot"] * 50, b"other", b"another"]
    tasks = [asyncio.ensure_future(begin(pace, name, log)) for name in names]
    await asyncio.gather(*tasks)

    assert log.count(b"hot") == 50
    assert log.index(b"other") < 6
    assert log.index(b"another") < 8


async def test_g19_in_one_line_who_came_first_begins_first() -> None:
    pace, log = Pace(begin_max=1), list[int]()

    async def one(number: int) -> None:
        await pace.turn(b"a")
        log.append(number)

    await asyncio.gather(*(one(number) for number in range(9)))

    assert log == list(range(9))


async def test_g19_whoever_leaves_the_line_does_not_hold_it_up() -> None:
    pace, log = Pace(begin_max=1), list[bytes]()
    tasks = [asyncio.ensure_future(begin(pace, b"a", log)) for _ in range(5)]
    await a_round()
    for task in tasks[1:4]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert log == [b"a", b"a"]
    await a_round()
    await a_round()
    assert pace.is_free


async def test_s11_behind_one_who_waited_too_long_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace = Pace(begin_max=0)
    waiting = asyncio.ensure_future(pace.turn(b"a"))
    await a_round()
    loop = asyncio.get_running_loop()
    now = loop.time

    assert not pace.is_late(b"a")
    monkeypatch.setattr(loop, "time", lambda: now() + 5.1)
    assert pace.is_late(b"a")
    assert not pace.is_late(b"b"), "whose line it is, is told apart"
    waiting.cancel()


async def test_s11_health_and_operators_do_not_wait_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_web() as web:
        web.traffic.pace = Pace(begin_max=0)
        call = asyncio.ensure_future(web.call("add", 1))
        while not web.traffic.in_flight:
            await asyncio.sleep(0)
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await web.http.get(path)).status_code == 200
        evicted = await web.http.delete("/v1/activations/Till/a")
        assert evicted.status_code == 200
        assert not call.done()
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 5.1)
        check_shape(await web.call("add", 1), 503)
        monkeypatch.undo()
        call.cancel()
