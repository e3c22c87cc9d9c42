"""Every exception a caller may catch, in one tree.

DurableActorError
├── ObjectError                 about one object; carries its class, name and id
│   ├── ObjectOverloadedError   its mailbox met a bound; nothing was delivered
│   ├── ObjectResetError        the activation broke; says whether the call ran
│   ├── ObjectDeadlockError     the call would wait for itself
│   ├── MethodNotFoundError     no such public async method (also an AttributeError)
│   ├── BadArgumentsError       the arguments do not fit the method (also a TypeError)
│   ├── ReplyExpiredError       a repeat whose kept reply is gone; it may have run
│   ├── EventQuarantinedError   the process died too often while it ran this event
│   └── CorruptionError         what the disk holds is not what was written
├── StorageError                an operation on storage failed: operation, key, cause
│   ├── StorageFullError        the disk is full; nothing of the turn was applied
│   ├── StorageFailedError      a write or sync failed; the host stops
│   ├── StorageLimitError       key, value or batch over its limit (also a ValueError)
│   ├── SqlError                a statement was refused or failed
│   └── TransactionClosedError  used after its commit or rollback
├── EncodeError                 a value cannot be kept exactly (also a TypeError)
├── DecodeError                 bytes that are not a value (also a ValueError)
├── InvalidIdError              malformed id or name (also a ValueError)
├── ForeignIdError              an id of another namespace (also a TypeError)
├── InvalidTimeError            a duration or instant that is none (also a ValueError)
├── HostClosedError             the host is draining or closed
├── SafeModeError               after many crashes only reads and admin work
├── HostMisuseError             wrong event loop, thread or process
├── ConfigError                 configuration, format or permission refused
│   └── FormatTooNewError       the data directory is of a later release
├── DataDirectoryInUseError     another process holds the data directory
├── CallTimeoutError            no answer in time (also a TimeoutError)
├── TransportError              the daemon could not be reached or went away
├── UnauthorizedError           the daemon refused the token
├── BodyError                   a body was read twice, or broke off on its way
├── WebSocketMisuseError        a WebSocket was used against its rules
├── WebSocketClosedError        nothing more comes from a WebSocket: code, reason
└── RemoteError                 user code raised something the caller cannot name

Each answers four questions: `retryable` (may the same call succeed later), `overloaded`
(was it shed; then do not retry at once), `remote` (did it come from the other side of a
stub) and `outcome` (did the call run: `not_executed`, `failed` or `unknown`). A daemon
that wants to be left alone for a while says so in `retry_after_ms`. As on Cloudflare,
`durable_object_reset` says that the activation is gone.

`failed` means that the call ran and raised; what it wrote before may stay. `unknown` is
an answer of its own: the call ran, or runs, or never will, and only a repeat with the
same request id can tell.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Outcome = Literal["not_executed", "failed", "unknown"]


class DurableActorError(Exception):
    """Base of everything this package raises on purpose."""

    code: ClassVar[str] = "error"
    retryable: bool = False
    overloaded: bool = False
    remote: bool = False
    outcome: Outcome = "failed"
    retry_after_ms: int | None = None  # before that, a repeat would be refused as well
    durable_object_reset: bool = False
    durableObjectReset = durable_object_reset


class ObjectError(DurableActorError):
    """Something about one object: `object_class`, `object_name` and `object_id`."""

    code = "object_error"

    def __init__(
        self,
        detail: str,
        *,
        object_class: str = "",
        object_name: str | None = None,
        object_id: str = "",
    ) -> None:
        self.detail = detail
        self.object_class = object_class
        self.object_name = object_name
        self.object_id = object_id
        label = object_name if object_name is not None else object_id[:16]
        known = f"{object_class}({label!r})" if label else object_class
        prefix = f"{known}: " if object_class else ""
        super().__init__(prefix + detail)


class ObjectOverloadedError(ObjectError):
    """The object has more work waiting than its mailbox may hold, or the process has.

    Nothing was delivered. Do not retry at once: that is what fills mailboxes. Spread
    the work over more objects, or raise the `[objects]` limits.
    """

    code = "overloaded"
    overloaded = True
    outcome: Outcome = "not_executed"
    is_everywhere: bool = False  # it is the whole process that has too much


class ObjectResetError(ObjectError):
    """The activation broke: a failed write or constructor, or `ctx.abort()`.

    `outcome` says whether this call ran. The next event starts a fresh activation from
    the disk, so a call that was `not_executed` may simply be sent again.
    """

    code = "object_reset"
    retryable = True
    durable_object_reset = True
    durableObjectReset = durable_object_reset

    def __init__(
        self,
        detail: str,
        *,
        outcome: Outcome = "unknown",
        object_class: str = "",
        object_name: str | None = None,
        object_id: str = "",
    ) -> None:
        super().__init__(
            detail,
            object_class=object_class,
            object_name=object_name,
            object_id=object_id,
        )
        self.outcome = outcome


class ObjectDeadlockError(ObjectError):
    """The call would wait for an event that itself waits for the caller.

    The message names the cycle. Break it by calling without awaiting the answer, by
    `@interleave` on the method called back, or by passing the data along instead.
    """

    code = "deadlock"
    outcome: Outcome = "not_executed"


class MethodNotFoundError(ObjectError, AttributeError):
    """The class has no public `async def` of that name."""

    code = "method_not_found"
    outcome: Outcome = "not_executed"


class BadArgumentsError(ObjectError, TypeError):
    """The arguments do not fit the method's signature or annotations."""

    code = "bad_arguments"
    outcome: Outcome = "not_executed"


