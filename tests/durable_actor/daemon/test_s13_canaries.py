"""S13: what callers send is in no log, metric or refusal. S16: its files are private.

Each test looks at the same daemon, started with no umask at all, after every input has
had its canary. That a wide, foreign or linked data directory is refused is tested in
`storage/test_integrity.py`, and that this ends with 78 in `test_serve.py`.

Not among the inputs: what an object's own code writes into the text of an exception
that nobody is there to be told of, such as that of an alarm. It is logged.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from tests.durable_actor.daemon.process import Daemon

CANARY = "canary"
APP = """
import asyncio

from durable_actor import DurableObject, Request, Response, WebSocketPair
from examples.fixture.app import Workflows


class Safe(DurableObject):
    async def keep(self, key, value, *, twice=None):
        self.ctx.storage.put(key, [value, twice])
        return value

    async def fail(self, value):
        raise ValueError("no")

    async def refuse(self, value):
        self.ctx.storage.put(value, lambda: value)

    async def slow(self, value):
        await asyncio.sleep(0.05)

    async def fetch(self, request):
        if "upgrade" in request.headers:
            client, server = WebSocketPair()
            self.ctx.accept_web_socket(server)
            return Response(status=101, web_socket=client)
        text = await request.text()
        if request.path == "/fail":
            raise ValueError("no")
        return Response(text, headers={"X-Echo": request.headers.get("x-c", "")})

    async def web_socket_message(self, ws, message):
        ws.send(message)
        raise ValueError("no")
"""


@dataclass(frozen=True)
class Exposed:
    """A daemon that has seen every canary."""

    daemon: Daemon
    log: str
    metrics: str
    refusals: list[httpx2.Response]
    data_dir: Path


class Canaries:
    """Makes texts that can be found again."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, where: str) -> str:
        self.count += 1
        return f"{CANARY}-{where}-{self.count}"


def sing(http: httpx2.Client, token: str) -> list[httpx2.Response]:
    """Put a canary into every input; return the refusals that others could see."""
    canary = Canaries()
    safe = "/v1/objects/Safe/a"

    def headers() -> dict[str, str]:
        return {
            "Cookie": f"session={canary('cookie')}",
            "User-Agent": canary("agent"),
            "Referer": f"http://127.0.0.1/{canary('referer')}",
            "X-C": canary("header"),
            "X-Forwarded-For": canary("forwarded"),
            "Idempotency-Key": canary("request-id"),
        }

    def call(method: str, *args: object, **kwargs: object) -> httpx2.Response:
        body = {"args": args, "kwargs": kwargs}
        return http.post(f"{safe}/{method}", json=body, headers=headers())

    kept = call("keep", canary("key"), canary("value"), twice=canary("kwarg"))
    assert kept.status_code == 200
    assert call("fail", canary("argument")).status_code == 500
    assert call("refuse", canary("stored")).status_code == 500
    assert call("keep", canary("few")).status_code == 400
    timeout = {"X-Timeout-Ms": "1"}
    http.post(f"{safe}/slow", json={"args": [canary("slow")]}, headers=timeout)
    for body in (b'{"args":["%s"', b'{"args":["%s"],"bogus":1}', b"\xff%s", b"[%s]"):
        sent = body % canary("body").encode()
        answer = http.post(
            f"{safe}/keep", content=sent, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400
    assert http.post(f"{safe}/keep", content=canary("type")).status_code == 415
    for path in ("/ok", "/fail"):
        http.post(
            f"/objects/Safe/a{path}?q={canary('query')}",
            content=canary("fetched"),
            headers=headers(),
        )
    run = {"id": "a", "input": {"value": 1}}
    assert http.post("/v1/workflows/simple/runs", json=run).status_code == 200
    for value in ({"value": canary("input")}, {"other": canary("input")}):
        sent_run = {"id": "b", "input": value}
        answer = http.post("/v1/workflows/simple/runs", json=sent_run)
        assert answer.status_code == 400
    http.post("/v1/runs/simple/a/cancel", json={"reason": canary("reason")})
    http.get(f"/v1/objects?class=Safe&prefix={canary('prefix')}")
    http.get(f"/v1/storage/Safe/a?prefix={canary('prefix')}")
    url = str(http.base_url).replace("http", "ws").rstrip("/")
    authorized = {"Authorization": f"Bearer {token}"}
    with connect(
        f"{url}/objects/Safe/a/?q={canary('query')}",
        additional_headers=authorized,
        proxy=None,
    ) as socket:
        socket.send(canary("message"))
        socket.recv()
    refusals = []
    for wrong in (
        {"Authorization": f"Bearer {canary('token')}"},
        {"Authorization": canary("scheme")},
        {"Sec-WebSocket-Protocol": f"bearer.{canary('token')}"},
    ):
        bare = {**wrong, **headers(), "Connection": "close"}
        with httpx2.Client(base_url=http.base_url, trust_env=False) as stranger:
            refusals.append(
                stranger.get(f"/metrics?token={canary('url')}", headers=bare)
            )
    assert canary.count > 40
    return refusals


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "safe_app.py").write_text(APP)
    config = folder / "config.toml"
    config.write_text('main = "safe_app.py"\n')
    before = os.umask(0)
    try:
        daemon = Daemon("--data-dir", str(folder / "data"), config=config)
    finally:
        os.umask(before)
    daemon.wait_ready()
    with daemon.http() as http:
        refusals = sing(http, daemon.token)
        metrics = http.get("/metrics").text
    data_dir = Path(daemon.ready["data_dir"])
    modes = list(data_dir.rglob("*"))
    assert modes
    log_before_the_end = daemon.token
    daemon.signal()
    status, log = daemon.wait()
    assert status == 0
    assert log_before_the_end not in log
    yield Exposed(daemon, log, metrics, refusals, data_dir)
    daemon.kill()


def test_s13_no_canary_is_in_the_log_nor_in_the_metrics(exposed: Exposed) -> None:
    lines = [json.loads(line) for line in exposed.log.splitlines()]

    assert [line for line in lines if CANARY in json.dumps(line)] == []
    assert CANARY not in exposed.metrics
    # The control: what happened was logged, under the ids of who asked.
    assert "request.handler_error" in {line["event"] for line in lines}


def test_s13_a_refusal_tells_nothing_of_what_was_sent(exposed: Exposed) -> None:
    assert [answer.status_code for answer in exposed.refusals] == [401] * 3
    for answer in exposed.refusals:
        assert CANARY not in answer.text + str(answer.headers)


def test_s13_the_canaries_did_reach_the_disk(exposed: Exposed) -> None:
    """The control: they were there to be told."""
    found = b"".join(
        path.read_bytes() for path in exposed.data_dir.rglob("*") if path.is_file()
    )

    assert b"canary-key" in found
    assert b"canary-value" in found


def test_s16_every_file_is_its_owners_alone_without_any_umask(exposed: Exposed) -> None:
    assert stat.S_IMODE(exposed.data_dir.stat().st_mode) == 0o700
    for path in exposed.data_dir.rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
