"""From a name to an id to a stub."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_actor import (
    DurableObject,
    DurableObjectNamespace,
    ForeignIdError,
    InvalidIdError,
    ObjectError,
    ObjectId,
    Request,
    Response,
    Watch,
)
from durable_actor.namespace import DurableObjectStub
from durable_actor.rpc import CallOptions
from durable_actor.testing import open_test_host

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Greeter(DurableObject):
    async def greet(self, name: str, *, loudly: bool = False) -> str:
        return f"HELLO {name}" if loudly else f"hello {name}"

    async def name_and_id(self) -> tuple[str | None, str]:
        return self.ctx.id.name, str(self.ctx.id)

    async def touch(self) -> None:
        self.ctx.storage.put("touched", True)

    async def publish(self, attributes: dict[str, str]) -> None:
        self.ctx.set_attributes(attributes)


class RecordingRouter:
    """Keeps what it is asked to carry."""

    def __init__(self) -> None:
        self.carried: list[tuple[Any, ...]] = []

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        self.carried.append((target.name, method, args, kwargs, options))
        return "answer"

    async def fetch(
        self, target: ObjectId, request: Request, options: CallOptions
    ) -> Response:
        self.carried.append((target.name, request.method, request.url, options))
        return Response("answer")

    def watch(self, target: ObjectId, prefix: str) -> Watch:
        self.carried.append((target.name, "watch", prefix))
        return Watch(prefix)


def namespace(router: RecordingRouter | None = None) -> DurableObjectNamespace[Greeter]:
    return DurableObjectNamespace(router or RecordingRouter(), "Greeter")


async def test_a_stub_hands_the_call_to_its_router() -> None:
    router = RecordingRouter()
    stub = namespace(router).get_by_name("a", timeout="2 seconds", request_id="r")
    assert await stub.greet("world", loudly=True) == "answer"
    options = CallOptions(timeout_ms=2_000, request_id="r")
    assert router.carried == [
        ("a", "greet", ("world",), {"loudly": True}, options),
    ]


async def test_a_stub_hands_a_request_to_its_router() -> None:
    router = RecordingRouter()
    stub: Any = namespace(router).get_by_name("a", timeout="2 seconds")
    response = await stub.fetch("http://here/x?y", method="POST", body="1")
    assert await response.text() == "answer"
    options = CallOptions(timeout_ms=2_000)
    assert router.carried == [("a", "POST", "http://here/x?y", options)]


def test_the_same_name_is_the_same_id_and_equal_stubs() -> None:
    one, other = namespace(), namespace()
    assert one.id_from_name("a") == other.id_from_name("a")
    assert one.id_from_name("a") != one.id_from_name("b")
    assert one.get_by_name("a") == one.get(one.id_from_name("a"))
    assert len({one.get_by_name("a"), other.get_by_name("a")}) == 1


def test_an_id_survives_being_text_but_its_name_does_not() -> None:
    space = namespace()
    original = space.id_from_name("a")
    parsed = space.id_from_string(str(original).upper())
    assert parsed == original
    assert (original.name, parsed.name) == ("a", None)


def test_unique_ids_are_unique_and_nameless() -> None:
    space = namespace()
    ids = {space.new_unique_id() for _ in range(100)}
    assert len(ids) == 100
    assert {one.name for one in ids} == {None}
    assert all(space.id_from_string(str(one)) == one for one in ids)


def test_an_id_of_another_namespace_is_refused() -> None:
    other = DurableObjectNamespace[Greeter](RecordingRouter(), "Other")
    foreign = other.id_from_name("a")
    with pytest.raises(ForeignIdError, match="not valid for this namespace"):
        namespace().get(foreign)
    with pytest.raises(ForeignIdError):
        namespace().id_from_string(str(foreign))


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_a_malformed_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidIdError, match="64 hex digits"):
        namespace().id_from_string(text)


@pytest.mark.parametrize("name", ["x" * 1_025, "a\x00b", "\ud800"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidIdError):
        namespace().get_by_name(name)


def test_a_stub_has_no_private_methods() -> None:
    stub = namespace().get_by_name("a")
    with pytest.raises(AttributeError):
        stub._greet  # type: ignore[attr-defined]  # noqa: B018  # that is the point
    assert not hasattr(stub, "__len__")


def test_a_stub_knows_its_name_and_shows_it() -> None:
    stub = namespace().get_by_name("a/b")
    assert isinstance(stub, DurableObjectStub)
    assert stub.name == "a/b"
    assert repr(stub) == "DurableObjectStub(ObjectId(Greeter:'a/b'))"


@pytest.mark.parametrize("name", ["", "a.b/../c", "%s{}", "名前", "x" * 1_024])
async def test_any_text_may_be_a_name(name: str) -> None:
    async with open_test_host() as test:
        greeter = test.host.namespace(Greeter).get_by_name(name)
        await greeter.touch()
        assert (await greeter.name_and_id())[0] == name
        await test.restart()
        page = await test.host.list_objects()
        assert [entry.name for entry in page.objects] == [name]


async def test_an_object_opened_by_its_id_still_knows_its_name() -> None:
    async with open_test_host() as test:
        space = test.host.namespace(Greeter)
        await space.get_by_name("a").touch()
        await test.restart()
        space = test.host.namespace(Greeter)
        by_id = space.get(space.id_from_string(str(space.id_from_name("a"))))
        assert (await by_id.name_and_id())[0] == "a"


async def test_an_object_first_opened_by_its_id_learns_its_name() -> None:
    async with open_test_host() as test:
        space = test.host.namespace(Greeter)
        await space.get(space.id_from_string(str(space.id_from_name("a")))).touch()
        await test.host.evict(space.id_from_name("a"))
        await space.get_by_name("a").touch()
        page = await test.host.list_objects()
        assert [entry.name for entry in page.objects] == ["a"]


async def test_an_object_learns_its_name_while_it_is_in_memory() -> None:
    async with open_test_host() as test:
        space = test.host.namespace(Greeter)
        given = space.id_from_string(str(space.id_from_name("a")))
        assert (await space.get(given).name_and_id())[0] is None
        assert (await space.get_by_name("a").name_and_id())[0] == "a"
        assert (await space.get(given).name_and_id())[0] == "a"
        assert given.name is None  # what the caller holds is not changed
        await space.get(given).touch()
        page = await test.host.list_objects()
        assert [entry.name for entry in page.objects] == ["a"]


@pytest.mark.parametrize("is_resident", [True, False])
async def test_a_call_by_name_gives_a_stored_object_its_name(
    is_resident: bool,
) -> None:
    """Even if the call only reads: the next alarm wakes an object that knows it."""
    async with open_test_host() as test:
        space = test.host.namespace(Greeter)
        by_id = space.get(space.id_from_string(str(space.id_from_name("a"))))
        await by_id.publish({"kept": "yes"})
        if not is_resident:
            assert await test.host.evict(space.id_from_name("a"))
        await space.get_by_name("a").greet("world")
        await test.settle()
        (entry,) = (await test.host.list_objects()).objects
        assert (entry.name, entry.attributes) == ("a", {"kept": "yes"})
        await test.restart()
        space = test.host.namespace(Greeter)
        by_id = space.get(space.id_from_string(str(space.id_from_name("a"))))
        assert (await by_id.name_and_id())[0] == "a"


async def test_learning_the_name_loses_nothing_written_beside_it() -> None:
    async with open_test_host() as test:
        space = test.host.namespace(Greeter)
        by_id = space.get(space.id_from_string(str(space.id_from_name("a"))))
        await by_id.publish({"n": "0"})
        for n in range(1, 20):
            writing = asyncio.ensure_future(by_id.publish({"n": str(n)}))
            for _ in range(n % 5):
                await asyncio.sleep(0)
            if n == 10:
                await space.get_by_name("a").greet("world")
            await writing
        (entry,) = (await test.host.list_objects()).objects
        assert (entry.name, entry.attributes) == ("a", {"n": "19"})


async def test_camel_case_names_are_the_same_functions() -> None:
    space = namespace()
    assert space.idFromName("a") == space.id_from_name("a")
    assert space.getByName("a") == space.get_by_name("a")
    assert space.idFromString(str(space.idFromName("a"))) == space.id_from_name("a")
    assert space.newUniqueId() != space.newUniqueId()


async def test_an_unknown_class_is_an_error_that_names_the_known_ones() -> None:
    async with open_test_host(classes=[Greeter]) as test:
        with pytest.raises(ObjectError, match="known: Greeter"):
            test.host.namespace_by_name("Nobody")
        stub = DurableObjectNamespace[Greeter](test.host, "Nobody").get_by_name("a")
        with pytest.raises(ObjectError, match="Nobody"):
            await stub.greet("world")
