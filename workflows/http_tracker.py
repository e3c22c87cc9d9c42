"""`HttpBatchTracker`: posts events to a collector, in batches.

It raises when a batch was not taken, and the host then offers the same events again,
with back-off. So events wait in the outbox while the collector is away, and no run
does.

The body is `{"events": [...]}`. Only the configured address is ever asked: redirects
are not followed, and of the answer only the status counts. What a URL has of secrets,
its user, password and query, is in no error and so in no log.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpx2
import msgspec

from durable_actor import (
    Clock,
    Duration,
    OutboxEvent,
    SystemClock,
    duration_ms,
    sleep_until,
)
from workflows.backoff import NO_RETRY, Retry
from workflows.errors import TrackerError

BATCH_BYTES_MAX: Final = 1_000_000  # what a collector can be expected to take at once
ANSWER_BYTES_MAX: Final = 65_536  # read so that the connection can be used again
_STATUS_OK = range(200, 300)


class HttpBatchTracker:
    """Sends events to one address.

    Args:
        endpoint: An http or https URL.
        headers: Sent with each batch; the place for `Authorization`.
        batch_size: How many events one request carries at most.
        timeout: How long one request may take.
        retry: Further tries before the batch is given back to the host, which waits
            longer and tries again in any case. None: none.
        clock: Whose time the retries follow.
        transport: Instead of the network, in tests.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        batch_size: int = 100,
        timeout: Duration = "10 seconds",
        retry: Retry | None = None,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{endpoint!r} is not an http or https URL")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.endpoint = endpoint
        self._shown = _without_secrets(parts)
        self._headers = {**(headers or {}), "Content-Type": "application/json"}
        self._batch_size = batch_size
        self._timeout_seconds = duration_ms(timeout) / 1_000
        self._retry = NO_RETRY if retry is None else retry
        self._clock = clock or SystemClock()
        self._random = random.Random()  # noqa: S311  # jitter, not secrets
        self._transport = transport
        self._client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        """Post the events in order, in as many requests as they need.

        Raises:
            TrackerError: A batch was not taken. Those before it were, and will be sent
                again: the receiver knows them by their `eventId`.
        """
        for body in self._bodies(events):
            await self._post(body)

    async def close(self) -> None:
        """Close the connections. The next delivery opens new ones."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _bodies(self, events: Sequence[OutboxEvent]) -> Iterator[bytes]:
        rows: list[bytes] = []
        size = 0
        for event in events:
            row = msgspec.json.encode(event.data)
            is_full = len(rows) >= self._batch_size
            if rows and (is_full or size + len(row) > BATCH_BYTES_MAX):
                yield _body(rows)
                rows, size = [], 0
            rows.append(row)
            size += len(row) + 1
        if rows:
            yield _body(rows)

    async def _post(self, body: bytes) -> None:
        began_ms = self._clock.elapsed_ms()
        failures = 0
        while True:
            try:
                await self._post_once(body)
                return
            except TrackerError as error:
                failures += 1
                elapsed_ms = self._clock.elapsed_ms() - began_ms
                delay_ms = self._retry.next_delay_ms(
                    failures, error, elapsed_ms, self._random
                )
                if delay_ms is None:
                    raise
            await sleep_until(self._clock, self._clock.now_ms() + delay_ms)

    async def _post_once(self, body: bytes) -> None:
        client = await self._connected()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                async with client.stream("POST", self.endpoint, content=body) as answer:
                    await _drain(answer)
        except TimeoutError as error:
            detail = f"no answer within {self._timeout_seconds:g} seconds"
            raise TrackerError(self._shown, detail) from error
        except httpx2.HTTPError as error:
            detail = f"{type(error).__name__}: {error}"
            raise TrackerError(self._shown, detail) from error
        if answer.status_code not in _STATUS_OK:
            detail = f"answered {answer.status_code}"
            raise TrackerError(self._shown, detail, status=answer.status_code)

    async def _connected(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # Reading the certificates takes long enough to be noticed in the loop.
            client = await asyncio.to_thread(self._make_client)
            self._loop, self._client = loop, client
        return self._client

    def _make_client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=self._headers,
            timeout=self._timeout_seconds,
            follow_redirects=False,
            trust_env=False,
            transport=self._transport,
        )


HttpTracker = HttpBatchTracker


def _without_secrets(parts: SplitResult) -> str:
    """Return an address as it may be logged: no user, no password, no query."""
    _, _, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{host}{parts.path}"


def _body(rows: list[bytes]) -> bytes:
    return b'{"events":[' + b",".join(rows) + b"]}"


async def _drain(answer: httpx2.Response) -> None:
    """Read the answer to its end, or to where it becomes unreasonable."""
    if answer.is_stream_consumed:
        return
    seen = 0
    async for chunk in answer.aiter_raw():
        seen += len(chunk)
        if seen > ANSWER_BYTES_MAX:
            return
