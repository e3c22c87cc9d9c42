"""Transport: one request to a daemon and its answer, over HTTP/1.1 or a Unix socket.

What goes wrong on the way is told as an error of ours, with what is known of the
request: no connection means that nothing ran (`not_executed`); a connection that broke,
or an answer that did not come in time, that nobody knows (`unknown`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

import httpx2

from durable_actor import codec
from durable_actor.daemon import wire
from durable_actor.errors import (
    CallTimeoutError,
    ConfigError,
    DecodeError,
    DurableActorError,
    TransportError,
)
from durable_actor.remote_fetch import Pieces

CONNECT_TIMEOUT_SECONDS: Final = 5.0
# Shorter than the daemon's, so that it never hangs up first.
KEEP_ALIVE_SECONDS: Final = 30.0
CONNECTIONS_MAX: Final = 256
_RETRY_AFTER_SECONDS_MAX: Final = 3_600  # whoever asks for more is not believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request on its way to the daemon."""

    method: str
    target: str
    body: bytes | AsyncIterator[bytes] = b""
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = field(default_factory=dict)
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the daemon answered."""

    status: int
    media_type: str
    body: bytes
    retry_after_ms: int | None = None


class Transport(Protocol):
    """Carries requests to one daemon."""

    async def send(self, request: Request) -> Answer:
        """Return the answer.

        Raises:
            TransportError: No answer; `outcome` says whether the request may have run.
            CallTimeoutError: No answer in time.
        """
        ...

    def stream(
        self, request: Request
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Send a request and return its answer piece by piece, as long as it goes on.

        Raises:
            TransportError: No answer, or not to its end.
            DurableActorError: The answer was a problem.
        """
        ...

    async def exchange(
        self, request: Request
    ) -> tuple[int, list[tuple[str, str]], Pieces]:
        """Send a request and return the status, the headers and the body to come.

        Raises:
            TransportError: No answer; `outcome` says whether the request may have run.
            CallTimeoutError: No answer in time.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class HttpTransport:
    """HTTP/1.1 over kept connections."""

    def __init__(
        self, base_url: httpx2.URL, socket_path: str | None, token: str | None
    ) -> None:
        self._base_url = base_url
        self._where = socket_path or str(base_url)
        self._headers = {"Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        # To read whom the system trusts takes tens of milliseconds of the event loop.
        verify = base_url.scheme == "https"
        self._http = httpx2.AsyncHTTPTransport(
            uds=socket_path,
            verify=verify,
            trust_env=False,
            limits=httpx2.Limits(
                max_connections=CONNECTIONS_MAX,
                max_keepalive_connections=CONNECTIONS_MAX,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
        )
        # What goes on for long must not take the connections of the calls.
        self._streams = httpx2.AsyncHTTPTransport(
            uds=socket_path,
            verify=verify,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def send(self, request: Request) -> Answer:
        """Send one request; see `Transport`."""
        prepared = self._prepared(request)
        seconds = None if request.timeout_ms is None else request.timeout_ms / 1_000
        try:
            async with asyncio.timeout(seconds):
                with self._told():
                    response = await self._http.handle_async_request(prepared)
                    try:
                        body = await response.aread()
                    finally:
                        await response.aclose()
        except TimeoutError:
            message = f"no answer from {self._where} within {request.timeout_ms} ms"
            raise CallTimeoutError(message) from None
        return answer_of(response.status_code, response.headers, body)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send one request and return its answer in pieces; see `Transport`."""
        prepared = self._prepared(request)
        with self._told():
            response = await self._streams.handle_async_request(prepared)
        try:
            if response.status_code != HTTPStatus.OK:
                body = await response.aread()
                raise error_of(answer_of(response.status_code, response.headers, body))
            with self._told():
                yield response.aiter_raw()
        finally:
            await response.aclose()

    async def exchange(
        self, request: Request
    ) -> tuple[int, list[tuple[str, str]], Pieces]:
        """Send one request and return its answer as it comes; see `Transport`."""
        prepared = self._prepared(request)
        seconds = None if request.timeout_ms is None else request.timeout_ms / 1_000
        try:
            async with asyncio.timeout(seconds):
                with self._told():
                    response = await self._streams.handle_async_request(prepared)
        except TimeoutError:
            message = f"no answer from {self._where} within {request.timeout_ms} ms"
            raise CallTimeoutError(message) from None
        pieces = Pieces(response.aiter_raw(), response.aclose, self._told)
        return response.status_code, response.headers.multi_items(), pieces

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let failures of the connection be told as ours."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            message = (
                f"no daemon answers at {self._where} ({error!r});"
                " start one with `durable-actor serve`"
            )
            raise TransportError(message, outcome="not_executed") from error
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
            message = f"the request cannot be sent to {self._where}: {error!r}"
            refused = TransportError(message, outcome="not_executed")
            refused.retryable = False
            raise refused from error
        except httpx2.TransportError as error:
            message = f"{self._where} went away before it answered: {error!r}"
            raise TransportError(message, outcome="unknown") from error

    def _prepared(self, request: Request) -> httpx2.Request:
        return httpx2.Request(
            request.method,
            self._base_url,
            headers=[*self._headers.items(), *_pairs(request.headers)],
            content=request.body,
            extensions={
                "target": request.target.encode("ascii"),
                "timeout": {"connect": CONNECT_TIMEOUT_SECONDS},
            },
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._streams.aclose()


def parse_url(url: str) -> tuple[httpx2.URL, str | None]:
    """Return the base address, and the path of the socket if it is one.

    Raises:
        ConfigError: Not an address of a daemon.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:").removeprefix("//")
        if path:
            return httpx2.URL("http://localhost"), path
    else:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL:
            parsed = httpx2.URL("")
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed, None
    message = f"{url!r} is no address; write http://127.0.0.1:8787 or unix:/path"
    raise ConfigError(message)


def answer_of(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """Return an answer from the parts of an HTTP response."""
    media_type = headers.get("content-type", "")
    return Answer(
        status=status,
        media_type=media_type.partition(";")[0].strip(),
        body=body,
        retry_after_ms=_retry_after_ms(headers.get("retry-after", "")),
    )


def error_of(answer: Answer) -> BaseException:
    """Return the exception that an answer stands for which is no success."""
    error: BaseException
    if answer.media_type == wire.EXACT_ERROR:
        try:
            error = codec.loads_error(answer.body)
        except DecodeError as unreadable:
            error = unreadable
    elif answer.media_type == wire.PROBLEM:
        error = wire.error_of(answer.status, answer.body)
    else:
        error = TransportError(
            f"HTTP status {answer.status} without a problem document; is this a daemon?"
        )
    if isinstance(error, DurableActorError) and error.retry_after_ms is None:
        error.retry_after_ms = answer.retry_after_ms
    return error


def _retry_after_ms(text: str) -> int | None:
    """Return the time of a `Retry-After` in seconds; its other form is a date."""
    if not (text.isascii() and text.isdigit()):
        return None
    return min(int(text[:9]), _RETRY_AFTER_SECONDS_MAX) * 1_000


def _pairs(
    headers: Mapping[str, str] | Sequence[tuple[str, str]],
) -> Sequence[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers
