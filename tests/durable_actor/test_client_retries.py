"""A client sends again what may be sent again, and nothing runs twice: G4, G6.

Between the client and a real server stands a proxy that loses, breaks, delays and
doubles requests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import stamina

from durable_actor import (
    CallTimeoutError,
    DurableActorError,
    DurableObject,
    HostClosedError,
    ObjectOverloadedError,
    TransportError,
    connect,
)
from durable_actor.clock import Duration
from durable_actor.daemon.listening import Listen
from tests.durable_actor.daemon.serving import TOKEN, Serving, open_serving
from tests.support.proxy import Fault, open_proxy

CALLS = 60
LOSSES: Sequence[Fault] = ("none", "drop", "reset", "cut", "double", "echo", "refuse")


class SoldOutError(Exception):
    retryable = True  # of its own; says nothing of the call


class Till(DurableObject):
    async def pay(self) -> int:
        total: int = await self.ctx.storage.get("total", 0) + 1
        self.ctx.storage.put("total", total)
        return total

    async def pay_and_fail(self) -> None:
        await self.pay()
        message = "tea"
        raise SoldOutError(message)

    async def pay_and_be_shed(self) -> None:
        await self.pay()
        raise ObjectOverloadedError("elsewhere")

    async def total(self) -> int:
        total: int = await self.ctx.storage.get("total", 0)
        return total


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with open_serving(tmp_path / "data", Till) as serving:
        yield serving


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Let a retry follow at once, and as often as the client is told."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


def faults(*chosen: Fault) -> Iterator[Fault]:
    yield from chosen
    while True:
        yield "none"


async def total(serving: Serving) -> int:
    return await serving.host.namespace(Till).get_by_name("a").total()


@pytest.mark.parametrize("seed", range(2))
async def test_g6_calls_that_are_sent_again_run_once_each(
    serving: Serving, no_waits: None, seed: int
) -> None:
    source = random.Random(seed)
    async with (
        open_proxy(serving.url, lambda: source.choice(LOSSES)) as proxy,
        connect(proxy.url, token=serving.token, retries=50) as client,
    ):
        till = client.namespace(Till).get_by_name("a")
        answers = await asyncio.gather(*(till.pay() for _ in range(CALLS)))
    assert set(proxy.seen) == set(LOSSES)
    assert sorted(answers) == list(range(1, CALLS + 1))
    assert await total(serving) == CALLS


async def test_g6_without_identities_the_same_faults_run_calls_twice(
    serving: Serving, no_waits: None
) -> None:
    """The control: whoever repeats what is not known, without an identity, doubles."""
    source = random.Random(0)
    async with (
        open_proxy(serving.url, lambda: source.choice(LOSSES)) as proxy,
        connect(proxy.url, token=serving.token, request_ids=False) as client,
    ):
        till = client.namespace(Till).get_by_name("a")
        for _ in range(CALLS):
            for _ in range(50):
                try:
                    await till.pay()
                except TransportError:
                    continue
                break
    assert await total(serving) > CALLS


@pytest.mark.parametrize("fault", ["drop", "reset", "cut"])
async def test_g4_without_an_identity_a_lost_answer_is_unknown_and_not_sent_again(
    serving: Serving, no_waits: None, fault: Fault
) -> None:
    chosen = faults(fault)
    async with (
        open_proxy(serving.url, lambda: next(chosen)) as proxy,
        connect(proxy.url, token=serving.token, request_ids=False) as client,
    ):
        with pytest.raises(TransportError) as caught:
            await client.namespace(Till).get_by_name("a").pay()
        assert caught.value.outcome == "unknown"
        assert len(proxy.requests) == 1
    assert await total(serving) == 1


async def test_g6_each_call_has_an_identity_and_a_repeat_tells_its_age(
    serving: Serving, no_waits: None
) -> None:
    chosen = faults("drop", "drop")
    async with (
        open_proxy(serving.url, lambda: next(chosen)) as proxy,
        connect(proxy.url, token=serving.token) as client,
    ):
        till = client.namespace(Till).get_by_name("a")
        assert await till.pay() == 1
        assert await till.pay() == 2
    ids = [field(head, "idempotency-key") for head in proxy.requests]
    ages = [field(head, "x-sent-ms-ago") for head in proxy.requests]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert ages[0] is None
    assert 0 < int(ages[1] or 0) <= int(ages[2] or 0)
    assert ages[3] is None


async def test_g6_identities_can_be_switched_off(serving: Serving) -> None:
    async with (
        open_proxy(serving.url) as proxy,
        connect(proxy.url, token=serving.token, request_ids=False) as client,
    ):
        await client.namespace(Till).get_by_name("a").pay()
        await client.namespace(Till).get_by_name("a", request_id="mine").pay()
    ids = [field(head, "idempotency-key") for head in proxy.requests]
    assert ids == [None, "mine"]


@pytest.mark.parametrize("request_id", ["order 7", "☃", " edge ", "x" * 256])
async def test_any_identity_that_a_host_takes_a_client_takes(
    serving: Serving, request_id: str
) -> None:
    async with connect(serving.url, token=serving.token) as client:
        till = client.namespace(Till).get_by_name("a", request_id=request_id)
        assert await till.pay() == 1
        assert await till.pay() == 1


@pytest.mark.parametrize("request_id", ["", "x" * 257, "lone \ud800 surrogate"])
async def test_an_identity_that_a_host_refuses_a_client_refuses(
    serving: Serving, request_id: str
) -> None:
    async with connect(serving.url, token=serving.token) as client:
        with pytest.raises(ValueError, match="request_id"):
            await client.namespace(Till).get_by_name("a", request_id=request_id).pay()


@pytest.mark.parametrize("fault", ["drop", "reset", "cut", "refuse"])
async def test_what_stays_lost_is_unknown_to_the_end(
    serving: Serving, no_waits: None, fault: Fault
) -> None:
    async with (
        open_proxy(serving.url, lambda: fault) as proxy,
        connect(proxy.url, token=serving.token, retries=2) as client,
    ):
        with pytest.raises(TransportError) as caught:
            await client.namespace(Till).get_by_name("a").pay()
        assert caught.value.outcome == "unknown"
        assert len(proxy.requests) == 3


async def test_g4_a_refusal_after_a_lost_answer_is_still_unknown(
    serving: Serving, no_waits: None
) -> None:
    """The first try ran; that the second was refused must not hide it."""

    def choose() -> Fault:
        is_first = not proxy.seen
        serving.traffic.is_draining = not is_first
        return "drop" if is_first else "none"

    async with (
        open_proxy(serving.url, choose) as proxy,
        connect(proxy.url, token=serving.token, retries=2) as client,
    ):
        with pytest.raises(HostClosedError) as caught:
            await client.namespace(Till).get_by_name("a").pay()
        assert caught.value.outcome == "unknown"
        assert proxy.seen == {"drop": 1, "none": 2}
    assert await total(serving) == 1


@pytest.mark.parametrize("method", ["pay_and_fail", "pay_and_be_shed"])
async def test_g6_what_the_method_raised_is_an_answer(
    serving: Serving, no_waits: None, method: str
) -> None:
    chosen = faults("drop")
    async with (
        open_proxy(serving.url, lambda: next(chosen)) as proxy,
        connect(proxy.url, token=serving.token) as client,
    ):
        with pytest.raises((SoldOutError, ObjectOverloadedError)) as caught:
            await getattr(client.namespace(Till).get_by_name("a"), method)()
        assert len(proxy.requests) == 2
    assert getattr(caught.value, "outcome", "failed") == "failed"
    assert await total(serving) == 1


async def test_no_daemon_is_asked_again_and_then_not_executed(no_waits: None) -> None:
    async with connect("http://127.0.0.1:1", token="x") as client:
        with pytest.raises(TransportError) as caught:
            await client.namespace(Till).get_by_name("a").pay()
    assert caught.value.outcome == "not_executed"


async def test_a_daemon_that_comes_back_is_found(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with connect(f"unix:{path}", token=TOKEN, retries=20) as client:
        call = asyncio.ensure_future(client.namespace(Till).get_by_name("a").pay())
        await asyncio.sleep(0)
        async with open_serving(tmp_path / "data", Till, listen=Listen(path=path)):
            assert await call == 1


async def test_g4_a_late_answer_is_unknown_and_its_repeat_gets_it(
    serving: Serving,
) -> None:
    chosen = faults("late")
    async with (
        open_proxy(serving.url, lambda: next(chosen)) as proxy,
        connect(proxy.url, token=serving.token) as client,
    ):
        namespace = client.namespace(Till)
        with pytest.raises(CallTimeoutError) as caught:
            await namespace.get_by_name("a", request_id="r", timeout=200).pay()
        assert caught.value.outcome == "unknown"
        assert await namespace.get_by_name("a", request_id="r").pay() == 1
    assert await total(serving) == 1


@pytest.mark.parametrize("timeout", [150, "150 ms"])
async def test_a_timeout_holds_for_all_tries_together(
    serving: Serving, timeout: Duration
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        open_proxy(serving.url, lambda: "drop") as proxy,
        connect(proxy.url, token=serving.token, retries=1_000) as client,
    ):
        began = loop.time()
        with pytest.raises(CallTimeoutError) as caught:
            await client.namespace(Till).get_by_name("a", timeout=timeout).pay()
        assert loop.time() - began < 5
    assert caught.value.outcome == "unknown"


async def test_a_cancelled_call_is_not_sent_again(serving: Serving) -> None:
    chosen = faults("late")
    async with (
        open_proxy(serving.url, lambda: next(chosen)) as proxy,
        connect(proxy.url, token=serving.token) as client,
    ):
        call = asyncio.ensure_future(client.namespace(Till).get_by_name("a").pay())
        while not proxy.seen:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await client.namespace(Till).get_by_name("b").total() == 0
        assert len(proxy.requests) == 2


async def test_a_call_that_is_cancelled_between_two_tries_ends_at_once() -> None:
    async with connect("http://127.0.0.1:1", token="x", retries=1_000) as client:
        call = asyncio.ensure_future(client.namespace(Till).get_by_name("a").pay())
        done, _ = await asyncio.wait([call], timeout=0.05)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_reading_is_repeated_and_deleting_is_not(
    serving: Serving, no_waits: None
) -> None:
    async with (
        open_proxy(serving.url, lambda: "none") as proxy,
        connect(proxy.url, token=serving.token) as client,
    ):
        await client.namespace(Till).get_by_name("a").pay()
        chosen = faults("drop", "none", "drop")
        proxy._choose = lambda: next(chosen)
        assert len((await client.list_objects()).objects) == 1
        target = client.namespace(Till).id_from_name("a")
        with pytest.raises(DurableActorError) as caught:
            await client.delete(target)
        assert caught.value.outcome == "unknown"


def field(head: bytes, name: str) -> str | None:
    for line in head.decode().split("\r\n"):
        key, _, value = line.partition(":")
        if key.lower() == name:
            return value.strip()
    return None
