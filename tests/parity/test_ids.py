"""Ids: how they are made and parsed, and what they are refused with."""

from __future__ import annotations

from typing import Any

import pytest

from durable_actor import ForeignIdError, InvalidIdError
from durable_actor.ids import IdSpace
from durable_actor.testing import TestHost, open_test_host
from tests.parity.cases import RUNTIME_NAMESPACE, differs, noted, same
from tests.parity.objects import Probe
from tests.parity.translate import Refusal, differences, outcome, to_python


class Other(Probe):
    """Has a namespace of its own."""


class Named(Probe):
    async def my_name(self) -> str | None:
        return self.ctx.id.name

    async def remember(self, value: object) -> str:
        self.memory += 1
        return type(value).__name__


@same("ids.idFromName.determinism")
def test_a_name_gives_the_same_id_always(observed: Any) -> None:
    space = IdSpace(RUNTIME_NAMESPACE)
    first, second = space.from_name("alice"), space.from_name("alice")
    text = str(first)
    assert {
        "sameString": text == str(second),
        "equals": first == second,
        "differs": first != space.from_name("bob"),
        "length": len(text),
        "lowerHex": set(text) <= set("0123456789abcdef"),
        "str": text,
        "name": first.name,
        "sameObject": first is second,
    } == {
        key: value
        for key, value in observed.items()
        # What JavaScript shows of any object.
        if key not in ("typeofId", "ownKeys", "json")
    }


@differs(
    "ids.ctxIdName", "a name is learned later, too; one of over 1,024 bytes is refused"
)
async def test_an_object_knows_the_name_it_was_opened_by(observed: Any) -> None:
    async with open_test_host() as test:
        objects = test.host.namespace(Named)
        text = str(objects.id_from_name("a"))
        by_string = await objects.get(objects.id_from_string(text)).my_name()
        lives = Named.lives
        ours = {
            "firstOpenedByString_name": by_string,
            "thenByName_name": await objects.get_by_name("a").my_name(),
            "thenByName_sameInstance": Named.lives == lives,
            "unique": await objects.get(objects.new_unique_id()).my_name(),
            "name1024Visible": len(
                await objects.get_by_name("n" * 1_024).my_name() or ""
            ),
            "name1025Visible": await outcome(lambda: objects.get_by_name("n" * 1_025)),
        }
    assert differences(ours, observed) == {"thenByName_name", "name1025Visible"}
    assert ours["thenByName_name"] == "a"
    assert isinstance(ours["name1025Visible"], InvalidIdError)


@differs("ids.equals.crossNamespace", "in Python nothing refuses to be compared")
async def test_ids_of_two_namespaces_are_never_equal(observed: Any) -> None:
    mine, other = IdSpace("a").from_name("x"), IdSpace("b").from_name("x")
    assert mine.equals(other) is (mine == other) is observed["cross"]
    assert mine.equals(IdSpace("a").from_name("x"))
    something: Any
    for key, something in {"bad": str(mine), "nul": None}.items():
        assert isinstance(to_python(observed[key]), Refusal)
        assert mine.equals(something) is False


@differs("ids.get.errors", "an id of another namespace is refused")
async def test_a_stub_is_given_for_an_id_of_the_namespace(observed: Any) -> None:
    async with open_test_host() as test:
        objects: Any = test.host.namespace(Probe, RUNTIME_NAMESPACE)
        foreign = test.host.namespace(Other).id_from_name("zz")
        ours = {
            "str": await outcome(lambda: objects.get("a")),
            "undef": await outcome(lambda: objects.get(None)),
            "crossNs": await outcome(lambda: objects.get(foreign)),
            "byNameEmpty": str(objects.get_by_name("").id),
            "byNameNoArg": await outcome(lambda: objects.get_by_name()),
        }
    seen = {**observed, "byNameEmpty": observed["byNameEmpty"]["ok"]["id"]}
    assert differences(ours, seen) == {"crossNs"}
    assert isinstance(ours["crossNs"], ForeignIdError)


@same("ids.getByName")
async def test_a_name_and_its_id_lead_to_the_same_object(observed: Any) -> None:
    class Fresh(Named):
        lives = 0

    async with open_test_host() as test:
        objects: Any = test.host.namespace(Fresh)
        by_id, by_name = (
            objects.get(objects.id_from_name("a")),
            objects.get_by_name("a"),
        )
        await by_id.remember(1)
        inside = await by_name.my_name()
        assert {
            "same": by_id.id == by_name.id,
            "stubName": by_name.name,
            "stubIdEq": by_name.id == objects.id_from_name("a"),
            "stubIdName": by_name.id.name,
            "insideNameViaName": inside == "a",
            "ctorRuns": Fresh.lives,
            "sameStub": by_id is by_name,
        } == {
            "same": observed["same"],
            "stubName": "a",
            "stubIdEq": observed["stubIdEq"],
            "stubIdName": "a",
            "insideNameViaName": observed["insideNameViaName"],
            "ctorRuns": observed["ctorRuns"],
            "sameStub": observed["sameStub"],
        }
        assert observed["stubName"] == observed["stubIdName"]


