"""Requests: an object's `fetch`, and what its caller is told when it fails."""

from __future__ import annotations

from typing import Any

from durable_actor.fetch import Request, Response
from durable_actor.testing import open_test_host
from tests.parity.cases import same
from tests.parity.objects import Probe
from tests.parity.translate import differences, outcome


class Failing(Probe):
    async def fetch(self, request: Request) -> Response:
        if request.path == "/throw":
            message = "fetch boom"
            raise ValueError(message)
        answer: Any = "not a response"
        return answer  # type: ignore[no-any-return]  # that is the case


@same("rpc.fetch.throws")
async def test_a_fetch_that_fails_tells_its_caller(observed: Any) -> None:
    async with open_test_host() as test:
        stub: Any = test.host.namespace(Failing).get_by_name("a")
        ours = {
            "throwing": await outcome(lambda: stub.fetch("/throw")),
            "nonResponse": await outcome(lambda: stub.fetch("/other")),
        }
    assert differences(ours, observed) == set()
