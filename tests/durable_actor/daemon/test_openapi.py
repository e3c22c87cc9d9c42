"""The description of the HTTP face."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.durable_actor.daemon.fakes import FakeRuns, Web


@pytest.fixture
async def document() -> dict[str, Any]:
    web = Web(runs=[FakeRuns("simple")])
    async with web.http:
        answer = await web.http.get("/openapi.json")
    return dict(answer.json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


async def test_every_route_is_described(document: dict[str, Any]) -> None:
    web = Web(runs=[FakeRuns("simple")])
    await web.http.aclose()

    described = {(method.upper(), path) for path, method, _ in operations(document)}

    assert described == {(route.method, route.path) for route in web.routes.table}
    assert document["openapi"] == "3.1.0"


async def test_every_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(names)) == len(names)
    assert all(operation["summary"] for _, _, operation in operations(document))


async def test_every_name_in_a_path_is_a_parameter(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        found = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert found == set(re.findall(r"{(\w+)}", path))
        assert all(p["required"] for p in operation["parameters"] if p["in"] == "path")


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


async def test_only_health_is_open(document: dict[str, Any]) -> None:
    assert document["security"] == [{"bearer": []}]
    assert {
        path for path, _, operation in operations(document) if not operation["security"]
    } == {"/livez", "/readyz"}


async def test_every_failure_is_a_problem(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert "application/problem+json" in response["content"], path
