"""S14: an error that is answered has a code and an id, and no more than it should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from durable_actor import codec
from durable_actor.daemon import wire
from durable_actor.ids import ObjectId
from durable_actor.rpc import CallOptions
from tests.durable_actor.daemon.fakes import FakeHost, Web, open_web

CANARY = "canary-7f3a"


class BrokenHost(FakeHost):
    """Fails where it should not: our own mistake, with a secret in its text."""

    async def delete(self, object_id: ObjectId) -> bool:
        secret = {"password": CANARY}
        raise KeyError(secret["password"])

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        inner = ValueError(f"{CANARY} inside")
        try:
            raise inner
        except ValueError as error:
            message = "outside"
            raise RuntimeError(message) from error


def break_host(web: Web) -> None:
    web.host.__class__ = BrokenHost


async def test_s14_a_failure_of_ours_tells_a_code_and_an_id_and_nothing_else() -> None:
    async with open_web(debug=True) as web:
        break_host(web)
        with capture_logs() as logs:
            answer = await web.http.delete("/v1/objects/Till/a")

    told = answer.json()
    assert (answer.status_code, told["code"]) == (500, "internal")
    assert CANARY not in answer.text
    assert "Traceback" not in answer.text
    [line] = [line for line in logs if line["event"] == "request.failed"]
    assert line["trace_id"] == told["trace_id"]
    assert len(told["trace_id"]) == 32


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("debug", [False, True])
async def test_s14_only_debug_shows_the_traceback_of_an_object(
    *, debug: bool, is_exact: bool
) -> None:
    async with open_web(debug=debug) as web:
        break_host(web)
        if is_exact:
            answer = await web.http.post(
                "/v1/objects/Till/a/add",
                content=codec.encode([[1], {}]),
                headers={"Content-Type": wire.EXACT},
            )
        else:
            answer = await web.call("add", 1)

    assert answer.status_code == 500
    assert b"outside" in answer.content  # what the object says to its caller
    # Files and lines are nobody's business. The client library gets the causes, as it
    # raises the exception with them; a caller that speaks JSON does not.
    assert (b"test_s14_errors.py" in answer.content) is debug
    assert (CANARY.encode() in answer.content) is (debug or is_exact)


async def test_s14_every_error_of_the_application_has_a_code_and_an_id() -> None:
    async with open_web() as web:
        answers = [
            await web.http.get("/nothing"),
            await web.http.put("/v1/objects"),
            await web.http.get("/v1/objects?bogus=1"),
            await web.http.get("/v1/objects/Nope/a"),
            await web.call("nope"),
            await web.call("fail", 3),
            await web.call("overloaded"),
            await web.call("full"),
            await web.http.post("/v1/objects/Till/a/add", content=b"{"),
        ]

    for answer in answers:
        told: dict[str, Any] = json.loads(answer.content)
        assert answer.status_code >= 400
        assert told["code"]
        assert len(told["trace_id"]) == 32
        assert "Traceback" not in answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert len({answer.json()["trace_id"] for answer in answers}) == len(answers)
