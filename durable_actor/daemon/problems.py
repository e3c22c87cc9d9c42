"""Errors on the wire: every failure becomes one `Problem`.

The body is problem+json (RFC 9457): `type`, `title`, `status`, `detail`, and beside
them `code`, `hint`, `retryable`, `overloaded`, `outcome`, `retry_after_ms` and
`trace_id`. Whoever reads one learns what was wrong, what to do, and whether it ran.

An exception of the user's own code is answered with 500, `code: "handler_error"` and
`error: {"type", "message"}`: the caller holds the token and called that code. Its
traceback is shown only when `debug` is set. A failure of ours is answered with 500,
`code: "internal"` and a `trace_id` under which the log has the rest.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from http import HTTPStatus
from typing import Final, cast

import msgspec

from durable_actor.daemon import wire
from durable_actor.errors import DurableActorError, Outcome, RemoteError

RETRY_AFTER_MS: Final = 1_000  # a breath; the client library adds its own jitter
_OUTCOMES = ("not_executed", "failed", "unknown")

STATUS_BY_CODE: Final[Mapping[str, int]] = {
    "bad_arguments": 400,
    "bad_json": 400,
    "bad_request": 400,
    "foreign_id": 400,
    "invalid_id": 400,
    "invalid_input": 400,
    "invalid_name": 400,
    "invalid_time": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "host_refused": 403,
    "origin_refused": 403,
    "method_not_found": 404,
    "not_found": 404,
    "run_not_found": 404,
    "unknown_class": 404,
    "unknown_workflow": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "deadlock": 409,
    "illegal_transition": 409,
    "reply_expired": 409,
    "run_exists": 409,
    "body_too_large": 413,
    "storage_limit": 413,
    "target_too_long": 414,
    "unsupported_media_type": 415,
    "overloaded": 429,
    "headers_too_large": 431,
    "draining": 503,
    "event_quarantined": 503,
    "object_reset": 503,
    "safe_mode": 503,
    "storage_error": 503,
    "storage_failed": 503,
    "timeout": 504,
    "unreachable": 503,
    "storage_full": 507,
}
"""HTTP statuses of the codes of errors; a code that is not here is a 500."""

_HINTS: Final[Mapping[str, str]] = {
    "overloaded": "Wait before you try again, or spread the work over more objects.",
    "object_reset": "Send the call again if its outcome is not_executed.",
    "event_quarantined": "Find out why it ends the process, then release it.",
    "safe_mode": "Look at the log, then stop the daemon in order and start it again.",
    "draining": "The daemon is stopping; try again once it has been started anew.",
    "storage_full": "Free space on the disk of the data directory.",
    "storage_failed": "Look at the disk, then restart the daemon.",
    "timeout": "Ask again with a longer X-Timeout-Ms, and the same Idempotency-Key.",
    "reply_expired": "Look at the object to find out whether the call ran.",
    "deadlock": "Mark the method called back with @interleave.",
    "storage_limit": "Store less under one key.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One failure, as it is told to the caller."""

    status: int
    code: str
    detail: str
    hint: str = ""
    retryable: bool = False
    overloaded: bool = False
    outcome: Outcome = "not_executed"
    retry_after_ms: int | None = None
    error: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of its HTTP status."""
        return HTTPStatus(self.status).phrase

    def body(self, trace_id: str | None) -> bytes:
        """Return the problem+json."""
        document: dict[str, object] = {
            "type": f"urn:durable-actor:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "hint": self.hint,
            "retryable": self.retryable,
            "overloaded": self.overloaded,
            "outcome": self.outcome,
        }
        if self.retry_after_ms is not None:
            document["retry_after_ms"] = self.retry_after_ms
        if self.error is not None:
            document["error"] = self.error
        if trace_id is not None:
            document["trace_id"] = trace_id
        return msgspec.json.encode(document)

    def without_hint(self) -> Problem:
        """Return the same problem, saying nothing of what there is instead."""
        return replace(self, hint="")

    def spread(self) -> Problem:
        """Return the problem with a delay of its own, if it has one.

        Up to twice as long, so that those who are refused together do not come back
        together (S11).
        """
        if self.retry_after_ms is None:
            return self
        delay_ms = self.retry_after_ms * (1 + random.random())  # noqa: S311  # jitter
        return replace(self, retry_after_ms=int(delay_ms))

    def headers_to_send(self) -> dict[str, str]:
        """Return the headers of the answer; `Retry-After` is in whole seconds."""
        headers = {
            "Content-Type": wire.PROBLEM,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **self.headers,
        }
        if self.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-self.retry_after_ms // 1_000))
        return headers


class ProblemError(Exception):
    """Raised inside the daemon to end a request with this problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)


