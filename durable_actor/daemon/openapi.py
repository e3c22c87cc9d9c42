"""The OpenAPI 3.1 document, made from the route table and the types it names.

Nothing here is written twice: a route that is served is described, with the schema
msgspec derives from the type that reads or writes its body.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from durable_actor.daemon import wire
from durable_actor.daemon.guard import OPEN_PATHS
from durable_actor.daemon.routing import Route

_DESCRIPTION = """\
Durable objects and durable workflows over HTTP.

Every request but `/livez` and `/readyz` needs `Authorization: Bearer TOKEN`. The token
of the data directory may do everything. One of the tokens file has verbs (`read`,
`write`, `admin`), which operations name as their security requirement, and covers some
classes and workflows; others do not exist for it. Names in paths are percent-encoded
UTF-8, slashes and dots included.

A failure is answered with `application/problem+json`: `code` says what happened, `hint`
what to do, `outcome` whether the call ran (`not_executed`, `failed` or `unknown`).
Arguments that do not fit a method or a workflow are a 400. An exception of an object's
own code is a 500 with `code: "handler_error"` and `error: {"type", "message"}`, without
its traceback unless the daemon runs with `debug`.

What follows `/objects/{class}/{name}` is the object's own: any status, headers and body
that its `fetch` answers, streamed, with its id in `X-Object-Id`. A WebSocket handshake
there opens one to the object; a browser offers the token as the subprotocol
`bearer.TOKEN`, beside `durable-actor`.
"""
_COMMON_ERRORS = (400, 401, 403, 413, 414, 431, 500, 503)


class ProblemDocument(msgspec.Struct, frozen=True):
    """A failure, as RFC 9457 has it, with what a program needs beside it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    retryable: bool
    overloaded: bool
    outcome: str
    retry_after_ms: int | None = None
    error: dict[str, Any] | None = None
    trace_id: str | None = None


def document(routes: Sequence[Route], *, version: str) -> dict[str, Any]:
    """Return the document that describes these routes."""
    types = [ProblemDocument]
    for route in routes:
        types += [t for t in (route.request, route.response) if _is_struct(t)]
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "durable-actor",
            "version": version,
            "description": _DESCRIPTION,
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(route.status): {
            "description": HTTPStatus(route.status).phrase,
            **_content(route.response_media_type, route.response),
        }
    }
    is_open = route.path.encode() in OPEN_PATHS
    errors = route.errors if is_open else (*_COMMON_ERRORS, *route.errors)
    for status in sorted(set(errors)):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            **_content(wire.PROBLEM, ProblemDocument),
        }
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [
            *(_parameter("path", name) for name in re.findall(r"{(\w+)}", route.path)),
            *(_parameter("query", *item) for item in route.query.items()),
            *(_parameter("header", *item) for item in route.headers.items()),
        ],
        "responses": responses,
    }
    if route.request is not None:
        operation["requestBody"] = {
            "required": False,
            **_content(wire.JSON, route.request),
        }
    # Roles of a bearer are not OpenAPI's; these are the verbs a token may have.
    operation["security"] = [] if is_open else [{"bearer": [route.needs]}]
    return operation


def _parameter(where: str, name: str, description: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": description,
        "schema": {"type": "string"},
    }


def _content(media_type: str, kind: Any) -> dict[str, Any]:
    if kind is None:
        return {}
    schema = (
        {"$ref": f"#/components/schemas/{kind.__name__}"} if _is_struct(kind) else {}
    )
    return {"content": {media_type: {"schema": schema}}}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
