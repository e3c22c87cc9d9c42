"""Calls: what travels, what an error looks like at the caller, and what is refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from dataclasses import dataclass
from typing import Any

import pytest

from durable_actor import CallOptions, EncodeError, MethodNotFoundError
from durable_actor.codec import failures
from durable_actor.testing import open_test_host
from tests.parity.cases import differs, not_applicable, noted, same
from tests.parity.objects import Probe
from tests.parity.translate import Refusal, differences, outcome, to_python
from tests.support.scene import Scene


class MyError(Exception):
    """An exception with fields of its own."""

    def __init__(self, message: str, code: str = "", extra: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.extra = extra


@dataclass(frozen=True)
class Point:
    """A class of the user's, kept as what it is."""

    x: int


class Slotless:
    """A class that is no value."""


class Thing(Probe, concurrency="gated"):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inst_prop = 1

    @property
    def getter(self) -> int:
        return 5

    async def count(self, *args: Any) -> int:
        return len(args)

    async def echo(self, value: Any) -> Any:
        return value

    async def fail(self, how: str) -> None:
        raise _ERRORS[how]

    async def fail_later(self, how: str) -> None:
        await asyncio.sleep(0)
        raise _ERRORS[how]

    async def relay(self, how: str) -> None:
        other = self.env.namespace(Thing).get_by_name("other")
        try:
            await other.fail(how)
        except MyError as error:
            self.env.seen.append(error)
            raise

    async def make(self, what: str) -> Any:
        return _made(self, what)

    async def slow(self) -> None:
        self._note("slow-start")
        await self._wait(100)
        self._note("slow-end")

    async def _private(self) -> None: ...


def _chained(cause: Exception) -> Exception:
    error = RuntimeError("m")
    error.__cause__ = cause
    return error


_ERRORS: dict[str, Any] = {
    "Error": RuntimeError("m"),
    "TypeError": TypeError("m"),
    "RangeError": ValueError("m"),
    "SyntaxError": SyntaxError("m"),
    "Custom": MyError("m", "E_MY", {"a": 1}),
    "Cause": _chained(ValueError("c")),
    "Aggregate": ExceptionGroup("m", [RuntimeError("a")]),
    "emptyMsg": RuntimeError(""),
    "colonMsg": RuntimeError("TypeError: nested: msg"),
    "newline": RuntimeError("line1\nline2"),
}
AS_ITSELF = "in one process an exception crosses as itself, with nothing added to it"


def _made(it: Thing, what: str) -> Any:
    return {
        "fn": lambda: 1,
        "this_": it,
        "ctx": it.ctx,
        "id": it.ctx.id,
        "stub": it.env.namespace(Thing).get_by_name("b"),
        "classInst": Slotless(),
        "undef": None,
        "promise": asyncio.get_running_loop().create_future(),
    }[what]


@differs("rpc.errors.props", AS_ITSELF)
async def test_an_exception_is_the_same_at_the_caller(observed: Any) -> None:
    async with open_test_host() as test:
        stub = test.host.namespace(Thing).get_by_name("a")
        for how, raised in _ERRORS.items():
            ours = await outcome(lambda: stub.fail(how))
            assert ours is raised
            assert not hasattr(ours, "remote")
            assert observed[how]["own"]["remote"]
            # What has crossed a wire is marked, as there.
            wired = failures.loads_error(failures.dumps_error(raised))
            assert type(wired) is type(raised)
            assert getattr(wired, "remote", False) is True
        for how in ("TypeError", "RangeError", "Custom", "emptyMsg", "colonMsg"):
            seen = observed[how]
            assert Refusal(seen["name"], seen["message"]).matches(_ERRORS[how])


@differs("rpc.errors.async", AS_ITSELF)
async def test_an_exception_after_an_await_is_the_same(observed: Any) -> None:
    async with open_test_host() as test:
        ours = await outcome(
            lambda: test.host.namespace(Thing).get_by_name("a").fail_later("Custom")
        )
    seen = observed["Custom"]
    assert ours is _ERRORS["Custom"]
    assert str(ours) == seen["message"]
    assert {name: getattr(ours, name) for name in ("code", "extra")} == {
        name: seen["own"][name] for name in ("code", "extra")
    }


