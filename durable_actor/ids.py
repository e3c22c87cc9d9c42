"""Identity of objects: 64 hexadecimal characters, bound to one namespace.

The first half of an id is derived from the name, or random; the second half is a keyed
digest of the first. So an id of another namespace, or a mistyped one, is recognised
without looking anything up. The construction and the two error texts are those observed
of Durable Objects.

Promises
    The same name gives the same id in a namespace, always.
    A name never becomes a path, a query or a format string.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from functools import total_ordering

from durable_actor.errors import ForeignIdError, InvalidIdError

NAME_BYTES_MAX = 1_024
_HALF_BYTES = 16
_ID_BYTES = 2 * _HALF_BYTES


@total_ordering
class ObjectId:
    """Names one object: its namespace, its 32 bytes, and its name if it has one."""

    __slots__ = ("name", "namespace", "raw")

    def __init__(self, namespace: str, raw: bytes, name: str | None) -> None:
        self.namespace = namespace
        self.raw = raw
        self.name = name

    def __str__(self) -> str:
        return self.raw.hex()

    def __repr__(self) -> str:
        label = repr(self.name) if self.name is not None else self.raw.hex()[:16]
        return f"ObjectId({self.namespace}:{label})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectId):
            return NotImplemented
        return self.raw == other.raw

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, ObjectId):
            return NotImplemented
        return self.raw < other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def equals(self, other: ObjectId) -> bool:
        """Return whether both name the same object; `==` does, too."""
        return self == other

    def to_string(self) -> str:
        """Return the 64 hexadecimal characters; `str` does, too."""
        return str(self)

    toString = to_string


class IdSpace:
    """Makes and checks the ids of one namespace."""

    __slots__ = ("_key", "namespace")

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._key = hashlib.sha256(namespace.encode()).digest()

    def from_name(self, name: str) -> ObjectId:
        """Return the id of `name`, any text of at most 1,024 bytes of UTF-8.

        Raises:
            InvalidIdError: The name is not text, too long, or not valid Unicode.
        """
        data = check_name(name)
        return ObjectId(self.namespace, self._complete(self._digest(data)), name)

    def new_unique(
        self, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> ObjectId:
        """Return a fresh id that no name leads to."""
        return ObjectId(self.namespace, self._complete(random_bytes(_HALF_BYTES)), None)

    def parse(self, text: str) -> ObjectId:
        """Return the id written as 64 hexadecimal characters; the name is not known.

        Raises:
            InvalidIdError: Not 64 hexadecimal characters.
            ForeignIdError: Of another namespace, or mistyped.
        """
        return self.adopt(id_bytes(text), None)

    def adopt(self, raw: bytes, name: str | None) -> ObjectId:
        """Return the id with these 32 bytes, checked to belong here."""
        if self._complete(raw[:_HALF_BYTES]) != raw:
            message = "Durable Object ID is not valid for this namespace."
            raise ForeignIdError(f"{message} ({self.namespace}: {raw.hex()[:16]}...)")
        return ObjectId(self.namespace, raw, name)

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")[:_HALF_BYTES]

    def _complete(self, half: bytes) -> bytes:
        return half + self._digest(half)


def id_bytes(text: str) -> bytes:
    """Return the 32 bytes of an id, of whatever namespace.

    Raises:
        InvalidIdError: Not 64 hexadecimal characters.
    """
    if not _is_id_text(text):
        message = (
            f"Invalid Durable Object ID: must be 64 hex digits (got {_shorten(text)})"
        )
        raise InvalidIdError(message)
    return bytes.fromhex(text)


def check_name(name: str) -> bytes:
    """Return the UTF-8 of an object's name, or refuse it.

    Raises:
        InvalidIdError: Not text, longer than 1,024 bytes, or with a lone surrogate.
    """
    if not isinstance(name, str):
        message = f"an object's name must be text, got {type(name).__name__}"
        raise InvalidIdError(message)
    try:
        data = name.encode()
    except UnicodeEncodeError as error:
        message = f"the name {_shorten(name)} is not valid Unicode: {error.reason}"
        raise InvalidIdError(message) from None
    if len(data) > NAME_BYTES_MAX:
        message = (
            f"the name {_shorten(name)} has {len(data)} bytes of UTF-8;"
            f" at most {NAME_BYTES_MAX} are allowed"
        )
        raise InvalidIdError(message)
    if "\x00" in name:
        message = f"the name {_shorten(name)} contains NUL"
        raise InvalidIdError(message)
    return data


def _is_id_text(text: object) -> bool:
    return (
        isinstance(text, str)
        and len(text) == 2 * _ID_BYTES
        and all(character in "0123456789abcdefABCDEF" for character in text)
    )


def _shorten(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 48 else text[:45] + "..."  # noqa: PLR2004
