"""What of a turn is kept when something goes wrong in it, and who is told."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from durable_actor import (
    EncodeError,
    StorageError,
    StorageFullError,
)
from durable_actor.testing import TestHost, open_test_host
from tests.parity.cases import CASES, differs, noted, same
from tests.parity.objects import Probe
from tests.parity.translate import differences, outcome, reset_by, to_python
from tests.support.drivers import take_over
from tests.support.scene import Scene

ABORTED = "Application called abort() to reset Durable Object."


class Stepper(Probe, concurrency="gated"):
    """Does what the case says was done, step by step."""

    async def do(self, steps: list[str]) -> str:
        self.memory += 1
        for step in steps:
            verb, _, word = step.partition(":")
            await getattr(self, f"_{verb}")(word)
        return "done"

    async def remembered(self) -> int:
        return self.memory

    async def _put(self, key: str) -> None:
        self.ctx.storage.put(key, key)

    async def _aput(self, key: str) -> None:
        await self.ctx.storage.put(key, key)

    async def _get(self, key: str) -> None:
        await self.ctx.storage.get(key)

    async def _micro(self, _: str) -> None:
        pass

    async def _sync(self, _: str) -> None:
        await self.ctx.storage.sync()

    async def _throw(self, text: str) -> None:
        message = f"at {text}"
        raise ValueError(message)

    async def _abort(self, _: str) -> None:
        self.ctx.abort()

    async def _bad(self, _: str) -> None:
        await self.ctx.storage.put("bad", lambda: 1)

    async def _bad2(self, _: str) -> None:
        # In JavaScript the refusal is in the promise, and nobody looks at that.
        with pytest.raises(EncodeError):
            self.ctx.storage.put("bad", lambda: 1)

    async def _wait(self, ms: Any) -> None:
        await super()._wait(int(ms))

    async def _bcwthrow(self, key: str) -> None:
        async def fail() -> None:
            self.ctx.storage.put(key, key)
            message = f"bcw {key}"
            raise RuntimeError(message)

        await self.ctx.block_concurrency_while(fail)

    async def _timeoutthrow(self, _: str) -> None:
        def fail() -> None:
            message = "in a timer"
            raise RuntimeError(message)

        asyncio.get_running_loop().call_soon(fail)

    async def _waituntilreject(self, text: str) -> None:
        async def fail() -> None:
            message = f"wu {text}"
            raise RuntimeError(message)

        self.ctx.wait_until(fail())

    async def _puttimer(self, key: str) -> None:
        async def later() -> None:
            await super(Stepper, self)._wait(5)
            self.ctx.storage.put(key, key)

        self.ctx.wait_until(later())


def _steps(case: str) -> list[str]:
    _, _, steps = CASES[case].what.partition("steps: ")
    return steps.split(" ; ")


async def _replay(
    case: str, test: TestHost, cls: type[Stepper] = Stepper
) -> dict[str, Any]:
    """Do the steps of a case, and look at what is left, in memory and on the disk."""
    fresh: Any = type("Fresh", (cls,), {"lives": 0})

    stub = test.host.namespace(fresh).get_by_name("a")
    calling = asyncio.ensure_future(outcome(lambda: stub.do(_steps(case))))
    await test.advance(50)
    call = await calling
    memory = await stub.remembered()
    lives = fresh.lives
    await test.restart()
    again = test.host.namespace(fresh).get_by_name("a")
    return {
        "call": call,
        "keys": await again.keys(),
        "instanceKept": lives == 1,
        "memAfter": memory,
        "ctorRuns": lives,
    }


async def _differences(case: str, observed: Any) -> set[str]:
    async with open_test_host() as test:
        return differences(await _replay(case, test), observed["SQL"])


# There, a stub stays broken after a reset. Ours is an address, and is usable always.
STUB = "oldStubUsable"


@same("atom.putThrow")
async def test_an_exception_keeps_the_writes_before_it(observed: Any) -> None:
    assert await _differences("atom.putThrow", observed) == {STUB}
    assert observed["SQL"][STUB] is True


@same("atom.awaitPutThrow")
async def test_an_exception_keeps_awaited_writes(observed: Any) -> None:
    assert await _differences("atom.awaitPutThrow", observed) == {STUB}
    assert observed["SQL"][STUB] is True


@same("atom.badValue")
async def test_a_refused_value_keeps_the_writes_before_it(observed: Any) -> None:
    assert await _differences("atom.badValue", observed) == {STUB}
    assert observed["SQL"][STUB] is True


@same("atom.badValueNoAwait")
async def test_a_refusal_that_is_caught_loses_nothing(observed: Any) -> None:
    """There it is in a promise that nobody awaits; here `put` raises at once."""
    assert await _differences("atom.badValueNoAwait", observed) == {STUB}
    assert observed["SQL"][STUB] is True


@same("atom.timerThrow")
async def test_a_timer_that_raises_changes_nothing(observed: Any) -> None:
    raised: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    assert await _differences("atom.timerThrow", observed) == {STUB}
    assert observed["SQL"][STUB] is True
    assert [str(error) for error in raised] == ["in a timer"]


@same("atom.waitUntilReject")
async def test_a_background_failure_changes_nothing(observed: Any) -> None:
    assert await _differences("atom.waitUntilReject", observed) == {STUB}
    assert observed["SQL"][STUB] is True


@same("atom.writeAfterReturn")
async def test_a_write_after_the_reply_is_kept(observed: Any) -> None:
    assert await _differences("atom.writeAfterReturn", observed) == {STUB}
    assert observed["SQL"][STUB] is True


ADDRESS = "a stub is only an address: it goes on working after a reset"


@differs("atom.putAbort", ADDRESS)
async def test_an_abort_loses_the_writes_of_its_turn(observed: Any) -> None:
    assert await _differences("atom.putAbort", observed) == {STUB}


@differs("atom.awaitPutAbort", ADDRESS)
async def test_awaiting_a_write_is_no_end_of_a_turn(observed: Any) -> None:
    assert await _differences("atom.awaitPutAbort", observed) == {STUB}


@differs("atom.putMicroAbort", ADDRESS)
async def test_awaiting_a_read_is_no_end_of_a_turn(observed: Any) -> None:
    assert await _differences("atom.putMicroAbort", observed) == {STUB}


@differs("atom.putSyncPutAbort", ADDRESS)
async def test_an_abort_keeps_what_was_synced(observed: Any) -> None:
    assert await _differences("atom.putSyncPutAbort", observed) == {STUB}


@differs("atom.bcwThrow", ADDRESS)
async def test_a_failed_block_keeps_the_turn_before_it(observed: Any) -> None:
    assert await _differences("atom.bcwThrow", observed) == {STUB}


class SqlStepper(Stepper, concurrency="gated"):
    storage = "sqlite"

    async def _sql(self, value: str) -> None:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS t (x)")
        sql.exec("INSERT INTO t VALUES (?)", value)

    async def sql_rows(self) -> list[str] | str:
        sql = self.ctx.storage.sql
        try:
            return [str(row["x"]) for row in sql.exec("SELECT x FROM t")]
        except StorageError:
            return "no table"


async def _sql_differences(case: str, observed: Any) -> set[str]:
    async with open_test_host() as test:
        ours = await _replay(case, test, SqlStepper)
        again: Any = test.host.namespace_by_name("Fresh").get_by_name("a")
        ours["sqlRows"] = await again.sql_rows()
        return differences(ours, observed["SQL"])


@differs("atom.sqlAndKvAbort", ADDRESS)
async def test_an_abort_loses_sql_and_keys_alike(observed: Any) -> None:
    assert await _sql_differences("atom.sqlAndKvAbort", observed) == {STUB}


@same("atom.sqlAndKvThrow")
async def test_an_exception_keeps_sql_and_keys_alike(observed: Any) -> None:
    assert await _sql_differences("atom.sqlAndKvThrow", observed) == {STUB}
    assert observed["SQL"][STUB] is True


class Aborting(Probe, concurrency="gated"):
    async def wait_long(self) -> None:
        await self._wait(60_000)

    async def abort(self, reason: Any = None) -> None:
        self.ctx.storage.put("lost", 1)
        self.ctx.abort(reason)


@differs("abort.errors", ADDRESS)
async def test_everyone_who_waits_hears_why_it_was_aborted(observed: Any) -> None:
    class Fresh(Aborting):
        lives = 0

    reason = observed["aborter"]["err"]["message"]
    error = observed["errObj"]["err"]
    error["message"] = error["message"].replace("RangeError", "ValueError")
    async with open_test_host() as test:
        stub = test.host.namespace(Fresh).get_by_name("a")
        waiting = asyncio.ensure_future(outcome(stub.wait_long))
        await test.settle()
        aborter, behind = await asyncio.gather(
            outcome(lambda: stub.abort(reason)), outcome(stub.ping)
        )
        ours = {
            "aborter": aborter,
            "inflight": await waiting,
            "behind": behind,
            "oldStubAfter": await outcome(stub.ping),
            "newInstance": Fresh.lives == 2,
            "persisted": await stub.read("lost"),
            "defaultReason": await outcome(stub.abort),
            "errObj": await outcome(lambda: stub.abort(ValueError("errobj"))),
            "afterWithFreshStub": await outcome(stub.ping),
        }
    assert differences(ours, observed) == {"oldStubAfter"}
    assert ours["oldStubAfter"] == "pong"


class Writer(Probe):
    async def write(self, key: str = "unrelated") -> str:
        self.ctx.storage.put(key, 1)
        return "ok"

    async def write_and_tell(self) -> str:
        self.ctx.storage.put("unrelated", 1)
        self._note("before call")
        await self.env.outside.get_by_name("receiver").receive()
        self._note("after call")
        return "ok"

    async def mutate(self) -> int:
        value = {"n": 1}
        self.ctx.storage.put("value", value)
        value["n"] = 2
        got = await self.ctx.storage.get("value")
        got["n"] = 3
        return int((await self.ctx.storage.get("value"))["n"])

    async def write_half(self) -> None:
        self.ctx.storage.put({"m1": 1, "m2": lambda: 1})

    async def copy_disk_in_a_turn(self, *, synced: bool) -> None:
        """Leave what is on the disk in the middle of a turn: what a kill leaves."""
        if synced:
            self.ctx.storage.put("synced", 1)
            await self.ctx.storage.sync()
        self.ctx.storage.put("unawaited", 1)
        await self.ctx.storage.put("awaited", 1)
        shutil.copytree(self.env.directory, self.env.copy)


@noted("a mapping with one value that cannot be kept writes none of its keys")
async def test_a_mapping_is_put_as_a_whole_or_not_at_all() -> None:
    async with open_test_host() as test:
        stub = test.host.namespace(Writer).get_by_name("a")
        with pytest.raises(EncodeError):
            await stub.write_half()
        assert await stub.keys() == []


class Receiver(Probe):
    """Lives in another host, and looks what the caller's disk has by then."""

    async def receive(self) -> None:
        self._note("received")
        self.env.look()


