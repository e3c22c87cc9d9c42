"""Everything a run has written down, read back as it was."""

import pytest

from durable_actor import EncodeError, decode
from tests.workflows.support import Disk, FakeStorage
from workflows.journal import Entry, Journal, RunRecord, completed
from workflows.machine import Paused, Queued, Running

RECORD = RunRecord(run_id="r1", workflow="w", status=Queued(1), created_at_ms=1)


def entry(step: str, called: int, *, ended: int | None = None) -> Entry:
    return Entry(
        step=step,
        kind="run",
        state="retrying" if ended is None else "done",
        called=called,
        ended=ended,
        is_forked=False,
        began_at_ms=1,
        attempts=1,
        value=(step,),
    )


async def test_a_run_is_read_as_it_was_written() -> None:
    disk = Disk()
    storage = FakeStorage(disk)
    journal = Journal(storage)
    journal.open(RECORD, {"order": 7}, wake_at_ms=5)
    assert journal.next_event_seq() == 1
    await storage.sync()

    again = Journal(FakeStorage(disk))
    assert await again.load() == RECORD
    assert await again.read_input() == {"order": 7}
    assert await again.read_output() is None
    assert again.next_event_seq() == 2
    assert disk.alarm == 5


async def test_there_is_no_record_before_there_is_a_run() -> None:
    assert await Journal(FakeStorage(Disk())).load() is None


async def test_a_record_and_its_alarm_are_one_commit() -> None:
    disk = Disk()
    storage = FakeStorage(disk)
    journal = Journal(storage)
    journal.open(RECORD, None, wake_at_ms=5)
    await storage.sync()
    before = disk.commits
    journal.save(
        RunRecord(run_id="r1", workflow="w", status=Paused(9), created_at_ms=1),
        wake_at_ms=9,
    )
    await storage.sync()
    assert disk.commits == before + 1
    assert disk.alarm == 9


async def test_no_time_to_wake_up_means_no_alarm() -> None:
    disk = Disk()
    storage = FakeStorage(disk)
    journal = Journal(storage)
    journal.open(RECORD, None, wake_at_ms=5)
    journal.save(RECORD, wake_at_ms=None)
    await storage.sync()
    assert disk.alarm is None


async def test_an_update_leaves_the_alarm_as_it_is() -> None:
    disk = Disk()
    storage = FakeStorage(disk)
    journal = Journal(storage)
    journal.open(RECORD, None, wake_at_ms=5)
    journal.update(
        RunRecord(run_id="r1", workflow="w", status=Running(2), created_at_ms=1)
    )
    await storage.sync()
    assert disk.alarm == 5


async def test_an_input_that_cannot_be_kept_leaves_no_trace() -> None:
    disk = Disk()
    journal = Journal(FakeStorage(disk))
    with pytest.raises(EncodeError):
        journal.open(RECORD, object(), wake_at_ms=5)
    assert journal.record is None
    assert disk.commits == 0


async def test_steps_come_in_the_order_of_their_calls() -> None:
    journal = Journal(FakeStorage(Disk()))
    entries = [entry("b", 0, ended=1), entry("a", 1), entry("a#2", 2, ended=0)]
    for each in reversed(entries):
        journal.write(each)
    assert await journal.read_steps() == entries


async def test_completed_steps_come_in_the_order_of_their_ends() -> None:
    entries = [entry("b", 0, ended=1), entry("a", 1), entry("a#2", 2, ended=0)]
    assert completed(entries) == ["a#2", "b"]


async def test_what_is_stored_is_plain_and_can_be_read_without_this_package() -> None:
    disk = Disk()
    storage = FakeStorage(disk)
    journal = Journal(storage)
    journal.open(RECORD, None, wake_at_ms=5)
    await storage.sync()
    assert decode(disk.keys["run"]) == {
        "run_id": "r1",
        "workflow": "w",
        "status": {"_tag": "Queued", "queuedAt": 1},
        "created_at_ms": 1,
        "started_at_ms": None,
        "recoveries": 0,
        "recover_at_ms": None,
        "cancel_requested": False,
        "cancel_reason": None,
    }


async def test_erasing_leaves_nothing() -> None:
    disk = Disk()
    storage = FakeStorage(disk)
    journal = Journal(storage)
    journal.open(RECORD, "input", wake_at_ms=5)
    journal.write(entry("a", 0, ended=0))
    await journal.erase()
    await storage.sync()
    assert (disk.keys, disk.alarm, journal.record) == ({}, None, None)
