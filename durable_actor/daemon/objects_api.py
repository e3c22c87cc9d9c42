"""`/v1/objects`: calls to methods of objects, and the directory of objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response

from durable_actor import codec
from durable_actor.daemon import bodies, wire
from durable_actor.daemon.addresses import BY, class_of, target_of
from durable_actor.daemon.loader import Served, ServedClass
from durable_actor.daemon.ports import ObjectHost
from durable_actor.daemon.problems import ExactBodyError, HandlerError, refuse
from durable_actor.daemon.routing import Incoming, Route, timeout_ms_of
from durable_actor.directory import ObjectEntry
from durable_actor.errors import BadArgumentsError, EncodeError
from durable_actor.ids import ObjectId
from durable_actor.rpc import CallOptions

REQUEST_ID_CHARS_MAX: Final = 200
SENT_AGO_DIGITS_MAX: Final = 12  # thirty years
PAGE_LIMIT_MAX: Final = 1_000
PAGE_LIMIT_DEFAULT: Final = 100
T = TypeVar("T")


class CallRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a call."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class CallResult(msgspec.Struct, frozen=True):
    """What the method returned, as JSON."""

    result: Any


class ObjectView(msgspec.Struct, frozen=True):
    """One object in the directory."""

    object_class: str = msgspec.field(name="class")
    name: str | None
    id: str
    created_at_ms: int
    used_at_ms: int
    size_bytes: int
    alarm_at_ms: int | None
    attributes: dict[str, str]


class ObjectPageView(msgspec.Struct, frozen=True):
    """Some objects; `cursor` leads to the next ones, and is null on the last page."""

    objects: list[ObjectView]
    cursor: str | None


class ClassView(msgspec.Struct, frozen=True):
    """A class the daemon serves."""

    name: str
    methods: list[str]
    bindings: list[str]


class ClassesView(msgspec.Struct, frozen=True):
    """Every class the daemon serves."""

    classes: list[ClassView]


class Evicted(msgspec.Struct, frozen=True):
    """Whether the object was in memory."""

    evicted: bool


class Deleted(msgspec.Struct, frozen=True):
    """Whether there was such an object."""

    deleted: bool


class ObjectsApi:
    """Handlers over a host and the classes it serves."""

    def __init__(self, host: ObjectHost, served: Served, *, debug: bool) -> None:
        self._host = host
        self._served = served
        self._debug = debug

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        one = "/v1/objects/{class}/{name}"
        return [
            Route(
                method="GET",
                path="/v1/classes",
                name="listClasses",
                summary="The classes this daemon serves, with their methods.",
                handler=self.list_classes,
                is_for_all=True,
                response=ClassesView,
            ),
            Route(
                method="GET",
                path="/v1/objects",
                name="listObjects",
                summary="Objects by class and name, in pages.",
                handler=self.list_objects,
                query={
                    "class": "Only objects of this class.",
                    "prefix": "Only objects whose name starts so.",
                    "limit": f"How many at most; {PAGE_LIMIT_DEFAULT} if not given.",
                    "cursor": "Where the page before ended.",
                },
                response=ObjectPageView,
                errors=(404,),
            ),
            Route(
                method="GET",
                path=one,
                name="getObject",
                summary="What the directory knows about one object.",
                handler=self.get_object,
                response=ObjectView,
                errors=(404,),
            ),
            Route(
                method="DELETE",
                path=one,
                name="deleteObject",
                summary="Delete an object: its storage, its alarm, its entry.",
                handler=self.delete_object,
                query=BY,
                response=Deleted,
                errors=(404, 507),
            ),
            Route(
                method="DELETE",
                path="/v1/activations/{class}/{name}",
                name="evictObject",
                summary="Let an object leave memory once it is idle; nothing is lost.",
                handler=self.evict_object,
                query=BY,
                response=Evicted,
                errors=(404,),
            ),
            Route(
                method="POST",
                path=one + "/{method}",
                name="callObject",
                summary="Call a method of an object, and wait for its durable answer.",
                handler=self.call,
                verb="write",
                query=BY,
                headers={
                    wire.REQUEST_ID_HEADER: "Sent twice, the call runs once.",
                    wire.SENT_AGO_HEADER: "Of a repeat: when it was sent first.",
                    wire.TIMEOUT_HEADER: "How long to wait, in milliseconds.",
                },
                request=CallRequest,
                response=CallResult,
                errors=(404, 408, 409, 415, 429, 504, 507),
            ),
        ]

    async def call(self, incoming: Incoming) -> Response:
        """Run one method; JSON or exact values in, the same out."""
        served = class_of(self._served, incoming.names["class"])
        target = target_of(served, incoming)
        method = served.info.method(incoming.names["method"])
        options = _options(incoming)
        if bodies.is_exact(incoming):
            args, kwargs = _exact_arguments(await bodies.read_exact(incoming))
            try:
                result = await self._run(target, method.name, args, kwargs, options)
                encoded = _readable(codec.encode, result)
            except HandlerError as error:
                raise _with_exact_body(error, debug=self._debug) from error.original
            return bodies.exact_response(encoded)
        request = await bodies.read_struct(incoming, CallRequest, default=CallRequest())
        try:
            args, kwargs = codec.convert_arguments(
                method.function, request.args, request.kwargs
            )
        except BadArgumentsError as error:
            raise refuse(
                "bad_arguments",
                f"{served.name}.{method.name}: {error.detail}",
                'Send {"args": [...], "kwargs": {...}} as the method declares them.',
            ) from None
        result = await self._run(target, method.name, args, kwargs, options)
        return bodies.json_response(CallResult(_readable(codec.to_json, result)))

    async def _run(
        self,
        target: ObjectId,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> object:
        try:
            return await self._host.call(target, method, args, kwargs, options)
        except Exception as error:
            raise HandlerError(error) from error

    async def list_classes(self, incoming: Incoming) -> Response:
        """List what is served, as far as it is for the caller."""
        bindings: dict[str, list[str]] = {}
        for name, served in self._served.bindings.items():
            bindings.setdefault(served.name, []).append(name)
        views = [
            ClassView(name, sorted(served.info.methods), sorted(bindings.get(name, ())))
            for name, served in sorted(self._served.classes.items())
            if incoming.grant.covers_class(name, *bindings.get(name, ()))
        ]
        return bodies.json_response(ClassesView(views))

    async def list_objects(self, incoming: Incoming) -> Response:
        """List one page of the directory."""
        query = incoming.query
        wanted = query.get("class")
        object_class = None if wanted is None else class_of(self._served, wanted).name
        try:
            page = await self._host.list_objects(
                object_class,
                prefix=query.get("prefix", ""),
                limit=page_limit(query.get("limit")),
                cursor=query.get("cursor"),
            )
        except ValueError as error:
            raise refuse(
                "bad_request",
                f"The page cannot be found: {error}.",
                "Send the cursor of the page before, unchanged.",
            ) from None
        views = [_view(entry) for entry in page.objects]
        return bodies.json_response(ObjectPageView(views, page.cursor))

    async def get_object(self, incoming: Incoming) -> Response:
        """Show one entry of the directory."""
        served = class_of(self._served, incoming.names["class"])
        name = incoming.names["name"]
        # In order of names, the name itself comes before all it is a prefix of.
        page = await self._host.list_objects(served.name, prefix=name, limit=1)
        for entry in page.objects:
            if entry.name == name:
                return bodies.json_response(_view(entry))
        raise _no_such_object(served, name)

    async def delete_object(self, incoming: Incoming) -> Response:
        """Delete one object."""
        served = class_of(self._served, incoming.names["class"])
        deleted = await self._host.delete(target_of(served, incoming))
        return bodies.json_response(Deleted(deleted))

    async def evict_object(self, incoming: Incoming) -> Response:
        """Evict one object."""
        served = class_of(self._served, incoming.names["class"])
        evicted = await self._host.evict(target_of(served, incoming))
        return bodies.json_response(Evicted(evicted))


def page_limit(text: str | None) -> int:
    """Return how many entries a page may have, from the query."""
    if text is None:
        return PAGE_LIMIT_DEFAULT
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= PAGE_LIMIT_MAX:
        return int(text)
    raise refuse(
        "bad_request",
        f"limit is {text[:20]!r}.",
        f"Write a number from 1 to {PAGE_LIMIT_MAX}.",
    )


def _options(incoming: Incoming) -> CallOptions:
    request_id = incoming.header(wire.REQUEST_ID_HEADER)
    if request_id is not None and not (
        1 <= len(request_id) <= REQUEST_ID_CHARS_MAX
        and request_id.isascii()
        and request_id.isprintable()
    ):
        raise refuse(
            "bad_request",
            f"{wire.REQUEST_ID_HEADER} is {request_id[:40]!a}.",
            f"Send 1 to {REQUEST_ID_CHARS_MAX} printable ASCII characters.",
        )
    return CallOptions(
        timeout_ms=timeout_ms_of(incoming),
        request_id=request_id,
        sent_ms_ago=_sent_ms_ago(incoming),
    )


def _sent_ms_ago(incoming: Incoming) -> int:
    text = incoming.header(wire.SENT_AGO_HEADER) or "0"
    if text.isascii() and text.isdigit() and len(text) <= SENT_AGO_DIGITS_MAX:
        return int(text)
    raise refuse(
        "bad_request",
        f"{wire.SENT_AGO_HEADER} is {text[:20]!a}.",
        "Send whole milliseconds, or leave it out.",
    )


def _exact_arguments(value: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    match value:
        case [list() | tuple() as args, dict() as kwargs]:
            return tuple(args), kwargs
        case _:
            raise refuse(
                "bad_request",
                f"The body is {type(value).__name__}, not [args, kwargs].",
                "Use the same release of durable_actor on both sides.",
            )


def _with_exact_body(error: HandlerError, *, debug: bool) -> ExactBodyError:
    body = codec.dumps_error(error.original, include_traceback=debug)
    return ExactBodyError(error.original, body)


def _readable(write: Callable[[object], T], result: object) -> T:
    """Return the result in the form of the caller, or blame the object."""
    try:
        return write(result)
    except EncodeError as error:
        error.outcome = "failed"  # the method has run
        raise HandlerError(error) from error


def _view(entry: ObjectEntry) -> ObjectView:
    return ObjectView(
        object_class=entry.object_class,
        name=entry.name,
        id=entry.id,
        created_at_ms=entry.created_at_ms,
        used_at_ms=entry.used_at_ms,
        size_bytes=entry.size_bytes,
        alarm_at_ms=entry.alarm_at_ms,
        attributes=dict(entry.attributes),
    )


def _no_such_object(served: ServedClass, name: str) -> Exception:
    return refuse(
        "not_found",
        f"The directory has no {served.name} called {name[:100]!r}.",
        "An object is in the directory once it has stored something.",
    )
