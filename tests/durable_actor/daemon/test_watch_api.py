"""Watching an object through the daemon: events over HTTP, and the client's stubs."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from durable_actor import (
    Client,
    DurableObject,
    HostClosedError,
    MethodNotFoundError,
    StorageFullError,
    TransportError,
    Watch,
    codec,
    connect,
)
from durable_actor.daemon import event_stream, watch_api
from durable_actor.daemon.event_stream import read_events, write_event
from durable_actor.feeds import Feed
from durable_actor.storage import watches as watches_module
from tests.durable_actor.daemon.serving import Serving, open_serving
from tests.support.drivers import take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@dataclass(frozen=True)
class Line:
    price: Decimal


class Cart(DurableObject):
    async def put(self, **entries: Any) -> None:
        self.ctx.storage.put(entries)

    async def drop(self, *keys: str) -> None:
        self.ctx.storage.delete(keys)

    async def all(self) -> dict[str, Any]:
        return await self.ctx.storage.list()


class Elsewhere(DurableObject):
    """Not served."""


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with open_serving(tmp_path / "data", Cart) as serving:
        yield serving


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[Client]:
    async with connect(serving.url, token=serving.token) as client:
        yield client


def here(serving: Serving, name: str = "a") -> Cart:
    return serving.host.namespace(Cart).get_by_name(name)


@asynccontextmanager
async def open_stream(
    serving: Serving, path: str = "/v1/watches/Cart/a"
) -> AsyncIterator[tuple[httpx2.Response, AsyncIterator[Any]]]:
    async with (
        httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(trust_env=False),
            headers={"Authorization": f"Bearer {serving.token}"},
            timeout=10,
        ) as http,
        http.stream("GET", serving.url + path) as answer,
    ):
        yield answer, read_events(answer.aiter_raw())


async def next_event(events: AsyncIterator[Any]) -> tuple[str, Any]:
    async with asyncio.timeout(10):
        while True:
            event = await anext(events)
            if event is not None:
                return event.name, json.loads(event.data)


# -- events --------------------------------------------------------------------------


async def test_changes_come_as_server_sent_events(serving: Serving) -> None:
    async with open_stream(serving) as (answer, events):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        await here(serving).put(a=1, b=Line(Decimal("1.10")))
        assert await next_event(events) == (
            "change",
            {
                "ticket": 1,
                "changed": {"a": 1, "b": {"price": "1.10"}},
                "deleted": [],
                "cleared": False,
            },
        )
        await here(serving).drop("a")
        name, data = await next_event(events)
        assert (name, data["deleted"]) == ("change", ["a"])


async def test_the_ticket_is_the_id_of_the_event(serving: Serving) -> None:
    async with open_stream(serving) as (answer, _):
        await here(serving).put(a=1)
        text = b""
        async with asyncio.timeout(10):
            async for chunk in answer.aiter_raw():
                text += chunk
                if b"data: " in text:
                    break
    assert b"\n\nid: 1\nevent: change\ndata: {" in text


async def test_exact_values_are_the_stored_bytes(serving: Serving) -> None:
    path = "/v1/watches/Cart/a?values=exact&prefix=line"
    async with open_stream(serving, path) as (_, events):
        await here(serving).put(line=(1, 2), other=1)
        _, data = await next_event(events)
        assert data["changed"].keys() == {"line"}
        assert codec.decode(base64.b64decode(data["changed"]["line"])) == (1, 2)


async def test_the_deletion_ends_the_stream(serving: Serving) -> None:
    await here(serving).put(a=1)
    object_id = serving.host.namespace(Cart).id_from_name("a")
    async with open_stream(serving, f"/v1/watches/Cart/{object_id}?by=id") as (_, some):
        await serving.host.delete(object_id)
        assert (await next_event(some))[1]["cleared"] is True
        assert await next_event(some) == ("deleted", {})
        with pytest.raises(StopAsyncIteration):
            await anext(some)


async def test_draining_ends_every_stream_at_once(serving: Serving) -> None:
    async with open_stream(serving) as (_, events):
        await serving.traffic.drain()
        name, data = await next_event(events)
        assert (name, data["code"]) == ("closed", "draining")
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with open_stream(serving) as (answer, _):
        assert answer.status_code == 503


async def test_both_sides_hear_that_the_other_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = watch_api.WatchApi.__init__

    def quick(self: Any, host: Any, served: Any) -> None:
        init(self, host, served, heartbeat_seconds=0.01)

    monkeypatch.setattr(watch_api.WatchApi, "__init__", quick)
    async with (
        open_serving(tmp_path / "data", Cart) as serving,
        open_stream(serving) as (_, events),
    ):
        for _ in range(5):
            assert await anext(events) is None
        await here(serving).put(a=1)
        assert (await next_event(events))[1]["changed"] == {"a": 1}


async def test_a_caller_that_leaves_is_forgotten(serving: Serving) -> None:
    async with open_stream(serving) as (_, events):
        assert await anext(events) is None
        assert serving.traffic.in_flight == 1
        assert serving.host.committer.watches.by_id
    async with asyncio.timeout(10):
        while serving.traffic.in_flight:
            await asyncio.sleep(0.01)
    gc.collect()
    assert not serving.host.committer.watches.by_id


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/watches/Nope/a", 404, "unknown_class"),
        ("/v1/watches/Cart/a?by=colour", 400, "bad_request"),
        ("/v1/watches/Cart/zz?by=id", 400, "invalid_id"),
        ("/v1/watches/Cart/a?values=xml", 400, "bad_request"),
        ("/v1/watches/Cart/a?colour=red", 400, "bad_request"),
    ],
)
async def test_what_cannot_be_watched_is_refused(
    serving: Serving, path: str, status: int, code: str
) -> None:
    async with open_stream(serving, path) as (answer, _):
        problem = json.loads(await answer.aread())
    assert (answer.status_code, problem["code"]) == (status, code)


async def test_a_value_that_cannot_be_shown_ends_the_stream_with_the_reason(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(value: Any) -> None:
        raise LookupError

    monkeypatch.setattr(codec, "to_json", fail)
    async with open_stream(serving) as (_, events):
        await here(serving).put(a=1)
        name, data = await next_event(events)
        assert (name, data["code"]) == ("closed", "internal")


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
async def test_events_are_read_however_they_are_cut(size: int) -> None:
    sent = b"".join(
        [
            event_stream.HEARTBEAT,
            write_event("change", {"text": "a\n\nb"}, 7),
            b"unknown: x\nevent: later\ndata: {}\n\n",
            write_event("deleted", {}),
        ]
    )

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), size):
            yield sent[start : start + size]

    found = [event async for event in read_events(chunks())]
    assert found[0] is None
    assert [event.name for event in found if event] == ["change", "later", "deleted"]
    assert found[1] is not None
    assert json.loads(found[1].data) == {"text": "a\n\nb"}


# -- the client ----------------------------------------------------------------------


async def test_a_stub_of_a_client_watches_with_exact_types(
    serving: Serving, client: Client
) -> None:
    cart = client.namespace(Cart).get_by_name("a")
    async with cart.watch() as changes:
        await cart.put(a=(1, 2), b=Line(Decimal("1.10")))
        change = await anext(changes)
        assert change.changed == {"a": (1, 2), "b": Line(Decimal("1.10"))}
        assert (change.ticket, change.cleared) == (1, False)
        await cart.drop("a")
        assert (await anext(changes)).deleted == {"a"}


@pytest.mark.parametrize("name", ["a/b", "..", "", "naïve ☃", "a?b#c&d=e"])
async def test_any_object_and_any_prefix_can_be_watched(
    serving: Serving, client: Client, name: str
) -> None:
    cart = client.namespace(Cart).get_by_name(name)
    async with cart.watch("p&q=r ☃/") as changes:
        await here(serving, name).put(**{"p&q=r ☃/x": 1, "p": 2})
        assert (await anext(changes)).changed == {"p&q=r ☃/x": 1}


async def test_watch_then_read_misses_nothing_here_either(
    serving: Serving, client: Client
) -> None:
    """A call does not overtake the watch that was begun before it."""
    for n in range(20):
        cart = client.namespace(Cart).get_by_name(str(n))
        one, other = cart.watch(), cart.watch("k")
        copy = await cart.all()
        await here(serving, str(n)).put(key=n)
        assert copy == {}
        assert (await anext(one)).changed == {"key": n}
        assert (await anext(other)).changed == {"key": n}
        await one.aclose()
        await other.aclose()


async def test_a_reader_may_be_cancelled_and_go_on(
    serving: Serving, client: Client
) -> None:
    async with client.namespace(Cart).get_by_name("a").watch() as changes:
        for n in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(changes)
            await here(serving).put(n=n)
            assert (await anext(changes)).changed == {"n": n}


async def test_a_turn_whose_commit_failed_is_never_told(
    serving: Serving, client: Client
) -> None:
    cart = client.namespace(Cart).get_by_name("a")
    async with cart.watch() as changes:
        await cart.put(a=1)
        assert (await anext(changes)).changed == {"a": 1}
        failure = StorageFullError("commit", "full")
        take_over(serving.host).failures.append(failure)
        assert isinstance((await results([cart.put(lost=1)]))[0], Exception)
        await cart.put(a=2)
        assert (await anext(changes)).changed == {"a": 2}


async def test_a_slow_reader_of_many_deletions_holds_up_nobody(
    serving: Serving, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches_module, "DELETIONS_MAX", 5)
    cart = client.namespace(Cart).get_by_name("a")
    async with cart.watch() as changes:
        await cart.put(kept=1)
        for n in range(60):
            await cart.put(**{f"job{n}": n})
            await cart.drop(f"job{n}")
        await cart.put(last=True)
        copy: dict[str, Any] = {}
        async with asyncio.timeout(10):
            while "last" not in copy:
                change = await anext(changes)
                if change.cleared:
                    copy.clear()
                for key in change.deleted:
                    copy.pop(key, None)
                copy |= change.changed
        assert copy == {"kept": 1, "last": True}


async def test_the_deletion_ends_the_watch(serving: Serving, client: Client) -> None:
    cart = client.namespace(Cart).get_by_name("a")
    await cart.put(a=1)
    changes = cart.watch()
    assert await client.delete(client.namespace(Cart).id_from_name("a"))
    found = [change async for change in changes]
    assert [(change.cleared, change.changed) for change in found] == [(True, {})]


async def test_a_draining_daemon_tells_the_reader(
    serving: Serving, client: Client
) -> None:
    changes = client.namespace(Cart).get_by_name("a").watch()
    await client.namespace(Cart).get_by_name("a").put(a=1)
    await serving.traffic.drain()
    assert (await anext(changes)).changed == {"a": 1}
    with pytest.raises(HostClosedError, match="draining"):
        await anext(changes)
    with pytest.raises(HostClosedError):
        await anext(client.namespace(Cart).get_by_name("a").watch())


async def test_the_failure_to_begin_is_the_end_of_the_watch(client: Client) -> None:
    changes = client.namespace(Elsewhere).get_by_name("a").watch()
    with pytest.raises(MethodNotFoundError, match="no class 'Elsewhere'"):
        await anext(changes)
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


async def test_no_daemon_is_told_to_the_reader() -> None:
    async with connect("http://127.0.0.1:1") as client:
        with pytest.raises(TransportError, match="durable-actor serve"):
            await anext(client.namespace(Cart).get_by_name("a").watch())


async def test_closing_the_client_ends_its_watches(serving: Serving) -> None:
    async with connect(serving.url, token=serving.token) as client:
        changes = client.namespace(Cart).get_by_name("a").watch()
        await client.namespace(Cart).get_by_name("a").put(a=1)
        async with asyncio.timeout(10):
            await changes._news.wait()  # it has come, and nobody has read it yet
    assert (await anext(changes)).changed == {"a": 1}
    with pytest.raises(HostClosedError, match="client was closed"):
        await anext(changes)


async def test_closing_the_watch_lets_the_connection_go(
    serving: Serving, client: Client
) -> None:
    async with client.namespace(Cart).get_by_name("a").watch() as changes:
        await here(serving).put(a=1)
        await client.namespace(Cart).get_by_name("a").all()
        assert serving.traffic.in_flight == 1
    with pytest.raises(StopAsyncIteration):
        await anext(changes)
    async with asyncio.timeout(10):
        while serving.traffic.in_flight:
            await asyncio.sleep(0.01)


async def test_a_watch_that_is_closed_before_it_began_holds_up_nobody(
    serving: Serving, client: Client
) -> None:
    cart = client.namespace(Cart).get_by_name("a")
    closed = cart.watch()
    await closed.aclose()
    async with asyncio.timeout(3), cart.watch() as changes:
        await cart.put(a=1)
        assert (await anext(changes)).changed == {"a": 1}
    with pytest.raises(StopAsyncIteration):
        await anext(closed)


def feed_of(*pieces: bytes | Exception, ends: bool, silence: float = 60) -> Watch:
    """Return the watch of a feed that gets these pieces."""

    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if not ends:
            await asyncio.Event().wait()

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
        yield chunks()

    return Feed(opened, "", on_end=lambda _: None, silence_seconds=silence).watch


CHANGE = write_event("change", {"ticket": 1, "changed": {"a": codec.encode(1)}})


async def test_a_stream_that_breaks_off_is_no_end() -> None:
    watch = feed_of(CHANGE, ends=True)
    assert (await anext(watch)).changed == {"a": 1}
    with pytest.raises(TransportError, match="went away"):
        await anext(watch)


async def test_a_daemon_that_falls_silent_is_gone() -> None:
    watch = feed_of(CHANGE, ends=False, silence=0.01)
    assert (await anext(watch)).changed == {"a": 1}
    with pytest.raises(TransportError, match="no word"):
        await anext(watch)


async def test_an_event_that_cannot_be_read_is_told() -> None:
    watch = feed_of(b"event: change\ndata: {}\n\n", ends=True)
    with pytest.raises(ValueError, match="ticket"):
        await anext(watch)


# -- alarms and objects through the client -------------------------------------------


class Bell(DurableObject):
    async def ring_at(self, at_ms: int) -> None:
        self.ctx.storage.set_alarm(at_ms)

    async def alarm(self) -> None: ...


async def test_a_client_lists_alarms_and_objects_and_deletes(tmp_path: Path) -> None:
    far_ms = 4_000_000_000_000
    async with (
        open_serving(tmp_path / "data", Bell) as serving,
        connect(serving.url, token=serving.token) as client,
    ):
        bells = client.namespace(Bell)
        for n in range(5):
            await bells.get_by_name(f"b{n}").ring_at(far_ms + 10 - n)
        page = await client.alarms("Bell", limit=2)
        assert [one.name for one in page.alarms] == ["b4", "b3"]
        rest = await client.alarms(cursor=page.cursor)
        assert [one.name for one in rest.alarms] == ["b2", "b1", "b0"]
        assert rest.cursor is None
        assert rest == await serving.host.alarms(cursor=page.cursor)
        few = await client.alarms(before=far_ms + 8)
        assert [one.name for one in few.alarms] == ["b4", "b3"]
        listed = await client.list_objects("Bell", prefix="b", limit=1)
        assert listed == await serving.host.list_objects("Bell", prefix="b", limit=1)
        assert await client.delete(bells.id_from_name("b4"))
        assert not await client.delete(bells.id_from_name("b4"))
        unnamed = bells.new_unique_id()
        await bells.get(unnamed).ring_at(far_ms)
        assert (await client.alarms()).alarms[0].id == str(unnamed)
        assert await client.delete(unnamed)
        assert len((await client.alarms()).alarms) == 4


@pytest.mark.parametrize(
    "query", ["limit=0", "cursor=zz", "before=soon", "before=0", "before=" + "9" * 16]
)
async def test_a_wrong_question_for_alarms_is_refused(
    serving: Serving, client: Client, query: str
) -> None:
    with pytest.raises(TypeError) as caught:
        await client.request("GET", f"/v1/alarms?{query}")
    assert getattr(caught.value, "code", "") == "bad_request"
