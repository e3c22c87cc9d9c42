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
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx2
import msgspec

from durable_actor import codec
from durable_actor.clock import Duration, duration_ms
from durable_actor.daemon import wire
from durable_actor.errors import (
    CallTimeoutError,
    ConfigError,
    DecodeError,
    TransportError,
)
from durable_actor.ids import ObjectId
from durable_actor.namespace import DurableObjectNamespace
from durable_actor.rpc import CallOptions

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
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
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

    async def send(self, request: Request) -> Answer:
        """Send one request; see `Transport`."""
        prepared = httpx2.Request(
            request.method,
            self._base_url,
            headers={**self._headers, **request.headers},
            content=request.body,
            extensions={
                "target": request.target.encode("ascii"),
                "timeout": {"connect": CONNECT_TIMEOUT_SECONDS},
            },
        )
        seconds = None if request.timeout_ms is None else request.timeout_ms / 1_000
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.handle_async_request(prepared)
                try:
                    body = await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError:
            message = f"no answer from {self._where} within {request.timeout_ms} ms"
            raise CallTimeoutError(message) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            message = (
                f"no daemon answers at {self._where} ({error!r});"
                " start one with `durable-actor serve`"
            )
            raise TransportError(message, outcome="not_executed") from error
        except httpx2.TransportError as error:
            message = f"{self._where} went away before it answered: {error!r}"
            raise TransportError(message, outcome="unknown") from error
        media_type = response.headers.get("content-type", "")
        return Answer(
            status=response.status_code,
            media_type=media_type.partition(";")[0].strip(),
            body=body,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


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


def _call_path(target: ObjectId, method: str) -> str:
    by_id = target.name is None
    name = str(target) if target.name is None else wire.segment(target.name)
    path = f"/v1/objects/{wire.segment(target.namespace)}/{name}/{wire.segment(method)}"
    return path + "?by=id" if by_id else path


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