@differs("rpc.errors.twoHops", AS_ITSELF)
async def test_an_exception_crosses_two_objects(observed: Any) -> None:
    seen: list[Any] = []
    async with open_test_host(env={"seen": seen}) as test:
        outer = await outcome(
            lambda: test.host.namespace(Thing).get_by_name("a").relay("Custom")
        )
    assert len(seen) == len(observed["middle"])
    for error, there in (
        (seen[0], observed["middle"][0]),
        (outer, observed["outer"]["err"]),
    ):
        assert error is _ERRORS["Custom"]
        assert str(error) == there["message"]
        assert error.code == there["own"]["code"]
        assert error.extra == there["own"]["extra"]


@differs("rpc.errors.stack", "the traceback of the callee is kept for its user to read")
async def test_the_traceback_reaches_back_to_the_line_that_raised(
    observed: Any,
) -> None:
    async with open_test_host() as test:
        ours = await outcome(
            lambda: test.host.namespace(Thing).get_by_name("a").fail("RangeError")
        )
    frames = []
    place = ours.__traceback__
    while place is not None:
        frames.append(place.tb_frame.f_code.co_name)
        place = place.tb_next
    assert "outcome" in frames  # the caller's own, as there
    assert ("fail" in frames) is not observed["mentionsRemoteFrame"]
    # To strangers it does not go, unless somebody asks for it.
    assert b"test_rpc.py" not in failures.dumps_error(ours)


@same("rpc.cancel")
async def test_a_call_goes_on_when_its_caller_has_gone(observed: Any) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        call = asyncio.ensure_future(test.host.namespace(Thing).get_by_name("a").slow())
        await test.settle()
        call.cancel()
        await test.advance(100)
        assert call.cancelled()
    assert {"log": scene.log} == observed


@differs("rpc.args", "arguments are values: no functions, and no stubs of them")
async def test_arguments_are_values(observed: Any) -> None:
    async with open_test_host() as test:
        stub = test.host.namespace(Thing).get_by_name("a")
        ours = {
            "none": await stub.count(),
            "undef": await stub.count(None, None),
            "many": await stub.count(*range(300)),
            "echoUndef": await stub.echo(None),
            "cb": await outcome(lambda: stub.echo(lambda: 1)),
            "sym": await outcome(lambda: stub.echo(object())),
            "fnInObj": await outcome(lambda: stub.echo({"f": lambda: 1})),
        }
    functions = {"cb", "cbThrow", "fnInObj"}
    kept = {"keep", "keepDup", "target"}
    assert differences(ours, observed) == functions | kept
    assert isinstance(ours["cb"], EncodeError)
    assert isinstance(ours["fnInObj"], EncodeError)
    assert "['f']" in str(ours["fnInObj"]).replace('"', "'")


not_applicable("rpc.dispose", "no stub of an object's insides, so none to dispose of")
not_applicable("rpc.pipelining", "an answer is awaited before it is used")


@differs("rpc.limits", "an answer inside one process has no limit of its own")
async def test_a_message_inside_the_process_may_be_large(observed: Any) -> None:
    size = 33 * 1024 * 1024
    async with open_test_host() as test:
        ours = await outcome(
            lambda: test.host.namespace(Thing).get_by_name("a").echo(b"x" * size)
        )
    assert isinstance(to_python(observed["r33"]), Refusal)
    assert len(ours) == size


