"""`connect()`: the objects of a daemon, with the face they have inside its process.

    async with connect("http://127.0.0.1:8787") as client:
        await client.namespace(Counter).get_by_name("a").increment()

Arguments, results and exceptions cross with their exact types. Each call has an
identity, so that one whose answer was lost is sent again and still runs once; see
`retries`. What is left after that says in its `outcome` what is known: `not_executed`,
`failed` or `unknown`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlencode
from uuid import uuid4

import httpx2
import msgspec

from durable_actor import codec, remote_fetch
from durable_actor.client_token import find_token
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
from durable_actor.errors import DecodeError
from durable_actor.feeds import Feed
from durable_actor.fetch import Request as ObjectRequest
from durable_actor.fetch import Response
from durable_actor.ids import ObjectId
from durable_actor.namespace import DurableObjectNamespace
from durable_actor.retries import (
    RETRIES,
    Try,
    log_retries_as_we_do,
    send_until_known,
)
from durable_actor.rpc import CallOptions
from durable_actor.storage.watches import Watch
from durable_actor.texts import check_request_id
from durable_actor.transport import (
    CONNECT_TIMEOUT_SECONDS,
    Answer,
    HttpTransport,
    Request,
    Transport,
    answer_of,
    error_of,
    parse_url,
)

DEFAULT_URL: Final = "http://127.0.0.1:8787"
_PLAIN_MAX: Final = 200  # characters of an identity that is sent as it is
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})  # that change nothing, by HTTP

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class WorkflowClients(Protocol[T_co]):
    """What `create_durable_workflows` returns second; its `engine` is the class."""

    def from_binding(self, binding: DurableObjectNamespace[Any], /) -> T_co:
        """Return the typed client of the runs behind a binding."""
        ...


class Client:
    """A daemon. Made by `connect()`; a `Router` for the stubs of its namespaces."""

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_ms: int | None = None,
        retries: int = RETRIES,
        request_ids: bool = True,
    ) -> None:
        self._transport = transport
        self._timeout_ms = timeout_ms
        self._retries = retries
        self._request_ids = request_ids
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
            ReplyExpiredError: The answer was lost, and by now the daemon's memory of
                it too; the call may have run.
            UnauthorizedError: The daemon refused the token.
            DurableActorError: What an embedded host would raise.
            Exception: What the method raised.
        """
        if self._opening:
            await self._until_watching(target)
        path = _call_path(target, method)
        body = codec.encode([list(args), kwargs])
        request_id = uuid4().hex if self._request_ids else None
        if options.request_id is not None:
            request_id = _header_of(check_request_id(options.request_id))

        async def send(attempt: Try) -> object:
            headers = {"Content-Type": wire.EXACT}
            if request_id is not None:
                headers[wire.REQUEST_ID_HEADER] = request_id
                if attempt.sent_ms_ago:
                    headers[wire.SENT_AGO_HEADER] = str(attempt.sent_ms_ago)
            if attempt.timeout_ms is not None:
                headers[wire.TIMEOUT_HEADER] = str(attempt.timeout_ms)
            answer = await self._transport.send(
                Request(
                    method="POST",
                    target=path,
                    body=body,
                    headers=headers,
                    timeout_ms=attempt.timeout_ms,
                )
            )
            if answer.status == HTTPStatus.OK and answer.media_type == wire.EXACT:
                return codec.decode(answer.body)
            raise error_of(answer)

        return await self._send_until_known(
            send, options, runs_once=request_id is not None
        )

    async def _send_until_known(
        self,
        send: Callable[[Try], Awaitable[T]],
        options: CallOptions,
        *,
        runs_once: bool,
    ) -> T:
        retries = self._retries if options.retries is None else options.retries
        return await send_until_known(
            send,
            retries=retries,
            timeout_ms=options.timeout_ms or self._timeout_ms,
            runs_once=runs_once,
        )

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
        path = remote_fetch.path_of(target, request)
        content = await remote_fetch.content_of(request)

        async def send(attempt: Try) -> Response:
            left_ms = attempt.timeout_ms
            status, headers, pieces = await self._transport.exchange(
                Request(
                    method=request.method,
                    target=path,
                    body=content,
                    headers=remote_fetch.headers_of(target, request, left_ms),
                    timeout_ms=left_ms,
                )
            )
            by_name = {name.lower(): value for name, value in headers}
            if wire.OBJECT_HEADER.lower() in by_name:
                return await remote_fetch.response_of(status, headers, pieces)
            body = b"".join([piece async for piece in pieces])
            raise error_of(answer_of(status, by_name, body))

        if not isinstance(content, bytes):  # read as it is sent, and gone then
            options = replace(options, retries=0)
        # A response is not kept, whatever its method: what may have run is not sent.
        return await self._send_until_known(send, options, runs_once=False)

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
        content = b"" if body is None else msgspec.json.encode(body)

        async def send(attempt: Try) -> dict[str, Any]:
            answer = await self._transport.send(
                Request(
                    method=method,
                    target=target,
                    body=content,
                    headers=headers,
                    timeout_ms=attempt.timeout_ms,
                )
            )
            if answer.status != HTTPStatus.OK:
                raise error_of(answer)
            return _json_object(answer)

        return await self._send_until_known(
            send, CallOptions(), runs_once=method in _SAFE_METHODS
        )

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
    retries: int = RETRIES,
    request_ids: bool = True,
) -> AsyncIterator[Client]:
    """Open a client of the daemon at `url`.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:/path/to/socket`.
        token: The bearer token; found by itself for a daemon on this machine, see
            `client_token`.
        token_file: A file that holds it.
        timeout: How long each call may take unless it says otherwise, with all its
            tries and the waits between them.
        retries: How often a call is sent again if that is safe; 0 for never. Without
            a daemon, three of them take about a second.
        request_ids: Give each call an identity, by which the daemon keeps its reply
            (G6). Without, a call is not sent again when it may have run, and a call
            that only reads writes nothing.

    Raises:
        ConfigError: The address or the token file cannot be used.
    """
    timeout_ms = None if timeout is None else duration_ms(timeout)
    base_url, socket_path = parse_url(url)
    found = token or find_token(
        token_file, is_local=socket_path is not None or _is_loopback(base_url)
    )
    log_retries_as_we_do()
    client = Client(
        HttpTransport(base_url, socket_path, found),
        timeout_ms=timeout_ms,
        retries=retries,
        request_ids=request_ids,
    )
    try:
        yield client
    finally:
        await client.close()


def _is_loopback(url: httpx2.URL) -> bool:
    if url.host == "localhost":
        return True
    try:
        return ip_address(url.host).is_loopback
    except ValueError:
        return False


def _header_of(request_id: str) -> str:
    """Return an identity as the daemon takes it: short, and what a header may hold."""
    fits = request_id.isascii() and request_id.isprintable()
    if fits and request_id == request_id.strip() and len(request_id) <= _PLAIN_MAX:
        return request_id
    return f"sha256:{sha256(request_id.encode()).hexdigest()}"


def _call_path(target: ObjectId, method: str) -> str:
    path = f"/v1/objects/{_object_segments(target)}/{wire.segment(method)}"
    return path + "?by=id" if target.name is None else path


def _object_segments(target: ObjectId) -> str:
    name = str(target) if target.name is None else wire.segment(target.name)
    return f"{wire.segment(target.namespace)}/{name}"


def _json_object(answer: Answer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"the daemon's answer cannot be read: {error}") from error
