"""`@workflow`: a named function of `(step, input)`, as its author writes it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeAlias, TypeVar, cast, overload

import msgspec

from workflows.errors import InvalidInputError, InvalidNameError
from workflows.steps import Step

I = TypeVar("I")  # noqa: E741  # the input's type
O = TypeVar("O")  # noqa: E741  # the output's type

WITH_INPUT: TypeAlias = Callable[[Step, I], Awaitable[O]]
WITHOUT_INPUT: TypeAlias = Callable[[Step], Awaitable[O]]

NAME_CHARACTERS_MAX = 128  # it is part of every object name and every event


class WorkflowDefinition(Generic[I, O]):
    """A workflow as written: a name and a function. Made by `@workflow`.

    Calling it runs the function directly, which is how a test hands it a `Step` of its
    own; a durable run is started by a client.
    """

    def __init__(self, fn: Callable[..., Awaitable[O]], *, name: str) -> None:
        check_workflow_name(name)
        self.name = name
        self.fn = fn
        self.takes_input = _count_parameters(fn) > 1
        self.input_type: Any = _input_type(fn) if self.takes_input else None
        self.__doc__ = fn.__doc__

    def __call__(self, step: Step, value: I) -> Awaitable[O]:
        """Run the function directly, with a step of the caller's making."""
        if self.takes_input:
            return self.fn(step, value)
        return self.fn(step)

    def __repr__(self) -> str:
        return f"WorkflowDefinition({self.name!r})"

    def convert_input(self, value: object) -> I:
        """Return a JSON value as the function's input.

        Raises:
            InvalidInputError: It does not fit; says where.
        """
        if not self.takes_input:
            if value is None or value == {}:
                return cast("I", None)
            raise InvalidInputError(self.name, "takes none; leave it out")
        if self.input_type is Any:
            return cast("I", value)
        try:
            return cast("I", msgspec.convert(value, self.input_type))
        except msgspec.ValidationError as error:
            raise InvalidInputError(self.name, str(error)) from None
        except TypeError:
            # A type msgspec does not know: the author's own class takes what it gets.
            return cast("I", value)


@overload
def workflow(fn: WITH_INPUT[I, O], /) -> WorkflowDefinition[I, O]: ...


@overload
def workflow(fn: WITHOUT_INPUT[O], /) -> WorkflowDefinition[None, O]: ...


@overload
def workflow(*, name: str) -> _Decorator: ...


def workflow(
    fn: Callable[..., Awaitable[Any]] | None = None, /, *, name: str | None = None
) -> Any:
    """Make a workflow of an `async def fn(step, input)` or `async def fn(step)`.

    Raises:
        InvalidNameError: The name cannot be used.
        TypeError: Not an async function of one or two parameters.
    """
    if fn is None:
        return _Decorator(name)
    return _Decorator(name)(fn)


class _Decorator:
    """`@workflow(name=...)`, before it meets its function."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    @overload
    def __call__(self, fn: WITH_INPUT[I, O], /) -> WorkflowDefinition[I, O]: ...

    @overload
    def __call__(self, fn: WITHOUT_INPUT[O], /) -> WorkflowDefinition[None, O]: ...

    def __call__(self, fn: Callable[..., Awaitable[Any]], /) -> Any:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"@workflow needs an `async def`, got {fn!r}")
        if _count_parameters(fn) not in (1, 2):
            message = f"{fn.__qualname__} must take (step) or (step, input)"
            raise TypeError(message)
        return WorkflowDefinition(fn, name=self._name or fn.__name__)


def check_workflow_name(name: object) -> None:
    """Refuse a name that could not be part of an object's name.

    Raises:
        InvalidNameError: Empty, too long, or with a colon or a slash.
    """
    if not isinstance(name, str) or not name:
        raise InvalidNameError("workflow name", name, "is not a text of some length")
    if len(name) > NAME_CHARACTERS_MAX:
        detail = f"has more than {NAME_CHARACTERS_MAX} characters"
        raise InvalidNameError("workflow name", name[:48] + "...", detail)
    if not name.isprintable() or ":" in name or "/" in name:
        detail = "has a colon, a slash or an unprintable character"
        raise InvalidNameError("workflow name", name, detail)


def _count_parameters(fn: Callable[..., Any]) -> int:
    return len(inspect.signature(fn).parameters)


def _input_type(fn: Callable[..., Any]) -> Any:
    """Return the annotation of the second parameter; Any if there is none."""
    name = list(inspect.signature(fn).parameters)[1]
    try:
        return typing.get_type_hints(fn).get(name, Any)
    except Exception:  # noqa: BLE001  # a name known only to type checkers, say
        return Any
