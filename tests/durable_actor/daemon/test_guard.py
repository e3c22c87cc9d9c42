"""Who may come in, at the application in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.types import Message

from durable_actor.daemon.guard import OPEN_PATHS, GuardPolicy
from tests.durable_actor.daemon.fakes import HOST, TOKEN, FakeRuns, Web, open_web


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web(runs=[FakeRuns("simple")]) as web:
        yield web


def paths(web: Web) -> Iterator[tuple[str, str]]:
    for route in web.routes.table:
        path = route.path
        for name in ("class", "name", "method", "workflow", "id"):
            path = path.replace(f"{{{name}}}", "livez")
        yield route.method, path


async def test_s2_every_route_but_two_wants_the_token(web: Web) -> None:
    walked = [
        (method, path) for method, path in paths(web) if path.encode() not in OPEN_PATHS
    ]

    assert len(walked) >= 15
    for method, path in walked:
        answer = await web.http.request(method, path, headers={"Authorization": ""})
        assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize(
    "credentials",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Bearer wrong"],
        [f"Bearer {TOKEN.upper()}"],
        [f"Bearer {TOKEN} "],
        [f"Bearer  {TOKEN}"],
        [f"Basic {TOKEN}"],
        [TOKEN],
        [f"Bearer {TOKEN}x"],
        [f"Bearer {TOKEN[:-1]}"],
        [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
        ["Bearer \xe9"],
    ],
)
async def test_s2_anything_but_the_one_token_gets_the_same_refusal(
    web: Web, credentials: list[str]
) -> None:
    del web.http.headers["Authorization"]
    headers = [(b"Authorization", value.encode("latin-1")) for value in credentials]

    answer = await web.http.get("/metrics", headers=headers)
    missing = await web.http.get("/metrics")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.content == missing.content
    assert answer.json()["code"] == "unauthorized"


async def test_the_scheme_of_the_token_has_no_case(web: Web) -> None:
    headers = {"Authorization": f"bearer {TOKEN}"}

    answer = await web.http.get("/openapi.json", headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_is_answered_without_a_token(web: Web, path: str) -> None:
    del web.http.headers["Authorization"]

    assert (await web.http.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/livez/",
        "//livez",
        "/livez%2f",
        "/%6Civez",
        "/LIVEZ",
        "/metrics/livez",
        "/v1/objects/Till/livez",
        "/v1/runs/x/readyz",
    ],
)
async def test_s2_only_the_exact_path_is_open(web: Web, path: str) -> None:
    del web.http.headers["Authorization"]

    answer = await web.http.get(f"http://{HOST}{path}")

    assert answer.status_code == 401


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8787",
    "127.0.0.1",
    "127.0.0.1:8788",
    "127.0.0.1.:8787",
    "localhost.:8787",
    "0.0.0.0:8787",
    "[::1]:8787",
    "127.0.0.1:8787@evil.example",
    "127.0.0.1:8787,evil.example",
    "",
    "\xff\xfe",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/livez", "/v1/objects/Till/a", "/nothing"])
async def test_s4_a_foreign_host_is_refused_before_anything_else(
    web: Web, host: str, method: str, path: str
) -> None:
    headers = [
        (b"Host", host.encode("latin-1")),
        (b"Authorization", f"Bearer {TOKEN}".encode()),
    ]

    answer = await web.http.request(method, path, headers=headers)

    assert answer.status_code == 403
    assert answer.json()["code"] == "host_refused"
    assert web.host.calls == web.host.deleted == []


async def test_s4_a_host_is_compared_without_case() -> None:
    policy = GuardPolicy(token=TOKEN, hosts=frozenset({"localhost:8787"}))
    async with open_web(policy=policy) as web:
        answer = await web.http.get("/livez", headers={"Host": "LocalHost:8787"})

    assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"http://{HOST}"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_s4_a_page_of_any_origin_is_refused_by_default(
    web: Web, origin: str, method: str
) -> None:
    answer = await web.http.request(
        method, "/v1/objects/Till/a", headers={"Origin": origin}
    )

    assert answer.status_code == 403
    assert answer.json()["code"] == "origin_refused"
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_s4_an_allowed_origin_comes_in_by_its_exact_name() -> None:
    policy = GuardPolicy(
        token=TOKEN,
        hosts=frozenset({HOST}),
        origins=frozenset({"https://console.example"}),
    )
    async with open_web(policy=policy) as web:
        for origin, status in [
            ("https://console.example", 200),
            ("https://console.example.evil.example", 403),
            ("http://console.example", 403),
        ]:
            answer = await web.http.get("/metrics", headers={"Origin": origin})
            assert answer.status_code == status, origin


SMALL = GuardPolicy(
    token=TOKEN,
    hosts=frozenset({HOST}),
    body_bytes_max=1_000,
    header_bytes_max=1_000,
    headers_max=10,
    target_bytes_max=200,
)


@pytest.mark.parametrize(("more", "status"), [(-1, 200), (0, 200), (1, 413)])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_s9_a_body_may_be_as_large_as_the_limit(
    more: int, status: int, *, is_chunked: bool
) -> None:
    frame = b'{"args":[""]}'
    filling = b"x" * (1_000 + more - len(frame))
    body = frame[:10] + filling + frame[10:]

    async def chunks() -> AsyncIterator[bytes]:
        yield body[:500]
        yield body[500:]

    async with open_web(policy=SMALL) as web:
        answer = await web.http.post(
            "/v1/objects/Till/a/echo",
            content=chunks() if is_chunked else body,
            headers={"Content-Type": "application/json"},
        )

    assert len(body) == 1_000 + more
    assert answer.status_code == status


async def test_s9_a_body_announced_too_large_is_not_read() -> None:
    async with open_web(policy=SMALL) as web:
        read = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal read
            read += 1
            yield b"x" * 10

        answer = await web.http.post(
            "/nothing", content=chunks(), headers={"Content-Length": "9" * 30}
        )

    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert "1000" in answer.json()["detail"]


@pytest.mark.parametrize(("more", "status"), [(-1, 404), (0, 404), (1, 414)])
async def test_s9_a_target_may_be_as_long_as_the_limit(more: int, status: int) -> None:
    async with open_web(policy=SMALL) as web:
        answer = await web.http.get("/" + "x" * (199 + more))

    assert answer.status_code == status


@pytest.mark.parametrize(("count", "status"), [(9, 200), (10, 200), (11, 431)])
async def test_s9_there_may_be_as_many_headers_as_the_limit(
    count: int, status: int
) -> None:
    headers = [(b"Host", HOST.encode())]
    headers += [(f"X-{n}".encode(), b"") for n in range(count - 1)]
    async with open_web(policy=SMALL) as web:
        web.http.headers.clear()
        answer = await web.http.get("/livez", headers=headers)

    assert answer.status_code == status


async def test_s9_headers_may_be_as_large_as_the_limit() -> None:
    async with open_web(policy=SMALL) as web:
        web.http.headers.clear()
        used = len(b"Host") + len(HOST) + 4 + len(b"X") + 4
        for size, status in [(999, 200), (1_000, 200), (1_001, 431)]:
            headers = {"Host": HOST, "X": "x" * (size - used)}
            answer = await web.http.get("/livez", headers=headers)
            assert answer.status_code == status, size


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"Content-Length", b"2"), (b"Transfer-Encoding", b"chunked")], 400),
        ([(b"Content-Length", b"2"), (b"Content-Length", b"2")], 400),
        ([(b"Content-Length", b"2"), (b"Content-Length", b"3")], 400),
        ([(b"Content-Length", b"+2")], 400),
        ([(b"Content-Length", b"-2")], 400),
        ([(b"Content-Length", b"2, 2")], 400),
        ([(b"Content-Length", b"0x2")], 400),
        ([(b"Content-Length", b"\xb2")], 400),
        ([(b"Upgrade", b"websocket")], 400),
        ([(b"Content-Encoding", b"gzip"), (b"Content-Length", b"2")], 415),
    ],
)
async def test_s12_ambiguous_framing_is_refused(
    web: Web, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    answer = await web.http.post("/v1/objects/Till/a/add", headers=headers)

    assert answer.status_code == status


async def test_s10_a_body_that_stops_half_way_is_given_up() -> None:
    policy = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}), body_timeout_ms=20)
    arriving = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent: list[Message] = []

    async def receive() -> Message:
        if arriving:
            return arriving.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/v1/objects/Till/a/add",
        "query_string": b"",
        "headers": [
            (b"host", HOST.encode()),
            (b"authorization", f"Bearer {TOKEN}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"100"),
        ],
    }
    async with open_web(policy=policy) as web:
        await web.app(scope, receive, send)

    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert web.host.calls == []


async def test_a_draining_daemon_refuses_new_work_and_says_when_to_come_back(
    web: Web,
) -> None:
    await web.traffic.drain()

    refused = await web.call("add", 1)
    ready = await web.http.get("/readyz")

    assert refused.status_code == 503
    assert refused.json()["code"] == "draining"
    assert refused.json()["outcome"] == "not_executed"
    assert int(refused.headers["retry-after"]) >= 1
    assert ready.status_code == 503
    assert ready.json() == {"status": "not_ready", "reasons": ["draining"]}
    assert (await web.http.get("/livez")).status_code == 200
    assert (await web.http.get("/metrics")).status_code == 200


async def test_s11_a_full_process_refuses_but_tells_how_it_is(web: Web) -> None:
    web.traffic.in_flight_max = 0

    refused = await web.call("add", 1)

    assert refused.status_code == 503
    assert refused.json()["code"] == "overloaded"
    assert refused.json()["overloaded"] is True
    assert "retry-after" in refused.headers
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await web.http.get(path)).status_code == 200


async def test_a_drain_waits_for_accepted_work(web: Web) -> None:
    call = asyncio.ensure_future(web.call("wait"))
    await web.host.called.wait()

    drain = asyncio.ensure_future(web.traffic.drain())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not drain.done()

    call.cancel()
    await drain
