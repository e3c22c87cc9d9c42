"""A call with an identity runs once, however often it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import (
    BadArgumentsError,
    CallOptions,
    Config,
    DurableObject,
    EncodeError,
    ObjectDeadlockError,
    ObjectOverloadedError,
    ReplyExpiredError,
    StorageFullError,
)
from durable_actor.config import StorageConfig
from durable_actor.storage.ports import ReadReplies
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import Scene, results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class RefusedError(Exception):
    """A user's own, that its caller can import."""


class Till(DurableObject):
    async def pay(self, amount: int) -> int:
        total: int = await self.ctx.storage.get("total", 0) + amount
        self.ctx.storage.put("total", total)
        return total

    async def pay_slowly(self, amount: int) -> int:
        await self.env.scene.reach("paying")
        return await self.pay(amount)

    async def refuse(self) -> None:
        await self.pay(1)
        message = "no"
        raise ValueError(message)

    async def answer(self, value: Any) -> Any:
        await self.pay(1)
        return value

    async def pay_elsewhere(self) -> None:
        await self.pay(1)
        raise ObjectOverloadedError("1000 events wait", object_class="Elsewhere")

    async def answer_badly(self) -> object:
        await self.pay(1)
        return object()

    async def total(self) -> int:
        total: int = await self.ctx.storage.get("total", 0)
        return total


class GatedTill(Till, concurrency="gated"):
    pass