@same("put.snapshot")
async def test_a_value_is_kept_as_it_was_when_it_was_put(observed: Any) -> None:
    async with open_test_host() as test:
        stored = await test.host.namespace(Writer).get_by_name("a").mutate()
    assert stored == observed["SQL"]["stored"]


@differs("out.fetchSeesDurable", "a call to another host waits; a socket does not")
async def test_a_call_to_another_host_waits_for_the_disk(
    observed: Any, tmp_path: Path
) -> None:
    """A socket that the user opens is not ours to hold; `sync` is for that."""
    scene, seen = Scene(), list[bool]()
    async with open_test_host(env={"scene": scene}, classes=[Writer]) as test:
        env = {
            "scene": scene,
            "look": lambda: seen.append(test.host.committer.durable_ticket > 0),
        }
        async with open_test_host(tmp_path / "other", env=env) as other:
            test.host.bind("outside", other.host.namespace(Receiver))
            await test.host.namespace(Writer).get_by_name("a").write_and_tell()
    assert seen == [observed["confirmed"]["ok"]["rowVisibleOnDisk"] == "1"]


class Referring(Writer):
    """Has a constraint that is looked at when the turn ends."""

    storage = "sqlite"

    async def prepare(self) -> None:
        self.ctx.storage.sql.exec(
            "CREATE TABLE p (id INTEGER PRIMARY KEY);"
            "CREATE TABLE c (p REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED)"
        )

    async def violate(self) -> str:
        self.ctx.storage.sql.exec("INSERT INTO c VALUES (99)")
        return await self.write()

    async def violate_and_tell(self) -> str:
        self.ctx.storage.sql.exec("INSERT INTO c VALUES (99)")
        return await self.write_and_tell()


