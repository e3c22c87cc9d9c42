"""Calls and the directory of objects, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from durable_actor import codec
from durable_actor.daemon import wire
from durable_actor.ids import IdSpace
from tests.durable_actor.daemon.fakes import (
    Order,
    TooManyError,
    Web,
    fake_entry,
    open_web,
)


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as web:
        yield web


async def test_a_call_answers_the_result(web: Web) -> None:
    answer = await web.call("add", 2, b=3)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"result": 5}


async def test_a_class_is_found_by_its_binding_too(web: Web) -> None:
    answer = await web.http.post("/v1/objects/TILLS/a/add", json={"args": [2]})

    assert answer.json() == {"result": 3}
    assert web.host.calls[0][0].namespace == "Till"


async def test_a_call_without_a_body_has_no_arguments(web: Web) -> None:
    answer = await web.http.post("/v1/objects/Till/a/overloaded")

    assert answer.status_code == 429


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "..",
        ".",
        "",
        "a%2Fb",
        "naïve ☃",
        "evict",
        "livez",
        "a?b=c&d#e",
        "<b>",
        " ",
        "x" * 1_024,
    ],
)
async def test_a_name_may_be_any_text(web: Web, name: str) -> None:
    path = f"/v1/objects/Till/{wire.segment(name)}/add"

    answer = await web.http.post(
        web.http.base_url.join("/"),
        json={"args": [1]},
        extensions={"target": path.encode()},
    )
    if answer.status_code == 404:  # this transport looks at the URL only
        answer = await web.http.post(path, json={"args": [1]})

    assert answer.status_code == 200, answer.text
    assert web.host.calls[0][0] == IdSpace("Till").from_name(name)
    assert web.host.calls[0][0].name == name


@pytest.mark.parametrize(
    ("segment", "status"),
    [("x" * 1_025, 400), ("a%00b", 400), ("%ff", 400), ("a%ED%A0%80", 400)],
)
async def test_a_name_that_is_none_is_refused(
    web: Web, segment: str, status: int
) -> None:
    answer = await web.http.post(f"/v1/objects/Till/{segment}/add", json={"args": [1]})

    assert answer.status_code == status
    assert answer.json()["code"] == "invalid_id"


async def test_an_object_is_found_by_its_id(web: Web) -> None:
    object_id = IdSpace("Till").new_unique()

    answer = await web.http.post(
        f"/v1/objects/Till/{object_id}/add?by=id", json={"args": [1]}
    )

    assert answer.status_code == 200
    assert web.host.calls[0][0] == object_id


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/objects/Till/zz/add?by=id", "invalid_id"),
        (f"/v1/objects/Till/{IdSpace('Other').from_name('a')}/add?by=id", "foreign_id"),
        ("/v1/objects/Till/a/add?by=colour", "bad_request"),
        ("/v1/objects/Till/a/add?buy=id", "bad_request"),
        ("/v1/objects/Till/a/add?by=id&by=id", "bad_request"),
        ("/v1/objects/Till/a/add?by=%ff", "bad_request"),
    ],
)
async def test_a_wrong_address_is_a_400(web: Web, path: str, code: str) -> None:
    answer = await web.http.post(path, json={"args": [1]})

    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert web.host.calls == []


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("/v1/objects/Tilt/a/add", "unknown_class", "Till"),
        ("/v1/objects/Till/a/ad", "method_not_found", "add"),
        ("/v1/objects/Till/a/plain", "method_not_found", "async def"),
        ("/v1/objects/Till/a/_secret", "method_not_found", "underscore"),
        ("/v1/objects/Till/a/__init__", "method_not_found", "underscore"),
        ("/v1/objects/Till/a/alarm", "method_not_found", "reserved"),
        ("/v1/object/Till/a/add", "not_found", "openapi.json"),
        ("/", "not_found", "openapi.json"),
    ],
)
async def test_what_is_not_there_is_a_404_that_helps(
    web: Web, path: str, code: str, says: str
) -> None:
    answer = await web.http.post(path, json={})
    problem = answer.json()

    assert (answer.status_code, problem["code"]) == (404, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in problem["detail"] + problem["hint"]
    assert problem["outcome"] == "not_executed"


async def test_a_method_of_http_that_is_not_possible_is_a_405(web: Web) -> None:
    answer = await web.http.put("/v1/objects/Till/a", json={})

    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"args": [NaN]}',
        b'{"args": [Infinity]}',
        b'{"args": [1e999]}',
        b'{"args": [' + b"9" * 5_000 + b"]}",
        b'{"args": ' + b"[" * 100_000,
        b'{"args": ' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"args": ["\\ud800"]}',
        b'{"args": ["\xff"]}',
        b'\xef\xbb\xbf{"args": []}',
        b'{"args": [1],}',
        b"{'args': []}",
        b'{"args": []} x',
        "{}".encode("utf-16"),
    ],
)
async def test_what_is_not_json_is_a_400(web: Web, body: bytes) -> None:
    answer = await web.http.post(
        "/v1/objects/Till/a/echo",
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_json")
    assert web.host.calls == []


async def test_json_may_be_sixty_four_levels_deep(web: Web) -> None:
    body = b'{"args": ' + b"[" * 63 + b"]" * 63 + b"}"

    answer = await web.http.post(
        "/v1/objects/Till/a/echo",
        content=body,
        headers={"Content-Type": "application/json; charset=utf-8"},
    )

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        [],
        1,
        {"args": 1},
        {"args": {}},
        {"kwargs": []},
        {"arguments": [1]},
        {"args": [1], "more": 1},
    ],
)
async def test_a_body_of_another_shape_is_a_400(web: Web, body: Any) -> None:
    answer = await web.http.post("/v1/objects/Till/a/echo", json=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert "args, kwargs" in answer.json()["hint"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"args": [1, 2, 3]},
        {"args": ["one"]},
        {"args": [1.5]},
        {"args": [None]},
        {"kwargs": {"c": 1}},
        {"args": [1], "kwargs": {"a": 1}},
    ],
)
async def test_arguments_that_do_not_fit_are_a_400(web: Web, body: Any) -> None:
    answer = await web.http.post("/v1/objects/Till/a/add", json=body)
    problem = answer.json()

    assert (answer.status_code, problem["code"]) == (400, "bad_arguments")
    assert "Till.add" in problem["detail"]
    assert web.host.calls == []


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonx",
        "",
    ],
)
async def test_a_body_that_is_not_json_is_a_415(web: Web, content_type: str) -> None:
    answer = await web.http.post(
        "/v1/objects/Till/a/add",
        content=b'{"args": [1]}',
        headers={"Content-Type": content_type} if content_type else {},
    )

    assert (answer.status_code, answer.json()["code"]) == (
        415,
        "unsupported_media_type",
    )
    assert "application/json" in answer.json()["hint"]


async def test_arguments_become_what_the_annotations_say(web: Web) -> None:
    answer = await web.call("order", {"sku": "tea", "count": 2})

    assert answer.json() == {"result": "2 of tea"}


async def test_an_error_of_the_handler_has_its_type_and_no_traceback(web: Web) -> None:
    answer = await web.call("fail", 7)
    problem = answer.json()

    assert (answer.status_code, problem["code"]) == (500, "handler_error")
    assert problem["outcome"] == "failed"
    assert problem["error"] == {"type": "TooManyError", "message": "7 is too many"}
    assert "Traceback" not in answer.text
    assert __file__ not in answer.text


async def test_a_traceback_is_shown_only_to_those_who_debug() -> None:
    async with open_web(debug=True) as web:
        answer = await web.call("fail", 7)

    assert "Traceback" in answer.json()["error"]["traceback"]


@pytest.mark.parametrize(
    ("method", "status", "code", "overloaded"),
    [("overloaded", 429, "overloaded", True), ("full", 507, "storage_full", False)],
)
async def test_our_own_errors_have_their_status(
    web: Web, method: str, status: int, code: str, *, overloaded: bool
) -> None:
    answer = await web.call(method)
    problem = answer.json()

    assert (answer.status_code, problem["code"]) == (status, code)
    assert problem["overloaded"] is overloaded
    assert ("retry-after" in answer.headers) is overloaded
    assert problem["type"] == f"urn:durable-actor:problem:{code}"


async def exact(web: Web, method: str, *args: Any) -> Any:
    return await web.http.post(
        f"/v1/objects/Till/a/{method}",
        content=codec.encode([list(args), {}]),
        headers={"Content-Type": wire.EXACT},
    )


async def test_the_client_library_gets_exact_types(web: Web) -> None:
    value = (1, {2: Decimal("1.10")}, {datetime(2026, 1, 1, tzinfo=UTC)}, Order("tea"))

    answer = await exact(web, "echo", value)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == wire.EXACT
    assert codec.decode(answer.content) == value


async def test_the_client_library_gets_the_exception_itself(web: Web) -> None:
    answer = await exact(web, "fail", 7)
    error = codec.loads_error(answer.content)

    assert answer.status_code == 500
    assert answer.headers["content-type"] == wire.EXACT_ERROR
    assert isinstance(error, TooManyError)
    assert error.count == 7
    assert b"Traceback" not in answer.content


async def test_the_client_library_is_told_when_to_come_back(web: Web) -> None:
    answer = await exact(web, "overloaded")

    assert answer.status_code == 429
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"\x01", codec.encode(1), codec.encode([1]), codec.encode([1, 2])],
)
async def test_exact_bytes_that_are_none_are_a_400(web: Web, body: bytes) -> None:
    answer = await web.http.post(
        "/v1/objects/Till/a/echo", content=body, headers={"Content-Type": wire.EXACT}
    )

    assert answer.status_code == 400
    assert web.host.calls == []


async def test_the_options_of_a_call_are_headers(web: Web) -> None:
    await web.http.post(
        "/v1/objects/Till/a/add",
        json={"args": [1]},
        headers={"Idempotency-Key": "k-1", "X-Timeout-Ms": "1500"},
    )

    options = web.host.calls[0][2]
    assert options.request_id == "k-1"
    assert options.timeout_ms == 1_500


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "x" * 201),
        ("Idempotency-Key", "ü"),
        ("X-Timeout-Ms", "0"),
        ("X-Timeout-Ms", "-1"),
        ("X-Timeout-Ms", "1.5"),
        ("X-Timeout-Ms", "soon"),
        ("X-Timeout-Ms", "9" * 30),
        ("X-Timeout-Ms", "²"),
    ],
)
async def test_options_that_are_none_are_a_400(
    web: Web, header: str, value: str
) -> None:
    answer = await web.http.post(
        "/v1/objects/Till/a/add",
        json={"args": [1]},
        headers=[(header.encode(), value.encode("latin-1"))],
    )

    assert answer.status_code == 400
    assert header in answer.json()["detail"]


async def test_the_directory_is_listed_in_pages(web: Web) -> None:
    web.host.entries = [fake_entry("Till", f"n{i}", f"{i:064x}") for i in range(3)]

    first = (await web.http.get("/v1/objects?class=TILLS&prefix=n&limit=2")).json()
    rest = (await web.http.get(f"/v1/objects?cursor={first['cursor']}")).json()

    assert [entry["name"] for entry in first["objects"]] == ["n0", "n1"]
    assert first["objects"][0]["class"] == "Till"
    assert [entry["name"] for entry in rest["objects"]] == ["n2"]
    assert rest["cursor"] is None


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "ten", "", "9" * 50, "²"])
async def test_a_limit_that_is_none_is_a_400(web: Web, limit: str) -> None:
    answer = await web.http.get("/v1/objects", params={"limit": limit})

    assert answer.status_code == 400
    assert "1000" in answer.json()["hint"]


async def test_one_object_is_shown_by_its_exact_name(web: Web) -> None:
    web.host.entries = [fake_entry("Till", "ab", "0" * 64)]

    assert (await web.http.get("/v1/objects/Till/ab")).json()["name"] == "ab"
    assert (await web.http.get("/v1/objects/Till/a")).status_code == 404


async def test_an_object_is_deleted_and_evicted(web: Web) -> None:
    deleted = await web.http.delete("/v1/objects/Till/a")
    evicted = await web.http.delete("/v1/activations/Till/a")

    assert deleted.json() == {"deleted": True}
    assert web.host.deleted == [IdSpace("Till").from_name("a")]
    assert evicted.json() == {"evicted": True}
    assert web.host.evicted == web.host.deleted


async def test_the_classes_are_listed(web: Web) -> None:
    answer = await web.http.get("/v1/classes")
    [till] = answer.json()["classes"]

    assert till["name"] == "Till"
    assert till["bindings"] == ["TILLS"]
    assert "add" in till["methods"]
    assert "plain" not in till["methods"]


async def test_a_failure_of_our_own_tells_nothing_but_a_trace(web: Web) -> None:
    secret = "canary-4711"

    async def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(secret)

    web.host.list_objects = broken  # type: ignore[method-assign]  # to break it
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}

    answer = await web.http.get("/v1/objects", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.json()["trace_id"] == trace
    assert secret not in answer.text


async def test_every_answer_of_a_problem_can_be_read_by_the_client(web: Web) -> None:
    answer = await web.call("overloaded")

    error = wire.error_of(answer.status_code, answer.content)

    assert error.code == "overloaded"
    assert error.overloaded
    assert error.remote
    assert error.outcome == "not_executed"


async def test_the_types_of_bodies_are_described(web: Web) -> None:
    document = (await web.http.get("/openapi.json")).json()

    call = document["paths"]["/v1/objects/{class}/{name}/{method}"]["post"]
    assert call["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/CallRequest"
    }
    assert {"args", "kwargs"} <= set(
        document["components"]["schemas"]["CallRequest"]["properties"]
    )
    assert msgspec.json.encode(document)
