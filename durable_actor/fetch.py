"""`Request`, `Response` and `Headers`: the HTTP values that user code sees.

They are values, and the same on both sides of a stub: no server and no client is behind
them. A body is bytes, or a stream of pieces that is read once.

Promises
    A header that exists can be sent: no line break, no NUL, nothing beyond Latin-1.
    A body that was read whole can be read again; a stream that was begun cannot.

https://developers.cloudflare.com/workers/runtime-apis/request/
"""

from __future__ import annotations

import re
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from http import HTTPStatus
from typing import Any, Final, TypeAlias, overload
from urllib.parse import quote, urlsplit

import msgspec

from durable_actor import codec
from durable_actor.errors import BodyError
from durable_actor.websockets import WebSocket

HeadersInit: TypeAlias = "Mapping[str, str] | Iterable[tuple[str, str]]"
"""What headers are made from: a mapping, or pairs, in which a name may come twice."""

Piece: TypeAlias = bytes | bytearray | memoryview | str
BodyInit: TypeAlias = "Piece | AsyncIterable[bytes] | AsyncIterable[str] | None"
"""What a body is made from: bytes, text (sent as UTF-8), or a stream of either."""

ORIGIN: Final = "http://durable-object"  # of a URL that is given as a path only
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHOD = _NAME
_VALUE_REFUSED = re.compile(r"[\x00\r\n]|[^\x00-\xff]")
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]-._"
_BODYLESS_METHODS = frozenset({"GET", "HEAD"})
_NORMALIZED_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"})
_BODYLESS_STATUSES = frozenset({101, 204, 205, 304})
_STATUS_MIN, _STATUS_MAX = 200, 599
_Bytes: TypeAlias = bytes  # `bytes` is also the name of a method below


