"""S4: a page in the user's browser can neither read nor change anything.

Host and Origin are compared in `test_guard.py`, targets in `test_protocol.py`; here is
what a page can send without being asked: forms, and GET.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.durable_actor.daemon.fakes import HOST, FakeRuns, Web, open_web
from tests.durable_actor.daemon.raw import open_raw, statuses_of

NAMES = {"class": "Till", "method": "add", "workflow": "simple"}


@pytest.fixture
async def runs() -> FakeRuns:
    return FakeRuns("simple")


@pytest.fixture
async def web(runs: FakeRuns) -> AsyncIterator[Web]:
    async with open_web(runs=[runs]) as web:
        yield web


def spelled(path: str) -> str:
    return re.sub(r"{(\w+)}", lambda found: NAMES.get(found[1], "a"), path)


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "text/plain",
        "text/plain; charset=utf-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json+x",
        "text/json",
        "application/octet-stream",
    ],
)
async def test_s4_a_body_that_does_not_say_it_is_json_is_not_looked_at(
    web: Web, runs: FakeRuns, media_type: str | None
) -> None:
    walked = 0
    for route in web.routes.table:
        if route.request is None:
            continue
        walked += 1
        headers = {} if media_type is None else {"Content-Type": media_type}
        answer = await web.http.request(
            route.method, spelled(route.path), content=b'{"args":[1]}', headers=headers
        )
        assert answer.status_code == 415, (route.name, answer.text)

    assert walked >= 5
    assert web.host.calls == []
    assert runs.asked == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
async def test_s4_what_is_safe_changes_nothing(
    web: Web, runs: FakeRuns, method: str
) -> None:
    for route in web.routes.table:
        if route.is_stream or route.takes_rest:
            continue  # a stream does not end; what is an object's own is the object's
        await web.http.request(method, spelled(route.path))

    assert web.host.calls == web.host.deleted == web.host.evicted == []
    assert [ask for ask in runs.asked if ask[0] != "list"] == []


@pytest.mark.parametrize("origin", [None, "https://evil.example", f"http://{HOST}"])
async def test_s4_no_answer_lets_a_page_read_it(web: Web, origin: str | None) -> None:
    headers = {"Access-Control-Request-Method": "DELETE"}
    headers |= {} if origin is None else {"Origin": origin}
    for route in web.routes.table:
        if route.is_stream:
            continue
        for method in (route.method, "OPTIONS"):
            answer = await web.http.request(
                method, spelled(route.path), headers=headers
            )
            found = [name for name in answer.headers if "access-control" in name]
            assert found == [], route.name
            assert origin is None or answer.status_code == 403


async def test_s4_options_say_what_is_possible_and_trace_is_not(web: Web) -> None:
    methods: dict[str, set[str]] = {}
    for route in web.routes.table:
        methods.setdefault(route.path, set()).add(route.method)
        if route.method == "GET" and not route.is_stream:
            methods[route.path].add("HEAD")

    for path, expected in methods.items():
        if "OPTIONS" in expected:
            continue  # an object's own answer
        answer = await web.http.options(spelled(path))
        assert (answer.status_code, answer.content) == (204, b""), path
        assert set(answer.headers["allow"].split(", ")) == expected | {"OPTIONS"}
        trace = await web.http.request("TRACE", spelled(path))
        assert trace.status_code == 405
        assert trace.headers["allow"] == answer.headers["allow"]
        put = await web.http.request("PROPFIND", spelled(path))
        assert put.status_code == 405
    assert (await web.http.options("/nothing")).status_code == 404


async def test_s4_head_is_get_without_its_body() -> None:
    async with open_raw() as raw:
        for path in ("/livez", "/metrics", "/openapi.json", "/v1/classes", "/nothing"):
            lines = "Connection: close"
            get = await raw.send(raw.head(lines, start=f"GET {path}"))
            head = await raw.send(raw.head(lines, start=f"HEAD {path}"))
            assert statuses_of(head) == statuses_of(get)
            assert head.endswith(b"\r\n\r\n"), path
            assert head.count(b"content-length") == 1
            assert length_of(head) == length_of(get)
        stream = await raw.send(raw.head(start="HEAD /v1/watches/Till/a"))

    assert statuses_of(stream) == [405]  # it has no end to wait for


def length_of(answer: bytes) -> bytes:
    """Return the line that tells the length, but for what is different each time."""
    found = re.search(rb"content-length: \d+", answer)
    assert found is not None
    return found[0]