def till(test: TestHost, request_id: str | None = None) -> Till:
    return test.host.namespace(Till).get_by_name("a", request_id=request_id)


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_a_repeated_call_gets_the_kept_answer(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        assert await till(test, "r1").pay(5) == 5
        assert await till(test, "r1").pay(5) == 5
        assert await till(test, "r2").pay(5) == 10
        assert await till(test).total() == 10


async def test_the_answer_is_kept_over_a_crash() -> None:
    async with open_test_host() as test:
        assert await till(test, "r1").pay(5) == 5
        await test.restart()
        assert await till(test, "r1").pay(5) == 5
        assert await till(test).total() == 5


async def test_the_answer_is_kept_when_the_object_leaves_memory() -> None:
    async with open_test_host() as test:
        assert await till(test, "r1").pay(5) == 5
        await test.advance("1 minute")
        assert test.host.stats().objects_resident == 0
        assert await till(test, "r1").pay(5) == 5


async def test_an_answer_keeps_its_type() -> None:
    value = (1, {2, 3}, b"four")
    async with open_test_host() as test:
        for _ in range(2):
            found = await till(test, "r1").answer(value)
            assert found == value
            assert type(found) is tuple
        assert await till(test).total() == 1


async def test_an_error_is_kept_as_well() -> None:
    async with open_test_host() as test:
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await till(test, "r1").refuse()
        await test.restart()
        with pytest.raises(ValueError, match="no"):
            await till(test, "r1").refuse()
        assert await till(test).total() == 1


async def test_an_answer_that_cannot_cross_is_kept_as_its_error() -> None:
    async with open_test_host() as test:
        for _ in range(2):
            with pytest.raises(TypeError, match="object"):
                await till(test, "r1").answer_badly()
        assert await till(test).total() == 1


async def test_the_same_call_sent_twice_at_once_runs_once() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        namespace = test.host.namespace(GatedTill)
        await namespace.get_by_name("a", request_id="r0").pay(0)
        await test.host.evict(namespace.id_from_name("a"))  # to be read from the disk
        gated = namespace.get_by_name("a", request_id="r1")
        calls = [asyncio.ensure_future(gated.pay_slowly(5)) for _ in range(3)]
        await test.settle()
        assert scene.log == ["paying"]
        scene.open("paying")
        assert await asyncio.gather(*calls) == [5, 5, 5]
        assert scene.log == ["paying"]


async def test_a_call_that_sends_itself_again_is_told_that_it_would_wait() -> None:
    class Recursive(Till):
        async def pay_again(self) -> int:
            namespace = self.env.namespace(Recursive)
            again = namespace.get(self.ctx.id, request_id="r1")
            return int(await again.pay_again())

    async with open_test_host() as test:
        namespace = test.host.namespace(Recursive)
        call = asyncio.ensure_future(
            namespace.get_by_name("a", request_id="r1").pay_again()
        )
        await test.settle()
        assert call.done()
        with pytest.raises(ObjectDeadlockError, match="r1"):
            await call


async def test_a_repeat_of_a_call_that_was_lost_runs_again() -> None:
    async with open_test_host() as test:
        await till(test).total()
        disk = take_over(test.host)
        disk.failures.append(StorageFullError("commit", "full"))
        await results([till(test, "r1").pay(5)])
        assert await till(test, "r1").pay(5) == 5
        assert await till(test, "r1").pay(5) == 5
        assert await till(test).total() == 5


async def test_the_write_and_the_answer_are_durable_together() -> None:
    """Crash at every commit: a repeat afterwards always finds both, or neither."""
    for groups in range(4):
        async with open_test_host() as test:
            await till(test).total()
            take_over(test.host).pause_after(groups)
            calls = []
            for i in range(3):
                calls.append(asyncio.ensure_future(till(test, f"r{i}").pay(1)))
                await test.settle()
            await test.crash()
            await results(calls)
            await test.start()
            assert await till(test).total() == groups
            for i in range(3):
                await till(test, f"r{i}").pay(1)
            assert await till(test).total() == 3


async def test_a_kept_answer_expires() -> None:
    config = Config(storage=StorageConfig(reply_ttl_ms=60_000))
    async with open_test_host(config=config) as test:
        assert await till(test, "r1").pay(5) == 5
        await test.advance("59 seconds")
        assert await till(test, "r1").pay(5) == 5
        await test.advance("2 seconds")
        assert await till(test, "r1").pay(5) == 10


async def test_expired_answers_leave_the_disk() -> None:
    config = Config(storage=StorageConfig(reply_ttl_ms=60_000))
    async with open_test_host(config=config) as test:
        await till(test, "r1").pay(5)
        await till(test, "r2").pay(5)
        assert await test.host.expire_replies() == 0
        await test.advance("61 seconds")
        assert await test.host.expire_replies() == 2


async def test_identities_are_of_one_object() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(Till)
        for name in "ab":
            stub = namespace.get_by_name(name, request_id="r1")
            assert await stub.pay(5) == 5


@pytest.mark.parametrize("request_id", ["", "x" * 257, "lone \ud800 surrogate"])
async def test_an_identity_that_cannot_be_kept_is_refused(request_id: str) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="request_id"):
            await till(test, request_id).pay(5)
        assert await till(test).total() == 0
        assert test.host.state == "ok"


class TwoMethods(DurableObject):
    async def left(self) -> str:
        return "left"

    async def right(self) -> str:
        return "right"


async def test_the_same_id_for_another_method_is_another_call() -> None:
    async with open_test_host() as test:
        namespace = test.host.namespace(TwoMethods)
        stub = namespace.get_by_name("a", request_id="same")
        assert await stub.left() == "left"
        assert await stub.right() == "right"
        assert await stub.left() == "left"


FEW = Config(storage=StorageConfig(replies_per_object_max=3))


async def replies_on_disk(test: TestHost) -> set[str]:
    await test.host.committer.fold()
    num = (await test.host.committer.load(till_id(test))).num
    rows = await test.host.driver.read(ReadReplies(num))
    return {row.request_id.removeprefix("pay:") for row in rows}


def till_id(test: TestHost) -> bytes:
    return test.host.namespace(Till).id_from_name("a").raw


async def pay_again(test: TestHost, request_id: str, sent_ms_ago: int) -> object:
    """Repeat a payment as a client does, saying when it was sent first."""
    options = CallOptions(request_id=request_id, sent_ms_ago=sent_ms_ago)
    target = test.host.namespace(Till).id_from_name("a")
    return await test.host.call(target, "pay", (1,), {}, options)


