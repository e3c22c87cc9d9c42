"""Registry: which form belongs to a class, and which class to a stored key.

A class is known if it was registered, or if its key leads to it through modules that
are already imported. Nothing is ever imported here, and a class is looked up as data,
so that bytes from elsewhere cannot make code run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload
from weakref import WeakValueDictionary

from durable_actor.codec.forms import Form, make_form
from durable_actor.codec.refusals import RefusedError
from durable_actor.codec.wording import class_name
from durable_actor.errors import ConfigError, DecodeError, EncodeError

C = TypeVar("C", bound=type[Any])

_NAMESPACES = (ModuleType, type)  # what a class may be found in

_form_by_class: dict[type[Any], Form] = {}
_form_by_key: dict[str, Form] = {}
_registered: dict[str, Form] = {}
# Not findable by name. An exception of such a class still reaches its caller in this
# process with its type.
_local_classes: WeakValueDictionary[str, type[Any]] = WeakValueDictionary()


@overload
def register(cls: C, /) -> C: ...
@overload
def register(*, name: str) -> Callable[[C], C]: ...
def register(
    cls: type[Any] | None = None, /, *, name: str | None = None
) -> type[Any] | Callable[[type[Any]], type[Any]]:
    """Make a class known by its key, or by a name of its own; usable as a decorator.

    Needed for a class defined inside a function, and to read what a class that has
    since moved has written: `register(name="old.module:Old")(New)`. The name given last
    is the one written from then on.

    Raises:
        EncodeError: Not a dataclass, Struct, enum or exception.
        ConfigError: Another class has that name.
    """
    if cls is None:
        return lambda later: _register(later, name)
    return _register(cls, name)


def form_of(cls: type[Any], *, takes_local_classes: bool) -> Form:
    """Return the form of an instance's class, found once per class."""
    form = _form_by_class.get(cls)
    if form is not None:
        return form
    key = class_key(cls)
    form = make_form(cls, key)
    if _locate(key) is cls:
        _form_by_class[cls] = _form_by_key[key] = form
        return form
    if takes_local_classes:
        _local_classes[key] = cls
        return form
    message = (
        f"the class {class_name(cls)} could not be found again by its name after a"
        " restart. Move it to the top level of a module, or hand it to"
        " durable_actor.register where it is made."
    )
    raise RefusedError(message)


def find_form(code: int, key: str) -> Form:
    """Return the form of a stored class. Imports nothing."""
    form = _registered.get(key)
    if form is None:
        cls = _locate(key)
        form = _form_by_key.get(key)
        if form is None or form.cls is not cls:  # else its module was loaded again
            form = _make_found_form(key, cls)
    if form.code != code:
        raise DecodeError(f"{key} is another kind of class than when it was stored")
    return form


def class_key(cls: type[Any]) -> str:
    """Return what a class is stored under unless it was registered by a name.

    A class of the program itself is stored under the name its file is imported by, so
    that what a script has written can be read by a daemon that serves the script.
    """
    module = cls.__module__
    if module == "__main__":
        module = _main_name() or module
    return f"{module}:{cls.__qualname__}"


def _register(cls: type[Any], name: str | None) -> type[Any]:
    key = class_key(cls) if name is None else name
    try:
        form = make_form(cls, key)
    except RefusedError as refused:
        raise EncodeError(refused.detail, path=class_name(cls)) from None
    known = _registered.get(key)
    if known is not None and class_key(known.cls) != class_key(cls):
        raise ConfigError(f"{key!r} is already registered, for {class_name(known.cls)}")
    _registered[key] = _form_by_class[cls] = form
    return cls


def _make_found_form(key: str, cls: type[Any] | None) -> Form:
    found = cls or _local_classes.get(key)
    if found is None:
        message = (
            f"the class {key} is not here. Import its module before reading; if it has"
            f" moved, durable_actor.register(name={key!r}) its successor."
        )
        raise DecodeError(message)
    try:
        form = make_form(found, key)
    except RefusedError as refused:
        raise DecodeError(refused.detail) from None
    if cls is not None:
        _form_by_key[key] = form
    return form


def _main_name() -> str | None:
    """Return the name that the running program would have if it were imported."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    path = getattr(main, "__file__", None)
    return None if path is None else Path(path).stem


def _locate(key: str) -> type[Any] | None:
    """Return the class a key names, from what is already imported."""
    module, _, path = key.partition(":")
    found: object = sys.modules.get(module)
    if found is None and module == _main_name():
        found = sys.modules["__main__"]
    for name in path.split("."):
        # Looked up as data: a module's or a class's `__getattr__` could import.
        if not isinstance(found, _NAMESPACES):
            return None
        found = vars(found).get(name)
    return found if isinstance(found, type) else None
