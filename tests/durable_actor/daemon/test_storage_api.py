"""`/v1/storage`, and the client in front of it: what an object has stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from durable_actor import Client, DurableObject, StoredPage, connect
from tests.durable_actor.daemon.serving import Serving, open_serving

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Shelf(DurableObject):
    async def put(self, entries: dict[str, Any]) -> None:
        self.ctx.storage.put(entries)

    async def keys(self) -> str:
        return "a method of that name"


class Ledger(DurableObject, storage="sqlite"):
    async def put(self, key: str) -> None:
        self.ctx.storage.put(key, 1)


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with open_serving(tmp_path / "data", Shelf, Ledger) as serving:
        yield serving


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[Client]:
    async with connect(serving.url, token=serving.token) as client:
        yield client


@pytest.fixture
async def http(serving: Serving) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        base_url=serving.url,
        headers={"Authorization": f"Bearer {serving.token}"},
        transport=httpx2.AsyncHTTPTransport(trust_env=False),
    ) as http:
        yield http


async def test_keys_are_shown_and_nobody_wakes(
    serving: Serving, client: Client, http: httpx2.AsyncClient
) -> None:
    shelves = client.namespace(Shelf)
    await shelves.get_by_name("a/b").put({"x": {1: b"\x00"}, "y:ä": 2})
    await serving.host.evict(shelves.id_from_name("a/b"))

    answer = await http.get("/v1/storage/Shelf/a%2Fb")

    assert answer.status_code == 200
    assert answer.json() == {
        "exists": True,
        "keys": [
            {"key": "x", "value": {"1": "AA=="}, "size_bytes": 9, "unreadable": None},
            {"key": "y:ä", "value": 2, "size_bytes": 2, "unreadable": None},
        ],
        "cursor": None,
    }
    found = shelves.id_from_name("a/b")
    by_id = await http.get(f"/v1/storage/Shelf/{found}?by=id&prefix=y%3A")
    assert [stored["key"] for stored in by_id.json()["keys"]] == ["y:ä"]
    assert serving.host.stats().objects_resident == 0


async def test_a_client_pages_like_its_host(serving: Serving, client: Client) -> None:
    shelves = client.namespace(Shelf)
    unnamed = shelves.new_unique_id()
    for object_id in (shelves.id_from_name("a"), unnamed):
        await shelves.get(object_id).put({f"k{n}": n for n in range(5)})
        first = await client.stored_keys(object_id, prefix="k", limit=3)
        assert [stored.value for stored in first.keys] == [0, 1, 2]
        rest = await client.stored_keys(object_id, prefix="k", cursor=first.cursor)
        assert [stored.value for stored in rest.keys] == [3, 4]
        assert rest == await serving.host.stored_keys(
            object_id, prefix="k", cursor=first.cursor
        )
    never = shelves.id_from_name("never")
    nothing = StoredPage(exists=False, keys=[], cursor=None)
    assert await client.stored_keys(never) == nothing


async def test_the_longest_key_leads_on(client: Client) -> None:
    shelf = client.namespace(Shelf).id_from_name("a")
    longest = "ä" * 1_024
    await client.namespace(Shelf).get(shelf).put({longest: 1, longest[:-1] + "ö": 2})
    page = await client.stored_keys(shelf, limit=1)
    assert [stored.key for stored in page.keys] == [longest]
    rest = await client.stored_keys(shelf, cursor=page.cursor)
    assert [stored.value for stored in rest.keys] == [2]


async def test_what_a_removed_class_left_behind_is_shown(tmp_path: Path) -> None:
    async with (
        open_serving(tmp_path / "data", Shelf) as serving,
        connect(serving.url, token=serving.token) as client,
    ):
        await client.namespace(Shelf).get_by_name("a").put({"x": 1})
    async with (
        open_serving(tmp_path / "data", Ledger) as serving,
        connect(serving.url, token=serving.token) as client,
    ):
        page = await client.stored_keys(client.namespace(Shelf).id_from_name("a"))
        assert [stored.key for stored in page.keys] == ["x"]
        with pytest.raises(AttributeError, match="Ledger"):  # it says what there is
            await client.stored_keys(client.namespace(Shelf).id_from_name("b"))


async def test_a_method_called_keys_is_not_hidden(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/objects/Shelf/a/keys")
    assert answer.json() == {"result": "a method of that name"}


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("Shelf/a?limit=0", "bad_request"),
        ("Shelf/a?limit=1001", "bad_request"),
        ("Shelf/a?cursor=zz", "bad_request"),
        ("Shelf/a?cursor=", "bad_request"),
        ("Shelf/a?by=key", "bad_request"),
        ("Shelf/a?start=k", "bad_request"),
        ("Shelf/a?by=id", "invalid_id"),
        ("Shelf/%ff", "invalid_id"),
    ],
)
async def test_a_wrong_question_is_a_400(
    http: httpx2.AsyncClient, target: str, code: str
) -> None:
    answer = await http.get(f"/v1/storage/{target}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code


async def test_a_class_that_is_not_there_is_a_404(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/v1/storage/Shelves/a")
    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown_class"
    assert "Shelf" in answer.json()["hint"]


async def test_nothing_is_shown_without_the_token(serving: Serving) -> None:
    async with httpx2.AsyncClient(base_url=serving.url, trust_env=False) as stranger:
        answer = await stranger.get("/v1/storage/Shelf/a")
    assert answer.status_code == 401


async def test_keys_in_a_database_are_shown_through_a_client_too(
    client: Client,
) -> None:
    ledgers = client.namespace(Ledger)
    await ledgers.get_by_name("a").put("x")
    page = await client.stored_keys(ledgers.id_from_name("a"))
    assert [stored.key for stored in page.keys] == ["x"]
