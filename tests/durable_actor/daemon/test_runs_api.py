"""Workflows over HTTP: the original's routes, and ours."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durable_actor.daemon.runs_api import RunRoutes
from durable_actor.errors import ConfigError
from tests.durable_actor.daemon.fakes import FakeRuns, Web, open_web


@pytest.fixture
def runs() -> FakeRuns:
    return FakeRuns("simple", "slow")


@pytest.fixture
async def web(runs: FakeRuns) -> AsyncIterator[Web]:
    async with open_web(runs=[runs, FakeRuns("other")]) as web:
        yield web


async def test_a_run_is_started_as_in_the_original(web: Web, runs: FakeRuns) -> None:
    answer = await web.http.post("/workflow/simple", json={"value": 21})

    assert answer.json() == {
        "id": "simple-test",
        "completed": True,
        "output": {"value": 21},
    }
    assert runs.asked == [("start", "simple", {"value": 21}, "simple-test", False)]


async def test_a_run_may_be_queued_and_named(web: Web, runs: FakeRuns) -> None:
    answer = await web.http.post("/workflow/slow?async=true&id=a%2Fb", json={})

    assert answer.json()["completed"] is False
    assert runs.asked == [("start", "slow", {}, "a/b", True)]


async def test_the_status_of_a_run_that_is_not_there_says_so(web: Web) -> None:
    answer = await web.http.get("/workflow/slow/status")

    assert answer.json() == {"status": None, "completed_steps": [], "exists": False}
    assert (await web.http.get("/v1/runs/slow/slow-test")).status_code == 404


async def test_a_run_is_cancelled_with_and_without_a_reason(
    web: Web, runs: FakeRuns
) -> None:
    await web.http.post("/workflow/slow/cancel")
    await web.http.post("/v1/runs/slow/x/cancel", json={"reason": "late"})

    assert runs.asked == [
        ("cancel", "slow", "slow-test", None),
        ("cancel", "slow", "x", "late"),
    ]


async def test_a_run_is_started_by_a_document(web: Web, runs: FakeRuns) -> None:
    named = await web.http.post(
        "/v1/workflows/slow/runs", json={"id": "x", "input": 1, "async": True}
    )
    fresh = await web.http.post("/v1/workflows/slow/runs")

    assert named.json() == {"id": "x", "completed": False, "output": 1}
    assert len(fresh.json()["id"]) == 32


async def test_an_unknown_workflow_is_a_404_that_names_the_nearest(web: Web) -> None:
    for method, path in [
        ("POST", "/workflow/simpel"),
        ("GET", "/workflow/simpel/status"),
        ("POST", "/workflow/simpel/cancel"),
        ("POST", "/v1/workflows/simpel/runs"),
        ("GET", "/v1/runs/simpel/x"),
        ("GET", "/v1/runs?workflow=simpel"),
    ]:
        answer = await web.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_workflow")
        assert "'simple'" in answer.json()["hint"]


async def test_an_application_without_workflows_says_so() -> None:
    async with open_web() as web:
        answer = await web.http.post("/workflow/simple", json={})
        listed = await web.http.get("/v1/runs")

    assert answer.status_code == 404
    assert "create_durable_workflows" in answer.json()["hint"]
    assert listed.json() == {"runs": [], "cursor": None}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/workflow/simple?async=maybe", {}),
        ("POST", "/workflow/simple?asinc=true", {}),
        ("POST", "/workflow/simple?id=", {}),
        ("POST", "/v1/workflows/simple/runs", {"id": ""}),
        ("POST", "/v1/workflows/simple/runs", {"id": 1}),
        ("POST", "/v1/workflows/simple/runs", {"inputs": 1}),
        ("POST", "/v1/runs/simple/x/cancel", {"reason": 1}),
        ("GET", "/v1/runs?status=Done", None),
        ("GET", "/v1/runs?cursor=x", None),
        ("GET", "/v1/runs?cursor=9:", None),
        ("GET", "/v1/runs?limit=0", None),
    ],
)
async def test_bad_input_is_a_400(
    web: Web, runs: FakeRuns, method: str, path: str, body: object
) -> None:
    answer = await web.http.request(method, path, json=body)

    assert answer.status_code == 400
    assert answer.json()["hint"]
    assert runs.asked == []


async def test_the_runs_of_all_engines_are_listed_one_after_the_other(
    web: Web, runs: FakeRuns
) -> None:
    first = (await web.http.get("/v1/runs?status=Paused&limit=7")).json()
    second = (await web.http.get("/v1/runs", params={"cursor": first["cursor"]})).json()

    assert first["runs"] == [{"workflow": "simple"}]
    assert runs.asked == [("list", "Paused", None, 7, None)]
    assert second == {"runs": [{"workflow": "other"}], "cursor": None}


async def test_the_workflows_are_listed(web: Web) -> None:
    answer = await web.http.get("/v1/workflows")

    assert answer.json() == {"workflows": ["other", "simple", "slow"]}


def test_two_workflows_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'same'"):
        RunRoutes([FakeRuns("same"), FakeRuns("same")])
