"""`connect()`: the objects of a daemon, with the face they have inside its process.

    async with connect("http://127.0.0.1:8787") as client:
        await client.namespace(Counter).get_by_name("a").increment()

Arguments, results and exceptions cross with their exact types. A call that could not be
sent fails with `outcome="not_executed"`; one whose answer was lost, with `"unknown"`:
send it again only if running twice does no harm, or with a `request_id`.

The token is, in this order: the argument, `DURABLE_ACTOR_TOKEN`, the file
`DURABLE_ACTOR_TOKEN_FILE`; for a daemon on this machine also the file `token` in
`DURABLE_ACTOR_DATA_DIR`, in the `storage.dir` of `./config.toml`, or in `./data`.
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

import httpx2
import msgspec

from durable_actor import codec, remote_fetch
from durable_actor.clock import (
    Duration,
    Instant,
    SystemClock,
    duration_ms,
    instant_ms,
)
from durable_actor.daemon import event_stream, wire
from durable_actor.directory import (
    AlarmEntry,
    AlarmPage,
    ObjectEntry,
    ObjectPage,
    StoredKey,
    StoredPage,
)
from durable_actor.errors import (
    CallTimeoutError,
    ConfigError,
    DecodeError,
    TransportError,
)
from durable_actor.feeds import Feed
from durable_actor.fetch import Request as ObjectRequest
from durable_actor.fetch import Response
from durable_actor.ids import ObjectId
from durable_actor.namespace import DurableObjectNamespace
from durable_actor.remote_fetch import Pieces
from durable_actor.rpc import CallOptions
from durable_actor.storage.watches import Watch

DEFAULT_URL = "http://127.0.0.1:8787"
CONNECT_TIMEOUT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 30.0  # shorter than the daemon's, so that it never hangs up first
CONNECTIONS_MAX = 256

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


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


class WorkflowClients(Protocol[T_co]):
    """What `create_durable_workflows` returns second; its `engine` is the class."""

    def from_binding(self, binding: DurableObjectNamespace[Any], /) -> T_co:
        """Return the typed client of the runs behind a binding."""
        ...


class Client:
    """A daemon. Made by `connect()`; a `Router` for the stubs of its namespaces."""

    def __init__(self, transport: Transport, *, timeout_ms: int | None = None) -> None:
        self._transport = transport
        self._timeout_ms = timeout_ms
        self._feeds: set[Feed] = set()
        # Those that the daemon has not answered yet, by the object they watch.
        self._opening: dict[bytes, Feed] = {}

    def namespace(
        self, cls: type[T], *, name: str | None = None
    ) -> DurableObjectNamespace[T]:
        """Return the namespace of a class, without I/O.

        Args:
            cls: The class the daemon serves; only its name and its types are used.
            name: The name of the class at the daemon, if it is another.
        """
        return DurableObjectNamespace(self, name or cls.__name__)

    def workflows(self, factory: WorkflowClients[T], *, name: str | None = None) -> T:
        """Return the typed client of a set of workflows, without I/O.

        Args:
            factory: The client class that `create_durable_workflows` made.
            name: The name of the engine class at the daemon, if it is another.
        """
        engine = getattr(factory, "engine", None)
        if name is None and isinstance(engine, type):
            name = engine.__name__
        return factory.from_binding(DurableObjectNamespace(self, name or "Workflows"))

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        """Run one method of one object and return its answer, once it is durable.

        Raises:
            TransportError: The daemon could not be reached, or went away.
            CallTimeoutError: No answer in time.
            UnauthorizedError: The daemon refused the token.
            DurableActorError: What an embedded host would raise.
            Exception: What the method raised.
        """
        if self._opening:
            await self._until_watching(target)
        timeout_ms = options.timeout_ms or self._timeout_ms
        headers = {"Content-Type": wire.EXACT}
        if options.request_id is not None:
            headers[wire.REQUEST_ID_HEADER] = options.request_id
        if timeout_ms is not None:
            headers[wire.TIMEOUT_HEADER] = str(timeout_ms)
        answer = await self._transport.send(
            Request(
                method="POST",
                target=_call_path(target, method),
                body=codec.encode([list(args), kwargs]),
                headers=headers,
                timeout_ms=timeout_ms,
            )
        )
        if answer.status == HTTPStatus.OK and answer.media_type == wire.EXACT:
            return codec.decode(answer.body)
        raise _error_of(answer)

    async def fetch(
        self, target: ObjectId, request: ObjectRequest, options: CallOptions
    ) -> Response:
        """Let one object answer a request, streamed both ways; see `rpc.Router`.

        Raises:
            TransportError: The daemon could not be reached, or went away.
            CallTimeoutError: The head of the answer did not come in time.
            DurableActorError: What an embedded host would raise.
            Exception: What the object's `fetch` raised.
        """
        if self._opening:
            await self._until_watching(target)
        timeout_ms = options.timeout_ms or self._timeout_ms
        status, headers, pieces = await self._transport.exchange(
            Request(
                method=request.method,
                target=remote_fetch.path_of(target, request),
                body=await remote_fetch.content_of(request),
                headers=remote_fetch.headers_of(target, request, timeout_ms),
                timeout_ms=timeout_ms,
            )
        )
        by_name = {name.lower(): value for name, value in headers}
        if wire.OBJECT_HEADER.lower() in by_name:
            return await remote_fetch.response_of(status, headers, pieces)
        body = b"".join([piece async for piece in pieces])
        media_type = by_name.get("content-type", "").partition(";")[0].strip()
        raise _error_of(Answer(status=status, media_type=media_type, body=body))

    def watch(self, target: ObjectId, prefix: str = "") -> Watch:
        """Follow one object's state from now on; see `DurableObject.watch`.

        Close the watch when you have seen enough: it holds a connection. It ends with
        `TransportError` when the daemon goes away.
        """
        query = urlencode({"values": event_stream.EXACT_VALUES, "prefix": prefix})
        if target.name is None:
            query += "&by=id"
        path = f"/v1/watches/{_object_segments(target)}?{query}"
        before = self._opening.get(target.raw)

        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
            if before is not None:
                await before.is_open.wait()  # one waits for all that came earlier
            request = Request(method="GET", target=path)
            async with self._transport.stream(request) as chunks:
                if self._opening.get(target.raw) is feed:
                    del self._opening[target.raw]
                yield chunks

        def ended(feed: Feed) -> None:
            self._feeds.discard(feed)
            if self._opening.get(target.raw) is feed:
                del self._opening[target.raw]

        feed = Feed(opened, prefix, on_end=ended)
        self._feeds.add(feed)
        self._opening[target.raw] = feed
        return feed.watch

    async def _until_watching(self, target: ObjectId) -> None:
        """Let no call overtake a watch of the same object that was begun before it."""
        feed = self._opening.get(target.raw)
        if feed is not None:
            with suppress(TimeoutError):  # the call finds out by itself what is wrong
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    await feed.is_open.wait()

    async def list_objects(
        self,
        object_class: str | None = None,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> ObjectPage:
        """Return objects that have ever stored something; see `Host.list_objects`."""
        answer = await self._page(
            "objects", limit, cursor, {"class": object_class, "prefix": prefix or None}
        )
        entries = [
            ObjectEntry(object_class=found.pop("class"), **found)
            for found in answer["objects"]
        ]
        return ObjectPage(objects=entries, cursor=answer["cursor"])

    async def alarms(
        self,
        object_class: str | None = None,
        *,
        before: Instant | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> AlarmPage:
        """Return the alarms that are set, in due order; see `Host.alarms`."""
        now_ms = SystemClock().now_ms()
        before_ms = None if before is None else instant_ms(before, now_ms=now_ms)
        answer = await self._page(
            "alarms", limit, cursor, {"class": object_class, "before": before_ms}
        )
        entries = [
            AlarmEntry(object_class=found.pop("class"), **found)
            for found in answer["alarms"]
        ]
        return AlarmPage(alarms=entries, cursor=answer["cursor"])

    async def stored_keys(
        self,
        object_id: ObjectId,
        *,
        prefix: str = "",
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage:
        """Return the keys an object has stored, in order; see `Host.stored_keys`."""
        answer = await self._page(
            f"storage/{_object_segments(object_id)}",
            limit,
            cursor,
            {
                "by": "id" if object_id.name is None else None,
                "prefix": prefix or None,
            },
        )
        return StoredPage(
            exists=answer["exists"],
            keys=[StoredKey(**found) for found in answer["keys"]],
            cursor=answer["cursor"],
        )

    async def _page(
        self,
        kind: str,
        limit: int,
        cursor: str | None,
        filters: Mapping[str, str | int | None],
    ) -> dict[str, Any]:
        given = {**filters, "limit": limit, "cursor": cursor}
        query = urlencode(
            {name: value for name, value in given.items() if value is not None}
        )
        return await self.request("GET", f"/v1/{kind}?{query}")

    async def delete(self, object_id: ObjectId) -> bool:
        """Delete an object with everything it stored; had it stored anything?"""
        if self._opening:
            await self._until_watching(object_id)
        path = f"/v1/objects/{_object_segments(object_id)}"
        path += "?by=id" if object_id.name is None else ""
        deleted: bool = (await self.request("DELETE", path))["deleted"]
        return deleted

    async def request(
        self, method: str, target: str, body: object = None
    ) -> dict[str, Any]:
        """Send JSON to any path of the daemon and return the JSON it answers.

        For what has no typed face yet; `/openapi.json` describes the paths.

        Raises:
            DurableActorError: The answer was a problem.
        """
        headers = {} if body is None else {"Content-Type": wire.JSON}
        answer = await self._transport.send(
            Request(
                method=method,
                target=target,
                body=b"" if body is None else msgspec.json.encode(body),
                headers=headers,
                timeout_ms=self._timeout_ms,
            )
        )
        if answer.status != HTTPStatus.OK:
            raise _error_of(answer)
        return msgspec.json.decode(answer.body, type=dict[str, Any])

    async def close(self) -> None:
        """Close the connections."""
        for feed in list(self._feeds):
            await feed.stop()
        await self._transport.close()


@asynccontextmanager
async def connect(
    url: str = DEFAULT_URL,
    *,
    token: str | None = None,
    token_file: str | Path | None = None,
    timeout: Duration | None = None,
) -> AsyncIterator[Client]:
    """Open a client of the daemon at `url`.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:/path/to/socket`.
        token: The bearer token; found by itself for a daemon on this machine.
        token_file: A file that holds it.
        timeout: How long each call may take unless it says otherwise.

    Raises:
        ConfigError: The address or the token file cannot be used.
    """
    timeout_ms = None if timeout is None else duration_ms(timeout)
    base_url, socket_path = parse_url(url)
    found = token or find_token(
        token_file, is_local=socket_path is not None or _is_loopback(base_url)
    )
    client = Client(HttpTransport(base_url, socket_path, found), timeout_ms=timeout_ms)
    try:
        yield client
    finally:
        await client.close()


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
        self._http = httpx2.AsyncHTTPTransport(
            uds=socket_path,
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
        return _answer(response, body)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send one request and return its answer in pieces; see `Transport`."""
        prepared = self._prepared(request)
        with self._told():
            response = await self._streams.handle_async_request(prepared)
        try:
            if response.status_code != HTTPStatus.OK:
                raise _error_of(_answer(response, await response.aread()))
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


def find_token(token_file: str | Path | None, *, is_local: bool) -> str | None:
    """Return the token to use when none was given, or None if there is none.

    A token found on this machine's disk is only for a daemon on this machine.

    Raises:
        ConfigError: The file that was named cannot be read.
    """
    if token_file is None:
        if token := os.environ.get("DURABLE_ACTOR_TOKEN"):
            return token
        token_file = os.environ.get("DURABLE_ACTOR_TOKEN_FILE")
    if token_file is not None:
        try:
            return Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"the token file {str(token_file)!r} cannot be read: {error}"
            raise ConfigError(message) from error
    if is_local:
        for directory in _data_directories():
            try:
                return (directory / "token").read_text().strip()
            except (OSError, UnicodeDecodeError):
                continue
    return None


def _data_directories() -> list[Path]:
    directories = []
    if named := os.environ.get("DURABLE_ACTOR_DATA_DIR"):
        directories.append(Path(named))
    try:
        config = tomllib.loads(Path("config.toml").read_text())
        directories.append(Path(config["storage"]["dir"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no such file, or one that says nothing of it: look where it usually is
    directories.append(Path("data"))
    return directories


def _is_loopback(url: httpx2.URL) -> bool:
    if url.host == "localhost":
        return True
    try:
        return ip_address(url.host).is_loopback
    except ValueError:
        return False


def _pairs(
    headers: Mapping[str, str] | Sequence[tuple[str, str]],
) -> Sequence[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers


def _call_path(target: ObjectId, method: str) -> str:
    path = f"/v1/objects/{_object_segments(target)}/{wire.segment(method)}"
    return path + "?by=id" if target.name is None else path


def _object_segments(target: ObjectId) -> str:
    name = str(target) if target.name is None else wire.segment(target.name)
    return f"{wire.segment(target.namespace)}/{name}"


def _answer(response: httpx2.Response, body: bytes) -> Answer:
    media_type = response.headers.get("content-type", "")
    return Answer(
        status=response.status_code,
        media_type=media_type.partition(";")[0].strip(),
        body=body,
    )


def _error_of(answer: Answer) -> BaseException:
    if answer.media_type == wire.EXACT_ERROR:
        try:
            return codec.loads_error(answer.body)
        except DecodeError as error:
            return error
    if answer.media_type == wire.PROBLEM:
        return wire.error_of(answer.status, answer.body)
    return TransportError(
        f"HTTP status {answer.status} without a problem document; is this a daemon?"
    )
