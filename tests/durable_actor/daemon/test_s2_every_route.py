"""S2: no route is reached without the token, and every refusal is the same.

The walk goes by the route table and by the OpenAPI document, which are made from the
same routes but read by others. WebSockets are walked in `test_s23_web_sockets.py`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncIterator

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from durable_actor.daemon.guard import OPEN_PATHS, Guard, GuardPolicy
from tests.durable_actor.daemon.fakes import HOST, TOKEN, FakeRuns, Web, open_web

CREDENTIALS = [
    [],
    [b""],
    [b"Bearer"],
    [b"Bearer "],
    [b"Bearer wrong"],
    [b"Bearer " + TOKEN.upper().encode()],
    [b"bearer  " + TOKEN.encode()],
    [b"Bearer " + TOKEN.encode()] * 2,
    [b"Bearer " + TOKEN.encode(), b"Bearer wrong"],
    [b"Bearer " + TOKEN.encode() + b", Bearer wrong"],
    [b"Basic " + TOKEN.encode()],
]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X"]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web(runs=[FakeRuns("simple")]) as web:
        yield web


def spelled(path: str, name: str) -> str:
    return re.sub(r"{\w+}", name, path)


@pytest.mark.parametrize("name", ["a", "livez", "readyz", "healthz", "metrics"])
async def test_s2_every_route_refuses_every_wrong_token_in_the_same_words(
    web: Web, name: str
) -> None:
    document = (await web.http.get("/openapi.json")).json()
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    table = {(route.method, route.path) for route in web.routes.table}
    del web.http.headers["Authorization"]
    told = set()

    for method, path in table | described:
        if path.encode() in OPEN_PATHS:
            continue
        for credentials in CREDENTIALS:
            headers = [(b"authorization", value) for value in credentials]
            answer = await web.http.request(
                method, spelled(path, name), headers=headers
            )
            told.add((answer.status_code, answer.content, tuple(answer.headers)))

    assert described == table
    assert len(told) == 1
    assert next(iter(told))[0] == 401
    assert web.host.calls == web.host.deleted == web.host.evicted == []


async def test_s2_no_method_and_no_path_goes_around_the_guard(web: Web) -> None:
    del web.http.headers["Authorization"]

    for method in METHODS:
        for path in ("/", "/nothing", "/metrics", "/v1/objects/Till/a", "/livez/x"):
            answer = await web.http.request(method, path)
            assert answer.status_code == 401, (method, path)


async def test_s2_the_token_is_not_looked_for_in_the_url(web: Web) -> None:
    del web.http.headers["Authorization"]

    for key in ("token", "access_token", "bearer", "authorization"):
        answer = await web.http.get(f"/metrics?{key}={TOKEN}")
        assert answer.status_code == 401


async def test_s2_the_guard_asks_before_the_application_is_called() -> None:
    """The control: with the token the same request comes through."""
    asked = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["raw_path"])
        await Response()(scope, receive, send)

    guard = Guard(app, GuardPolicy(token=TOKEN, hosts=frozenset({HOST})))
    for headers in ([], [(b"authorization", f"Bearer {TOKEN}".encode())]):
        scope = {
            "type": "http",
            "method": "GET",
            "raw_path": b"/anything",
            "query_string": b"",
            "headers": [(b"host", HOST.encode()), *headers],
        }

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: object) -> None:
            del message

        await guard(scope, receive, send)

    assert asked == [b"/anything"]


async def test_s2_digests_of_one_length_are_compared_in_constant_time(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr("durable_actor.daemon.guard.hmac.compare_digest", compare)
    for credentials in ("", "Bearer", "Bearer x", f"Bearer {TOKEN}", "Basic x"):
        await web.http.get("/metrics", headers={"Authorization": credentials})

    assert compared == [(32, 32)] * 5