class Headers(MutableMapping[str, str]):
    """Headers by name, whatever its case; a name may have several values.

    As a mapping it shows each name once, its values joined with commas. `append` adds
    a value, `get_all` shows them apart and `pairs` is everything in order.
    """

    __slots__ = ("_pairs",)

    def __init__(self, init: HeadersInit = ()) -> None:
        self._pairs: list[tuple[str, str]] = []
        if isinstance(init, Headers):
            self._pairs = init.pairs()
            return
        for name, value in init.items() if isinstance(init, Mapping) else init:
            self.append(name, value)

    def append(self, name: str, value: str) -> None:
        """Add a value, and keep those the name has.

        Raises:
            ValueError: Not a name or value that can be sent.
        """
        self._pairs.append(_checked(name, value))

    def get_all(self, name: str) -> list[str]:
        """Return every value of a name, in order."""
        wanted = name.lower()
        return [value for key, value in self._pairs if key == wanted]

    def get_set_cookie(self) -> list[str]:
        """Return every `Set-Cookie`, which cannot be joined."""
        return self.get_all("set-cookie")

    def pairs(self) -> list[tuple[str, str]]:
        """Return each name with each of its values; names are in lower case."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __setitem__(self, name: str, value: str) -> None:
        pair = _checked(name, value)
        for index, (key, _) in enumerate(self._pairs):
            if key == pair[0]:
                rest = [other for other in self._pairs[index:] if other[0] != key]
                self._pairs[index:] = [pair, *rest]
                return
        self._pairs.append(pair)

    def __delitem__(self, name: str) -> None:
        wanted = name.lower()
        kept = [pair for pair in self._pairs if pair[0] != wanted]
        if len(kept) == len(self._pairs):
            raise KeyError(name)
        self._pairs = kept

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get_all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key for key, _ in self._pairs})

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"

    getAll = get_all
    getSetCookie = get_set_cookie


class _Message:
    """What a request and a response share: headers, and a body that is read once."""

    __slots__ = ("__weakref__", "_is_begun", "_stream", "_whole", "headers")

    def __init__(self, headers: HeadersInit | None, body: BodyInit) -> None:
        self.headers = Headers(headers or ())
        self._whole: _Bytes | None = None
        self._stream: AsyncIterator[Any] | None = None
        self._is_begun = False  # the stream is being read, or was
        if body is None:
            return
        if isinstance(body, AsyncIterable):
            self._stream = aiter(body)
            return
        self._whole = _as_bytes(body)
        if isinstance(body, str):
            self.headers.setdefault("content-type", "text/plain;charset=UTF-8")

    @property
    def body(self) -> AsyncIterator[_Bytes] | None:
        """The body in pieces, to be read once; None if there is none."""
        if self._whole is None and self._stream is None:
            return None
        return self._pieces()

    def _body_to_hand_on(self) -> BodyInit:
        return self.body if self._whole is None else self._whole

    @property
    def body_used(self) -> bool:
        """Whether the stream has been begun; it cannot be begun again."""
        return self._is_begun

    async def bytes(self) -> _Bytes:
        """Return the whole body.

        Raises:
            BodyError: It is a stream that was begun before, or it broke off.
        """
        if self._whole is None:
            self._whole = b"".join([piece async for piece in self._pieces()])
        return self._whole

    async def text(self) -> str:
        """Return the whole body as text, read as UTF-8; see `bytes`."""
        return (await self.bytes()).decode("utf-8", "replace")

    async def aclose(self) -> None:
        """Let go of a stream that nobody is going to read."""
        self._is_begun = True
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()

    async def _read_json(self) -> Any:
        return msgspec.json.decode(await self.bytes())

    async def _pieces(self) -> AsyncIterator[_Bytes]:
        if self._whole is not None:
            if self._whole:
                yield self._whole
            return
        if self._stream is None:
            return
        if self._is_begun:
            message = "Body has already been used. It can only be used once."
            raise BodyError(message)
        self._is_begun = True
        async for piece in _as_pieces(self._stream):
            yield piece

    bodyUsed = body_used


class Request(_Message):
    """What is asked of an object: a method, a URL, headers and perhaps a body.

    A URL that begins with a slash is a path at no host in particular. An object that
    is asked through the daemon sees the daemon's address, and what follows the name of
    the object there.
    """

    __slots__ = ("method", "url")

    def __init__(
        self,
        url: str | Request,
        *,
        method: str | None = None,
        headers: HeadersInit | None = None,
        body: BodyInit = None,
    ) -> None:
        """Describe a request.

        Args:
            url: `http://...`, `https://...`, a path, or a request to begin from.
            method: `GET` if it is not given.
            headers: A mapping, or pairs.
            body: Bytes, text, or a stream of either.

        Raises:
            ValueError: Not a URL, method or header.
            TypeError: A body where none can be, or of another type.
        """
        given = None if isinstance(url, str) else url
        if given is not None:
            method = given.method if method is None else method
            headers = given.headers if headers is None else headers
            if body is None:
                body = given._body_to_hand_on()  # noqa: SLF001  # of this class
        super().__init__(headers, body)
        self.url: str = _url(url) if isinstance(url, str) else url.url
        self.method: str = _method("GET" if method is None else method)
        if body is not None and self.method in _BODYLESS_METHODS:
            message = "Request with a GET or HEAD method cannot have a body."
            raise TypeError(message)

    @property
    def path(self) -> str:
        """The path of the URL, percent-encoded as it came."""
        return urlsplit(self.url).path or "/"

    @property
    def query(self) -> str:
        """The query of the URL, without the question mark; see `urllib.parse`."""
        return urlsplit(self.url).query

    async def json(self) -> Any:
        """Return the body, read as JSON.

        Raises:
            ValueError: It is not JSON.
        """
        return await self._read_json()

    def __repr__(self) -> str:
        return f"Request({self.url!r}, method={self.method!r})"


class _Json:
    """`Response.json`: on the class it makes a response, on a response it reads it."""

    @overload
    def __get__(self, response: None, owner: type[Response]) -> _MakeJson: ...
    @overload
    def __get__(
        self, response: Response, owner: type[Response]
    ) -> Callable[[], Coroutine[Any, Any, Any]]: ...
    def __get__(self, response: Response | None, owner: type[Response]) -> Any:
        return _MakeJson() if response is None else response._read_json  # noqa: SLF001  # of this module


class _MakeJson:
    """Makes a response of any value that JSON can show."""

    def __call__(
        self, value: Any, *, status: int = 200, headers: HeadersInit | None = None
    ) -> Response:
        body = msgspec.json.encode(codec.to_json(value))
        response = Response(body, status=status, headers=headers)
        response.headers.setdefault("content-type", "application/json")
        return response


class Response(_Message):
    """What an object answers.

    `Response.json(value)` makes one of any value that JSON can show, and
    `await response.json()` reads one.
    """

    __slots__ = ("status", "status_text", "web_socket")

    def __init__(
        self,
        body: BodyInit = None,
        *,
        status: int = 200,
        status_text: str | None = None,
        headers: HeadersInit | None = None,
        web_socket: WebSocket | None = None,
    ) -> None:
        """Describe an answer.

        Args:
            body: Bytes, text, or a stream of either: an async generator, say. It goes
                on after the handler has returned, piece by piece.
            status: 200 to 599, or 101 with a `web_socket`.
            status_text: The words of the status; by default the usual ones.
            headers: A mapping, or pairs.
            web_socket: The end of a `WebSocketPair` that the caller gets.

        Raises:
            ValueError: Not a status or header.
            TypeError: A body where none can be, or of another type.
        """
        super().__init__(headers, body)
        if web_socket is not None and status != HTTPStatus.SWITCHING_PROTOCOLS:
            message = "Responses with a WebSocket must have status code 101."
            raise ValueError(message)
        if web_socket is None and not _STATUS_MIN <= status <= _STATUS_MAX:
            message = (
                "Responses may only be constructed with status codes in the range"
                f" {_STATUS_MIN} to {_STATUS_MAX}, inclusive, got {status}."
            )
            raise ValueError(message)
        if body is not None and status in _BODYLESS_STATUSES:
            message = f"Response with null body status ({status}) cannot have a body."
            raise TypeError(message)
        self.status = status
        self.status_text = _phrase(status) if status_text is None else status_text
        self.web_socket = web_socket

    json = _Json()

    @property
    def ok(self) -> bool:
        """Whether the status is one of success."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def __repr__(self) -> str:
        return f"Response(status={self.status})"

    statusText = property(lambda self: self.status_text)
    webSocket = property(lambda self: self.web_socket)


