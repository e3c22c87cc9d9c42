"""What `ctx` and its parts are called, and the synchronous twin `ctx.storage.kv`."""

from __future__ import annotations

import inspect
from typing import Any

from durable_actor import (
    DurableObjectState,
    DurableObjectStorage,
    ObjectId,
    StorageLimitError,
)
from durable_actor.testing import open_test_host
from tests.parity.cases import differs
from tests.parity.objects import Probe
from tests.parity.translate import differences, outcome, snake

ABSENT = "facets, containers, exports and props are of another kind of runtime"


class Store(Probe):
    storage = "sqlite"

    async def run(self) -> Any:
        return await self.env.doing(self.ctx)


def _absent(names: list[str], where: type[Any] | object) -> set[str]:
    """Return the names that are not there in both spellings, meaning the same."""
    return {
        name
        for name in names
        if inspect.getattr_static(where, name, None)
        is not inspect.getattr_static(where, snake(name), name)
    }


@differs("storage.surface", ABSENT)
async def test_every_name_of_the_original_is_there(observed: Any) -> None:
    seen = observed["SQL"]
    (methods, fields), (calls, parts) = seen["ctx"], seen["storage"]
    assert _absent(methods, DurableObjectState) == set()
    absent = {name for name in fields if not hasattr(DurableObjectState, name)}
    assert absent == {"container", "exports", "facets", "props"}
    assert _absent(calls, DurableObjectStorage) == set()
    assert _absent(parts, DurableObjectStorage) == set()
    assert _absent(seen["id"], ObjectId) == set()

    async def doing(ctx: Any) -> list[set[str]]:
        sql, kv = ctx.storage.sql, ctx.storage.kv
        return [_absent(seen["sql"][0], type(sql)), _absent(seen["kv"], type(kv))]

    async with open_test_host(env={"doing": doing}) as test:
        in_sql, in_kv = await test.host.namespace(Store).get_by_name("a").run()
    assert in_sql == {"Cursor", "Statement"}
    assert in_kv == set()


@differs("skv.api", "`list` shows its own moment; a key is one text of 2,048 bytes")
async def test_the_synchronous_twin(observed: Any) -> None:
    async def doing(ctx: Any) -> dict[str, Any]:
        kv = ctx.storage.kv

        def pairs(**options: Any) -> list[list[Any]]:
            return [list(pair) for pair in dict(kv.list(**options)).items()]

        kv.put("x", {"x": 1})
        ours: dict[str, Any] = {
            "proto": ["constructor", *(n for n in observed["proto"] if hasattr(kv, n))],
            "putRet": kv.put("y", 1),
            "get": kv.get("x"),
            "missing": kv.get("zz"),
            "delYes": kv.delete("x"),
            "delNo": kv.delete("x"),
            "putUndef": kv.put("u", None),
            "getUndef": kv.get("u", "absent"),
            "putEntries": await outcome(lambda: kv.put({"a": 1})),
            "getArr": await outcome(lambda: kv.get(["a"])),
            "delArr": await outcome(lambda: kv.delete(["a"])),
            "putNoVal": await outcome(lambda: kv.put("k")),
            "putFn": await outcome(lambda: kv.put("k", lambda: 1)),
        }
        kv.delete("y")
        kv.delete("u")
        for key in "dbca":
            kv.put(key, key)
        ours |= {
            "list": pairs(),
            "listOpts": pairs(start="b", end="d", reverse=True),
            "next": {"done": False, "value": list(next(iter(kv.list())))},
            "both": await outcome(lambda: kv.list(start="a", start_after="a")),
            "limit0": await outcome(lambda: kv.list(limit=0)),
            "badOpt": await outcome(lambda: kv.list(5)),
            "sharedWithAsync": await ctx.storage.get("a"),
            "key2049": await outcome(lambda: kv.put("k" * 2_049, 1)),
            "v2MB": await outcome(lambda: kv.put("v", b"x" * 2_000_000)),
            "v5MB": await outcome(lambda: kv.put("v", b"x" * 5_000_000)),
        }
        kv.delete("v")
        ours["twoIters"] = [
            list(pair) for pair in zip(kv.list(), kv.list(), strict=True)
        ]
        going = kv.list()
        met = [next(going)[0]]
        kv.put("bb", 1)
        kv.delete("c")
        ours["mutateWhile"] = [*met, *(key for key, _ in going)]
        ctx.storage.put("n", 1)
        ours["shared2"] = kv.get("n")
        return ours

    async with open_test_host(env={"doing": doing}) as test:
        ours = await test.host.namespace(Store).get_by_name("a").run()
    assert differences(ours, observed) == {
        "listType",  # what JavaScript calls it
        *("getArr", "delArr", "limit0", "twoIters", "mutateWhile", "key2049", "v5MB"),
    }
    for name in ("getArr", "delArr"):
        assert isinstance(ours[name], TypeError)
    assert isinstance(ours["limit0"], ValueError)
    assert ours["twoIters"] == [[(key, key)] * 2 for key in "abcd"]
    assert ours["mutateWhile"] == list("abcd")
    for name in ("key2049", "v5MB"):
        assert isinstance(ours[name], StorageLimitError)
