"""S18: a token sees its own classes and workflows; the others are not there for it.
S19: what is for operators needs the verb `admin`, and leaves a line in the log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from json import dumps

import httpx2
import pytest
from starlette.responses import Response
from structlog.testing import capture_logs

from durable_actor import DurableObject
from durable_actor.daemon.grants import NOBODY, VERBS, Grant, Verb
from durable_actor.daemon.guard import OPEN_PATHS, GuardPolicy
from durable_actor.daemon.routing import Incoming, Route
from durable_actor.ids import IdSpace
from tests.durable_actor.daemon.fakes import (
    HOST,
    TOKEN,
    FakeRuns,
    Till,
    Web,
    digest_of,
    fake_entry,
    open_web,
)
from tests.durable_actor.daemon.raw import open_raw, statuses_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ALL = frozenset(VERBS)


class Vault(DurableObject):
    """Of somebody else."""

    async def open(self) -> str:
        return "gold"


GRANTS: dict[str, Grant] = {
    "shop": Grant(
        name="shop",
        verbs=ALL,
        classes=frozenset({"Till"}),
        workflows=frozenset({"sell"}),
    ),
    "bank": Grant(
        name="bank",
        verbs=ALL,
        classes=frozenset({"Vault"}),
        workflows=frozenset({"lend"}),
    ),
    "all": Grant(name="all", verbs=ALL, is_full=True),
    **{verb: Grant(name=verb, verbs=frozenset({verb}), is_full=True) for verb in VERBS},
}
POLICY = GuardPolicy(
    token=TOKEN,
    hosts=frozenset({HOST}),
    grants=lambda: {digest_of(name): grant for name, grant in GRANTS.items()},
)


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    runs = [FakeRuns("sell"), FakeRuns("lend")]
    async with open_web(policy=POLICY, runs=runs, classes=[Till, Vault]) as web:
        yield web


async def ask(
    web: Web, token: str, method: str, path: str, json: object = None
) -> httpx2.Response:
    """Ask with a token, in one trace, so that equal answers are equal to the byte."""
    headers = {
        "Authorization": f"Bearer {token}",
        "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
    }
    request = web.http.build_request(method, path, headers=headers, json=json)
    return await web.http.send(request)


def walk(web: Web, object_class: str, workflow: str) -> Iterator[tuple[Route, str]]:
    """Yield every route that belongs to a class or workflow, for these names."""
    names = {"class": object_class, "workflow": workflow}
    for route in web.routes.table:
        path = route.path
        if not {"{class}", "{workflow}"} & set(re.findall(r"{\w+}", path)):
            continue
        for key, value in {**names, "method": "add"}.items():
            path = path.replace(f"{{{key}}}", value)
        yield route, re.sub(r"{\w+}", "a", path)


def seen(answer: httpx2.Response, name: str) -> tuple[int, bytes]:
    """Return what an answer tells, but for the name that was asked for."""
    return answer.status_code, answer.content.replace(name.encode(), b"NAME")


async def test_s18_another_tenants_name_is_answered_like_one_that_nobody_has(
    web: Web,
) -> None:
    foreign = list(walk(web, "Vault", "lend"))
    absent = list(walk(web, "Vaulz", "lenz"))

    for (route, theirs), (_, nobodys) in zip(foreign, absent, strict=True):
        there = await ask(web, "shop", route.method, theirs)
        nowhere = await ask(web, "shop", route.method, nobodys)
        told = seen(nowhere, "Vaulz")[1].replace(b"lenz", b"NAME")
        assert there.status_code == nowhere.status_code == 404, route
        assert seen(there, "Vault")[1].replace(b"lend", b"NAME") == told, route
    assert len(foreign) >= 15
    assert web.host.calls == web.host.deleted == web.host.evicted == []


@pytest.mark.parametrize(
    ("theirs", "nobodys"),
    [
        ("/v1/objects?class=Vault", "/v1/objects?class=Vaulz"),
        ("/v1/alarms?class=Vault", "/v1/alarms?class=Vaulz"),
        ("/v1/runs?workflow=lend", "/v1/runs?workflow=lenz"),
        ("/v1/objects/VAULTS/a", "/v1/objects/VAULTZ/a"),
        ("/v1/runs/lend/", "/v1/runs/lenz/"),
        ("/v1/objects/Vault/" + "x" * 2_000, "/v1/objects/Vaulz/" + "x" * 2_000),
        ("/v1/storage/Vault/a?by=id", "/v1/storage/Vaulz/a?by=id"),
        ("/v1/watches/Vault/a?values=x", "/v1/watches/Vaulz/a?values=x"),
        ("/v1/objects?class=Vault&limit=x", "/v1/objects?class=Vaulz&limit=x"),
    ],
)
async def test_s18_no_question_tells_another_tenants_name_from_none(
    web: Web, theirs: str, nobodys: str
) -> None:
    there = await ask(web, "shop", "GET", theirs)
    nowhere = await ask(web, "shop", "GET", nobodys)

    def told(answer: httpx2.Response) -> str:
        return re.sub(r"(?i)vault\w?|vaul[tz]s?|len[dz]", "NAME", answer.text)

    assert there.status_code == nowhere.status_code == 404
    assert told(there) == told(nowhere)
    assert "Till" not in there.text
    assert "Vault" not in nowhere.text


async def test_s18_a_token_does_with_its_own_what_its_verbs_say(web: Web) -> None:
    """The control: what is refused above is answered to whom it belongs."""
    for token in ("shop", "all"):
        call = await ask(
            web, token, "POST", "/v1/objects/Till/a/add", json={"args": [1]}
        )
        assert call.json() == {"result": 2}
        bound = await ask(
            web, token, "POST", "/v1/objects/TILLS/a/add", json={"args": [1]}
        )
        assert bound.status_code == 200
        run = await ask(web, token, "POST", "/workflow/sell", json={})
        assert run.status_code == 200
    theirs = await ask(web, "bank", "POST", "/v1/objects/Vault/a/open")
    assert theirs.json() == {"result": "gold"}


async def test_s18_an_id_of_another_tenant_is_refused_by_construction(web: Web) -> None:
    theirs = IdSpace("Vault").from_name("a")
    made_up = "0" * 64

    there = await ask(web, "shop", "POST", f"/v1/objects/Till/{theirs}/add?by=id")
    nowhere = await ask(web, "shop", "POST", f"/v1/objects/Till/{made_up}/add?by=id")

    assert seen(there, str(theirs)[:16]) == seen(nowhere, made_up[:16])
    assert there.json()["code"] == "foreign_id"
    assert web.host.calls == []


async def test_s18_lists_show_what_is_covered(web: Web) -> None:
    web.host.entries = [fake_entry("Till", "a", "1"), fake_entry("Vault", "b", "2")]

    classes = (await ask(web, "shop", "GET", "/v1/classes")).json()["classes"]
    workflows = (await ask(web, "shop", "GET", "/v1/workflows")).json()["workflows"]
    mine = (await ask(web, "shop", "GET", "/v1/objects?class=Till")).json()["objects"]

    assert [found["name"] for found in classes] == ["Till"]
    assert workflows == ["sell"]
    assert [found["name"] for found in mine] == ["a"]
    for path in ("/v1/objects", "/v1/alarms", "/v1/runs"):
        everything = await ask(web, "shop", "GET", path)
        assert everything.status_code == 400, path
        assert (await ask(web, "read", "GET", path)).status_code == 200
    assert len((await ask(web, "read", "GET", "/v1/classes")).json()["classes"]) == 2


async def test_s18_what_belongs_to_no_tenant_is_for_tokens_of_everything(
    web: Web,
) -> None:
    assert (await ask(web, "shop", "GET", "/metrics")).status_code == 403
    assert (await ask(web, "read", "GET", "/metrics")).status_code == 200
    assert (await ask(web, "shop", "GET", "/openapi.json")).status_code == 200


NEEDS: dict[str, Verb] = {
    "callObject": "write",
    "deleteObject": "admin",
    "evictObject": "admin",
    "runWorkflow": "write",
    "startRun": "write",
    "cancelRun": "write",
    "cancelWorkflow": "write",
    "fetchObjectPost": "write",
    "fetchObjectPut": "write",
    "fetchObjectPatch": "write",
    "fetchObjectDelete": "write",
    "fetchObjectOptions": "read",
    "listQuarantine": "admin",
}


async def test_s18_every_route_asks_for_its_verb_and_no_other_will_do(web: Web) -> None:
    for route in web.routes.table:
        if route.path.encode() in OPEN_PATHS:
            continue
        expected = NEEDS.get(route.name, "read" if route.method == "GET" else "admin")
        assert route.needs == expected, route.name
        path = re.sub(r"{class}", "Till", route.path)
        path = re.sub(r"{\w+}", "sell", path)
        for verb in VERBS:
            if verb != expected:
                answer = await ask(web, verb, route.method, path)
                assert answer.status_code == 403, (route.name, verb)
                assert answer.json()["code"] == "forbidden"
    assert web.host.calls == web.host.deleted == web.host.evicted == []


async def test_s18_who_may_only_look_cannot_open_a_web_socket() -> None:
    lines = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    start = "GET /objects/Till/a/"
    async with open_raw(policy=POLICY, web={"classes": [Till, Vault]}) as raw:
        looking = await raw.send(raw.head(*lines, start=start, token="read"))
        theirs = await raw.send(raw.head(*lines, start=start, token="bank"))
        # Its class has no `fetch`: as far as that it comes.
        writing = await raw.send(raw.head(*lines, start=start, token="write"))

    assert statuses_of(looking) == [403]
    assert statuses_of(theirs) == [404]
    assert b"unknown_class" in theirs
    assert statuses_of(writing) != [403]
    assert b"forbidden" not in writing


async def test_s18_a_route_that_says_nothing_is_for_operators() -> None:
    async def handle(incoming: Incoming) -> Response:
        return Response()

    route = Route(method="POST", path="/v1/new", name="new", summary="", handler=handle)

    assert route.needs == "admin"
    assert not route.is_for_all


async def test_s18_the_owners_token_may_do_everything_as_it_always_could(
    web: Web,
) -> None:
    for method, path in [
        ("GET", "/metrics"),
        ("GET", "/v1/objects"),
        ("DELETE", "/v1/objects/Vault/a"),
        ("POST", "/v1/objects/Vault/a/open"),
        ("POST", "/workflow/lend"),
    ]:
        assert (await ask(web, TOKEN, method, path)).status_code == 200, path


async def test_s18_nobody_may_do_anything() -> None:
    assert NOBODY.verbs == frozenset()
    assert not NOBODY.covers_class("Till")


async def test_s18_a_token_has_a_share_of_the_requests_under_way() -> None:
    async with open_web(policy=POLICY, classes=[Till, Vault]) as web:
        web.traffic.per_token_max = 2
        waiting = []
        for count in range(2):
            call = ask(web, "shop", "POST", "/v1/objects/Till/a/wait")
            waiting.append(asyncio.ensure_future(call))
            while len(web.host.calls) <= count:
                await asyncio.sleep(0)
        refused = await ask(web, "shop", "POST", "/v1/objects/Till/a/add")
        other = await ask(web, "bank", "POST", "/v1/objects/Vault/a/open")
        owner = await ask(web, TOKEN, "POST", "/v1/objects/Vault/a/open")
        waiting.pop().cancel()
        while web.traffic.in_flight > 1:
            await asyncio.sleep(0)
        again = await ask(
            web, "shop", "POST", "/v1/objects/Till/a/add", json={"args": [1]}
        )
        waiting.pop().cancel()

    assert refused.status_code == 429
    assert refused.json()["overloaded"] is True
    assert int(refused.headers["retry-after"]) >= 1
    assert (other.status_code, owner.status_code, again.status_code) == (200, 200, 200)


async def test_s19_every_use_of_an_admin_verb_is_written_down_without_secrets(
    web: Web,
) -> None:
    with capture_logs() as logs:
        await ask(web, "all", "DELETE", "/v1/objects/Till/somebody%40example.com")
        await ask(web, "write", "DELETE", "/v1/activations/Till/a")
        await ask(web, "bank", "DELETE", "/v1/objects/Till/a")
        await ask(web, "shop", "POST", "/v1/objects/Till/a/add", json={"args": [1]})

    told = [line for line in logs if line["event"] == "admin.request"]
    assert [(t["operation"], t["token"], t["status"]) for t in told] == [
        ("deleteObject", "all", 200),
        ("evictObject", "write", 403),
        ("deleteObject", "bank", 404),
    ]
    assert told[0]["object"] == str(IdSpace("Till").from_name("somebody@example.com"))
    assert told[0]["class"] == "Till"
    assert told[0]["trace_id"] == TRACE
    text = dumps(told)
    assert "somebody" not in text
    assert "Bearer" not in text


async def test_s18_the_description_says_what_each_operation_needs(web: Web) -> None:
    document = (await ask(web, TOKEN, "GET", "/openapi.json")).json()

    for route in web.routes.table:
        operation = document["paths"][route.path][route.method.lower()]
        if route.path.encode() in OPEN_PATHS:
            assert operation["security"] == []
        else:
            assert operation["security"] == [{"bearer": [route.needs]}]
            assert "403" in operation["responses"]
    assert replace(POLICY).token == TOKEN