class HandlerError(Exception):
    """User code raised `original`; says so to the layer that answers."""

    def __init__(self, original: Exception) -> None:
        self.original = original
        super().__init__(original)


class ExactBodyError(HandlerError):
    """A failure whose caller can read the exception itself: `body` has it."""

    def __init__(self, original: Exception, body: bytes) -> None:
        super().__init__(original)
        self.body = body


def refuse(code: str, detail: str, hint: str = "", **headers: str) -> ProblemError:
    """Return the error that ends a request which asked for something wrong.

    Args:
        code: One of `STATUS_BY_CODE`.
        detail: What was wrong, with the value.
        hint: What to do instead.
        headers: More response headers, with underscores for hyphens.
    """
    return ProblemError(
        Problem(
            status=STATUS_BY_CODE[code],
            code=code,
            detail=detail,
            hint=hint,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
    )


def problem_of(error: BaseException, *, debug: bool = False) -> Problem:
    """Return how an exception is told to the caller."""
    if isinstance(error, ProblemError):
        return error.problem
    original = error.original if isinstance(error, HandlerError) else error
    if _is_ours(original):
        return _ours(original)
    if isinstance(error, HandlerError):
        return _handler_error(original, debug=debug)
    return Problem(
        status=500,
        code="internal",
        detail="The daemon failed while it answered.",
        hint="The log has the rest under this trace_id.",
        outcome="unknown",
    )


def _is_ours(error: BaseException) -> bool:
    """Whether it answers what our errors answer; those of extensions do too."""
    if isinstance(error, RemoteError):
        return False  # it stands for an exception of the user
    return isinstance(error, DurableActorError) or all(
        hasattr(error, name) for name in ("code", "retryable", "overloaded", "outcome")
    )


def _ours(error: BaseException) -> Problem:
    code = str(getattr(error, "code", "error"))
    status = STATUS_BY_CODE.get(code, 500)
    if getattr(error, "is_everywhere", False):
        status = int(HTTPStatus.SERVICE_UNAVAILABLE)  # not this object's share, but all
    if code == "not_storable" and outcome_of(error) == "not_executed":
        status = int(HTTPStatus.BAD_REQUEST)  # the caller's argument, not the answer
    retryable = bool(getattr(error, "retryable", False))
    overloaded = bool(getattr(error, "overloaded", False))
    waits = overloaded or (retryable and status == HTTPStatus.SERVICE_UNAVAILABLE)
    return Problem(
        status=status,
        code=code,
        detail=text_of(error),
        hint=getattr(error, "hint", "") or _HINTS.get(code, ""),
        retryable=retryable,
        overloaded=overloaded,
        outcome=outcome_of(error),
        retry_after_ms=RETRY_AFTER_MS if waits else None,
    )


def _handler_error(error: BaseException, *, debug: bool) -> Problem:
    facts: dict[str, object] = {
        "type": getattr(error, "type_name", type(error).__qualname__),
        "message": text_of(error),
    }
    if debug:
        facts["traceback"] = "".join(traceback.format_exception(error))
    return Problem(
        status=500,
        code="handler_error",
        detail=f"{facts['type']}: {facts['message']}",
        hint="The object's own code raised this.",
        retryable=bool(getattr(error, "retryable", False)),
        overloaded=bool(getattr(error, "overloaded", False)),
        outcome=outcome_of(error),
        error=facts,
    )


def outcome_of(error: object) -> Outcome:
    """Return whether the call ran, as far as the exception knows."""
    outcome = getattr(error, "outcome", "failed")
    return cast("Outcome", outcome) if outcome in _OUTCOMES else "failed"


def text_of(error: BaseException) -> str:
    """Return the exception's message as text that can always be sent."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001  # the user's __str__ may do anything
        text = f"(its message cannot be shown: {type(broken).__name__})"
    return text.encode("utf-8", "backslashreplace").decode()


def no_class(name: str, hint: str = "") -> ProblemError:
    """Return the error for the name of a class that is not here, or not for you."""
    return refuse("unknown_class", f"There is no class {name[:100]!r} here.", hint)


def no_workflow(name: str, hint: str = "") -> ProblemError:
    """Return the error for the name of a workflow that is not here, or not for you."""
    text = f"There is no workflow {name[:100]!r} here."
    return refuse("unknown_workflow", text, hint)


def nearest(name: str, known: list[str]) -> str:
    """Return the end of a sentence that helps someone who mistyped `name`."""
    close = get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known: " + (", ".join(sorted(known)[:20]) or "none") + "."