@differs(
    "out.commitFailure", "a call to another host is not sent; a socket is not ours"
)
async def test_a_failed_commit_takes_its_answers_back(
    observed: Any, tmp_path: Path
) -> None:
    class Fresh(Referring):
        lives = 0

    scene = Scene()
    env = {"scene": scene}
    cause = "FOREIGN KEY constraint failed"
    async with (
        open_test_host(classes=[Fresh], env=env) as test,
        open_test_host(tmp_path / "other", env=env) as other,
    ):
        test.host.bind("outside", other.host.namespace(Receiver))
        stub = test.host.namespace(Fresh).get_by_name("a")
        await stub.prepare()
        returned = await outcome(stub.violate)
        assert cause in observed["return"]["err"]["message"]
        assert cause in reset_by(returned)
        assert await stub.read("unrelated") == to_python(observed["keySame"])
        assert (Fresh.lives == 2) is observed["newInstance"]
        called = await outcome(stub.violate_and_tell)
        assert cause in observed["withFetch"]["err"]["message"]
        assert cause in reset_by(called)
    assert scene.log.count("received") == observed["fetchReachedServer"]
    assert [text.replace("call", "fetch") for text in scene.log] == observed["log"]


@noted("a commit that the disk refuses takes its answers back")
async def test_a_full_disk_takes_answers_back() -> None:
    async with open_test_host() as test:
        driver = take_over(test.host)
        stub = test.host.namespace(Writer).get_by_name("a")
        await stub.ping()
        driver.failures.append(StorageFullError("commit", "no space"))
        assert isinstance(await outcome(stub.write), StorageFullError)
        assert await stub.read("unrelated") is None


@same("restart.kill9AfterResponse")
async def test_what_was_answered_survives_a_kill(observed: Any) -> None:
    kept = []
    async with open_test_host() as test:
        for index in range(len(observed)):
            await test.host.namespace(Writer).get_by_name("a").write(str(index))
            await test.restart()
            stub = test.host.namespace(Writer).get_by_name("a")
            if await stub.read(str(index)) == 1:
                kept.append(index)
    assert kept == observed


@same("restart.kill9MidTurn")
async def test_a_kill_in_a_turn_loses_the_turn(observed: Any, tmp_path: Path) -> None:
    ours = {}
    for case, synced in {"afterSpin": False, "afterSyncSpin": True}.items():
        folder, copy = tmp_path / case, tmp_path / f"{case} copy"
        env = {"directory": folder, "copy": copy}
        async with open_test_host(folder, env=env) as test:
            stub = test.host.namespace(Writer).get_by_name("a")
            if not synced:
                await stub.write("before")
            await stub.copy_disk_in_a_turn(synced=synced)
        async with open_test_host(copy) as test:
            again = test.host.namespace(Writer).get_by_name("a")
            ours[case] = dict.fromkeys(await again.keys(), 1)
    assert differences(ours, observed) == set()
