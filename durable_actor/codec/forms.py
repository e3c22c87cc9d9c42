"""Forms: how the instances of one class come apart, and are put together again.

There is a form for enums, dataclasses, Structs and exceptions. None of them runs the
class's own `__init__`: what was kept is put back, and nothing is computed anew. A field
the class has gained since takes its default; one it has lost is an error that names it.

A form holds the key its class is stored under; `registry` finds the form of a class.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import EnumType, Flag
from functools import cached_property, partial
from types import BuiltinMethodType, WrapperDescriptorType
from typing import Any, ClassVar, Final

import msgspec

from durable_actor.codec import tags
from durable_actor.codec.refusals import RefusedError, remedy
from durable_actor.codec.wording import class_name
from durable_actor.errors import DecodeError

# What Python keeps beside `args` and `__dict__`, and `args` does not lead to.
_FIELDS_BY_BUILTIN: Final[Mapping[type[BaseException], tuple[str, ...]]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}


class Form:
    """How the instances of one class come apart, and are put together again."""

    code: ClassVar[int]

    def __init__(self, cls: type[Any], key: str) -> None:
        self.cls = cls
        self.key = key

    def take_apart(self, value: Any) -> Any:
        """Return the parts of an instance: a dict by name, or a scalar."""
        raise NotImplementedError

    def put_together(self, parts: Any) -> Any:
        """Return an instance that has these parts."""
        raise NotImplementedError


def make_form(cls: type[Any], key: str) -> Form:
    """Return the form of a class.

    Raises:
        RefusedError: Its instances cannot be kept exactly.
    """
    if issubclass(cls, BaseException):
        return _ExceptionForm(cls, key)
    if isinstance(cls, EnumType):
        return _EnumForm(cls, key)
    if issubclass(cls, msgspec.Struct):
        return _StructForm(cls, key)
    if dataclasses.is_dataclass(cls):
        try:
            object.__new__(cls)
        except TypeError:
            message = (
                f"{class_name(cls)} is a dataclass and more. Make it only a dataclass."
            )
            raise RefusedError(message) from None
        return _DataclassForm(cls, key)
    raise RefusedError(
        f"{class_name(cls)} is not a type that can be kept exactly. {remedy(cls)}"
    )


class _EnumForm(Form):
    """Enum members by name, so that they survive a change of their values."""

    code = tags.ENUM

    def take_apart(self, value: Any) -> str | int:
        name = value._name_
        if self.cls._member_map_.get(name) is value:
            return str(name)
        return int(value._value_)  # flags combined with `|` have no name of their own

    def put_together(self, parts: Any) -> Any:
        if type(parts) is int and issubclass(self.cls, Flag):
            return self.cls(parts)
        member = self.cls._member_map_.get(parts)
        if member is None:
            raise DecodeError(
                f"{class_name(self.cls)} has no member {parts!r} any more"
            )
        return member


class _FieldsForm(Form):
    """What dataclasses and Structs have in common: fields with names."""

    def __init__(self, cls: type[Any], key: str) -> None:
        super().__init__(cls, key)
        self._defaults: dict[str, Callable[[], Any]] = {}
        self._fields = self._find_fields()
        self._names = frozenset(self._fields)
        self._has_dict = cls.__dictoffset__ != 0

    def take_apart(self, value: Any) -> dict[str, Any]:
        if self._has_dict:
            state: dict[str, Any] = vars(value)
            if state.keys() == self._names:
                return state
            self._refuse_extras(state)
        parts = {}
        for name in self._fields:
            try:
                parts[name] = getattr(value, name)
            except AttributeError:
                message = "the field was never set. Set it, or give it a default."
                refused = RefusedError(message)
                refused.steps.append(f".{name}")
                raise refused from None
        return parts

    def _find_fields(self) -> tuple[str, ...]:
        """Return the names of the fields, and note what the missing ones default to."""
        raise NotImplementedError

    def _complete(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Return the parts with defaults for fields the class has gained since."""
        for name in parts.keys() - self._names:
            message = (
                f"{class_name(self.cls)} has no field {name!r} any more, but a stored"
                " value has. Put the field back, or read and rewrite the old values"
                " first."
            )
            raise DecodeError(message)
        completed = {}
        for name in self._fields:
            if name in parts:
                completed[name] = parts[name]
            elif name in self._defaults:
                completed[name] = self._defaults[name]()
            else:
                message = (
                    f"a stored value has no field {name!r}, which"
                    f" {class_name(self.cls)} now has. Give the field a default."
                )
                raise DecodeError(message)
        return completed

    def _refuse_extras(self, state: Mapping[str, Any]) -> None:
        for name in state.keys() - self._names:
            is_derived = name.startswith("__") or isinstance(
                inspect.getattr_static(self.cls, name, None), cached_property
            )
            if not is_derived:
                message = (
                    f"{class_name(self.cls)} has no field {name!r}, so the attribute"
                    " would be lost. Declare it as a field."
                )
                raise RefusedError(message)


