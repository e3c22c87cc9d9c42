"""Arguments: JSON from outside, made into what a method's annotations ask for.

JSON has no dates, sets or dataclasses; the method's signature says which were meant.
What does not fit is refused before the method runs, by the parameter's name.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from durable_actor.errors import BadArgumentsError


def convert_arguments(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return JSON arguments as the method's annotations want them.

    The first parameter (`self`) is not the caller's to give. A parameter without an
    annotation, or with one that cannot be resolved, takes the JSON value as it is.

    Raises:
        BadArgumentsError: They do not fit; names the parameter and what it expects.
    """
    call = _signature_of(function)
    try:
        bound = call.signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__name__", "the method")
        raise BadArgumentsError(f"{name}{call.signature}: {error}") from None
    for name, value in bound.arguments.items():
        kind = call.kinds.get(name, Any)
        if kind is Any:
            continue
        match call.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                fitted: Any = tuple(
                    _convert(item, kind, f"{name}[{index}]")
                    for index, item in enumerate(value)
                )
            case inspect.Parameter.VAR_KEYWORD:
                fitted = {key: _convert(item, kind, key) for key, item in value.items()}
            case _:
                fitted = _convert(value, kind, name)
        bound.arguments[name] = fitted
    return bound.args, bound.kwargs


@dataclass(frozen=True, slots=True)
class _Signature:
    """What a method takes: its signature without `self`, and a type per parameter."""

    signature: inspect.Signature
    kinds: Mapping[str, Any]


_signatures: WeakKeyDictionary[Callable[..., Any], _Signature] = WeakKeyDictionary()


def _signature_of(function: Callable[..., Any]) -> _Signature:
    function = getattr(function, "__func__", function)
    known = _signatures.get(function)
    if known is None:
        signature = inspect.signature(function)
        taken = list(signature.parameters.values())[1:]
        known = _signatures[function] = _Signature(
            signature.replace(
                parameters=taken, return_annotation=inspect.Signature.empty
            ),
            {parameter.name: _kind(function, parameter) for parameter in taken},
        )
    return known


def _kind(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return a parameter's type; Any if it has none, or one that is not to be found."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        hints = typing.get_type_hints(holder, globalns=names, include_extras=True)
    except Exception:  # noqa: BLE001  # evaluating someone's annotation
        return Any
    return hints[parameter.name]


def _convert(value: Any, kind: Any, label: str) -> Any:
    expected = kind.__name__ if type(kind) is type else str(kind)
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        at = label + place.removesuffix("`")
        message = f"argument {at}: {problem} ({label} is annotated {expected})"
    except Exception as error:  # noqa: BLE001  # or the annotated class's own code
        message = f"argument {label}: cannot become {expected}: {error}"
    raise BadArgumentsError(message)
