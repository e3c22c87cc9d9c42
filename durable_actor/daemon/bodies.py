"""Bodies: strict JSON for everyone, exact values for the client library.

JSON is refused where readers disagree or where it could hurt: `NaN` and infinities,
numbers out of range, lone surrogates, bytes that are not UTF-8, more than 64 levels.
Each is a 400, never a 500.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response

from durable_actor import codec
from durable_actor.daemon import wire
from durable_actor.daemon.problems import refuse
from durable_actor.daemon.routing import Incoming
from durable_actor.errors import DecodeError

JSON_DEPTH_MAX: Final = 64
_ANSWER_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
T = TypeVar("T")


def is_exact(incoming: Incoming) -> bool:
    """Whether the caller is the client library, which speaks exact values."""
    return _media_type(incoming) == wire.EXACT


async def read_json(incoming: Incoming, *, default: object) -> Any:
    """Return the JSON of the body, or `default` if the body is empty."""
    body = await incoming.body()
    if not body:
        return default
    _check_media_type(incoming, wire.JSON)
    return parse_json(body)


async def read_struct(incoming: Incoming, kind: type[T], *, default: T) -> T:
    """Return the body as `kind`, or `default` if the body is empty."""
    value = await read_json(incoming, default=None)
    if value is None:
        return default
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        names = ", ".join(field.name for field in msgspec.structs.fields(kind))  # type: ignore[arg-type]  # only structs come here
        raise refuse(
            "bad_request",
            f"The body does not fit: {error}.",
            f"Its fields are {names}.",
        ) from None


async def read_exact(incoming: Incoming) -> Any:
    """Return the exact value of the body."""
    body = await incoming.body()
    _check_media_type(incoming, wire.EXACT)
    try:
        return codec.decode(body)
    except DecodeError as error:
        raise refuse(
            "bad_request",
            f"The body cannot be read: {error}",
            "Use the same release of durable_actor on both sides.",
        ) from None


def parse_json(body: bytes) -> Any:
    """Return the value of strict JSON.

    Raises:
        ProblemError: 400; it says where the text is wrong.
    """
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        detail = f"byte {error.start} is not UTF-8"
    except msgspec.MsgspecError as error:
        detail = str(error)
    except RecursionError:
        detail = f"more than {JSON_DEPTH_MAX} levels"
    else:
        if not _is_deep(body, value):
            return value
        detail = f"more than {JSON_DEPTH_MAX} levels"
    raise refuse(
        "bad_json",
        f"The body is not acceptable JSON: {detail}.",
        "Send RFC 8259 JSON in UTF-8, without NaN, with numbers in range.",
    )


def _is_deep(body: bytes, value: object) -> bool:
    if body.count(b"[") + body.count(b"{") <= JSON_DEPTH_MAX:
        return False  # the common case: too few brackets to be deep
    level: list[object] = [value]
    for _ in range(JSON_DEPTH_MAX):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(value, dict | list) for value in level)


def json_response(value: object, *, status: int = 200) -> Response:
    """Return an answer with any value JSON can show."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        media_type=wire.JSON,
        headers=_ANSWER_HEADERS,
    )


def exact_response(body: bytes) -> Response:
    """Return an answer for the client library."""
    return Response(body, media_type=wire.EXACT, headers=_ANSWER_HEADERS)


def _media_type(incoming: Incoming) -> str:
    header = incoming.header("content-type") or ""
    return header.partition(";")[0].strip().lower()


def _check_media_type(incoming: Incoming, *expected: str) -> None:
    found = _media_type(incoming)
    if found not in expected:
        raise refuse(
            "unsupported_media_type",
            f"The body is {ascii(found[:80]) if found else 'of no stated type'}.",
            f"Send Content-Type: {expected[0]}.",
        )