class _DataclassForm(_FieldsForm):
    """Dataclasses, made without `__init__` and `__post_init__`."""

    code = tags.DATACLASS

    def __init__(self, cls: type[Any], key: str) -> None:
        super().__init__(cls, key)
        # No field lives in a slot, or behind a descriptor.
        self._is_all_dict = self._has_dict and not any(
            hasattr(inspect.getattr_static(cls, name, None), "__set__")
            for name in self._fields
        )

    def put_together(self, parts: Any) -> Any:
        if parts.keys() != self._names:
            parts = self._complete(parts)
        instance = object.__new__(self.cls)
        if self._is_all_dict:
            vars(instance).update(parts)
        else:
            for name, part in parts.items():
                object.__setattr__(instance, name, part)
        return instance

    def _find_fields(self) -> tuple[str, ...]:
        fields = dataclasses.fields(self.cls)
        for field in fields:
            if field.default_factory is not dataclasses.MISSING:
                self._defaults[field.name] = field.default_factory
            elif field.default is not dataclasses.MISSING:
                self._defaults[field.name] = partial(_same, field.default)
        return tuple(field.name for field in fields)


class _StructForm(_FieldsForm):
    """Structs. Only calling the class makes one; that checks and converts nothing."""

    code = tags.STRUCT

    def put_together(self, parts: Any) -> Any:
        if parts.keys() != self._names:
            parts = self._complete(parts)
        instance = self.cls(**parts)
        if hasattr(self.cls, "__post_init__"):
            # It has run, as it cannot be avoided, and may have changed what was kept.
            for name, part in parts.items():
                msgspec.structs.force_setattr(instance, name, part)
        return instance

    def _find_fields(self) -> tuple[str, ...]:
        fields = msgspec.structs.fields(self.cls)
        for field in fields:
            if field.default_factory is not msgspec.NODEFAULT:
                self._defaults[field.name] = field.default_factory
            elif field.default is not msgspec.NODEFAULT:
                self._defaults[field.name] = partial(_same, field.default)
        return tuple(field.name for field in fields)


class _ExceptionForm(Form):
    """Exceptions: arguments, attributes and notes; not the traceback."""

    code = tags.EXCEPTION

    def __init__(self, cls: type[BaseException], key: str) -> None:
        super().__init__(cls, key)
        # Made by Python's own constructors: one that the user wrote may want other
        # arguments than those in `args`.
        self._new = _first_builtin(cls, "__new__", BuiltinMethodType)
        self._init = _first_builtin(cls, "__init__", WrapperDescriptorType)
        self._fields = tuple(
            name
            for builtin, names in _FIELDS_BY_BUILTIN.items()
            if issubclass(cls, builtin)
            for name in names
        )

    def take_apart(self, value: Any) -> dict[str, Any]:
        state = dict(vars(value))
        notes = state.pop("__notes__", None) or ()
        parts: dict[str, Any] = {"args": list(value.args), "state": state}
        fields = {name: getattr(value, name, None) for name in self._fields}
        parts["fields"] = {k: v for k, v in fields.items() if v is not None}
        parts["notes"] = [str(note) for note in notes]
        return parts

    def put_together(self, parts: Any) -> BaseException:
        args = tuple(parts.get("args", ()))
        error: BaseException = self._new(self.cls, *args)
        self._init(error, *args)
        object.__setattr__(error, "args", args)
        for name, part in parts.get("fields", {}).items():
            if name in self._fields:
                object.__setattr__(error, name, part)
        vars(error).update(parts.get("state", {}))
        add_notes(error, parts.get("notes", ()))
        return error


def _same(value: Any) -> Any:
    return value


def _first_builtin(cls: type[Any], name: str, kind: type[Any]) -> Callable[..., Any]:
    """Return the constructor that Python itself has for the memory of a class."""
    found: type[Any] | None = cls
    while found is not None:
        member = vars(found).get(name)
        if type(member) is kind:
            return getattr(found, name)  # type: ignore[no-any-return]  # callable
        found = found.__base__
    raise AssertionError(f"object itself has {name}")


def add_notes(error: BaseException, notes: Iterable[str]) -> None:
    """Add notes even to a frozen exception, which `add_note` cannot."""
    if notes:
        vars(error).setdefault("__notes__", []).extend(notes)


FORM_CODES: Final = frozenset(
    form.code for form in (_EnumForm, _DataclassForm, _StructForm, _ExceptionForm)
)
