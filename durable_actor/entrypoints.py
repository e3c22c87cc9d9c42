"""What users subclass: `DurableObject`, and the marks its methods may carry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from durable_actor.env import Env
from durable_actor.errors import ConfigError, MethodNotFoundError
from durable_actor.rpc import EventSink
from durable_actor.state import DurableObjectState
from durable_actor.storage.watches import Watch

Concurrency = Literal["serial", "gated"]
StorageKind = Literal["kv", "sqlite"]
F = TypeVar("F", bound=Callable[..., Any])

_INTERLEAVE = "__durable_actor_interleave__"
# What arrives at a WebSocket, and how Cloudflare spells the handler of it.
_SOCKET_HANDLERS = {
    "web_socket_message": "webSocketMessage",
    "web_socket_close": "webSocketClose",
    "web_socket_error": "webSocketError",
}
RESERVED_METHODS = frozenset(
    {"alarm", "fetch", *_SOCKET_HANDLERS, *_SOCKET_HANDLERS.values()}
)
# What a stub answers itself; a method of that name could not be called through it.
_NAMES_OF_STUBS = ("id", "name", "watch")


def interleave(method: F) -> F:
    """Let a method run between the awaits of another event of the same object.

    It starts as soon as the input gate is open, instead of waiting for its turn in the
    mailbox. Use it for questions about the state and for cancelling.
    """
    setattr(method, _INTERLEAVE, True)
    return method


class DurableObject:
    """One addressable, single-threaded, durable thing; subclass it.

    Public `async def` methods can be called through a stub. `concurrency = "serial"`
    (the default) runs one event at a time, from acceptance to reply; `"gated"` is
    Cloudflare's rule: events may interleave wherever the object awaits something that
    is not its own storage. https://developers.cloudflare.com/durable-objects/
    """

    concurrency: ClassVar[Concurrency] = "serial"
    storage: ClassVar[StorageKind] = "kv"
    event_sink: ClassVar[EventSink | None] = None

    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        self.ctx = ctx
        self.env = env

    def watch(self, prefix: str = "") -> Watch:
        """Of a stub: follow what becomes durable of the object, from this call on.

        Each change is told once it is on disk, in order, never before; what was read
        after the call and the changes together miss nothing. A slow reader is told of
        several turns at once. The object is not activated, nor kept in memory.

        Args:
            prefix: Only keys that begin with it.

        Raises:
            TypeError: Called inside the object, which knows what it writes; or the
                class has `storage = "sqlite"`.
        """
        message = (
            f"watch({prefix!r}) is for stubs; in the object, call it on the stub of the"
            " object to be watched"
        )
        raise TypeError(message)

    def _on_release(self, *, is_draining: bool) -> None:
        """Let go of work in the background that can be taken up again later.

        Called when the host wants this object out of memory. What is still at work
        afterwards is waited for.

        Args:
            is_draining: The host is about to close; otherwise memory is short.
        """

    def __init_subclass__(
        cls,
        *,
        concurrency: Concurrency | None = None,
        storage: StorageKind | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if storage is not None:
            cls.storage = storage
        given: object = cls.storage  # or what a subclass calls by that name
        if isinstance(given, str) and given not in ("kv", "sqlite"):
            message = (
                f'{cls.__name__}.storage is {cls.storage!r}; write "kv" or "sqlite"'
            )
            raise ConfigError(message)
        if concurrency is not None:
            cls.concurrency = concurrency
        if cls.concurrency not in ("serial", "gated"):
            message = (
                f"{cls.__name__}.concurrency is {cls.concurrency!r};"
                ' write "serial" or "gated"'
            )
            raise ConfigError(message)
        for name in _NAMES_OF_STUBS:
            member = inspect.getattr_static(cls, name, None)
            if _is_hidden_by_stubs(name, member):
                message = (
                    f"{cls.__name__}.{name} could not be called, as every stub has a"
                    f" {name!r} of its own; give the method another name"
                )
                raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class Method:
    """A method that may be called through a stub."""

    name: str
    function: Callable[..., Any]
    interleaves: bool


class ClassInfo:
    """What the host knows about a user's class, found once."""

    def __init__(self, cls: type[DurableObject], name: str | None = None) -> None:
        self.cls = cls
        self.name = name or cls.__name__
        self.is_gated = cls.concurrency == "gated"
        self.has_database = cls.storage == "sqlite"
        self.methods: dict[str, Method] = {}
        for attribute in dir(cls):
            if not attribute.startswith("_") and attribute not in RESERVED_METHODS:
                member = inspect.getattr_static(cls, attribute)
                if inspect.iscoroutinefunction(member):
                    marked = bool(getattr(member, _INTERLEAVE, False))
                    self.methods[attribute] = Method(attribute, member, marked)
        self.socket_handlers = {
            name: _as_method(cls, name) or _as_method(cls, alias)
            for name, alias in _SOCKET_HANDLERS.items()
        }
        self._fetch = _as_method(cls, "fetch")
        alarm = getattr(cls, "alarm", None)
        self.has_alarm = inspect.iscoroutinefunction(alarm)
        self.alarm_takes_info = alarm is not None and _takes_an_argument(alarm)

    def method(self, name: str) -> Method:
        """Return a callable method, or say why there is none.

        Raises:
            MethodNotFoundError: Reserved, private, no method, or not `async def`.
        """
        found = self.methods.get(name)
        if found is None:
            raise MethodNotFoundError(
                self._why_not(name), object_class=self.name, object_name=None
            )
        return found

    def fetch(self) -> Method:
        """Return the handler of requests, or say what to write.

        Raises:
            MethodNotFoundError: The class has none.
        """
        if self._fetch is None:
            message = (
                "Handler does not export a fetch() function. Write"
                " `async def fetch(self, request: Request) -> Response` in the class."
            )
            raise MethodNotFoundError(message, object_class=self.name)
        return self._fetch

    def _why_not(self, name: str) -> str:
        if name == "fetch":
            return "'fetch' answers HTTP requests; use `stub.fetch(url)`."
        if name in RESERVED_METHODS:
            return f"{name!r} is a reserved method and cannot be called over RPC."
        absent = f'The RPC receiver does not implement the method "{name}".'
        if name.startswith("_"):
            return f"{absent} Names with a leading underscore are private."
        member = inspect.getattr_static(self.cls, name, None)
        if member is None or hasattr(DurableObject, name):
            known = ", ".join(sorted(self.methods)) or "none"
            return f"{absent} Its methods: {known}."
        if inspect.isasyncgenfunction(member):
            return f"{absent} It is an async generator; return a list instead."
        if inspect.isfunction(member):
            return f"{absent} It is a plain function; write `async def {name}`."
        return f"{absent} It is an attribute, not a method."


def _is_hidden_by_stubs(name: str, member: object) -> bool:
    if name == "watch":
        return member is not DurableObject.__dict__["watch"]
    return inspect.iscoroutinefunction(member)


def _as_method(cls: type[DurableObject], name: str) -> Method | None:
    member = inspect.getattr_static(cls, name, None)
    if not inspect.iscoroutinefunction(member):
        return None
    return Method(name, member, bool(getattr(member, _INTERLEAVE, False)))


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    return len(inspect.signature(function).parameters) > 1  # beside self
