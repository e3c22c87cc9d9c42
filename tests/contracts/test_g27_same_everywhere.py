"""G27: an object is the same embedded, behind HTTP and behind a Unix socket.

One suite, three ways to the object. What differs is named in the last test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from durable_actor import (
    BadArgumentsError,
    CallTimeoutError,
    Client,
    DurableActorError,
    DurableObject,
    EncodeError,
    Host,
    InvalidIdError,
    MethodNotFoundError,
    ObjectOverloadedError,
    Request,
    Response,
    StorageLimitError,
    connect,
)
from durable_actor.daemon.listening import Listen
from tests.durable_actor.daemon.serving import open_serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

Surface: TypeAlias = Host | Client


@dataclass(frozen=True)
class Order:
    sku: str
    price: Decimal


class SoldOutError(Exception):
    def __init__(self, sku: str, left: int) -> None:
        self.sku = sku
        self.left = left
        super().__init__(f"{sku}: only {left} left")


class Shop(DurableObject):
    async def increment(self, by: int = 1) -> int:
        value: int = await self.ctx.storage.get("value", 0) + by
        self.ctx.storage.put("value", value)
        return value

    async def echo(self, value: Any) -> Any:
        return value

    async def buy(self, sku: str) -> None:
        raise SoldOutError(sku, 0)

    async def break_in(self) -> None:
        raise KeyError("a")

    async def shed(self) -> None:
        raise ObjectOverloadedError("1000 events waiting", object_class="Shop")

    async def stuff(self) -> None:
        self.ctx.storage.put("k" * 3_000, 1)

    async def unsayable(self) -> object:
        return lambda: 1

    async def wait(self) -> None:
        await asyncio.sleep(0.2)  # longer than the caller; but a host waits for it

    async def whoami(self) -> tuple[str, str | None]:
        return str(self.ctx.id), self.ctx.id.name

    async def again(self) -> int:
        mine = self.env.namespace(Shop).get(self.ctx.id)
        count: int = await mine.increment()
        return count

    async def remind(self, after: timedelta) -> None:
        self.ctx.storage.set_alarm(after)

    async def alarm(self) -> None: ...

    async def fetch(self, request: Request) -> Response:
        text = await request.text()
        head = {"X-Path": request.path, "Content-Type": "text/plain"}
        return Response(f"{request.method} {text}", status=202, headers=head)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["embedded", "http", "unix"]
)
async def surface(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Surface]:
    folder = tmp_path_factory.mktemp("same")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if request.param == "embedded":
            yield await enter(Host(folder / "data", classes=[Shop]))
            return
        listen = None
        if request.param == "unix":
            listen = Listen(path=folder / "daemon.sock")
        serving = await enter(open_serving(folder / "data", Shop, listen=listen))
        yield await enter(connect(serving.url, token=serving.token))


def shop(surface: Surface, name: str = "a") -> Shop:
    return surface.namespace(Shop).get_by_name(name)


VALUES = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "ä\0\U0010ffff",
    b"\x00\xff",
    [1, [2]],
    (1, "a"),
    {"a": {"b": None}},
    {1: 2, (1, 2): 3},
    {1, 2},
    frozenset({"a"}),
    Decimal("1.10"),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    timedelta(days=1, microseconds=1),
    Order("a", Decimal(2)),
]


async def test_g27_values_keep_their_types(surface: Surface) -> None:
    for value in VALUES:
        back = await shop(surface).echo(value)
        assert back == value
        assert type(back) is type(value)


async def test_g27_values_are_copies(surface: Surface) -> None:
    value = [1]
    back = await shop(surface).echo(value)
    back.append(2)

    assert value == [1]


async def test_g27_state_stays(surface: Surface) -> None:
    assert await shop(surface, "stays").increment() == 1
    assert await shop(surface, "stays").increment(by=2) == 3
    assert await shop(surface, "other").increment() == 1


async def test_g27_a_name_leads_to_the_same_id(surface: Surface) -> None:
    for name in ("a", "a/b", "..", "ä", "%2F", "x" * 1_024):
        expected = surface.namespace(Shop).id_from_name(name)
        assert await shop(surface, name).whoami() == (str(expected), name)
    with pytest.raises(InvalidIdError):
        await shop(surface, "\0").whoami()


async def test_g27_an_object_without_a_name_is_reached_by_its_id(
    surface: Surface,
) -> None:
    namespace = surface.namespace(Shop)
    fresh = namespace.new_unique_id()

    assert await namespace.get(fresh).increment() == 1
    again = namespace.get(namespace.id_from_string(str(fresh)))
    assert await again.whoami() == (str(fresh), None)
    assert await again.increment() == 2


async def test_g27_an_exception_keeps_its_type_and_its_fields(surface: Surface) -> None:
    with pytest.raises(SoldOutError) as caught:
        await shop(surface).buy("pear")
    assert (caught.value.sku, caught.value.left) == ("pear", 0)
    with pytest.raises(KeyError):
        await shop(surface).break_in()


REFUSED: list[tuple[str, tuple[Any, ...], type[Exception]]] = [
    ("nothing", (), MethodNotFoundError),
    ("_private", (), AttributeError),
    ("increment", ("a", "b", "c"), BadArgumentsError),
    ("echo", (), BadArgumentsError),
    ("echo", (lambda: 1,), EncodeError),
    ("unsayable", (), EncodeError),
    ("shed", (), ObjectOverloadedError),
    ("stuff", (), StorageLimitError),
]


@pytest.mark.parametrize(("method", "args", "expected"), REFUSED)
async def test_g27_what_cannot_be_done_is_the_same_error(
    surface: Surface, method: str, args: tuple[Any, ...], expected: type[Exception]
) -> None:
    with pytest.raises(expected) as caught:
        await getattr(shop(surface, "refused"), method)(*args)

    error = caught.value
    if isinstance(error, DurableActorError):
        assert error.code == getattr(expected, "code", error.code)
        assert error.outcome in ("not_executed", "failed")
        assert error.overloaded is (expected is ObjectOverloadedError)


async def test_g27_a_call_may_come_back_along_its_own_chain(surface: Surface) -> None:
    assert await shop(surface, "chain").again() == 1


async def test_g27_a_call_may_have_a_timeout(surface: Surface) -> None:
    with pytest.raises(CallTimeoutError) as caught:
        await surface.namespace(Shop).get_by_name("slow", timeout="50 ms").wait()
    assert caught.value.outcome == "unknown"


async def test_g27_a_request_is_answered_by_the_object(surface: Surface) -> None:
    stub: Any = surface.namespace(Shop).get_by_name("fetched")
    answer = await stub.fetch("http://shop/items/1?q=2", method="POST", body="hello")

    assert answer.status == 202
    assert await answer.text() == "POST hello"
    assert answer.headers["x-path"] == "/items/1"


async def test_g27_lists_show_what_there_is(surface: Surface) -> None:
    await shop(surface, "listed/a").increment()
    await shop(surface, "listed/b").remind(timedelta(hours=1))
    namespace = surface.namespace(Shop)

    page = await surface.list_objects("Shop", prefix="listed/", limit=1)
    rest = await surface.list_objects("Shop", prefix="listed/", cursor=page.cursor)
    alarms = await surface.alarms("Shop")
    keys = await surface.stored_keys(namespace.id_from_name("listed/a"))

    assert [found.name for found in (*page.objects, *rest.objects)] == [
        "listed/a",
        "listed/b",
    ]
    assert [found.name for found in alarms.alarms] == ["listed/b"]
    assert [(found.key, found.value) for found in keys.keys] == [("value", 1)]


async def test_g27_what_becomes_durable_is_told(surface: Surface) -> None:
    stub: Any = surface.namespace(Shop).get_by_name("watched")
    async with stub.watch("v") as watch:
        await shop(surface, "watched").increment()
        change = await anext(watch)

    assert dict(change.changed) == {"value": 1}


async def test_g27_an_object_is_deleted_once(surface: Surface) -> None:
    await shop(surface, "gone").increment()
    gone = surface.namespace(Shop).id_from_name("gone")

    assert await surface.delete(gone)
    assert not await surface.delete(gone)
    assert await shop(surface, "gone").increment() == 1


async def test_g27_only_an_error_from_afar_says_that_it_is_remote(
    surface: Surface,
) -> None:
    """The one difference, and it is meant to be seen."""
    with pytest.raises(ObjectOverloadedError) as caught:
        await shop(surface).shed()

    assert getattr(caught.value, "remote", False) is isinstance(surface, Client)