@differs("rpc.props", "methods are called; properties are not read over a call")
async def test_what_is_no_method_says_so(observed: Any) -> None:
    async with open_test_host() as test:
        stub: Any = test.host.namespace(Thing).get_by_name("a")
        for key, name in {
            "inst": "inst_prop",
            "missing": "zzz",
            "ctx": "ctx",
            "getter": "getter",
        }.items():
            error = await outcome(getattr(stub, name))
            assert isinstance(error, MethodNotFoundError)
            if key != "getter":
                text = observed[key]["err"]["message"].replace("instProp", "inst_prop")
                assert text in str(error)
        assert callable(stub.zzz) is (observed["typeofMissing"] == "function")


@noted("private names, alarm and the socket handlers are refused over a call")
@pytest.mark.parametrize(
    "name", ["alarm", "webSocketMessage", "webSocketClose", "webSocketError"]
)
async def test_a_reserved_name_is_refused(name: str) -> None:
    async with open_test_host() as test:
        stub: Any = test.host.namespace(Thing).get_by_name("a")
        with pytest.raises(MethodNotFoundError) as refused:
            await getattr(stub, name)()
    expected = f"{name!r} is a reserved method and cannot be called over RPC."
    assert expected in str(refused.value)


@noted("a private name is refused as a method that is not there")
async def test_a_private_name_is_refused() -> None:
    """As a client may: a stub has no attribute of such a name."""
    async with open_test_host() as test:
        target = test.host.namespace(Thing).id_from_name("a")
        with pytest.raises(MethodNotFoundError) as refused:
            await test.host.call(target, "_private", (), {}, CallOptions())
    expected = 'The RPC receiver does not implement the method "_private".'
    assert expected in str(refused.value)


@differs("rpc.return", "answers are values: no functions, stubs, streams or requests")
async def test_an_answer_is_a_value(observed: Any) -> None:
    async with open_test_host() as test:
        stub = test.host.namespace(Thing).get_by_name("a")
        for what in ("this_", "ctx", "id", "classInst", "promise"):
            error = await outcome(lambda: stub.make(what))
            assert to_python(observed[what]).matches(error)
        for what in ("fn", "stub"):
            assert not isinstance(to_python(observed[what]), Refusal)
            assert isinstance(await outcome(lambda: stub.make(what)), EncodeError)
        assert await stub.make("undef") is to_python(observed["undef"]) is None


@differs("rpc.return.types", "the types of Python, each kept exactly or refused")
async def test_a_value_arrives_as_what_it_was(observed: Any) -> None:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    values: dict[str, Any] = {
        "date": epoch,
        "map": {"k": {"v": 1}, 1: 2},
        "set": {1, "a"},
        "bigint": 123456789012345678901234567890,
        "bigneg": -5,
        "u8": bytes([1, 2, 3]),
        "negzero": -0.0,
        "inf": -math.inf,
        "str": "\xe9\U0001f600\x00",
        "int": 1_099_511_627_776,
        "bool": True,
        "nul": None,
        "nested": {"a": [{"b": {(("k", 1),): frozenset({1})}}]},
        "classInst": Point(1),
    }
    async with open_test_host() as test:
        stub = test.host.namespace(Thing).get_by_name("a")
        for value in values.values():
            ours = await stub.echo(value)
            assert ours == value
            assert type(ours) is type(value)
        assert math.copysign(1, await stub.echo(-0.0)) == -1
        assert math.isnan(await stub.echo(math.nan))
        error = await stub.echo(MyError("my", "", {"a": 1}))
        assert type(error) is MyError
        assert error.extra == observed["customErr"]["<Error>"]["own"]["extra"]
        cyclic: list[Any] = []
        cyclic.append(cyclic)
        refused = {
            "cyc": cyclic,
            "fn": lambda: 1,
            "genobj": iter(()),
            "sym": object(),
            "regexp": Slotless(),
        }
        for value in refused.values():
            assert isinstance(await outcome(lambda: stub.echo(value)), EncodeError)
    for name, text in {
        "bigint": values["bigint"],
        "bigneg": values["bigneg"],
    }.items():
        assert observed[name] == f"<bigint {text}>"
    for name in ("int", "bool"):
        assert observed[name] == values[name]
    assert set(values) | set(refused) <= set(observed)
