"""Events on their way to a collector."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import msgspec
import pytest

from durable_actor import OutboxEvent
from durable_actor.testing import ManualClock
from workflows.backoff import Retry
from workflows.errors import TrackerError
from workflows.http_tracker import BATCH_BYTES_MAX, HttpBatchTracker, HttpTracker

URL = "https://events.example.com/ingest"


def rows(count: int, *, size: int = 0) -> list[OutboxEvent]:
    return [
        OutboxEvent(seq=n, object_id="x", data={"seq": n, "pad": "x" * size})
        for n in range(1, count + 1)
    ]


class Collector:
    """Answers what it is told to, and remembers what it was sent."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []
        self.batches: list[list[int]] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        body = msgspec.json.decode(await request.aread())
        self.batches.append([event["seq"] for event in body["events"]])
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        return httpx2.Response(answer)


Opener = Callable[..., HttpBatchTracker]


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    trackers: list[HttpBatchTracker] = []

    def open_tracker(collector: Collector, **options: Any) -> HttpBatchTracker:
        transport = httpx2.MockTransport(collector)
        tracker = HttpBatchTracker(URL, transport=transport, **options)
        trackers.append(tracker)
        return tracker

    yield open_tracker
    for tracker in trackers:
        await tracker.close()


async def test_events_are_posted_as_json_with_the_headers(opened: Opener) -> None:
    collector = Collector()
    tracker = opened(collector, headers={"Authorization": "Bearer secret"})
    await tracker.deliver(rows(2))
    [request] = collector.requests
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Content-Type"] == "application/json"
    assert collector.batches == [[1, 2]]


async def test_a_batch_has_at_most_so_many_events(opened: Opener) -> None:
    collector = Collector()
    await opened(collector, batch_size=2).deliver(rows(5))
    assert collector.batches == [[1, 2], [3, 4], [5]]


async def test_a_batch_has_at_most_so_many_bytes(opened: Opener) -> None:
    collector = Collector()
    await opened(collector).deliver(rows(5, size=BATCH_BYTES_MAX // 2 - 1_000))
    assert collector.batches == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_a_refusal_is_an_error_so_that_the_host_offers_the_events_again(
    opened: Opener, status: int
) -> None:
    collector = Collector(status)
    with pytest.raises(TrackerError) as caught:
        await opened(collector).deliver(rows(1))
    assert (caught.value.endpoint, caught.value.status) == (URL, status)


async def test_a_redirect_is_not_followed(opened: Opener) -> None:
    away = httpx2.Response(307, headers={"Location": "https://evil.example.com/"})
    collector = Collector(away)
    with pytest.raises(TrackerError) as caught:
        await opened(collector).deliver(rows(1))
    assert caught.value.status == 307
    assert len(collector.requests) == 1


async def test_an_unreachable_collector_is_an_error(opened: Opener) -> None:
    collector = Collector(httpx2.ConnectError("refused"))
    with pytest.raises(TrackerError, match="refused") as caught:
        await opened(collector).deliver(rows(1))
    assert caught.value.status is None


async def test_a_failed_batch_holds_back_those_behind_it(opened: Opener) -> None:
    collector = Collector(204, 500)
    with pytest.raises(TrackerError):
        await opened(collector, batch_size=1).deliver(rows(3))
    assert collector.batches == [[1], [2]]


async def test_a_silent_collector_is_given_up_after_the_timeout() -> None:
    async def never(request: httpx2.Request) -> httpx2.Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    transport = httpx2.MockTransport(never)
    tracker = HttpBatchTracker(URL, transport=transport, timeout="10 ms")
    with pytest.raises(TrackerError, match="no answer"):
        await tracker.deliver(rows(1))
    await tracker.close()


async def test_a_batch_is_tried_again_if_asked_for(opened: Opener) -> None:
    clock = ManualClock()
    collector = Collector(500, httpx2.ReadError("cut off"), 204)
    retry = Retry(max_attempts=3, delay="1 second")
    tracker = opened(collector, retry=retry, clock=clock)
    delivering = asyncio.ensure_future(tracker.deliver(rows(1)))
    await clock.advance("1 second")
    assert not delivering.done()
    await clock.advance("1 second")
    await delivering
    assert collector.batches == [[1], [1], [1]]


async def test_tries_end_with_the_error_of_the_last(opened: Opener) -> None:
    clock = ManualClock()
    collector = Collector(500, 503)
    retry = Retry(max_attempts=2, delay="1 second")
    delivering = asyncio.ensure_future(
        opened(collector, retry=retry, clock=clock).deliver(rows(1))
    )
    while not delivering.done():  # its answers come over a real client, in their time
        await clock.advance("1 second")
    with pytest.raises(TrackerError) as caught:
        await delivering
    assert caught.value.status == 503


async def test_of_a_long_answer_only_the_status_is_read(opened: Opener) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    collector = Collector(httpx2.Response(200, content=endless()))
    await opened(collector).deliver(rows(1))


async def test_a_closed_tracker_opens_again(opened: Opener) -> None:
    collector = Collector()
    tracker = opened(collector)
    await tracker.deliver(rows(1))
    await tracker.close()
    await tracker.deliver(rows(1))
    assert len(collector.requests) == 2


@pytest.mark.parametrize("url", ["", "events", "ftp://example.com", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        HttpBatchTracker(url)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        HttpBatchTracker(URL, batch_size=0)


def test_it_has_a_short_name_too() -> None:
    assert HttpTracker is HttpBatchTracker