class ReplyExpiredError(ObjectError):
    """The call was sent again so late that its reply may have been dropped.

    It was not run now, and may have run before: look at the object to find out. Replies
    are kept for `storage.reply_ttl_ms`, `storage.replies_per_object_max` of them.
    """

    code = "reply_expired"
    outcome: Outcome = "unknown"


class EventQuarantinedError(ObjectError):
    """The process died several times while this object ran this event (G18).

    It was not run. Other events of the object, and other objects, are not concerned.
    Once the cause is gone, release it: `durable-actor quarantine release`.
    """

    code = "event_quarantined"
    outcome: Outcome = "not_executed"


class CorruptionError(ObjectError):
    """A checksum did not match: the stored bytes are not the written ones.

    The object is not served. Nothing is deleted; restore it from a backup.
    """

    code = "corruption"


class StorageError(DurableActorError):
    """A storage operation failed: `operation`, `key` (or None) and the cause."""

    code = "storage_error"

    def __init__(
        self, operation: str, detail: str = "", *, key: str | None = None
    ) -> None:
        self.operation = operation
        self.key = key
        self.detail = detail
        at = f" of key {key!r}" if key is not None else ""
        super().__init__(f"{operation}{at} failed" + (f": {detail}" if detail else ""))


class StorageFullError(StorageError):
    """The disk is full. Nothing of the turn was applied, in memory either."""

    code = "storage_full"
    retryable = True


class StorageFailedError(StorageError):
    """A write or a sync failed, so nothing more is acknowledged by this host.

    Restart it: every acknowledged write is on disk.
    """

    code = "storage_failed"
    outcome: Outcome = "unknown"


class StorageLimitError(StorageError, ValueError):
    """A key, value or batch is larger than its limit. Nothing was written."""

    code = "storage_limit"


class TransactionClosedError(StorageError):
    """The transaction was used after its commit or rollback."""

    code = "transaction_closed"


class SqlError(StorageError):
    """An SQL statement was refused or failed: `detail`, `query` and `sqlite_name`.

    `query` is the statement's beginning, `sqlite_name` SQLite's own name of the error,
    such as `SQLITE_CONSTRAINT_UNIQUE`, or empty if the statement never reached SQLite.
    Nothing of this statement was applied; earlier ones of the turn stay.
    """

    code = "sql_error"

    def __init__(
        self,
        operation: str,
        detail: str = "",
        *,
        key: str | None = None,
        query: str = "",
        sqlite_name: str = "",
    ) -> None:
        super().__init__(operation, detail, key=key)
        self.query = query
        self.sqlite_name = sqlite_name
        # The texts that Cloudflare's users know: no operation before them.
        self.args = (f"{detail}: {sqlite_name}" if sqlite_name else detail,)


class EncodeError(DurableActorError, TypeError):
    """A value that cannot be kept exactly; `path` says where it sits.

    Convert it to a type of the list in the guide, or make its class a dataclass.
    """

    code = "not_storable"
    outcome: Outcome = "not_executed"

    def __init__(self, detail: str, *, path: str = "value") -> None:
        self.path = path
        self.detail = detail
        super().__init__(f"{path}: {detail}")


