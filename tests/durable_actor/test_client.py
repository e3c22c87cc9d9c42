"""The client library against a host behind HTTP."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from durable_actor import (
    BadArgumentsError,
    CallTimeoutError,
    Client,
    ConfigError,
    DurableObject,
    EncodeError,
    HostClosedError,
    MethodNotFoundError,
    ObjectOverloadedError,
    TransportError,
    UnauthorizedError,
    codec,
    connect,
)
from durable_actor.client_token import find_token
from durable_actor.daemon import wire
from durable_actor.daemon.listening import Listen
from durable_actor.transport import HttpTransport, Request, error_of, parse_url
from tests.durable_actor.daemon.serving import Serving, open_serving
from workflows import Step, WorkflowFailedError, create_durable_workflows, workflow


class Colour(enum.Enum):
    RED = "red"


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

    async def increment_and_answer_badly(self) -> object:
        @dataclass
        class Local:
            value: int

        return Local(await self.increment())

    async def buy(self, sku: str) -> None:
        raise SoldOutError(sku, 0)

    async def shed(self) -> None:
        raise ObjectOverloadedError("1000 events waiting", object_class="Shop")

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def whoami(self) -> tuple[str, str | None]:
        return str(self.ctx.id), self.ctx.id.name


class Elsewhere(DurableObject):
    """Not served."""

    async def method(self) -> None: ...


@workflow
async def double(step: Step, value: int) -> int:
    return await step.run("double", twice, value)


@workflow
async def failing(step: Step) -> None:
    del step
    message = "no"
    raise ValueError(message)


async def twice(value: int) -> int:
    return value * 2


Workflows, WorkflowClient = create_durable_workflows(
    {"double": double, "failing": failing}
)


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with open_serving(tmp_path / "data", Shop, Workflows) as serving:
        yield serving


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[Client]:
    async with connect(serving.url, token=serving.token) as client:
        yield client


async def test_an_object_is_called_as_if_it_were_here(client: Client) -> None:
    shop = client.namespace(Shop).get_by_name("a")

    assert await shop.increment() == 1
    assert await shop.increment(by=2) == 3
    assert await client.namespace(Shop).get_by_name("b").increment() == 1


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: "one", (2, 3): {4}},
        frozenset({"a"}),
        Decimal("1.10"),
        datetime(2026, 1, 1, tzinfo=UTC),
        timedelta(microseconds=1),
        UUID(int=7),
        b"\xff",
        2**100,
        float("inf"),
        Colour.RED,
        Order("tea", Decimal("1.10")),
        None,
    ],
)
async def test_a_value_comes_back_as_the_type_it_was(
    client: Client, value: Any
) -> None:
    answer = await client.namespace(Shop).get_by_name("a").echo(value)

    assert answer == value
    assert type(answer) is type(value)


@pytest.mark.parametrize(
    "name", ["a/b", ".", "..", "../..", "", "%2F", "a?b#c", "☃", "evict", "x" * 1_024]
)
async def test_a_name_arrives_as_it_was_given(client: Client, name: str) -> None:
    namespace = client.namespace(Shop)

    found = await namespace.get_by_name(name).whoami()

    assert found == (str(namespace.id_from_name(name)), name)


async def test_an_object_without_a_name_is_called_by_its_id(client: Client) -> None:
    namespace = client.namespace(Shop)
    object_id = namespace.new_unique_id()

    assert await namespace.get(object_id).increment() == 1
    found = await namespace.get(namespace.id_from_string(str(object_id))).whoami()
    assert found == (str(object_id), None)


async def test_an_exception_crosses_with_its_type_and_fields(client: Client) -> None:
    with pytest.raises(SoldOutError, match="only 0 left") as caught:
        await client.namespace(Shop).get_by_name("a").buy("tea")

    assert (caught.value.sku, caught.value.left) == ("tea", 0)


async def test_an_error_of_ours_keeps_its_answers(client: Client) -> None:
    with pytest.raises(ObjectOverloadedError) as caught:
        await client.namespace(Shop).get_by_name("a").shed()

    error = caught.value
    assert error.overloaded
    assert not error.retryable
    assert error.remote
    assert error.outcome == "failed"  # the method ran, and raised it
    assert error.retry_after_ms in (1_000, 2_000)  # spread, in whole seconds
    assert error.object_class == "Shop"


async def test_a_method_that_is_not_there_is_an_attribute_error(client: Client) -> None:
    shop: Any = client.namespace(Shop).get_by_name("a")

    with pytest.raises(MethodNotFoundError, match="increment") as caught:
        await shop.incremnt()

    assert isinstance(caught.value, AttributeError)
    assert caught.value.outcome == "not_executed"


async def test_a_class_that_is_not_served_is_named(client: Client) -> None:
    with pytest.raises(MethodNotFoundError, match="Elsewhere"):
        await client.namespace(Elsewhere).get_by_name("a").method()


async def test_arguments_that_do_not_fit_are_a_type_error(client: Client) -> None:
    shop: Any = client.namespace(Shop).get_by_name("a")

    with pytest.raises(TypeError):
        await shop.increment(1, 2, 3)


async def test_an_argument_that_cannot_be_sent_is_refused_here(client: Client) -> None:
    with pytest.raises(EncodeError):
        await client.namespace(Shop).get_by_name("a").echo(object())


async def test_arguments_that_are_too_large_are_refused(client: Client) -> None:
    with pytest.raises(BadArgumentsError, match="at most 1048576"):
        await client.namespace(Shop).get_by_name("a").echo(b"x" * 2_000_000)


@pytest.mark.parametrize("depth", [65, 100, 800, 5_000, 100_000])
async def test_g18_arguments_that_are_too_deep_are_refused(
    serving: Serving, depth: int
) -> None:
    transport = HttpTransport(*parse_url(serving.url), serving.token)
    body = codec.encode([])[:1] + b"\x92\x91" + b"\x91" * depth + b"\xc0\x80"
    request = Request(
        method="POST",
        target="/v1/objects/Shop/a/echo",
        body=body,
        headers={"Content-Type": wire.EXACT},
    )
    answer = await transport.send(request)
    await transport.close()

    assert answer.status == 400
    assert getattr(error_of(answer), "outcome", None) == "not_executed"


@pytest.mark.parametrize("request_ids", [True, False])
async def test_g4_an_answer_that_cannot_be_sent_is_a_call_that_ran(
    serving: Serving, request_ids: bool
) -> None:
    async with connect(
        serving.url, token=serving.token, request_ids=request_ids
    ) as client:
        shop = client.namespace(Shop).get_by_name("a")
        with pytest.raises(EncodeError) as caught:
            await shop.increment_and_answer_badly()

        assert caught.value.outcome == "failed"
        assert await shop.increment() == 2


async def test_a_wrong_token_is_refused(serving: Serving) -> None:
    async with connect(serving.url, token="wrong") as client:
        with pytest.raises(UnauthorizedError) as caught:
            await client.namespace(Shop).get_by_name("a").increment()

    assert caught.value.outcome == "not_executed"


async def test_a_draining_daemon_says_so(serving: Serving, client: Client) -> None:
    serving.traffic.is_draining = True

    with pytest.raises(HostClosedError) as caught:
        await client.namespace(Shop).get_by_name("a").increment()

    assert caught.value.retryable
    assert caught.value.outcome == "not_executed"


async def test_a_call_may_have_a_timeout(serving: Serving, client: Client) -> None:
    shop = client.namespace(Shop).get_by_name("a", timeout=50)
    with pytest.raises(CallTimeoutError) as caught:
        await shop.wait()
    assert caught.value.outcome == "unknown"

    async with connect(serving.url, token=serving.token, timeout="50 ms") as hasty:
        with pytest.raises(TimeoutError):
            await hasty.namespace(Shop).get_by_name("b").wait()


async def test_a_call_sent_twice_with_one_identity_runs_once(client: Client) -> None:
    shop = client.namespace(Shop).get_by_name("a", request_id="order-1")

    assert await shop.increment() == 1
    assert await shop.increment() == 1


async def test_no_daemon_means_not_executed() -> None:
    async with connect("http://127.0.0.1:1", token="x" * 20) as client:
        with pytest.raises(TransportError, match="durable-actor serve") as caught:
            await client.namespace(Shop).get_by_name("a").increment()

    assert caught.value.outcome == "not_executed"
    assert caught.value.retryable


async def test_a_daemon_that_goes_away_means_unknown() -> None:
    async def hang_up(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connect(f"http://127.0.0.1:{port}", token="x") as client:
        with pytest.raises(TransportError) as caught:
            await client.namespace(Shop).get_by_name("a").increment()

    assert caught.value.outcome == "unknown"


async def test_something_that_is_no_daemon_is_recognised() -> None:
    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connect(f"http://127.0.0.1:{port}", token="x") as client:
        with pytest.raises(TransportError, match="is this a daemon"):
            await client.namespace(Shop).get_by_name("a").increment()


async def test_many_calls_may_be_under_way(client: Client) -> None:
    namespace = client.namespace(Shop)
    calls = [namespace.get_by_name(f"n{n % 7}").increment() for n in range(100)]

    answers = await asyncio.gather(*calls)

    assert sorted(answers) == sorted(1 + n // 7 for n in range(100))


async def test_a_unix_socket_is_an_address_too(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    async with (
        open_serving(tmp_path / "data", Shop, listen=Listen(path=path)) as serving,
        connect(f"unix:{path}", token=serving.token) as client,
    ):
        assert await client.namespace(Shop).get_by_name("a").increment() == 1


async def test_workflows_have_the_face_they_have_inside(client: Client) -> None:
    runs = client.workflows(WorkflowClient)

    handle = await runs.start(double, 21, id="x")

    assert await handle.result() == 42
    assert await handle.completed_steps() == ["double"]
    assert (await runs.run(double, 21, id="x")).output == 42
    with pytest.raises(WorkflowFailedError):
        await (await runs.start(failing)).result()


async def test_any_path_can_be_asked_for_json(client: Client) -> None:
    answer = await client.request("POST", "/v1/objects/Shop/a/increment", {"args": [5]})

    assert answer == {"result": 5}


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://x", "http://", "unix:", "127.0.0.1:8787"],
)
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        parse_url(url)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory, with nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOKEN", "TOKEN_FILE", "DATA_DIR"):
        monkeypatch.delenv(f"DURABLE_ACTOR_{name}", raising=False)
    return tmp_path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_token_is_found_where_the_daemon_put_it(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token(None, is_local=True) is None

    put(nowhere / "data" / "token", "in-data\n")
    assert find_token(None, is_local=True) == "in-data"

    put(nowhere / "config.toml", '[storage]\ndir = "kept"\n')
    put(nowhere / "kept" / "token", "in-kept\n")
    assert find_token(None, is_local=True) == "in-kept"

    put(nowhere / "named" / "token", "in-named\n")
    monkeypatch.setenv("DURABLE_ACTOR_DATA_DIR", str(nowhere / "named"))
    assert find_token(None, is_local=True) == "in-named"

    path = put(nowhere / "file", "in-file\n")
    monkeypatch.setenv("DURABLE_ACTOR_TOKEN_FILE", str(path))
    assert find_token(None, is_local=True) == "in-file"

    monkeypatch.setenv("DURABLE_ACTOR_TOKEN", "in-environment")
    assert find_token(None, is_local=True) == "in-environment"
    assert find_token(path, is_local=True) == "in-file"


def test_a_local_token_is_not_for_another_machine(nowhere: Path) -> None:
    put(nowhere / "data" / "token", "secret\n")

    assert find_token(None, is_local=False) is None


def test_a_token_file_that_was_named_must_be_there(nowhere: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        find_token(nowhere / "missing", is_local=True)


def test_a_config_that_says_nothing_is_no_obstacle(nowhere: Path) -> None:
    put(nowhere / "data" / "token", "in-data\n")
    for text in ("", "not toml", "[storage]", "storage = 1", "storage.dir = 1"):
        put(nowhere / "config.toml", text)
        assert find_token(None, is_local=True) == "in-data"
