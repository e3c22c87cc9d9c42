"""Watches of a committer: what is durable, in order, merged for a slow reader."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_actor.codec import encode
from durable_actor.errors import HostClosedError, StorageFailedError, StorageFullError
from durable_actor.storage import watches as watches_module
from durable_actor.storage.batch import Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.watches import StateChange, Watch
from tests.support.shards import open_shard, raw_id, seal_of
from tests.support.stepping import SteppingDriver

ONE = encode(1)
TWO = encode(2)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[SteppingDriver]:
    async with open_shard(tmp_path) as shard:
        yield SteppingDriver(shard)


@pytest.fixture
async def committer(driver: SteppingDriver) -> AsyncIterator[Committer]:
    committer = Committer(driver, on_failure=lambda *_: None)
    yield committer
    await committer.drop()


def put(
    committer: Committer,
    entries: Mapping[str, Any] | None = None,
    /,
    *,
    num: int = 1,
    cleared: bool = False,
    **more: Any,
) -> int:
    """Seal one turn that writes these values, or deletes the keys of a None."""
    given = {**(entries or {}), **more}
    values = {key: None if v is None else encode(v) for key, v in given.items()}
    return committer.seal(seal_of(num, values, cleared=cleared), raw_id(num))


def follow(state: dict[str, Any], change: StateChange) -> None:
    """Bring a copy of the state up to date, as the docstring of a change says."""
    if change.cleared:
        state.clear()
    for key in change.deleted:
        del state[key]
    state.update(change.changed)


def void(_: object) -> None:
    """Answer nothing."""


def is_waiting(watch: Watch) -> bool:
    return not watch._news.is_set()


async def test_each_turn_is_one_change_for_who_keeps_up(committer: Committer) -> None:
    watch = committer.watch(raw_id(1))
    first = put(committer, a=1, b=[2])
    assert await anext(watch) == StateChange(
        ticket=first, changed={"a": 1, "b": [2]}, deleted=frozenset(), cleared=False
    )
    second = put(committer, a=None, c=3)
    assert await anext(watch) == StateChange(
        ticket=second, changed={"c": 3}, deleted=frozenset({"a"}), cleared=False
    )
    third = put(committer, cleared=True, d=4)
    assert await anext(watch) == StateChange(
        ticket=third, changed={"d": 4}, deleted=frozenset(), cleared=True
    )


async def test_a_change_is_told_before_its_writer_hears_that_it_is_durable(
    committer: Committer,
) -> None:
    watch = committer.watch(raw_id(1))
    told: list[bool] = []
    ticket = put(committer, a=1)
    committer.when_durable(ticket, lambda _: told.append(not is_waiting(watch)))
    await committer.wait(ticket)
    assert told == [True]


async def test_nothing_is_told_before_it_is_durable(
    committer: Committer, driver: SteppingDriver
) -> None:
    watch = committer.watch(raw_id(1))
    driver.hold("commit.after")  # on disk, but not known to be
    ticket = put(committer, a=1)
    await driver.arrived("commit.after")
    assert is_waiting(watch)
    driver.release("commit.after")
    assert (await anext(watch)).ticket == ticket


async def test_a_turn_that_met_a_full_disk_is_never_told(
    committer: Committer, driver: SteppingDriver
) -> None:
    watch = committer.watch(raw_id(1))
    driver.commit_errors.append(StorageFullError("commit", "the disk is full"))
    lost = put(committer, a=1, lost=True)
    with pytest.raises(StorageFullError):
        await committer.wait(lost)
    kept = put(committer, a=2)
    change = await anext(watch)
    assert (change.ticket, change.changed) == (kept, {"a": 2})


async def test_after_a_failed_commit_the_watch_ends_with_the_failure(
    committer: Committer, driver: SteppingDriver
) -> None:
    watch = committer.watch(raw_id(1))
    kept = put(committer, a=1)
    await committer.wait(kept)
    driver.commit_errors.append(StorageFailedError("commit", "SQLITE_IOERR_FSYNC"))
    put(committer, a=2)
    assert (await anext(watch)).changed == {"a": 1}
    with pytest.raises(StorageFailedError, match="FSYNC"):
        await anext(watch)
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_what_was_sealed_before_and_becomes_durable_later_is_told(
    committer: Committer, driver: SteppingDriver
) -> None:
    driver.hold("commit.before")
    ticket = put(committer, a=1)
    await driver.arrived("commit.before")
    watch = committer.watch(raw_id(1))
    driver.release("commit.before")
    assert (await anext(watch)).ticket == ticket


async def test_what_was_durable_before_is_not_told(committer: Committer) -> None:
    await committer.wait(put(committer, a=1))
    watch = committer.watch(raw_id(1))
    await committer.wait(put(committer, b=2))
    assert (await anext(watch)).changed == {"b": 2}


async def test_a_slow_reader_gets_the_newest_of_each_key(committer: Committer) -> None:
    watch = committer.watch(raw_id(1))
    for n in range(50):
        last = put(committer, a=n, b=n)
        await committer.wait(last)
    await committer.wait(put(committer, b=None))
    last = put(committer, z=0, c=1)
    await committer.wait(last)
    change = await anext(watch)
    assert change == StateChange(
        ticket=last,
        changed={"a": 49, "c": 1, "z": 0},
        deleted=frozenset({"b"}),
        cleared=False,
    )
    assert list(change.changed) == ["a", "c", "z"]
    assert is_waiting(watch)


async def test_other_objects_and_other_keys_are_not_told(committer: Committer) -> None:
    watch = committer.watch(raw_id(1), "line:")
    put(committer, {"line:1": 1}, num=2)
    put(committer, other=1)
    put(committer)  # only its row
    ticket = put(committer, {"line:1": 1, "other": 2})
    change = await anext(watch)
    assert (change.ticket, change.changed) == (ticket, {"line:1": 1})
    put(committer, cleared=True, other=3)
    change = await anext(watch)
    assert (change.cleared, change.changed) == (True, {})


async def test_each_watch_has_its_own_pace(committer: Committer) -> None:
    quick, slow = committer.watch(raw_id(1)), committer.watch(raw_id(1))
    put(committer, a=1)
    assert (await anext(quick)).changed == {"a": 1}
    put(committer, b=1)
    assert (await anext(quick)).changed == {"b": 1}
    assert (await anext(slow)).changed == {"a": 1, "b": 1}


async def test_it_ends_after_the_change_that_deletes_the_object(
    committer: Committer,
) -> None:
    watch = committer.watch(raw_id(1))
    put(committer, a=1)
    ticket = committer.seal(Seal(num=1, deleted=True), raw_id(1))
    found = [change async for change in watch]
    assert found == [
        StateChange(ticket=ticket, changed={}, deleted=frozenset(), cleared=True)
    ]
    assert not committer.watches.by_id
    put(committer, num=2, a=2)
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


@pytest.mark.parametrize("ending", ["close", "drop"])
async def test_it_ends_with_an_error_when_the_store_ends(
    committer: Committer, ending: str
) -> None:
    watch = committer.watch(raw_id(1))
    await committer.wait(put(committer, a=1))
    await getattr(committer, ending)()
    assert (await anext(watch)).changed == {"a": 1}
    with pytest.raises(HostClosedError):
        await anext(watch)


async def test_a_reader_may_be_cancelled_and_go_on(committer: Committer) -> None:
    watch = committer.watch(raw_id(1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(watch)
    reading = asyncio.ensure_future(anext(watch))
    # Between the news and the step of the task that would take them.
    committer.when_durable(put(committer, a=1), lambda _: void(reading.cancel()))
    await asyncio.wait([reading])
    assert reading.cancelled()
    assert (await anext(watch)).changed == {"a": 1}


async def test_a_closed_watch_hears_nothing_and_is_forgotten(
    committer: Committer,
) -> None:
    async with committer.watch(raw_id(1)) as watch:
        other = committer.watch(raw_id(1))
        await committer.wait(put(committer, a=1))
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
    assert len(committer.watches.by_id[raw_id(1)]) == 1
    await other.aclose()
    await other.aclose()
    assert not committer.watches.by_id


async def test_a_watch_that_nobody_holds_is_forgotten(committer: Committer) -> None:
    watch = committer.watch(raw_id(1))
    assert committer.watches.by_id
    del watch
    gc.collect()
    assert not committer.watches.by_id


async def test_a_value_that_cannot_be_read_here_is_an_error_of_its_turn_only(
    committer: Committer,
) -> None:
    watch = committer.watch(raw_id(1))
    await committer.wait(committer.seal(seal_of(1, {"a": b"\xff"}), raw_id(1)))
    with pytest.raises(ValueError, match="damaged"):
        await anext(watch)
    put(committer, b=1)
    assert (await anext(watch)).changed == {"b": 1}


# -- too many deletions ---------------------------------------------------------------


@pytest.fixture
def few_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "DELETIONS_MAX", 10)


async def delete_many(committer: Committer, count: int = 100) -> None:
    for n in range(count):
        await committer.wait(put(committer, {f"job:{n}": n}))
        await committer.wait(put(committer, {f"job:{n}": None}))


@pytest.mark.usefixtures("few_deletions")
@pytest.mark.parametrize("kept", [3, 2_000])  # loaded at once, and in pages
@pytest.mark.parametrize("is_folded", [True, False])
async def test_keys_that_came_and_went_do_not_pile_up(
    committer: Committer, kept: int, is_folded: bool
) -> None:
    await committer.wait(put(committer, {f"a{n}": n for n in range(kept)}))
    watch = committer.watch(raw_id(1), "")
    await delete_many(committer)
    last = put(committer, a0="new")
    await committer.wait(last)
    if is_folded:
        await committer.fold()
    assert len(watch._keys) <= 10
    change = await anext(watch)
    assert change == StateChange(
        ticket=last,
        changed={**{f"a{n}": n for n in range(kept)}, "a0": "new"},
        deleted=frozenset(),
        cleared=True,
    )
    put(committer, a1=None)
    assert (await anext(watch)).deleted == {"a1"}


@pytest.mark.usefixtures("few_deletions")
async def test_only_the_prefix_is_read_anew(committer: Committer) -> None:
    watch = committer.watch(raw_id(1), "job:")
    await committer.wait(put(committer, {f"a{n}": n for n in range(600)}))
    await committer.wait(put(committer, {f"zz{n}": n for n in range(600)}))
    await committer.wait(put(committer, {"job:kept": 1}))
    await delete_many(committer)
    assert (await anext(watch)).changed == {"job:kept": 1}


@pytest.mark.usefixtures("few_deletions")
async def test_what_changes_while_the_state_is_read_anew_is_not_lost(
    committer: Committer, driver: SteppingDriver
) -> None:
    await committer.wait(put(committer, kept=1, going=1))
    watch = committer.watch(raw_id(1))
    await delete_many(committer)
    await committer.fold()
    driver.hold("read.after")
    reading = asyncio.ensure_future(anext(watch))
    await driver.arrived("read.after")
    await committer.wait(put(committer, coming=2, kept=2, going=None))
    await committer.fold()
    driver.release("read.after")
    change = await reading
    assert (change.cleared, change.changed) == (True, {"coming": 2, "kept": 2})


@pytest.mark.usefixtures("few_deletions")
async def test_a_reader_cancelled_while_the_state_is_read_misses_nothing(
    committer: Committer, driver: SteppingDriver
) -> None:
    await committer.wait(put(committer, kept=1))
    watch = committer.watch(raw_id(1))
    await delete_many(committer)
    driver.hold("read.before")
    reading = asyncio.ensure_future(anext(watch))
    await driver.arrived("read.before")
    await committer.wait(put(committer, kept=2))
    reading.cancel()
    await asyncio.wait([reading])
    await committer.wait(put(committer, kept=3))
    driver.release("read.before")
    assert (await anext(watch)).changed == {"kept": 3}


@pytest.mark.usefixtures("few_deletions")
async def test_one_that_fell_behind_and_then_lost_its_host_is_told_so(
    committer: Committer,
) -> None:
    watch = committer.watch(raw_id(1))
    await delete_many(committer)
    await committer.close()
    with pytest.raises(HostClosedError):
        await anext(watch)


async def test_who_cannot_read_anew_is_told_when_to_wait(few_deletions: None) -> None:
    watch = Watch()
    for n in range(11):
        await asyncio.wait_for(watch.room(), 1)
        watch.add(n, {str(n): None}, cleared=False)
    waiting = asyncio.ensure_future(watch.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len((await anext(watch)).deleted) == 11
    await waiting


# -- whatever happens ------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", "d"])
TURNS = st.lists(
    st.tuples(
        st.booleans(),
        st.dictionaries(KEYS, st.none() | st.integers(0, 3), max_size=3),
        st.integers(0, 2),  # what the reader does afterwards: 0 takes what there is
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(turns=TURNS, deletions_max=st.sampled_from([0, 2, 1_000]))
async def test_whoever_follows_the_changes_has_the_state(
    turns: list[tuple[bool, dict[str, int | None], int]],
    deletions_max: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    watches_module.DELETIONS_MAX, before = deletions_max, watches_module.DELETIONS_MAX
    try:
        async with open_shard(tmp_path_factory.mktemp("shard")) as shard:
            committer = Committer(shard, on_failure=lambda *_: None)
            watch = committer.watch(raw_id(1))
            state: dict[str, Any] = {}
            copy: dict[str, Any] = {}
            tickets = [0]
            for cleared, keys, pace in turns:
                if cleared:
                    state.clear()
                # An object deletes only what it has.
                written = {k: v for k, v in keys.items() if v is not None or k in state}
                last = put(committer, written, cleared=cleared)
                for key, value in written.items():
                    if value is None:
                        del state[key]
                    else:
                        state[key] = value
                await committer.wait(last)
                if pace == 0 and not is_waiting(watch):
                    change = await anext(watch)
                    tickets.append(change.ticket)
                    for key in change.deleted - copy.keys():
                        copy[key] = None  # came and went between two looks
                    follow(copy, change)
                    assert copy == state
            assert tickets == sorted(set(tickets))
            await committer.drop()
    finally:
        watches_module.DELETIONS_MAX = before