class DecodeError(DurableActorError, ValueError):
    """Bytes that do not decode to a value; says what is missing or damaged."""

    code = "not_readable"


class InvalidIdError(DurableActorError, ValueError):
    """A malformed id or name."""

    code = "invalid_id"
    outcome: Outcome = "not_executed"


class ForeignIdError(DurableActorError, TypeError):
    """An id that belongs to another namespace, or was mistyped."""

    code = "foreign_id"
    outcome: Outcome = "not_executed"


class InvalidTimeError(DurableActorError, ValueError):
    """A duration or an instant that cannot be understood or is out of range."""

    code = "invalid_time"
    outcome: Outcome = "not_executed"


class HostClosedError(DurableActorError):
    """The host is draining or closed; nothing was delivered."""

    code = "draining"
    retryable = True
    outcome: Outcome = "not_executed"


class SafeModeError(DurableActorError):
    """The daemon has crashed so often that it runs no object's code (G21).

    Nothing was delivered. What is stored can be listed, shown and deleted. Once the
    cause is gone, stop the daemon in order (SIGTERM) and start it again.
    """

    code = "safe_mode"
    retryable = True
    outcome: Outcome = "not_executed"


class HostMisuseError(DurableActorError, RuntimeError):
    """The host was used from another event loop, thread or process than its own."""

    code = "misuse"
    outcome: Outcome = "not_executed"


class ConfigError(DurableActorError, ValueError):
    """Configuration, permission or format refused; the message names the remedy."""

    code = "config"
    outcome: Outcome = "not_executed"


class FormatTooNewError(ConfigError):
    """The data directory was written by a later release; nothing was touched."""

    code = "format_too_new"


class DataDirectoryInUseError(DurableActorError):
    """Another process holds the data directory; `holder` names it."""

    code = "data_directory_in_use"
    retryable = True
    outcome: Outcome = "not_executed"

    def __init__(self, directory: str, holder: str) -> None:
        self.directory = directory
        self.holder = holder
        super().__init__(
            f"{directory} is in use by {holder}. Stop it, or choose another directory."
        )


class CallTimeoutError(DurableActorError, TimeoutError):
    """No answer in time. The call may have run, may still run, or never will."""

    code = "timeout"
    retryable = True
    outcome: Outcome = "unknown"


class TransportError(DurableActorError, ConnectionError):
    """The daemon could not be reached, or went away before it answered."""

    code = "unreachable"
    retryable = True

    def __init__(self, detail: str, *, outcome: Outcome = "unknown") -> None:
        self.detail = detail
        super().__init__(detail)
        self.outcome = outcome


class UnauthorizedError(DurableActorError):
    """The daemon refused the token, or none was sent."""

    code = "unauthorized"
    outcome: Outcome = "not_executed"


class BodyError(DurableActorError, ConnectionError):
    """The body of a request or response was read twice, or broke off on its way."""

    code = "body"


class WebSocketMisuseError(DurableActorError, RuntimeError):
    """A WebSocket was used against its rules; nothing was sent or accepted."""

    code = "web_socket_misuse"
    outcome: Outcome = "not_executed"


class WebSocketClosedError(DurableActorError, ConnectionError):
    """Nothing more comes from a WebSocket: it was closed with `status` and `reason`.

    `was_clean` tells whether the other side said so, or was lost.
    """

    code = "web_socket_closed"

    def __init__(self, status: int, reason: str = "", *, was_clean: bool) -> None:
        self.status = status
        self.reason = reason
        self.was_clean = was_clean
        how = "closed" if was_clean else "lost"
        super().__init__(f"{how} with {status}" + (f": {reason}" if reason else ""))


class RemoteError(DurableActorError):
    """User code raised a type that the caller cannot name.

    `type_name`, `message`, `remote_notes` and `remote_traceback` (text, may be empty)
    describe the original.
    """

    code = "remote_error"
    remote = True

    def __init__(
        self,
        type_name: str,
        message: str,
        *,
        remote_notes: tuple[str, ...] = (),
        remote_traceback: str = "",
    ) -> None:
        self.type_name = type_name
        self.message = message
        self.remote_notes = remote_notes
        self.remote_traceback = remote_traceback
        super().__init__(f"{type_name}: {message}")