@differs("ids.idFromName.coercion", "a name is text; nothing else is made into one")
async def test_a_name_that_is_not_text_is_refused(observed: Any) -> None:
    async with open_test_host() as test:
        objects: Any = test.host.namespace(Probe)
        names = {"number": 5, "nul": None, "obj": {}, "sym": object()}
        ours = {
            key: await outcome(lambda: objects.id_from_name(name))
            for key, name in names.items()
        }
        none = await outcome(lambda: objects.id_from_name())
    assert all(isinstance(error, InvalidIdError) for error in ours.values())
    assert to_python(observed["none"]).matches(none)


@differs("ids.idOverRpc", "neither ids nor stubs are values; send the name or the text")
async def test_an_id_a_stub_and_a_namespace_are_not_sent(observed: Any) -> None:
    async with open_test_host() as test:
        objects: Any = test.host.namespace(Named)
        stub = objects.get_by_name("a")
        ours = {
            "id": await outcome(lambda: stub.remember(stub.id)),
            "stub": await outcome(lambda: stub.remember(stub)),
            "ns": await outcome(lambda: stub.remember(objects)),
        }
    assert differences(ours, observed) == {"stub"}
    assert to_python(observed["id"]).matches(ours["stub"])


@same("ids.lazy")
async def test_a_stub_runs_nothing_before_its_first_call(observed: Any) -> None:
    class Fresh(Probe):
        lives = 0

    async with open_test_host() as test:
        stub = test.host.namespace(Fresh).get_by_name("a")
        await test.settle()
        before = Fresh.lives
        await stub.ping()
        assert {"ctorBefore": before, "ctorAfter": Fresh.lives} == observed


@differs("ids.newUniqueId", "there are no jurisdictions in one process")
async def test_a_unique_id_is_no_one_elses(observed: Any) -> None:
    async with open_test_host() as test:
        objects: Any = test.host.namespace(Probe)
        made = [objects.new_unique_id() for _ in range(1_000)]
        ours = {
            "unique1000": len(set(made)),
            "length": len(str(made[0])),
            "name": made[0].name,
            "roundtrip": objects.id_from_string(str(made[0])) == made[0],
            "jurisdiction": await outcome(
                lambda: objects.new_unique_id(jurisdiction="eu")
            ),
            "subns": await outcome(lambda: objects.jurisdiction("eu")),
            "badJ": await outcome(lambda: objects.new_unique_id(jurisdiction="x")),
        }
    assert differences(ours, observed) == {"jurisdiction", "subns", "badJ"}
    assert isinstance(ours["jurisdiction"], TypeError)
    assert isinstance(ours["badJ"], TypeError)
    assert isinstance(ours["subns"], AttributeError)


@pytest.fixture
async def host() -> Any:
    async with open_test_host(classes=[Probe, Other]) as test:
        yield test


@noted("parsing an id accepts upper case and drops the name")
def test_an_id_is_parsed_from_either_case(host: TestHost) -> None:
    objects = host.host.namespace(Probe)
    made = objects.id_from_name("a")
    parsed = objects.id_from_string(str(made).upper())
    assert parsed == made
    assert parsed.name is None


@noted("a malformed id is refused with a text that says what an id is")
@pytest.mark.parametrize("text", ["", "ab", "z" * 64, "0" * 63, "0" * 65])
def test_a_malformed_id_says_what_an_id_is(host: TestHost, text: str) -> None:
    with pytest.raises(InvalidIdError) as refused:
        host.host.namespace(Probe).id_from_string(text)
    assert "Invalid Durable Object ID: must be 64 hex digits" in str(refused.value)


@noted("an id of another namespace, or a mistyped one, is refused with a TypeError")
def test_a_foreign_id_says_that_it_is_foreign(host: TestHost) -> None:
    objects = host.host.namespace(Probe)
    foreign = str(host.host.namespace(Other).id_from_name("a"))
    mine = str(objects.id_from_name("a"))
    mistyped = ("1" if mine[0] == "0" else "0") + mine[1:]
    for text in (foreign, mistyped):
        with pytest.raises(TypeError) as refused:
            objects.id_from_string(text)
        expected = "Durable Object ID is not valid for this namespace."
        assert expected in str(refused.value)
