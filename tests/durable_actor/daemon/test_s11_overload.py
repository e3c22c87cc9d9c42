"""S11: what is too much is refused early, in words a program can act on.

The shares of one object are tested with its mailbox, in `test_overload.py`; that of one
token in `test_s18_grants.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest

from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.problems import Problem
from tests.durable_actor.daemon.fakes import HOST, TOKEN, Web, digest_of, open_web
from tests.durable_actor.daemon.raw import Raw, open_raw, statuses_of
from tests.durable_actor.daemon.test_s18_grants import GRANTS

POLICY = GuardPolicy(
    token=TOKEN,
    hosts=frozenset({HOST}),
    body_bytes_max=1_000,
    bodies_bytes_max=2_000,
    grants=lambda: {digest_of(name): grant for name, grant in GRANTS.items()},
)


def check_shape(answer: httpx2.Response, status: int) -> None:
    """Check that an answer says all that a program needs to know."""
    told = answer.json()
    assert answer.status_code == status
    assert told["code"] == "overloaded"
    assert told["overloaded"] is True
    assert told["retryable"] is False  # not at once: that is what fills a process
    assert told["outcome"] == "not_executed"
    assert 1_000 <= told["retry_after_ms"] <= 2_000
    assert answer.headers["retry-after"] == str(-(-told["retry_after_ms"] // 1_000))


async def test_s11_an_object_has_a_share_and_the_process_has_an_end() -> None:
    async with open_web() as web:
        check_shape(await web.call("overloaded"), 429)
        web.traffic.in_flight_max = 0
        check_shape(await web.call("add", 1), 503)


async def test_s11_a_full_disk_is_a_507_and_not_an_overload() -> None:
    async with open_web() as web:
        answer = await web.call("full")

    assert answer.status_code == 507
    assert answer.json()["code"] == "storage_full"
    assert answer.json()["overloaded"] is False


def test_s11_those_who_are_refused_together_do_not_come_back_together() -> None:
    problem = Problem(status=503, code="x", detail="", retry_after_ms=1_000)

    delays = {problem.spread().retry_after_ms for _ in range(200)}

    assert len(delays) > 50
    assert all(delay is not None and 1_000 <= delay <= 2_000 for delay in delays)
    assert Problem(status=503, code="x", detail="").spread().retry_after_ms is None


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        (TOKEN, "GET", "/livez", 200),
        (TOKEN, "GET", "/readyz", 200),
        (TOKEN, "GET", "/metrics", 200),
        (TOKEN, "DELETE", "/v1/activations/Till/a", 200),
        (TOKEN, "GET", "/v1/objects", 503),
        (TOKEN, "POST", "/v1/objects/Till/a/add", 503),
        ("write", "DELETE", "/v1/activations/Till/a", 503),
        ("write", "POST", "/v1/objects/Till/a/add", 503),
    ],
)
async def test_s11_health_and_operators_have_room_of_their_own(
    token: str, method: str, path: str, status: int
) -> None:
    async with open_web(policy=POLICY) as web:
        web.traffic.in_flight_max = 0
        headers = {"Authorization": f"Bearer {token}"}
        answer = await web.http.request(method, path, headers=headers)
        web.traffic.in_flight_max = -1_000
        beyond = await web.http.delete("/v1/activations/Till/a")

    assert answer.status_code == status
    assert beyond.status_code == 503  # the reserve has an end, too


def calling(web: Web, size: int, method: str = "echo") -> httpx2.Request:
    frame = b'{"args":[""]}'
    body = frame[:10] + b"x" * (size - len(frame)) + frame[10:]
    assert len(body) == size
    return web.http.build_request(
        "POST",
        f"/v1/objects/Till/a/{method}",
        content=body,
        headers={"Content-Type": "application/json"},
    )


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    async with open_raw(policy=POLICY) as raw:
        yield raw


def adding(raw: Raw, size: int) -> bytes:
    """Return a call with a body of this size."""
    body = b'{"args": [' + b" " * (size - 13) + b"1]}"
    assert len(body) == size
    return raw.head(f"Content-Length: {size}", "Connection: close") + body


async def test_s11_the_bodies_of_all_requests_have_a_bound_together(raw: Raw) -> None:
    held = raw.web.app._held  # type: ignore[attr-defined]
    async with AsyncExitStack() as stack:
        for size in (999, 899):
            _, writer = await stack.enter_async_context(raw.connect())
            writer.write(raw.head("Content-Length: 1000") + b"x" * size)
        while held.bytes < 1_898:
            await asyncio.sleep(0)
        less = await raw.send(adding(raw, 101))
        just = await raw.send(adding(raw, 102))
        more = await raw.send(adding(raw, 103))
        health = await raw.send(
            raw.head("Connection: close", start="GET /livez", token=None)
        )
    while held.bytes:
        await asyncio.sleep(0)
    again = await raw.send(adding(raw, 1_000))

    assert (statuses_of(less), statuses_of(just)) == ([200], [200])
    assert statuses_of(more) == [503]
    assert b'"overloaded":true' in more
    assert b"retry-after" in more
    assert statuses_of(health) == [200]
    assert statuses_of(again) == [200]


async def test_s11_a_body_is_counted_until_its_request_is_over() -> None:
    async with open_web(policy=POLICY) as web:
        for _ in range(10):  # one after the other they are never too many
            assert (await web.http.send(calling(web, 1_000))).status_code == 200
        waiting = []
        for count in range(2):
            request = calling(web, 900, "hold")
            waiting.append(asyncio.ensure_future(web.http.send(request)))
            while len(web.host.calls) <= 10 + count:
                await asyncio.sleep(0)
        check_shape(await web.http.send(calling(web, 900)), 503)
        waiting.pop().cancel()
        while web.traffic.in_flight > 1:
            await asyncio.sleep(0)
        assert (await web.http.send(calling(web, 900))).status_code == 200
        waiting.pop().cancel()
