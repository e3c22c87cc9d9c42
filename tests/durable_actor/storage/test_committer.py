"""Tickets, group commit, and reading what is durable but not folded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_actor.errors import StorageError, StorageFailedError, StorageFullError
from durable_actor.storage import committer as committer_module
from durable_actor.storage.batch import EventRow, Seal
from durable_actor.storage.committer import Committer
from durable_actor.storage.ports import Loaded
from durable_actor.storage.shard import Shard
from tests.support.shards import (
    load_one,
    object_row,
    open_shard,
    raw_id,
    seal_of,
    shard_options,
)
from tests.support.stepping import Edge, SteppingDriver

FULL = StorageFullError("commit", "the disk is full")
BROKEN = StorageFailedError("commit", "SQLITE_IOERR_FSYNC")


class Bench:
    """A committer on a real shard whose calls can be stopped, and what it said."""

    def __init__(self, driver: SteppingDriver, **options: Any) -> None:
        self.driver = driver
        self.said: list[Any] = []
        self.events: list[EventRow] = []
        self.committer = Committer(
            driver,
            on_failure=lambda error, first: self.said.append(("failure", error, first)),
            on_events=self.events.extend,
            **options,
        )

    def put(self, num: int = 1, **keys: bytes | None) -> int:
        """Seal one turn of an object and note when its ticket is settled."""
        size = sum(len(key) + len(value or b"") for key, value in keys.items())
        ticket = self.committer.seal(seal_of(num, keys), raw_id(num), size_bytes=size)
        self.note(ticket)
        return ticket

    def note(self, ticket: int) -> None:
        self.committer.when_durable(
            ticket, lambda error: self.said.append((ticket, error))
        )

    async def keys(self, num: int = 1) -> dict[str, bytes]:
        return (await self.committer.load(raw_id(num))).keys


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard))
        yield bench
        await bench.committer.drop()


async def until_said(bench: Bench, count: int) -> None:
    while len(bench.said) < count:
        await bench.committer.wait(bench.committer.last_ticket)


# -- groups -------------------------------------------------------------------


async def test_tickets_ascend_by_one(bench: Bench) -> None:
    assert [bench.put(), bench.put(2), bench.put()] == [1, 2, 3]


async def test_seals_of_one_turn_of_the_loop_share_a_commit(bench: Bench) -> None:
    for num in range(1, 6):
        bench.put(num, a=b"1")
    await bench.committer.wait(5)

    (group,) = bench.driver.groups
    assert (group.first_ticket, group.last_ticket) == (1, 5)


async def test_what_is_sealed_during_a_commit_shares_the_next_one(bench: Bench) -> None:
    bench.driver.hold("commit.before")
    bench.put(a=b"1")
    await bench.driver.arrived("commit.before")
    for num in range(1, 6):
        bench.put(num, a=b"2")
        await asyncio.sleep(0)
    bench.driver.release("commit.before")
    await bench.committer.wait(6)

    covered = [(group.first_ticket, group.last_ticket) for group in bench.driver.groups]
    assert covered == [(1, 1), (2, 6)]


async def test_a_group_that_is_large_enough_does_not_wait_for_the_turn_to_end(
    tmp_path: Path,
) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard), group_rows_max=3)
        for _ in range(7):
            bench.put()
        await bench.committer.wait(7)

        covered = [(g.first_ticket, g.last_ticket) for g in bench.driver.groups]
        assert covered == [(1, 3), (4, 7)]
        await bench.committer.close()


async def test_callbacks_run_once_in_ticket_order_after_the_sync(bench: Bench) -> None:
    bench.driver.hold("commit.after")
    bench.put()
    bench.put()
    await bench.driver.arrived("commit.after")
    bench.put()
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.said == [], "the row is written, but nobody has been told that it is"
    assert bench.committer.durable_ticket == 0

    bench.driver.release("commit.after")
    await bench.committer.wait(3)
    assert bench.said == [(1, None), (2, None), (3, None)]


async def test_a_ticket_that_is_durable_is_settled_at_once(bench: Bench) -> None:
    bench.put()
    await bench.committer.wait(1)

    bench.note(1)
    bench.note(0)
    assert bench.said[1:] == [(1, None), (0, None)]


async def test_a_callback_that_raises_does_not_silence_the_others(bench: Bench) -> None:
    ticket = bench.put(a=b"1")

    def raise_error(_: StorageError | None) -> None:
        message = "a mistake in a callback"
        raise LookupError(message)

    bench.committer.when_durable(ticket, raise_error)
    bench.note(ticket)
    await bench.committer.wait(bench.put())

    assert bench.said == [(1, None), (1, None), (2, None)]


async def test_a_waiter_that_gives_up_disturbs_nobody(bench: Bench) -> None:
    bench.driver.hold("commit.before")
    ticket = bench.put()
    waiting = asyncio.ensure_future(bench.committer.wait(ticket))
    await bench.driver.arrived("commit.before")
    waiting.cancel()
    await asyncio.wait([waiting])
    bench.driver.release("commit.before")

    await bench.committer.wait(ticket)
    assert bench.said == [(1, None)]


async def test_events_are_told_once_they_are_durable(bench: Bench) -> None:
    event = EventRow(bench.committer.new_event(), raw_id(1), "Thing", b"e")
    bench.driver.hold("commit.after")
    ticket = bench.committer.seal(seal_of(1, {}, events=[event]), raw_id(1))
    await bench.driver.arrived("commit.after")
    assert bench.events == []

    bench.driver.release("commit.after")
    await bench.committer.wait(ticket)
    assert bench.events == [event]


# -- a bound in bytes -----------------------------------------------------------


def covered(bench: Bench) -> list[tuple[int, int]]:
    return [(group.first_ticket, group.last_ticket) for group in bench.driver.groups]


@asynccontextmanager
async def bounded_bench(directory: Path, bytes_max: int) -> AsyncIterator[Bench]:
    async with open_shard(directory) as shard:
        bench = Bench(SteppingDriver(shard), group_bytes_max=bytes_max)
        yield bench
        await bench.committer.close()


async def test_g17_what_gathers_is_committed_in_groups_of_bounded_size(
    tmp_path: Path,
) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        bench.driver.hold("commit.before")
        bench.put(a=b"first")
        await bench.driver.arrived("commit.before")
        for num in range(1, 8):
            bench.put(num, a=bytes(4_000))
        bench.driver.release("commit.before")
        await bench.committer.wait(8)

        assert covered(bench) == [(1, 1), (2, 3), (4, 5), (6, 7), (8, 8)]
        assert all(len(group.batch) <= 10_000 for group in bench.driver.groups)
        assert bench.said == [(ticket, None) for ticket in range(1, 9)]


async def test_g17_without_a_bound_in_bytes_a_group_is_as_large_as_what_gathered(
    tmp_path: Path,
) -> None:
    """The negative control of the test above."""
    async with bounded_bench(tmp_path, 1 << 30) as bench:
        for num in range(1, 8):
            bench.put(num, a=bytes(4_000))
        await bench.committer.wait(7)

        (group,) = bench.driver.groups
        assert len(group.batch) > 7 * 4_000


async def test_g17_seals_of_one_turn_that_exceed_the_bound_are_all_committed(
    tmp_path: Path,
) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        for num in range(1, 6):
            bench.put(num, a=bytes(4_000))
        is_begun = bench.committer._in_flight is not None
        assert is_begun, "what is full does not wait for the turn to end"
        await bench.committer.wait(5)

        assert covered(bench) == [(1, 2), (3, 4), (5, 5)]
        assert [said[0] for said in bench.said] == [1, 2, 3, 4, 5]


async def test_g17_a_seal_over_the_bound_goes_alone(tmp_path: Path) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        bench.put(1, a=b"small")
        bench.put(2, a=bytes(50_000))
        bench.put(3, a=b"small")
        await bench.committer.wait(3)

        assert covered(bench) == [(1, 1), (2, 2), (3, 3)]


async def test_g17_many_tiny_seals_are_bounded_by_what_each_takes_itself(
    tmp_path: Path,
) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        bench.driver.hold("commit.before")
        bench.put()
        await bench.driver.arrived("commit.before")
        for num in range(1, 500):
            bench.committer.seal(seal_of(num, {}), raw_id(num))
        bench.driver.release("commit.before")
        await bench.committer.wait(500)

        assert len(bench.driver.groups) > 5


async def test_g17_a_ticket_in_any_part_of_what_gathered_is_settled_with_its_part(
    tmp_path: Path,
) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        bench.driver.hold("commit.after")
        for num in range(1, 6):
            bench.committer.seal(seal_of(num, {}), raw_id(num), size_bytes=6_000)
        for ticket in (5, 4, 3, 2, 1):  # asked for late, and the last one first
            bench.note(ticket)
        await bench.driver.arrived("commit.after")
        assert bench.said == []

        bench.driver.release("commit.after")
        await bench.committer.wait(5)
        assert bench.said == [(ticket, None) for ticket in (1, 2, 3, 4, 5)]


async def test_g17_what_is_not_durable_is_found_in_every_part(tmp_path: Path) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        bench.driver.hold("commit.before")
        values = [bytes([number]) * 6_000 for number in range(4)]
        for value in values:
            bench.put(1, a=value)
            bench.put(2, a=b"other")
        await bench.driver.arrived("commit.before")

        found = [seal.keys["a"] for seal in bench.committer.unsettled(raw_id(1))]
        assert found == values
        bench.driver.release("commit.before")


@pytest.mark.parametrize("error", [FULL, BROKEN])
async def test_g17_a_part_that_fails_fails_every_later_part(
    tmp_path: Path, error: StorageError
) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        bench.driver.commit_errors += [None, error]
        for num in range(1, 5):
            bench.put(num, a=bytes(6_000))
        with pytest.raises(type(error)):
            await bench.committer.wait(4)

        assert bench.said == [
            (1, None),
            ("failure", error, 2),
            (2, error),
            (3, error),
            (4, error),
        ]
        assert covered(bench) == [(1, 1), (2, 2)]
        lost = [bench.committer.failure_of(ticket) is not None for ticket in range(5)]
        assert lost == [False, False, True, True, True]


async def test_g17_closing_commits_every_part(tmp_path: Path) -> None:
    async with bounded_bench(tmp_path, 10_000) as bench:
        for num in range(1, 5):
            bench.put(num, a=bytes(6_000))
    assert bench.said == [(ticket, None) for ticket in (1, 2, 3, 4)]

    async with open_shard(tmp_path) as shard:
        assert shard.opened.last_ticket == 4
        for num in range(1, 5):
            assert (await load_one(shard, num)).keys == {"a": bytes(6_000)}


async def test_g17_dropping_tells_the_waiters_of_every_part(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard), group_bytes_max=10_000)
        for num in range(1, 5):
            bench.put(num, a=bytes(6_000))
        await bench.committer.drop()

        assert [said[0] for said in bench.said if said[0] != "failure"] == [1, 2, 3, 4]
        assert all(isinstance(said[1], StorageError) for said in bench.said[1:])


# -- failures -----------------------------------------------------------------


async def test_a_failed_group_fails_itself_and_all_later_seals(bench: Bench) -> None:
    bench.put()
    await bench.committer.wait(1)
    bench.driver.commit_errors.append(BROKEN)
    bench.driver.hold("commit.before")
    bench.put()
    bench.put()
    await bench.driver.arrived("commit.before", 2)
    bench.put()
    bench.driver.release("commit.before")

    with pytest.raises(StorageFailedError):
        await bench.committer.wait(4)
    assert bench.said == [
        (1, None),
        ("failure", BROKEN, 2),
        (2, BROKEN),
        (3, BROKEN),
        (4, BROKEN),
    ]
    assert bench.committer.durable_ticket == 1


async def test_after_a_failure_nothing_more_is_taken(bench: Bench) -> None:
    bench.driver.commit_errors.append(BROKEN)
    bench.put()
    with pytest.raises(StorageFailedError):
        await bench.committer.wait(1)

    with pytest.raises(StorageFailedError):
        bench.committer.seal(seal_of(1, {}), raw_id(1))
    bench.note(1)
    bench.note(0)
    assert bench.said[2:] == [(1, BROKEN), (0, None)]
    assert len(bench.driver.groups) == 1


async def test_any_error_of_a_commit_is_a_failure(bench: Bench) -> None:
    bench.driver.commit_errors.append(RuntimeError("out of order"))
    bench.put()

    with pytest.raises(StorageFailedError, match="out of order"):
        await bench.committer.wait(1)
    assert bench.committer.failure is not None


async def test_on_a_full_disk_old_tickets_stay_failed_and_new_ones_work(
    tmp_path: Path,
) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard))
        bench.driver.commit_errors += [None, FULL, FULL]
        await bench.committer.wait(bench.put(a=b"1"))
        for _ in range(2):
            with pytest.raises(StorageFullError):
                await bench.committer.wait(bench.put(a=b"lost"))
            assert bench.committer.is_full
        await bench.committer.wait(bench.put(b=b"2"))
        assert not bench.committer.is_full

        assert bench.said == [
            (1, None),
            ("failure", FULL, 2),
            (2, FULL),
            ("failure", FULL, 3),
            (3, FULL),
            (4, None),
        ]
        for ticket, is_lost in ((1, False), (2, True), (3, True), (4, False)):
            assert (bench.committer.failure_of(ticket) is not None) == is_lost
        assert await bench.keys() == {"a": b"1", "b": b"2"}
        await bench.committer.drop()

    async with open_shard(tmp_path) as shard:
        assert shard.opened.last_ticket == 4
        assert (await load_one(shard, 1)).keys == {"a": b"1", "b": b"2"}


async def test_a_disk_that_stays_full_is_remembered_as_one_range(bench: Bench) -> None:
    bench.driver.commit_errors += [FULL] * 50 + [None, FULL]
    for _ in range(52):
        await asyncio.wait([asyncio.ensure_future(bench.committer.wait(bench.put()))])

    assert bench.committer._failed == [(1, 50), (52, 52)]


async def test_seals_made_while_a_group_meets_a_full_disk_fail_with_it(
    bench: Bench,
) -> None:
    bench.driver.commit_errors.append(FULL)
    bench.driver.hold("commit.before")
    bench.put()
    await bench.driver.arrived("commit.before")
    bench.put(2)
    bench.driver.release("commit.before")

    with pytest.raises(StorageFullError):
        await bench.committer.wait(2)
    assert len(bench.driver.groups) == 1, "it may rest on what was lost"
    await bench.committer.wait(bench.put(2, a=b"1"))


# -- reading ------------------------------------------------------------------


async def test_what_is_not_folded_is_read_on_top_of_the_tables(bench: Bench) -> None:
    await bench.committer.wait(bench.put(a=b"1", b=b"1"))
    await bench.committer.fold()
    await bench.committer.wait(bench.put(a=b"2", b=None, c=b"2"))

    loaded = await bench.committer.load(raw_id(1))
    assert (loaded.num, loaded.complete) == (1, True)
    assert loaded.keys == {"a": b"2", "c": b"2"}
    assert loaded.row == object_row(1)


EDGES: tuple[Edge, ...] = ("fold.before", "fold.after")


@pytest.mark.parametrize("fold_at", EDGES)
@pytest.mark.parametrize("read_at", ["read.before", "read.after"])
async def test_a_load_during_a_fold_sees_everything(
    bench: Bench, fold_at: Edge, read_at: Edge
) -> None:
    """The fold ends, and is forgotten, between the question and its answer."""
    await bench.committer.wait(bench.put(a=b"1", b=b"1"))
    bench.driver.hold(fold_at)
    folding = asyncio.ensure_future(bench.committer.fold())
    await bench.driver.arrived(fold_at)
    await bench.committer.wait(bench.put(a=b"2"))
    bench.driver.hold(read_at)
    loading = asyncio.ensure_future(bench.keys())
    await bench.driver.arrived(read_at)
    bench.driver.release(fold_at)
    await folding
    bench.driver.release(read_at)

    assert await loading == {"a": b"2", "b": b"1"}
    assert await bench.keys() == {"a": b"2", "b": b"1"}


async def test_a_load_before_a_fold_that_ends_first_sees_everything(
    bench: Bench,
) -> None:
    await bench.committer.wait(bench.put(a=b"1"))
    bench.driver.hold("read.after")
    loading = asyncio.ensure_future(bench.keys())
    await bench.driver.arrived("read.after")
    await bench.committer.fold()
    assert bench.committer.pending(raw_id(1)) == ()
    bench.driver.release("read.after")

    assert await loading == {"a": b"1"}


async def test_objects_asked_for_together_are_read_together(bench: Bench) -> None:
    await bench.committer.wait(bench.put(1, a=b"1"))
    await bench.committer.wait(bench.put(2, b=b"2"))

    found = await asyncio.gather(*(bench.keys(num) for num in (1, 2, 3, 1)))

    assert found == [{"a": b"1"}, {"b": b"2"}, {}, {"a": b"1"}]
    assert len(bench.driver.reads) == 1


async def test_a_failed_read_is_told_to_everyone_who_asked(bench: Bench) -> None:
    await bench.driver.driver.drop()

    found = await asyncio.gather(bench.keys(1), bench.keys(2), return_exceptions=True)
    assert [type(error) for error in found] == [StorageFailedError] * 2


@pytest.mark.parametrize("fold_between", [True, False])
async def test_an_object_that_was_deleted_and_made_again_is_only_the_new_one(
    bench: Bench, fold_between: bool
) -> None:
    committer = bench.committer
    await committer.wait(bench.put(old=b"1"))
    if fold_between:
        await committer.fold()
    committer.seal(Seal(num=1, deleted=True), raw_id(1))
    gone = await load_after(committer, committer.last_ticket)
    assert (gone.num, gone.keys, gone.row, gone.alarm) == (0, {}, None, None)

    row = object_row(1)
    committer.seal(Seal(num=7, keys={"new": b"2"}, row=row), raw_id(1))
    for fold in (False, True):
        if fold:
            await committer.fold()
        loaded = await load_after(committer, committer.last_ticket)
        assert (loaded.num, loaded.keys, loaded.row) == (7, {"new": b"2"}, row)
        assert loaded.complete


async def load_after(committer: Committer, ticket: int) -> Loaded:
    await committer.wait(ticket)
    return await committer.load(raw_id(1))


# -- folding ------------------------------------------------------------------


async def test_a_pause_is_used_to_fold(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "_IDLE_FOLD_SECONDS", 0)
    bench.put(a=b"1")

    await bench.driver.arrived("fold.after")
    await bench.committer.fold()
    assert (await load_one(bench.driver, 1)).keys == {"a": b"1"}


async def test_a_long_log_is_folded_without_a_pause(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard), log_bytes_max=10_000)
        for _ in range(4):
            await bench.committer.wait(bench.put(a=bytes(4_000)))
        await bench.driver.arrived("fold.after")
        await bench.committer.close()


async def test_a_log_of_many_tiny_seals_is_folded_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "_LOG_SEALS_MAX", 3)
    monkeypatch.setattr(committer_module, "_IDLE_FOLD_SECONDS", 1_000)
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard))
        for _ in range(4):
            await bench.committer.wait(bench.put(a=b"1"))
        await bench.driver.arrived("fold.after")
        await bench.committer.close()


async def test_a_commit_waits_for_a_fold_that_is_far_behind(tmp_path: Path) -> None:
    """Else a writer that is faster than the fold fills the memory and the log."""
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard), log_bytes_max=10_000)
        bench.driver.hold("fold.before")
        for _ in range(10):
            await bench.committer.wait(bench.put(a=bytes(4_000)))
        waiting = [bench.put(a=bytes(4_000)) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(bench.driver.groups) == 10

        bench.driver.release("fold.before")
        await bench.committer.wait(waiting[-1])
        assert bench.committer._log_bytes < 20_000
        await bench.committer.close()


async def test_a_commit_that_waits_for_a_fold_fails_with_it(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard), log_bytes_max=10_000)
        bench.driver.hold("fold.before")
        bench.driver.fold_errors.append(BROKEN)
        for _ in range(10):
            await bench.committer.wait(bench.put(a=bytes(4_000)))
        ticket = bench.put(a=b"late")
        for _ in range(20):
            await asyncio.sleep(0)
        bench.driver.release("fold.before")

        with pytest.raises(StorageFailedError):
            await bench.committer.wait(ticket)
        assert len(bench.driver.groups) == 10
        await bench.committer.drop()


async def test_a_fold_that_meets_a_full_disk_says_so_and_forgets_nothing(
    bench: Bench,
) -> None:
    """Who asks for it is about to read the tables, and must not miss what is new."""
    bench.driver.fold_errors.append(FULL)
    await bench.committer.wait(bench.put(a=b"1"))

    with pytest.raises(StorageFullError):
        await bench.committer.fold()
    assert await bench.keys() == {"a": b"1"}
    await bench.committer.wait(bench.put(b=b"2"))
    await bench.committer.fold()

    assert (await load_one(bench.driver, 1)).keys == {"a": b"1", "b": b"2"}
    assert bench.committer.pending(raw_id(1)) == ()


@pytest.mark.parametrize("error", [BROKEN, RuntimeError("out of order")])
async def test_a_fold_that_fails_is_a_failure(bench: Bench, error: Exception) -> None:
    bench.driver.fold_errors.append(error)
    await bench.committer.wait(bench.put(a=b"1"))

    with pytest.raises(StorageFailedError):
        await bench.committer.fold()
    kind, failure, first_failed = bench.said[-1]
    assert (kind, first_failed) == ("failure", 2)
    assert isinstance(failure, StorageFailedError)
    with pytest.raises(StorageFailedError):
        bench.put()


async def test_a_fold_covers_what_was_durable_when_it_was_asked_for(
    bench: Bench,
) -> None:
    await bench.committer.wait(bench.put(a=b"1"))
    bench.driver.hold("fold.after")
    first = asyncio.ensure_future(bench.committer.fold())
    await bench.driver.arrived("fold.after")
    await bench.committer.wait(bench.put(a=b"2"))
    second = asyncio.ensure_future(bench.committer.fold())
    await asyncio.sleep(0)
    bench.driver.release("fold.after")
    await asyncio.gather(first, second)

    assert (await load_one(bench.driver, 1)).keys == {"a": b"2"}


# -- the end ------------------------------------------------------------------


async def test_closing_commits_what_was_gathered(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard))
        bench.driver.hold("commit.before")
        bench.put(a=b"1")
        await bench.driver.arrived("commit.before")
        bench.put(b=b"2")
        closing = asyncio.ensure_future(bench.committer.close())
        await asyncio.sleep(0)
        bench.driver.release("commit.before")
        await closing
        assert bench.said == [(1, None), (2, None)]

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1", "b": b"2"}


async def test_closing_in_the_turn_of_a_seal_commits_it(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard))
        bench.put(a=b"1")
        await bench.committer.close()
        assert bench.said == [(1, None)]


async def test_closing_after_a_failure_does_not_touch_the_file(bench: Bench) -> None:
    """A sync that failed once may seem to work later, without having worked."""
    bench.driver.commit_errors.append(BROKEN)
    bench.put()
    with pytest.raises(StorageFailedError):
        await bench.committer.wait(1)

    await bench.committer.close()
    assert bench.driver.ended == "dropped"


async def test_closing_after_a_drop_ends(bench: Bench) -> None:
    bench.driver.hold("commit.before")
    bench.put()
    await bench.driver.arrived("commit.before")
    bench.put()
    await bench.committer.drop()

    await bench.committer.close()


async def test_dropping_commits_nothing_that_was_only_gathered(tmp_path: Path) -> None:
    async with open_shard(tmp_path) as shard:
        bench = Bench(SteppingDriver(shard))
        await bench.committer.wait(bench.put(a=b"1"))
        bench.put(b=b"2")
        await bench.committer.drop()
        assert (2, None) not in bench.said

    async with open_shard(tmp_path) as shard:
        assert (await load_one(shard, 1)).keys == {"a": b"1"}


# -- everything at once -------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("seal"),
            st.integers(1, 3),
            st.dictionaries(
                st.sampled_from("abc"), st.none() | st.binary(min_size=1, max_size=2)
            ),
        ),
        st.tuples(st.just("durable")),
        st.tuples(st.just("fold")),
        st.tuples(st.just("load"), st.integers(1, 3)),
        st.tuples(st.just("full")),
        st.tuples(
            st.sampled_from(["hold", "release"]),
            st.sampled_from(
                ["commit.after", "fold.before", "fold.after", "read.after"]
            ),
        ),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(steps=steps)
async def test_a_load_sees_what_is_durable_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """Each load answers with a state that was durable between question and answer."""
    options = shard_options(tmp_path_factory.mktemp("shard"), synchronous="OFF")
    shard = await Shard.open(options)
    bench = Bench(SteppingDriver(shard))
    committer, driver = bench.committer, bench.driver
    # For each object, what it held from a ticket on; lost tickets change nothing.
    history: dict[int, list[tuple[int, dict[str, bytes]]]] = {
        num: [(0, {})] for num in (1, 2, 3)
    }
    held: set[Edge] = set()
    loads: list[asyncio.Task[None]] = []

    async def load(num: int) -> None:
        first = committer.durable_ticket
        found = (await committer.load(raw_id(num))).keys
        last = committer.durable_ticket
        kept = [
            (t, keys) for t, keys in history[num] if committer.failure_of(t) is None
        ]
        before = [keys for ticket, keys in kept if ticket <= first]
        during = [keys for ticket, keys in kept if first < ticket <= last]
        assert found in [before[-1], *during]

    try:
        for step in steps:
            match step:
                case ("seal", num, keys):
                    now = {**history[num][-1][1], **keys}
                    now = {
                        key: value for key, value in now.items() if value is not None
                    }
                    history[num].append((bench.put(num, **keys), now))
                case ("durable",) if "commit.after" not in held:
                    await asyncio.wait(
                        [asyncio.ensure_future(committer.wait(committer.last_ticket))]
                    )
                case ("fold",) if not held:
                    await committer.fold()
                case ("fold",):
                    loads.append(asyncio.ensure_future(committer.fold()))
                    await asyncio.sleep(0)
                case ("load", num):
                    loads.append(asyncio.ensure_future(load(num)))
                    await asyncio.sleep(0)
                case ("full",) if not held:
                    # Its object starts afresh from the disk, as the host sees to.
                    await committer.wait(0)
                    ticket = committer.last_ticket
                    await asyncio.wait([asyncio.ensure_future(committer.wait(ticket))])
                    driver.commit_errors.append(FULL)
                    ticket = bench.put(1, a=b"lost")
                    await asyncio.wait([asyncio.ensure_future(committer.wait(ticket))])
                    driver.commit_errors.clear()
                case ("hold", edge):
                    held.add(edge)
                    driver.hold(edge)
                case ("release", edge) if edge in held:
                    held.discard(edge)
                    driver.release(edge)
        for edge in held:
            driver.release(edge)
        await asyncio.gather(*loads)
    finally:
        await committer.close()
        await shard.drop()
    assert [said[0] for said in bench.said if said[0] != "failure"] == sorted(
        said[0] for said in bench.said if said[0] != "failure"
    )
