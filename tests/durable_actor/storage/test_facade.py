"""`ctx.storage` is a sorted dict that survives."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_actor.errors import (
    EncodeError,
    InvalidTimeError,
    ObjectResetError,
    StorageError,
    StorageLimitError,
    TransactionClosedError,
)
from durable_actor.storage import kv, overlay as overlay_module, shard as shard_module
from durable_actor.storage.facade import (
    DurableObjectStorage,
    DurableObjectTransaction,
    KeyValueStorage,
)
from tests.support.owners import Disk, Owner, broken

NOW_MS = 1_800_000_000_000


@contextmanager
def sizes(*, large: bool) -> Iterator[None]:
    """Make objects load on demand, a page of two keys at a time."""
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(shard_module, "HYDRATE_KEYS_MAX", 2)
            patch.setattr(shard_module, "HYDRATE_VALUE_BYTES_MAX", 20)
            patch.setattr(kv, "PAGE_KEYS_MAX", 2)
            patch.setattr(overlay_module, "PARTIAL_CACHE_BYTES_MAX", 60)
        yield


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path)
    await disk.open()
    yield disk
    await disk.crash()


@pytest.fixture
async def owner(disk: Disk) -> Owner:
    return await disk.activate()


@pytest.fixture
async def large(disk: Disk) -> AsyncIterator[Owner]:
    """Return an object of keys k0 to k9, of which few are in memory."""
    with sizes(large=True):
        owner = await disk.activate()
        owner.storage.put({f"k{n}": n for n in range(10)})
        await owner.storage.sync()
        await disk.committer.fold()
        owner = await disk.activate()
        assert not owner.overlay.complete
        yield owner


# -- against a model ----------------------------------------------------------

KEYS = [
    "",
    "a",
    "a\x00",
    "a\x00b",
    "ab",
    "a\ufffd",
    "a\U0010ffff",
    "b",
    "ba",
    "é",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "😀",
    "\U0010ffff",
    "\U0010ffff\U0010ffff",
]
keys = st.sampled_from(KEYS)
some_keys = st.lists(keys, max_size=4)
values = st.integers(0, 9) | st.text("x", min_size=30, max_size=40) | st.none()
ranges = st.fixed_dictionaries(
    {},
    optional={
        "prefix": st.sampled_from(["", "a", "a\x00", "\ud7ff", "\U0010ffff", "z"]),
        "start": keys,
        "end": keys,
        "limit": st.integers(1, 5),
        "reverse": st.booleans(),
    },
) | st.fixed_dictionaries({"start_after": keys, "reverse": st.booleans()})
entries = st.dictionaries(keys, values, max_size=8)
plain_steps = st.one_of(
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("put_many"), entries),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("delete_many"), some_keys),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("get_many"), some_keys),
    st.tuples(st.just("list"), ranges),
    st.tuples(st.just("list"), ranges),
    st.tuples(st.just("list"), st.just({})),
    st.tuples(st.just("alarm"), st.none() | st.integers(1, 9)),
    st.tuples(st.just("yield")),
)
endings = st.sampled_from(["commit", "raise", "rollback"])
inner_transactions = st.tuples(
    st.just("transaction"), st.lists(plain_steps, max_size=5), endings
)
transactions = st.tuples(
    st.just("transaction"),
    st.lists(plain_steps | inner_transactions, max_size=6),
    endings,
)
all_steps = st.one_of(
    plain_steps,
    transactions,
    transactions,
    st.tuples(st.sampled_from(["turn", "durable"])),
    st.tuples(st.sampled_from(["fold", "evict"])),
    st.tuples(st.sampled_from(["evict", "crash", "delete_all"])),
)


class UndoError(Exception):
    """Raised in a transaction to roll it back."""


class Machine:
    """Plays steps on the storage and on a dict, and compares every answer."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.model: dict[str, Any] = {}
        self.alarm: int | None = None
        self.owner: Owner
        # What a ticket made durable: the keys and the alarm.
        self.history: dict[int, tuple[dict[str, Any], int | None]] = {0: ({}, None)}

    async def start(self) -> None:
        self.owner = await self.disk.activate()

    def end_turn(self) -> int:
        ticket = self.owner.end_turn()
        self.history[self.disk.committer.last_ticket] = (dict(self.model), self.alarm)
        return ticket

    async def play(self, step: tuple[Any, ...]) -> None:
        """Play one step outside any transaction."""
        match step:
            case ("turn",):
                self.end_turn()
            case ("durable",):
                await self.disk.committer.wait(self.end_turn())
            case ("fold",):
                await self.disk.committer.fold()
            case ("evict",):
                await self.disk.committer.wait(self.end_turn())
                self.owner = await self.disk.activate()
            case ("crash",):
                durable = self.disk.committer.durable_ticket
                await self.disk.crash()
                await self.disk.open()
                found = self.disk.shard.opened.last_ticket
                assert found >= durable
                model, self.alarm = self.history[found]
                self.model = dict(model)
                self.owner = await self.disk.activate()
            case ("delete_all",):
                self.owner.storage.delete_all()
                self.model, self.alarm = {}, None
            case ("transaction", steps, ending):
                self.end_turn()
                await self.transact(self.owner.storage, steps, ending)
                self.end_turn()
            case _:
                await self.work(self.owner.storage, step)
        assert self.owner.holds == 0

    async def transact(
        self, storage: DurableObjectStorage, steps: list[tuple[Any, ...]], ending: str
    ) -> None:
        before = dict(self.model), self.alarm

        async def callback(transaction: DurableObjectTransaction) -> str:
            for number, step in enumerate(steps):
                if step[0] == "transaction":
                    await self.transact(storage, *step[1:])
                else:
                    # Both faces work inside, and mean the same.
                    await self.work(storage if number % 3 else transaction, step)
            if ending == "raise":
                raise UndoError
            if ending == "rollback":
                transaction.rollback()
            return "answer"

        try:
            assert await storage.transaction(callback) == "answer"
        except UndoError:
            assert ending == "raise"
        if ending != "commit":
            self.model, self.alarm = before

    async def work(self, storage: KeyValueStorage, step: tuple[Any, ...]) -> None:
        model = self.model
        match step:
            case ("put", key, value):
                storage.put(key, value)
                model[key] = value
            case ("put_many", entries):
                await storage.put(entries)
                model.update(entries)
            case ("delete", key):
                assert await storage.delete(key) is (key in model)
                model.pop(key, None)
            case ("delete_many", some):
                assert await storage.delete(some) == len(set(some) & set(model))
                for key in some:
                    model.pop(key, None)
            case ("get", key):
                assert await storage.get(key, "absent") == model.get(key, "absent")
            case ("get_many", some):
                expected = {key: model[key] for key in sorted(set(some)) if key in model}
                found = await storage.get(some)
                assert list(found.items()) == list(expected.items())
            case ("list", options):
                if "start" in options and "start_after" in options:
                    return
                found = await storage.list(**options)
                assert list(found.items()) == self.listed(**options)
            case ("alarm", None):
                storage.delete_alarm()
                self.alarm = None
            case ("alarm", minutes):
                self.alarm = NOW_MS + minutes * 60_000
                storage.set_alarm(self.alarm)
            case ("yield",):
                await asyncio.sleep(0)
        assert await storage.get_alarm() == self.alarm

    def listed(
        self,
        *,
        prefix: str = "",
        start: str = "",
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[tuple[str, Any]]:
        chosen = [
            key
            for key in sorted(self.model, key=str.encode, reverse=reverse)
            if key.startswith(prefix)
            and key >= start
            and (start_after is None or key > start_after)
            and (end is None or key < end)
        ]
        return [(key, self.model[key]) for key in chosen[:limit]]

    async def check_all(self) -> None:
        found = await self.owner.storage.list()
        assert list(found.items()) == self.listed()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(before=entries, steps=st.lists(all_steps, min_size=15, max_size=40))
async def test_storage_is_a_sorted_dict_that_survives(
    tmp_path_factory: pytest.TempPathFactory,
    large: bool,
    before: dict[str, Any],
    steps: list[tuple[Any, ...]],
) -> None:
    disk = Disk(tmp_path_factory.mktemp("disk"), synchronous="OFF")
    await disk.open()
    machine = Machine(disk)
    with sizes(large=large):
        try:
            await machine.start()
            for step in [("put_many", before), ("evict",), ("fold",), *steps]:
                await machine.play(step)
            await machine.check_all()
            for last in ("evict", "fold", "evict", "crash"):
                await machine.play((last,))
                await machine.check_all()
        finally:
            await disk.crash()
    assert disk.failures == []
