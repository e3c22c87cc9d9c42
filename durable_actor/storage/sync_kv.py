"""`ctx.storage.kv`: the keys of an object, without an await.

The same keys as `ctx.storage` has, in the same turn. With a database of its own an
object has every key at hand; without one, those that are in memory: all of a small
object, and of a large one what was read or written lately.

Follows https://developers.cloudflare.com/durable-objects/api/sqlite-storage-api/ in
names and behaviour.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from typing import Any, Protocol

from durable_actor.errors import StorageError
from durable_actor.storage.ready import Ready


class AsyncKeys(Protocol):
    """What `ctx.storage` has to offer for this."""

    def get(self, key: str, default: Any = None) -> Awaitable[Any]:
        """Return the value of a key."""
        ...

    def put(self, key: str, value: object, /) -> Awaitable[None]:
        """Write a key."""
        ...

    def delete(self, key: str) -> Awaitable[bool]:
        """Delete a key."""
        ...

    def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Awaitable[Mapping[str, Any]]:
        """Return a range."""
        ...


class SyncKeyValueStorage:
    """Reads and writes the object's keys at once."""

    __slots__ = ("_keys",)

    def __init__(self, keys: AsyncKeys) -> None:
        self._keys = keys

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default`.

        Raises:
            StorageError: The key is not in memory; `await ctx.storage.get` reads it.
        """
        _check_one(key, "get")
        return _now(self._keys.get(key, default), "get")

    def put(self, key: str, value: object) -> None:
        """Write one key.

        Raises:
            EncodeError: A value that cannot be kept exactly; names where it sits.
            StorageLimitError: Key or value over its limit.
        """
        _check_one(key, "put")
        self._keys.put(key, value)

    def delete(self, key: str) -> bool:
        """Delete a key; was it there?

        Raises:
            StorageError: Nobody knows without asking the disk; nothing was deleted.
        """
        _check_one(key, "delete")
        _now(self._keys.get(key), "delete")
        return bool(_now(self._keys.delete(key), "delete"))

    def list(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[str, Any]]:
        """Return keys and values in order, as they are now; see `ctx.storage.list`.

        Raises:
            StorageError: Not all of it is in memory; `await ctx.storage.list` reads it.
        """
        found = self._keys.list(
            prefix=prefix,
            start=start,
            start_after=start_after,
            end=end,
            limit=limit,
            reverse=reverse,
        )
        return iter(_now(found, "list").items())


def _check_one(key: object, operation: str) -> None:
    if not isinstance(key, str):
        message = f"kv.{operation} takes one key, a text, got {type(key).__name__}"
        raise TypeError(message)


def _now(answer: Awaitable[Any], operation: str) -> Any:
    """Return the answer if it is there already."""
    if isinstance(answer, Ready):
        return answer.value
    close = getattr(answer, "close", None)
    if close is not None:
        close()  # a coroutine that nobody will await
    detail = (
        "not in memory, as the object is large and has no database of its own; use"
        f" `await ctx.storage.{operation}(...)`"
    )
    raise StorageError(f"kv.{operation}", detail)
