"""`ctx.storage` is a sorted dict that survives."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_actor.codec import encode
from durable_actor.errors import (
    EncodeError,
    InvalidTimeError,
    ObjectResetError,
    StorageError,
    StorageLimitError,
    TransactionClosedError,
)
from durable_actor.storage import kv
from durable_actor.storage import overlay as overlay_module
from durable_actor.storage import shard as shard_module
from durable_actor.storage.facade import (
    DurableObjectStorage,
    DurableObjectTransaction,
    KeyValueStorage,
)
from durable_actor.storage.kv import KeyValueLimits
from durable_actor.storage.ports import ENTRY_BYTES
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
            patch.setattr(overlay_module, "PARTIAL_CACHE_BYTES_MAX", 800)
        yield


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
                expected = {
                    key: model[key] for key in sorted(set(some)) if key in model
                }
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
    max_examples=100,
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


# -- what the model found, and what it cannot see -------------------------------


async def test_a_deletion_of_an_uncached_key_is_seen_by_a_list_after_a_list(
    large: Owner,
) -> None:
    await large.storage.list()
    large.storage.delete("k7")

    assert "k7" not in await large.storage.list()


async def test_keys_in_memory_survive_the_reading_of_others(large: Owner) -> None:
    """Reading may drop what is cached, but not what is asked for at the same time."""
    storage = large.storage
    storage.put("k0", "x" * 100)
    await storage.sync()

    assert len(await storage.get(["k0", "k8", "k9"])) == 3


async def test_what_was_deleted_while_the_disk_was_asked_does_not_come_back(
    large: Owner,
) -> None:
    reading = asyncio.ensure_future(large.storage.get("k9"))
    await asyncio.sleep(0)
    large.storage.delete_all()

    assert await reading is None
    assert await large.storage.get("k9") is None
    assert await large.storage.list() == {}


async def test_a_write_while_the_disk_is_asked_is_newer_than_its_answer(
    large: Owner,
) -> None:
    reading = asyncio.ensure_future(large.storage.get("k9"))
    listing = asyncio.ensure_future(large.storage.list(prefix="k9"))
    await asyncio.sleep(0)
    large.storage.put("k9", "new")

    assert await reading == "new"
    assert await listing == {"k9": "new"}
    assert await large.storage.get("k9") == "new"


async def test_whether_a_key_was_there_is_answered_for_the_time_of_its_deletion(
    large: Owner,
) -> None:
    existed, count = large.storage.delete("k7"), large.storage.delete(["k8", "none"])
    large.storage.put("none", 1)
    ticket = large.end_turn()
    await large.committer.wait(ticket)

    assert await existed is True
    assert await count == 1


async def test_the_cache_knows_its_size(large: Owner) -> None:
    storage, overlay = large.storage, large.overlay

    def is_right() -> bool:
        return overlay.size_bytes == sum(
            len(key) + len(value or b"") + ENTRY_BYTES
            for key, value in overlay._cache.items()
        )

    await storage.get(["k3", "k4", "none", "nil"])
    assert is_right()
    storage.put({"k3": "longer", "none": 1, "k7": 2})
    storage.delete(["k4", "k8", "nil"])
    assert is_right()
    with pytest.raises(UndoError):
        await storage.transaction(put_delete_and_raise)
    assert is_right()
    storage.delete_all()
    storage.put("a", 1)
    assert is_right()


async def put_delete_and_raise(transaction: DurableObjectTransaction) -> None:
    transaction.put({"k1": 1, "k3": "x" * 10, "new": 1})
    transaction.delete(["k1", "none", "k9"])
    raise UndoError


# -- unawaited writes -----------------------------------------------------------


def test_no_write_is_a_coroutine_function() -> None:
    for face in (DurableObjectStorage, DurableObjectTransaction):
        for name in ("put", "delete", "delete_all", "set_alarm", "delete_alarm"):
            written = getattr(face, name, None)
            assert not inspect.iscoroutinefunction(written), name


async def test_writes_that_are_not_awaited_lose_nothing_and_warn_of_nothing(
    large: Owner,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large.storage.put("a", 1)
        large.storage.delete("k7")
        large.storage.delete(["k8", "k9"])
        large.storage.set_alarm(NOW_MS + 1)
        gc.collect()

    assert await large.storage.get(["a", "k7", "k8"]) == {"a": 1}
    assert await large.storage.get_alarm() == NOW_MS + 1


async def test_what_is_cached_is_read_without_suspending(owner: Owner) -> None:
    owner.storage.put("a", 1)
    for reading in (
        owner.storage.get("a"),
        owner.storage.get(["a", "b"]),
        owner.storage.list(),
        owner.storage.delete("a"),
    ):
        with pytest.raises(StopIteration):
            reading.__await__().send(None)


async def test_the_aliases_are_the_same_methods() -> None:
    for name, alias in (
        ("delete_all", "deleteAll"),
        ("set_alarm", "setAlarm"),
        ("get_alarm", "getAlarm"),
        ("delete_alarm", "deleteAlarm"),
    ):
        storage = DurableObjectStorage
        assert getattr(storage, alias) is getattr(storage, name)


# -- values and limits ----------------------------------------------------------


async def test_a_value_is_kept_as_it_was_when_it_was_put(owner: Owner) -> None:
    value = {"list": [1]}
    owner.storage.put("a", value)
    value["list"].append(2)
    (await owner.storage.get("a"))["list"].append(3)

    assert await owner.storage.get("a") == {"list": [1]}


async def test_none_is_a_value_and_not_an_absence(owner: Owner) -> None:
    owner.storage.put("a", None)

    assert await owner.storage.get("a", "absent") is None
    assert await owner.storage.list() == {"a": None}


@pytest.mark.parametrize("extra", [-1, 0, 1])
async def test_s9_keys_values_and_batches_have_bounds(owner: Owner, extra: int) -> None:
    limits = owner.limits
    key = "k" * (limits.key_bytes_max + extra)
    wide_key = "é" * (limits.key_bytes_max // 2 - 1) + "k" * (2 + extra)
    around_bytes = len(encode(bytes(70_000))) - 70_000
    value = bytes(limits.value_bytes_max - around_bytes + extra)
    batch = {f"{n}": n for n in range(limits.batch_entries_max + extra)}
    attempts: list[Callable[[], Awaitable[Any]]] = [
        lambda: owner.storage.put(key, 1),
        lambda: owner.storage.get(wide_key),
        lambda: owner.storage.delete(key),
        lambda: owner.storage.put("value", value),
        lambda: owner.storage.put(batch),
        lambda: owner.storage.get(list(batch)),
        lambda: owner.storage.delete(list(batch)),
    ]

    for attempt in attempts:
        if extra <= 0:
            await attempt()
        else:
            with pytest.raises(StorageLimitError):
                attempt()


async def test_g17_a_turn_has_a_bound_in_bytes(owner: Owner) -> None:
    owner.limits = KeyValueLimits(turn_bytes_max=10_000)
    storage = DurableObjectStorage(owner.overlay, owner)
    for _ in range(5):  # one value instead of the other: never more than one
        storage.put("a", bytes(6_000))
    attempts: list[Callable[[], Awaitable[None]]] = [
        lambda: storage.put("b", bytes(4_000)),
        lambda: storage.put({"b": 1, "c": bytes(4_000)}),
    ]
    for attempt in attempts:
        with pytest.raises(StorageLimitError, match=r"the limit is 10000; .*sync\(\)"):
            attempt()
    assert list(await storage.list()) == ["a"], "nothing of a mapping was written"

    await storage.sync()
    storage.put("b", bytes(4_000))
    assert list(await storage.list()) == ["a", "b"]


async def test_g17_a_transaction_has_the_bound_of_a_turn(owner: Owner) -> None:
    owner.limits = KeyValueLimits(turn_bytes_max=10_000)
    storage = DurableObjectStorage(owner.overlay, owner)
    names = [f"{number}" * 2_000 for number in range(4)]

    async def fill(txn: DurableObjectTransaction) -> None:
        for number in range(10):
            txn.put(f"{number}", bytes(4_000))
            await asyncio.sleep(0)

    with pytest.raises(StorageLimitError, match="the limit is 10000"):
        await storage.transaction(fill)
    assert await storage.list() == {}
    storage.put("a", bytes(3_000))
    with pytest.raises(StorageLimitError, match="the limit is 10000"):
        storage.delete(names)
    storage.delete(names[:3])


async def test_a_mapping_is_put_whole_or_not_at_all(owner: Owner) -> None:
    with pytest.raises(StorageLimitError):
        owner.storage.put({"a": 1, "k" * 3_000: 2})
    with pytest.raises(EncodeError):
        owner.storage.put({"a": 1, "b": object()})

    assert await owner.storage.list() == {}
    assert not owner.overlay.is_unsealed


@pytest.mark.parametrize("wrong", [1, None, b"a", ("a",)])
async def test_a_key_is_text(owner: Owner, wrong: Any) -> None:
    prefix: Any = 1 if wrong is None else wrong
    for attempt in (
        lambda: owner.storage.put({wrong: 1}),
        lambda: owner.storage.get([wrong]),
        lambda: owner.storage.delete([wrong]),
        lambda: owner.storage.list(prefix=prefix),
    ):
        with pytest.raises(TypeError):
            attempt()


@pytest.mark.parametrize("is_large", [True, False])
async def test_what_is_not_unicode_is_refused_whatever_the_size_of_the_object(
    owner: Owner, large: Owner, is_large: bool
) -> None:
    storage = (large if is_large else owner).storage
    for attempt in (
        lambda: storage.put("\ud800", 1),
        lambda: storage.get("\ud800"),
        lambda: storage.delete("\ud800"),
        lambda: storage.list(prefix="\ud800"),
        lambda: storage.list(start="a\udfff"),
        lambda: storage.list(end="\udc00"),
    ):
        with pytest.raises(StorageLimitError):
            attempt()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": -1}, ValueError),
        ({"limit": True}, TypeError),
        ({"limit": 1.5}, TypeError),
        ({"start": "a", "start_after": "a"}, TypeError),
        ({"prefix": b"a"}, TypeError),
    ],
)
async def test_wrong_options_of_list_are_refused(
    owner: Owner, options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        owner.storage.list(**options)


async def test_put_takes_a_key_and_a_value_or_one_mapping(owner: Owner) -> None:
    put: Any = owner.storage.put
    for arguments in (("a",), ({"a": 1}, 2)):
        with pytest.raises(TypeError):
            put(*arguments)


# -- alarms ---------------------------------------------------------------------


async def test_an_alarm_in_the_past_is_due_now(owner: Owner) -> None:
    owner.storage.set_alarm(5)
    assert await owner.storage.get_alarm() == owner.clock.now_ms()


async def test_an_alarm_needs_a_handler_and_a_time(owner: Owner) -> None:
    with pytest.raises(InvalidTimeError):
        owner.storage.set_alarm(-1)
    owner.has_alarm_handler = False
    with pytest.raises(TypeError, match="async def alarm"):
        owner.storage.set_alarm(5)
    assert await owner.storage.get_alarm() is None


# -- transactions ---------------------------------------------------------------


async def test_a_transaction_is_one_seal_however_often_it_waits(owner: Owner) -> None:
    async def callback(transaction: DurableObjectTransaction) -> None:
        for n in range(5):
            transaction.put(f"{n}", n)
            owner.end_turn()
            await asyncio.sleep(0)

    await owner.storage.transaction(callback)
    assert owner.committer.last_ticket == 0
    assert owner.end_turn() == 1


async def test_what_was_written_before_a_transaction_is_sealed_before_it(
    owner: Owner,
) -> None:
    owner.storage.put("before", 1)

    async def callback(transaction: DurableObjectTransaction) -> None:
        transaction.put("inside", 2)
        transaction.rollback()

    await owner.storage.transaction(callback)
    await owner.storage.sync()
    assert await owner.storage.list() == {"before": 1}


async def test_transactions_of_an_object_run_one_after_the_other(owner: Owner) -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        async def callback(transaction: DurableObjectTransaction) -> None:
            seen.append(f"{name} begins")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

        return callback

    await asyncio.gather(*(owner.storage.transaction(named(name)) for name in "ab"))
    assert seen == ["a begins", "a ends", "b begins", "b ends"]


async def test_transactions_inside_one_run_one_after_the_other(owner: Owner) -> None:
    """Each puts back its own writes, not those of the one that began last."""
    began = asyncio.Event()

    async def fail(transaction: DurableObjectTransaction) -> None:
        transaction.put("failed", 1)
        began.set()
        await asyncio.sleep(0)
        raise UndoError

    async def succeed(transaction: DurableObjectTransaction) -> None:
        transaction.put("succeeded", 1)

    async def outer(transaction: DurableObjectTransaction) -> None:
        failing = asyncio.ensure_future(owner.storage.transaction(fail))
        await began.wait()
        await owner.storage.transaction(succeed)
        with pytest.raises(UndoError):
            await failing

    await owner.storage.transaction(outer)
    assert await owner.storage.list() == {"succeeded": 1}


async def test_a_transaction_takes_along_those_inside_it_that_nobody_awaited(
    owner: Owner,
) -> None:
    go_on = asyncio.Event()
    inner_tasks: list[asyncio.Task[None]] = []

    async def inner(transaction: DurableObjectTransaction) -> None:
        transaction.put("inner", 1)
        await go_on.wait()
        transaction.put("inner", 2)

    async def outer(transaction: DurableObjectTransaction) -> None:
        transaction.put("outer", 1)
        inner_tasks.append(asyncio.ensure_future(owner.storage.transaction(inner)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    await owner.storage.transaction(outer)
    assert await owner.storage.list() == {"outer": 1}
    go_on.set()
    with pytest.raises(TransactionClosedError):
        await inner_tasks[0]
    assert not owner.overlay.is_in_transaction
    assert await owner.storage.list() == {"outer": 1}


async def test_a_task_that_outlives_its_transaction_begins_one_of_its_own(
    owner: Owner,
) -> None:
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def put_late(transaction: DurableObjectTransaction) -> None:
        transaction.put("late", 1)

    async def later() -> None:
        await go_on.wait()
        await owner.storage.transaction(put_late)

    async def callback(transaction: DurableObjectTransaction) -> None:
        tasks.append(asyncio.ensure_future(later()))

    await owner.storage.transaction(callback)
    go_on.set()
    await tasks[0]
    assert await owner.storage.list() == {"late": 1}
    assert owner.holds == 0


async def test_a_transaction_is_of_no_use_after_its_end(owner: Owner) -> None:
    kept: list[DurableObjectTransaction] = []

    async def roll_back(transaction: DurableObjectTransaction) -> None:
        kept.append(transaction)
        transaction.rollback()
        for attempt in (
            lambda: transaction.put("a", 1),
            lambda: transaction.get("a"),
            lambda: transaction.get(["a"]),
            lambda: transaction.delete("a"),
            lambda: transaction.list(),
            lambda: transaction.set_alarm(1),
            lambda: transaction.get_alarm(),
            lambda: transaction.delete_alarm(),
            lambda: transaction.rollback(),
        ):
            with pytest.raises(TransactionClosedError, match="rolled back"):
                attempt()

    async def succeed(transaction: DurableObjectTransaction) -> None:
        kept.append(transaction)

    await owner.storage.transaction(roll_back)
    await owner.storage.transaction(succeed)
    with pytest.raises(TransactionClosedError, match="committed"):
        kept[1].put("a", 1)


async def test_rolling_back_puts_back_all_that_a_turn_writes(owner: Owner) -> None:
    overlay = owner.overlay
    overlay.set_attributes({"color": "red"})
    owner.storage.put("a", 1)
    owner.storage.set_alarm(NOW_MS + 1)
    overlay.emit(b"kept")

    async def callback(transaction: DurableObjectTransaction) -> None:
        overlay.set_attributes({"color": "blue"})
        overlay.emit(b"dropped")
        transaction.put("a", 2)
        transaction.delete_alarm()
        raise UndoError

    with pytest.raises(UndoError):
        await owner.storage.transaction(callback)
    overlay.emit(b"later")
    await owner.committer.wait(owner.end_turn())

    loaded = await owner.committer.load(owner.id.raw)
    assert loaded.row is not None
    assert loaded.row.attributes == {"color": "red"}
    assert loaded.alarm is not None
    assert loaded.alarm.due_at_ms == NOW_MS + 1
    assert await owner.storage.get("a") == 1


async def test_deleting_everything_inside_a_transaction_is_refused(
    owner: Owner,
) -> None:
    async def callback(transaction: DurableObjectTransaction) -> None:
        owner.storage.delete_all()

    owner.storage.put("a", 1)
    with pytest.raises(StorageError, match="delete_all"):
        await owner.storage.transaction(callback)
    assert await owner.storage.list() == {"a": 1}


@pytest.mark.parametrize("steps", range(6))
async def test_a_transaction_that_is_cancelled_is_rolled_back(
    large: Owner, steps: int
) -> None:
    async def callback(transaction: DurableObjectTransaction) -> None:
        transaction.put("a", 1)
        await asyncio.sleep(0)
        await transaction.get("k9")
        await large.storage.transaction(inner)
        await asyncio.Event().wait()

    async def inner(transaction: DurableObjectTransaction) -> None:
        transaction.put("b", 1)
        await asyncio.sleep(0)

    task = asyncio.ensure_future(large.storage.transaction(callback))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert large.holds == 0
    assert not large.overlay.is_in_transaction
    assert await large.storage.get(["a", "b"]) == {}


# -- the input gate, and a reset --------------------------------------------------


async def test_a_read_of_the_disk_keeps_other_events_out(large: Owner) -> None:
    for read in (
        lambda: large.storage.get("k8"),
        lambda: large.storage.get(["k8", "k9"]),
        lambda: large.storage.list(),
        lambda: large.storage.delete("k7"),
    ):
        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        assert large.holds == 1
        reading.cancel()
        await asyncio.wait([reading])
        assert large.holds == 0


async def test_a_reset_object_refuses_everything(large: Owner) -> None:
    transactions: list[DurableObjectTransaction] = []

    async def callback(transaction: DurableObjectTransaction) -> None:
        transactions.append(transaction)
        transaction.put("a", 1)
        large.overlay.break_off(broken())

    await large.storage.transaction(callback)
    storage = large.storage
    for attempt in (
        lambda: storage.put("a", 1),
        lambda: storage.get("a"),
        lambda: storage.get(["a"]),
        lambda: storage.delete("a"),
        lambda: storage.delete(["a"]),
        lambda: storage.delete_all(),
        lambda: storage.set_alarm(NOW_MS),
        lambda: storage.delete_alarm(),
        lambda: large.overlay.emit(b""),
        lambda: large.overlay.set_attributes({}),
    ):
        with pytest.raises(ObjectResetError):
            attempt()
    with pytest.raises(ObjectResetError):
        await storage.list()
    assert large.end_turn() == large.overlay.ticket


async def test_what_is_read_by_a_reset_object_is_not_answered(large: Owner) -> None:
    reading = asyncio.ensure_future(large.storage.get("k9"))
    await asyncio.sleep(0)
    large.overlay.break_off(broken())

    with pytest.raises(ObjectResetError):
        await reading


async def test_sync_returns_when_everything_is_durable(owner: Owner) -> None:
    owner.storage.put("a", 1)
    await owner.storage.sync()

    assert owner.committer.durable_ticket == owner.overlay.ticket == 1
