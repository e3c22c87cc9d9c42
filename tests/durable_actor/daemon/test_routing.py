"""From a method and a raw path to a route and its names."""

from __future__ import annotations

import pytest
from starlette.responses import Response

from durable_actor.daemon.problems import ProblemError
from durable_actor.daemon.routing import Incoming, Route, Routes, read_query


async def handle(incoming: Incoming) -> Response:
    return Response()


def route(method: str, path: str) -> Route:
    return Route(
        method=method,
        path=path,
        name="x",
        summary="x",
        handler=handle,
        query={"limit": "How many."},
    )


ROUTES = Routes([route("GET", "/a/{name}"), route("POST", "/a/{name}/{method}")])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/a/x", "x"),
        (b"/a/x%2Fy", "x/y"),
        (b"/a/%252F", "%2F"),
        (b"/a/", ""),
        (b"/a/..", ".."),
        (b"/a/%E2%98%83", "☃"),
        (b"/a/a+b", "a+b"),
        (b"/a/%zz", "%zz"),
    ],
)
def test_a_path_is_split_before_it_is_decoded(path: bytes, name: str) -> None:
    found, names = ROUTES.find("GET", path)

    assert found.path == "/a/{name}"
    assert names == {"name": name}


def test_a_head_request_finds_the_route_of_get() -> None:
    assert ROUTES.find("HEAD", b"/a/x")[0].method == "GET"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", b"/b", 404),
        ("GET", b"/a", 404),
        ("GET", b"/A/x", 404),
        ("GET", b"//a/x", 404),
        ("GET", b"/%61/x", 404),
        ("DELETE", b"/a/x", 405),
        ("get", b"/a/x", 405),
        ("GET", b"/a/%ff", 400),
    ],
)
def test_what_has_no_route_says_why(method: str, path: bytes, status: int) -> None:
    with pytest.raises(ProblemError) as caught:
        ROUTES.find(method, path)

    assert caught.value.problem.status == status


@pytest.mark.parametrize(
    ("query", "values"),
    [(b"", {}), (b"limit=1", {"limit": "1"}), (b"limit=", {"limit": ""})],
)
def test_a_query_is_read(query: bytes, values: dict[str, str]) -> None:
    assert read_query(ROUTES.table[0], query) == values


@pytest.mark.parametrize(
    "query",
    [b"limt=1", b"limit=1&limit=2", b"limit=%ff", b"limit=\xff", b"limit=1&" * 40],
)
def test_a_query_that_is_none_is_a_400(query: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        read_query(ROUTES.table[0], query)

    assert caught.value.problem.status == 400