async def test_g6_the_replies_of_one_object_are_bounded_on_disk_and_counted() -> None:
    async with open_test_host(config=FEW) as test:
        for n in range(5):
            await till(test, f"r{n}").pay(1)
        assert await replies_on_disk(test) == {"r2", "r3", "r4"}
        assert test.host.stats().replies_kept == 5
        assert test.host.stats().replies_dropped == 2
        assert await till(test, "r2").pay(1) == 3
        assert test.host.stats().replies_repeated == 1
        await test.restart()
        assert await replies_on_disk(test) == {"r2", "r3", "r4"}


async def test_g6_a_reply_dropped_in_the_log_is_not_found_after_a_crash() -> None:
    async with open_test_host(config=FEW) as test:
        for n in range(5):
            await till(test, f"r{n}").pay(1)
        await test.crash()
        await test.start()
        with pytest.raises(ReplyExpiredError):
            await pay_again(test, "r0", 1_000)
        assert await pay_again(test, "r4", 1_000) == 5
        assert await till(test).total() == 5


@pytest.mark.parametrize("restarted", [False, True])
async def test_g6_a_repeat_out_of_the_window_runs_nothing_and_is_unknown(
    *, restarted: bool
) -> None:
    async with open_test_host(config=FEW) as test:
        await till(test, "first").pay(1)
        await test.advance("1 second")
        for n in range(5):
            await till(test, f"r{n}").pay(1)
            await test.advance("1 second")
        if restarted:
            await test.restart()
        with pytest.raises(ReplyExpiredError) as caught:
            await pay_again(test, "first", 6_000)
        assert caught.value.outcome == "unknown"
        assert not caught.value.retryable
        assert await till(test).total() == 6
        assert test.host.stats().replies_expired == 1


async def test_g6_a_repeat_of_a_call_that_never_arrived_runs() -> None:
    async with open_test_host(config=FEW) as test:
        for n in range(5):
            await till(test, f"r{n}").pay(1)
            await test.advance("1 second")
        # Sent after `r2` was answered, so its reply would still be there.
        assert await pay_again(test, "new", 1_500) == 6
        assert await pay_again(test, "new", 1_600) == 6


async def test_g6_a_repeat_after_a_day_is_unknown() -> None:
    async with open_test_host() as test:
        assert await pay_again(test, "r1", 0) == 1
        await test.advance("1 day")
        with pytest.raises(ReplyExpiredError):
            await pay_again(test, "r1", 24 * 3_600_000 + 1)
        assert await till(test).total() == 1


@pytest.mark.parametrize("folded", [False, True])
async def test_g6_large_replies_are_read_again_instead_of_kept_in_memory(
    *, folded: bool
) -> None:
    values = [bytes([n]) * 50_000 for n in range(4)]
    async with open_test_host() as test:
        for n, value in enumerate(values):
            assert await till(test, f"r{n}").answer(value) == value
        if folded:
            await test.host.committer.fold()
        for n, value in enumerate(values):
            assert await till(test, f"r{n}").answer(b"") == value
        assert await till(test).total() == 4


async def test_g4_an_error_from_elsewhere_does_not_say_that_the_call_never_ran() -> (
    None
):
    async with open_test_host() as test:
        for request_id in (None, "r1", "r1"):
            with pytest.raises(ObjectOverloadedError) as caught:
                await till(test, request_id).pay_elsewhere()
            assert caught.value.overloaded
            assert caught.value.outcome == "failed"
        assert await till(test).total() == 2


async def test_g4_arguments_that_do_not_fit_are_not_executed() -> None:
    async with open_test_host() as test:
        for request_id in (None, "r1"):
            with pytest.raises(BadArgumentsError) as caught:
                await till(test, request_id).pay(1, 2)  # type: ignore[call-arg]
            assert caught.value.outcome == "not_executed"


async def test_g4_an_answer_that_cannot_be_told_is_a_failure() -> None:
    async with open_test_host() as test:
        for request_id in (None, "r1"):
            with pytest.raises(EncodeError) as caught:
                await till(test, request_id).answer_badly()
            assert caught.value.outcome == "failed"
