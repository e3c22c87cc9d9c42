"""What a type checker must know of objects and stubs. Checked by mypy, never run.

A line that must be an error is marked to be ignored; mypy reports an ignore that is
not needed, so each is a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, assert_type

from durable_actor import (
    AlarmInfo,
    DurableObject,
    DurableObjectNamespace,
    DurableObjectState,
    DurableObjectTransaction,
    Env,
    EventSink,
    Host,
    ObjectId,
    ObjectPage,
    interleave,
)
from durable_actor.testing import TestHost, open_test_host


class Cart(DurableObject, concurrency="gated"):
    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        super().__init__(ctx, env)
        self.items: dict[str, int] = {}
        ctx.block_concurrency_while(self._load)

    async def _load(self) -> None:
        self.items = await self.ctx.storage.get("items", {})

    async def add(self, item: str, count: int = 1) -> int:
        self.items[item] = self.items.get(item, 0) + count
        self.ctx.storage.put("items", self.items)
        return self.items[item]

    @interleave
    async def count(self) -> int:
        return sum(self.items.values())

    async def alarm(self, info: AlarmInfo) -> None:
        assert_type(info.retry_count, int)
        assert_type(info.is_retry, bool)
        assert_type(info.scheduled_at, datetime)


async def a_stub_is_typed_as_its_class(host: Host) -> None:
    namespace = host.namespace(Cart)
    assert_type(namespace, DurableObjectNamespace[Cart])
    cart = namespace.get_by_name("a")
    assert_type(cart, Cart)
    assert_type(namespace.get(namespace.new_unique_id(), timeout="1 second"), Cart)
    assert_type(await cart.add("apple", count=2), int)
    assert_type(await cart.count(), int)
    assert_type(await asyncio.gather(cart.add("a"), cart.count()), tuple[int, int])


async def a_wrong_use_of_a_stub_is_an_error(host: Host) -> None:
    cart = host.namespace(Cart).get_by_name("a")
    await cart.add(1)  # type: ignore[arg-type]
    await cart.add("apple", "two")  # type: ignore[arg-type]
    await cart.add("apple", number=2)  # type: ignore[call-arg]
    await cart.add()  # type: ignore[call-arg]
    await cart.remove("apple")  # type: ignore[attr-defined]
    text: str = await cart.count()  # type: ignore[assignment]
    del text
    cart.count()  # type: ignore[unused-coroutine]


async def a_wrong_use_of_a_namespace_is_an_error(host: Host) -> None:
    namespace = host.namespace(Cart)
    assert_type(namespace.id_from_name("a"), ObjectId)
    namespace.get("a")  # type: ignore[arg-type]
    namespace.get_by_name(1)  # type: ignore[arg-type]
    namespace.get_by_name("a", timeout=1.5)  # type: ignore[arg-type]


async def env_is_open_and_its_namespaces_are_typed(env: Env) -> None:
    assert_type(env.CARTS, Any)
    assert_type(env.namespace(Cart).get_by_name("a"), Cart)


async def writes_may_go_unawaited(ctx: DurableObjectState) -> None:
    ctx.storage.put("key", 1)
    ctx.storage.put({"key": 1, "other": 2})
    ctx.storage.delete("key")
    ctx.storage.set_alarm(timedelta(hours=1))
    ctx.storage.delete_alarm()
    await ctx.storage.put("key", 1)
    ctx.storage.put(1, 1)  # type: ignore[call-overload]
    ctx.storage.set_alarm("tomorrow")  # type: ignore[arg-type]
    ctx.storage.sync()  # type: ignore[unused-coroutine]


async def reads_say_what_they_return(ctx: DurableObjectState) -> None:
    assert_type(await ctx.storage.get("key"), Any)
    assert_type(await ctx.storage.get(["key", "other"]), dict[str, Any])
    assert_type(await ctx.storage.list(prefix="k", limit=3), dict[str, Any])
    assert_type(await ctx.storage.delete("key"), bool)
    assert_type(await ctx.storage.delete(["key"]), int)
    assert_type(await ctx.storage.get_alarm(), int | None)
    ctx.storage.list(limit="3")  # type: ignore[arg-type]


async def callbacks_pass_their_result_on(ctx: DurableObjectState) -> None:
    async def number() -> int:
        return 1

    async def in_transaction(txn: DurableObjectTransaction) -> str:
        txn.put("key", 1)
        return "text"

    assert_type(await ctx.block_concurrency_while(number), int)
    assert_type(await ctx.wait_until(number()), int)
    assert_type(await ctx.storage.transaction(in_transaction), str)
    ctx.block_concurrency_while(number())  # type: ignore[arg-type]


def abort_never_returns(ctx: DurableObjectState) -> int:
    ctx.abort("no return needed after this")


async def sinks_and_events(ctx: DurableObjectState, sink: EventSink) -> None:
    class Source(DurableObject):
        event_sink = sink

    del Source
    event: Mapping[str, object] = {"n": 1}
    ctx.emit(event)
    ctx.emit(1)  # type: ignore[arg-type]
    ctx.set_attributes({"key": 1})  # type: ignore[dict-item]


async def the_host_and_its_test_double(tmp_path: str) -> None:
    async with Host(tmp_path, classes=[Cart], env={"NAME": "x"}) as host:
        assert_type(host, Host)
        assert_type(await host.list_objects("Cart", where={"a": "b"}), ObjectPage)
        host.namespace(int)  # type: ignore[type-var]
    async with open_test_host(classes=[Cart]) as test:
        assert_type(test, TestHost)
        await test.advance("1 hour")
        await test.advance(1.5)  # type: ignore[arg-type]


class WrongConcurrency(DurableObject, concurrency="parallel"):  # type: ignore[arg-type]
    pass
