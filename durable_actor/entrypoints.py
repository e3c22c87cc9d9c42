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

Concurrency = Literal["serial", "gated"]
F = TypeVar("F", bound=Callable[..., Any])

_INTERLEAVE = "__durable_actor_interleave__"
RESERVED_METHODS = frozenset(
    {"alarm", "web_socket_message", "web_socket_close", "web_socket_error"}
    | {"webSocketMessage", "webSocketClose", "webSocketError"}
)


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
    event_sink: ClassVar[EventSink | None] = None

    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        self.ctx = ctx
        self.env = env

    def _on_release(self, *, is_draining: bool) -> None:
        """Let go of work in the background that can be taken up again later.

        Called when the host wants this object out of memory. What is still at work
        afterwards is waited for.

        Args:
            is_draining: The host is about to close; otherwise memory is short.
        """

    def __init_subclass__(
        cls, *, concurrency: Concurrency | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if concurrency is not None:
            cls.concurrency = concurrency
        if cls.concurrency not in ("serial", "gated"):
            message = (
                f"{cls.__name__}.concurrency is {cls.concurrency!r};"
                ' write "serial" or "gated"'
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
        self.methods: dict[str, Method] = {}
        for attribute in dir(cls):
            if not attribute.startswith("_") and attribute not in RESERVED_METHODS:
                member = inspect.getattr_static(cls, attribute)
                if inspect.iscoroutinefunction(member):
                    marked = bool(getattr(member, _INTERLEAVE, False))
                    self.methods[attribute] = Method(attribute, member, marked)
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

    def _why_not(self, name: str) -> str:
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


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    return len(inspect.signature(function).parameters) > 1  # beside self
