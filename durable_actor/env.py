"""`Env`: what an object finds around itself: namespaces, and variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from durable_actor.namespace import DurableObjectNamespace

T = TypeVar("T")


class Env:
    """Bindings by name (`env.CARTS`) or by class (`env.namespace(Cart)`).

    Attributes are the names under `durable_objects.bindings` and `vars` of the
    configuration, or what was handed to `Host(env={...})`.
    """

    def __init__(
        self,
        find: Callable[[type[Any] | str], DurableObjectNamespace[Any]],
        bindings: Mapping[str, object] | None = None,
    ) -> None:
        self._find = find
        self._bindings = {} if bindings is None else bindings  # its owner may add to it

    def namespace(self, cls: type[T]) -> DurableObjectNamespace[T]:
        """Return the namespace of a class of this host."""
        return self._find(cls)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._bindings[name]
        except KeyError:
            known = ", ".join(sorted(self._bindings)) or "none"
            message = f"env has no binding {name!r}; it has: {known}"
            raise AttributeError(message) from None

    def __contains__(self, name: object) -> bool:
        return name in self._bindings
