"""SIGTERM while clients press on: what was accepted is answered, the rest refused."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.durable_actor.daemon.process import Daemon

CLIENTS = 12
CALLS_BEFORE = 60  # answered before the signal comes

APP = """
import asyncio
from durable_actor import DurableObject, interleave

class Till(DurableObject):
    @interleave
    async def fill(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        coins = (await self.ctx.storage.get("coins") or 0) + 1
        self.ctx.storage.put("coins", coins)
        return coins

    async def coins(self) -> int:
        return await self.ctx.storage.get("coins") or 0
"""


class Crowd:
    """Clients that call until the daemon is gone, and what they were told."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.answers: Counter[str] = Counter()
        self.retry_after: set[str] = set()
        self.ready_codes: set[int] = set()
        self._pressing = asyncio.Event()

    async def press(self, signals: int) -> int:
        """Call, send the signals, and return the exit status."""
        tills = [asyncio.create_task(self._client(n)) for n in range(CLIENTS)]
        await self._pressing.wait()
        for _ in range(signals):
            self._daemon.signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
        await asyncio.gather(*tills)
        return (await asyncio.to_thread(self._daemon.wait))[0]

    async def _client(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self._daemon.token}"}
        async with httpx2.AsyncClient(
            base_url=self._daemon.url, headers=headers, timeout=20
        ) as http:
            while True:
                try:
                    answer = await http.post(
                        f"/v1/objects/Till/{number % 3}/fill",
                        json={"args": [0.02 * (number % 3)]},
                    )
                    if self.answers["draining"]:
                        self.ready_codes.add((await http.get("/readyz")).status_code)
                except httpx2.TransportError:
                    return  # the daemon is gone
                self._note(answer)

    def _note(self, answer: httpx2.Response) -> None:
        told = "ok" if answer.status_code == 200 else answer.json()["code"]
        self.answers[told] += 1
        if told == "draining":
            self.retry_after.add(answer.headers["retry-after"])
        if self.answers["ok"] >= CALLS_BEFORE:
            self._pressing.set()


def filled(daemon: Daemon) -> int:
    """Return how many calls have taken effect."""
    with daemon.http() as http:
        answers = [http.post(f"/v1/objects/Till/{n}/coins").json() for n in range(3)]
    return sum(answer["result"] for answer in answers)


@pytest.mark.parametrize("signals", [1, 2])
async def test_g22_what_was_accepted_is_answered_and_nothing_is_lost(
    start: Callable[[Path], Daemon], tmp_path: Path, signals: int
) -> None:
    (tmp_path / "till_app.py").write_text(APP)
    config = tmp_path / "config.toml"
    config.write_text('main = "till_app.py"\n')
    crowd = Crowd(start(config))
    status = await crowd.press(signals)

    assert status == 0
    assert crowd.answers["ok"] >= CALLS_BEFORE
    taken = filled(start(config))
    if signals == 1:
        # Whatever took effect was answered: no accepted call was reset.
        assert taken == crowd.answers["ok"]
        assert crowd.answers.keys() <= {"ok", "draining"}
    else:
        assert taken >= crowd.answers["ok"]
        assert crowd.answers.keys() <= {"ok", "draining", "object_reset"}
    assert all(int(seconds) >= 1 for seconds in crowd.retry_after)
    assert crowd.ready_codes <= {503}
