"""From a name to an id to a stub to a router.

Written once: whether the object lives in this process or behind a daemon is the
router's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

from durable_actor.clock import Duration, duration_ms
from durable_actor.fetch import BodyInit, HeadersInit, Request, Response
from durable_actor.ids import IdSpace, ObjectId
from durable_actor.rpc import DEFAULT_OPTIONS, CallOptions, Router
from durable_actor.storage.watches import Watch

T = TypeVar("T")


class DurableObjectStub:
    """What a caller holds: looks like the object, sends calls to it.

    A stub is only an address. It does no I/O until one of its methods is awaited, stays
    valid for ever, and recovers by itself when the object breaks.
    """

    __slots__ = ("_options", "_router", "id")

    def __init__(self, router: Router, id: ObjectId, options: CallOptions) -> None:  # noqa: A002  # Cloudflare's name of the attribute
        self.id = id
        self._router = router
        self._options = options

    @property
    def name(self) -> str | None:
        """The object's name, if the stub was made from one."""
        return self.id.name

    async def fetch(
        self,
        url: str | Request,
        *,
        method: str | None = None,
        headers: HeadersInit | None = None,
        body: BodyInit = None,
    ) -> Response:
        """Send a request to the object's `fetch` and return its response.

        The URL may be a path only. A type checker knows the stub as the object's
        class, whose `fetch` takes a `Request`; hand it one to please both.

        Raises:
            MethodNotFoundError: The class has no `async def fetch`.
            ValueError: The stub has a `request_id`: a stream is not kept for a repeat.
        """
        if self._options.request_id is not None:
            message = "a stub with a request_id is for calls; a response is not kept"
            raise ValueError(message)
        request = Request(url, method=method, headers=headers, body=body)
        return await self._router.fetch(self.id, request, self._options)

    def watch(self, prefix: str = "") -> Watch:
        """Follow the object's state; see `DurableObject.watch`."""
        return self._router.watch(self.id, prefix)

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)
        router, target, options = self._router, self.id, self._options

        def call(*args: object, **kwargs: object) -> Awaitable[object]:
            return router.call(target, method, args, kwargs, options)

        return call

    def __repr__(self) -> str:
        return f"DurableObjectStub({self.id!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DurableObjectStub):
            return NotImplemented
        return self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


class DurableObjectNamespace(Generic[T]):
    """All objects of one class. Its stubs are typed as the class."""

    def __init__(self, router: Router, name: str) -> None:
        self.name = name
        self._router = router
        self._space = IdSpace(name)

    def id_from_name(self, name: str) -> ObjectId:
        """Return the id of a name: the same for the same name, always."""
        return self._space.from_name(name)

    def new_unique_id(self) -> ObjectId:
        """Return an id that no name leads to."""
        return self._space.new_unique()

    def id_from_string(self, text: str) -> ObjectId:
        """Return the id written as 64 hexadecimal characters.

        Raises:
            InvalidIdError: Malformed.
            ForeignIdError: Of another namespace, or mistyped.
        """
        return self._space.parse(text)

    def get(
        self,
        id: ObjectId,  # noqa: A002  # Cloudflare's name of the parameter
        *,
        timeout: Duration | None = None,
        request_id: str | None = None,
        retries: int | None = None,
    ) -> T:
        """Return a stub at once, without I/O.

        Args:
            id: An id of this namespace.
            timeout: How long each call may take; then `CallTimeoutError`.
            request_id: Identity of the call: sent twice, it runs once.
            retries: How often a client sends each call again if that is safe; None
                leaves it to the client. In the host's own process nothing is lost on
                the way, and nothing sent again.

        Raises:
            TypeError: Not an id.
            ForeignIdError: The id belongs to another namespace.
        """
        if not isinstance(id, ObjectId):
            message = (
                f"get takes an ObjectId, got {type(id).__name__};"
                " for a name there is get_by_name, for text id_from_string"
            )
            raise TypeError(message)
        if id.namespace != self.name:
            self._space.adopt(id.raw, id.name)
        options = DEFAULT_OPTIONS
        if timeout is not None or request_id is not None or retries is not None:
            options = CallOptions(
                timeout_ms=None if timeout is None else duration_ms(timeout),
                request_id=request_id,
                retries=retries,
            )
        # The stub answers every public method of T by sending a call, so to the type
        # checker it is a T; that is the whole point of a stub.
        return cast("T", DurableObjectStub(self._router, id, options))

    def get_by_name(
        self,
        name: str,
        *,
        timeout: Duration | None = None,
        request_id: str | None = None,
        retries: int | None = None,
    ) -> T:
        """Return the stub of the object with this name; see `get`."""
        return self.get(
            self._space.from_name(name),
            timeout=timeout,
            request_id=request_id,
            retries=retries,
        )

    idFromName = id_from_name
    newUniqueId = new_unique_id
    idFromString = id_from_string
    getByName = get_by_name
