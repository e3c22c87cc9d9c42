"""A handler that kills its process is not run for ever (G18)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.durable_actor.daemon.process import Daemon

APP = """
import asyncio, os, signal
from durable_actor import DurableObject

class Fragile(DurableObject):
    async def poison(self) -> None:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

    async def ping(self) -> str:
        return "pong"
"""


def call(daemon: Daemon, name: str, method: str) -> httpx2.Response:
    with daemon.http() as http:
        return http.post(f"/v1/objects/Fragile/{name}/{method}")


def test_g18_a_call_that_kills_the_process_is_refused_in_the_end(
    start: Callable[[Path], Daemon], tmp_path: Path
) -> None:
    (tmp_path / "fragile_app.py").write_text(APP)
    config = tmp_path / "config.toml"
    config.write_text('main = "fragile_app.py"\n[crashes]\ndeaths_max = 2\n')
    for _ in range(2):
        daemon = start(config)
        assert call(daemon, "b", "ping").json() == {"result": "pong"}
        with pytest.raises(httpx2.TransportError):
            call(daemon, "a", "poison")

    daemon = start(config)
    refused = call(daemon, "a", "poison")
    assert (refused.status_code, refused.json()["code"]) == (503, "event_quarantined")
    assert refused.json()["outcome"] == "not_executed"
    assert call(daemon, "a", "ping").json() == {"result": "pong"}
    with daemon.http() as http:
        [event] = http.get("/v1/quarantine").json()["events"]
        assert (event["object_class"], event["name"]) == ("Fragile", "a")
        assert (event["event"], event["deaths"]) == ("poison", 2)
        path = f"/v1/quarantine/Fragile/{event['id']}/poison?by=id"
        assert http.delete(path).json() == {"released": True}
        assert http.get("/v1/quarantine").json() == {"events": []}
    with pytest.raises(httpx2.TransportError):
        call(daemon, "a", "poison")  # released, and as deadly as before
