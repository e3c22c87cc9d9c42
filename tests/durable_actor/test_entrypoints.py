"""What may be called through a stub, and what is said about the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from durable_actor import (
    BadArgumentsError,
    ConfigError,
    DurableObject,
    DurableObjectState,
    Env,
    Host,
    MethodNotFoundError,
    interleave,
)
from durable_actor.entrypoints import ClassInfo
from durable_actor.testing import open_test_host

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Mixin:
    async def inherited(self) -> str:
        return "inherited"


class Shop(Mixin, DurableObject):
    constant = 7

    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        super().__init__(ctx, env)
        self.field = 1

    async def open(self, *, early: bool = False) -> str:
        return "early" if early else "open"

    async def sell(self, item: str, count: int = 1) -> str:
        return item * count

    async def sell_and_fail(self, item: str) -> None:
        raise TypeError(item)

    @interleave
    async def peek(self) -> str:
        return "peeked"

    async def _secret(self) -> str:
        return "secret"

    def plain(self) -> str:
        return "plain"

    @property
    def computed(self) -> str:
        return "computed"

    @staticmethod
    async def static() -> str:
        return "static"

    async def stream(self) -> AsyncIterator[int]:
        yield 1

    async def alarm(self) -> None: ...


class BiggerShop(Shop):
    async def open(self, *, early: bool = False) -> str:
        return f"bigger {await super().open(early=early)}"


async def call(cls: type[DurableObject], method: str, *args: Any, **kwargs: Any) -> Any:
    async with open_test_host() as test:
        stub: Any = test.host.namespace(cls).get_by_name("a")
        return await getattr(stub, method)(*args, **kwargs)


async def test_public_async_methods_can_be_called() -> None:
    assert await call(Shop, "open") == "open"
    assert await call(Shop, "open", early=True) == "early"
    assert await call(Shop, "sell", "ab", 2) == "abab"
    assert await call(Shop, "peek") == "peeked"
    assert await call(Shop, "inherited") == "inherited"
    assert await call(BiggerShop, "open") == "bigger open"
    assert await call(BiggerShop, "sell", "a") == "a"


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("absent", "Its methods: inherited, open, peek, sell, sell_and_fail"),
        ("plain", "plain function; write `async def plain`"),
        ("stream", "async generator"),
        ("constant", "an attribute, not a method"),
        ("computed", "an attribute, not a method"),
        ("field", 'does not implement the method "field"'),
        ("ctx", 'does not implement the method "ctx"'),
        ("alarm", "'alarm' is a reserved method and cannot be called over RPC"),
        ("webSocketMessage", "reserved"),
    ],
)
async def test_anything_else_is_refused_with_a_reason(method: str, why: str) -> None:
    with pytest.raises(MethodNotFoundError) as caught:
        await call(Shop, method)
    assert why in str(caught.value)
    assert caught.value.object_class == "Shop"
    assert caught.value.outcome == "not_executed"


def test_private_names_are_refused_by_the_class_too() -> None:
    with pytest.raises(MethodNotFoundError, match="underscore are private"):
        ClassInfo(Shop).method("_secret")


def test_what_a_class_offers_is_found_once() -> None:
    info = ClassInfo(Shop, "Corner")
    assert info.name == "Corner"
    assert info.has_alarm
    assert not info.alarm_takes_info
    assert info.method("peek").interleaves
    assert not info.method("open").interleaves
    assert not info.is_gated


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), (("a", 1, 2), {}), (("a",), {"many": 2}), (("a",), {"item": "b"})],
)
async def test_arguments_that_do_not_fit_are_refused_before_anything_runs(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(BadArgumentsError, match="sell") as caught:
        await call(Shop, "sell", *args, **kwargs)
    assert caught.value.outcome == "not_executed"


async def test_a_type_error_of_the_method_itself_is_its_own() -> None:
    with pytest.raises(TypeError, match="mine") as caught:
        await call(Shop, "sell_and_fail", "mine")
    assert type(caught.value) is TypeError


def test_concurrency_is_serial_or_gated() -> None:
    class Gated(DurableObject, concurrency="gated"):
        pass

    class Inherits(Gated):
        pass

    class Attribute(DurableObject):
        concurrency = "gated"

    for cls in (Gated, Inherits, Attribute):
        assert ClassInfo(cls).is_gated
    with pytest.raises(ConfigError, match="serial"):
        type("Wrong", (DurableObject,), {"concurrency": "parallel"})


async def test_two_classes_may_not_share_a_name() -> None:
    class Other(DurableObject):
        pass

    Other.__name__ = "Shop"
    async with open_test_host(classes=[Shop]) as test:
        test.host.register(Shop)  # the same once more is nothing new
        with pytest.raises(ConfigError, match="two classes are called 'Shop'"):
            test.host.register(Other)
        test.host.register(Other, "OtherShop")
        assert test.host.class_names == ["OtherShop", "Shop"]


def test_only_a_durable_object_has_a_namespace() -> None:
    with pytest.raises(TypeError, match="not a subclass of DurableObject"):
        Host("unused").namespace(Mixin)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        Host("unused").namespace(Shop(None, None))  # type: ignore[arg-type]


async def test_methods_are_called_on_the_objects_own_loop() -> None:
    class Where(DurableObject):
        async def loop(self) -> int:
            return id(asyncio.get_running_loop())

    assert await call(Where, "loop") == id(asyncio.get_running_loop())