def copy_of(response: Response) -> Response:
    """Return a response with the whole body of another, and headers of its own."""
    copy = Response(
        status=response.status,
        status_text=response.status_text,
        headers=response.headers,
        web_socket=response.web_socket,
    )
    copy._whole = response._whole  # noqa: SLF001  # of this module
    return copy


def with_body(message: _Message, stream: AsyncIterator[_Bytes]) -> None:
    """Let a stream take the place of a message's own."""
    message._stream = stream  # noqa: SLF001  # of this module
    message._is_begun = False  # noqa: SLF001  # the same


def stream_of(message: _Message) -> AsyncIterator[_Bytes] | None:
    """Return the body if it is a stream that has not been read, and begin it."""
    stream = message._stream  # noqa: SLF001  # of this module
    if stream is None or message._whole is not None or message.body_used:  # noqa: SLF001  # the same
        return None
    message._is_begun = True  # noqa: SLF001  # the same
    return _as_pieces(stream)


async def _as_pieces(stream: AsyncIterator[Any]) -> AsyncIterator[_Bytes]:
    try:
        async for piece in stream:
            if data := _as_bytes(piece):
                yield data
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _checked(name: object, value: object) -> tuple[str, str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{name!a:.80} is not the name of a header"
        raise ValueError(message)
    text = value.strip(" \t\r\n") if isinstance(value, str) else None
    if text is None or _VALUE_REFUSED.search(text):
        message = f"the header {name!r} cannot have the value {value!a:.80}"
        raise ValueError(message)
    return name.lower(), text


def _url(text: str) -> str:
    whole = ORIGIN + text if text.startswith("/") else text
    try:
        parts = urlsplit(whole)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:  # a port or an IPv6 address that is none
        is_url = False
    if not is_url:
        message = f"Invalid URL: {text!a:.80}; write http://host/path, or only /path"
        raise ValueError(message)
    return quote(whole.partition("#")[0], safe=_URL_SAFE)


def _method(text: str) -> str:
    if not _METHOD.fullmatch(text):
        message = f"Invalid HTTP method: {text!a:.80}"
        raise ValueError(message)
    upper = text.upper()
    return upper if upper in _NORMALIZED_METHODS else text


def _as_bytes(piece: Piece) -> _Bytes:
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    message = f"a body is bytes, text or a stream of them, not {type(piece).__name__}"
    raise TypeError(message)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
