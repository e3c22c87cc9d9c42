"""What daemon and client library agree about: media types, headers, paths, errors.

JSON is for everyone. The client library speaks `application/vnd.durable-actor+msgpack`,
the bytes of `codec.encode`, so that arguments, results and exceptions keep their exact
types: a request is `[args, kwargs]`, an answer the result, and with the media type of
errors an exception of the object's own.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import msgspec

from durable_actor.errors import (
    BadArgumentsError,
    CallTimeoutError,
    DurableActorError,
    HostClosedError,
    MethodNotFoundError,
    ObjectOverloadedError,
    ObjectResetError,
    Outcome,
    ReplyExpiredError,
    StorageFailedError,
    StorageFullError,
    TransportError,
    UnauthorizedError,
)

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
EXACT: Final = "application/vnd.durable-actor+msgpack"
EXACT_ERROR: Final = "application/vnd.durable-actor.error+msgpack"

REQUEST_ID_HEADER: Final = "Idempotency-Key"
TIMEOUT_HEADER: Final = "X-Timeout-Ms"
SENT_AGO_HEADER: Final = "X-Sent-Ms-Ago"  # of a repeat: since it was sent first

# Of requests to an object's `fetch`, whose query belongs to the object.
BY_HEADER: Final = "X-Object-By"  # what the name in the path is: `name` or `id`
ERRORS_HEADER: Final = "X-Object-Errors"  # `exact`: exceptions keep their types
# Of the object's own answers; a refusal of the daemon does not have it.
OBJECT_HEADER: Final = "X-Object-Id"


def segment(name: str) -> str:
    """Return a name as one segment of a path.

    Dots are encoded too: a name `..` is a name, and no library may resolve it away.
    """
    return quote(name, safe="").replace(".", "%2E")


class _Problem(msgspec.Struct, frozen=True):
    """What a client reads of a problem document."""

    code: str
    detail: str = ""
    hint: str = ""
    retryable: bool = False
    overloaded: bool = False
    outcome: Outcome = "unknown"
    retry_after_ms: int | None = None
    error: dict[str, Any] | None = None


def error_of(status: int, body: bytes) -> DurableActorError:
    """Return the exception a problem document stands for; its text names the remedy."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return TransportError(f"HTTP status {status} without a problem document")
    error = error_named(problem.code, f"{problem.detail} {problem.hint}".strip())
    error.code = problem.code  # type: ignore[misc]  # of this one, not of its class
    error.remote = True
    error.retryable = problem.retryable
    error.overloaded = problem.overloaded
    error.outcome = problem.outcome
    error.retry_after_ms = problem.retry_after_ms
    return error


def error_named(code: str, text: str) -> DurableActorError:
    """Return the exception that a code of our own stands for."""
    match code:
        case "unauthorized":
            return UnauthorizedError(text)
        case "draining":
            return HostClosedError(text)
        case "timeout" | "body_timeout":
            return CallTimeoutError(text)
        case "overloaded":
            return ObjectOverloadedError(text)
        case "object_reset":
            return ObjectResetError(text)
        case "reply_expired":
            return ReplyExpiredError(text)
        case "storage_full":
            return StorageFullError("call", text)
        case "storage_failed":
            return StorageFailedError("call", text)
        case "method_not_found" | "unknown_class":
            return MethodNotFoundError(text)
        case "bad_arguments" | "bad_request" | "body_too_large":
            return BadArgumentsError(text)
        case _:
            return DurableActorError(text)
