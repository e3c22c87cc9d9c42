"""What a turn writes is one seal, and the alarm is where it should be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from durable_actor.codec import encode
from durable_actor.errors import StorageLimitError
from durable_actor.storage import overlay as overlay_module
from durable_actor.storage.batch import AlarmRow, EventRow, ReplyRow, Seal
from durable_actor.storage.overlay import Overlay, settle
from durable_actor.storage.watches import KeyChanges
from durable_actor.testing import ManualClock
from tests.support.owners import Disk, Owner, broken

ALARM = AlarmRow(10, 10)


@pytest.fixture
def seals(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> list[Seal]:
    """Return the list that every seal is noted in."""
    noted: list[Seal] = []
    real = disk.committer.seal

    def seal(
        made: Seal,
        raw_id: bytes = b"",
        elsewhere: KeyChanges | None = None,
        size_bytes: int = 0,
    ) -> int:
        noted.append(made)
        return real(made, raw_id, elsewhere, size_bytes)

    monkeypatch.setattr(disk.committer, "seal", seal)
    return noted


# -- seals --------------------------------------------------------------------


async def test_a_turn_is_one_seal_with_everything_in_it(
    owner: Owner, seals: list[Seal]
) -> None:
    overlay = owner.overlay
    overlay.put("a", b"1")
    overlay.delete("b")
    overlay.set_alarm(ALARM)
    overlay.emit(b"event")
    overlay.keep_reply(ReplyRow("x", b"reply", 1))
    overlay.set_attributes({"color": "red"})
    owner.end_turn()

    (seal,) = seals
    assert seal.num == overlay.num == 1
    assert seal.keys == {"a": b"1", "b": None}
    assert seal.alarm == ALARM
    assert seal.events == (EventRow(1, owner.id.raw, "Thing", b"event"),)
    assert seal.replies == (ReplyRow("x", b"reply", 1),)
    assert seal.row is not None
    assert (seal.row.name, seal.row.attributes) == ("a", {"color": "red"})


async def test_g17_the_committer_hears_how_large_a_seal_is(
    owner: Owner, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    real = disk.committer.seal

    def seal(made: Seal, raw_id: bytes, elsewhere: None, size_bytes: int) -> int:
        told.append(size_bytes)
        return real(made, raw_id, elsewhere, size_bytes)

    monkeypatch.setattr(disk.committer, "seal", seal)
    overlay = owner.overlay
    overlay.put("a", bytes(1_000))
    overlay.put("a", bytes(500))  # instead of it
    overlay.delete("bb")
    overlay.emit(bytes(70))
    overlay.keep_reply(ReplyRow("x", bytes(9), 1))
    owner.end_turn()
    overlay.set_alarm(ALARM)
    owner.end_turn()

    assert told == [501 + 2 + 70 + 9, 0]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.binary(max_size=5)),
        st.tuples(st.just("delete"), st.sampled_from("abc")),
        st.tuples(st.sampled_from(["begin", "commit", "rollback", "clear", "end"])),
    ),
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
async def test_g17_the_size_of_what_is_not_sealed_is_always_known(
    disk: Disk, steps: list[tuple[Any, ...]]
) -> None:
    overlay = (await disk.activate()).overlay
    depth = 0
    for step in steps:
        match step:
            case ("put", key, value):
                overlay.put(key, value)
            case ("delete", key):
                overlay.delete(key)
            case ("begin",):
                overlay.begin()
                depth += 1
            case ("commit" | "rollback" as how,) if depth:
                getattr(overlay, how)()
                depth -= 1
            case ("clear",) if not depth:
                overlay.delete_all()
            case ("end",) if not depth:
                overlay.seal(ManualClock())
        unsealed = overlay._unsealed or {}
        assert overlay.unsealed_bytes == sum(
            len(key) + len(value or b"") for key, value in unsealed.items()
        )


async def test_g17_a_turn_that_no_row_of_the_log_can_hold_is_refused_unsealed(
    owner: Owner, seals: list[Seal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_module, "SEAL_BYTES_MAX", 1_000)
    owner.overlay.put("a", bytes(500))
    owner.overlay.keep_reply(ReplyRow("x", bytes(500), 1))

    with pytest.raises(StorageLimitError, match=r"1001 bytes .* the limit is 1000"):
        owner.end_turn()
    assert seals == []


async def test_a_turn_that_wrote_nothing_is_no_seal(
    owner: Owner, seals: list[Seal]
) -> None:
    owner.end_turn()
    await owner.storage.get("a")
    assert owner.end_turn() == 0
    assert seals == []


async def test_the_directory_row_is_in_the_first_seal_and_when_it_changes(
    owner: Owner, seals: list[Seal]
) -> None:
    for value in (b"1", b"2"):
        owner.overlay.put("a", value)
        owner.end_turn()
    owner.overlay.set_attributes({"color": "red"})
    owner.end_turn()
    owner.overlay.put("a", b"3")
    owner.end_turn()

    assert [seal.row is not None for seal in seals] == [True, False, True, False]


async def test_what_was_sealed_is_not_changed_by_later_writes(
    owner: Owner, seals: list[Seal]
) -> None:
    owner.overlay.put("a", b"1")
    owner.overlay.emit(b"first")
    owner.end_turn()
    owner.overlay.put("a", b"2")
    owner.overlay.delete("b")
    owner.overlay.emit(b"second")

    assert seals[0].keys == {"a": b"1"}
    assert [event.data for event in seals[0].events] == [b"first"]


async def test_deleting_everything_comes_before_what_is_put_after_it(
    owner: Owner, seals: list[Seal]
) -> None:
    overlay = owner.overlay
    overlay.put("a", b"1")
    overlay.set_alarm(ALARM)
    overlay.delete_all()
    overlay.put("b", b"2")
    owner.end_turn()
    overlay.put("c", b"3")
    owner.end_turn()

    assert (seals[0].cleared, seals[0].keys) == (True, {"b": b"2"})
    assert seals[0].alarm is None
    assert (seals[1].cleared, seals[1].keys) == (False, {"c": b"3"})


async def test_the_first_use_is_remembered_across_activations(
    disk: Disk, owner: Owner
) -> None:
    owner.overlay.put("a", b"1")
    await disk.committer.wait(owner.end_turn())
    later = await disk.activate()
    later.clock.jump(owner.clock.now_ms() + 60_000)
    later.overlay.put("a", b"2")
    await disk.committer.wait(later.end_turn())

    row = (await disk.committer.load(owner.id.raw)).row
    assert row is not None
    assert row.used_at_ms - row.created_at_ms == 60_000


async def test_a_reset_forgets_what_was_not_sealed(
    owner: Owner, seals: list[Seal]
) -> None:
    owner.overlay.put("a", b"1")
    owner.overlay.emit(b"event")
    owner.overlay.set_attributes({"color": "red"})
    owner.overlay.keep_reply(ReplyRow("x", b"reply", 1))
    owner.overlay.break_off(broken())
    owner.end_turn()

    assert seals == []


@pytest.mark.parametrize("bad", [{"\ud800": "a"}, {"a": "\udfff"}])
async def test_attributes_that_cannot_be_encoded_are_refused_at_once(
    owner: Owner, bad: dict[str, str]
) -> None:
    """In the batch they would fail everybody's commit, and stop the host."""
    with pytest.raises(UnicodeEncodeError):
        owner.overlay.set_attributes(bad)
    assert not owner.overlay.is_unsealed


async def test_a_reply_whose_request_cannot_be_encoded_is_refused_at_once(
    owner: Owner,
) -> None:
    with pytest.raises(UnicodeEncodeError):
        owner.overlay.keep_reply(ReplyRow("\ud800", b"", 1))
    assert not owner.overlay.is_unsealed


async def test_settle_returns_when_a_ticket_is_durable_or_has_failed(
    disk: Disk, owner: Owner
) -> None:
    owner.overlay.put("a", b"1")
    ticket = owner.end_turn()
    await settle(disk.committer, ticket)
    assert disk.committer.durable_ticket == ticket

    await disk.crash()
    await settle(disk.committer, ticket + 1)


# -- the cache ----------------------------------------------------------------


async def test_what_is_not_durable_stays_in_memory(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_module, "PARTIAL_CACHE_BYTES_MAX", 10)
    overlay = owner.overlay
    overlay.put("a", bytes(100))
    overlay.shrink()
    assert overlay.known("a") is not UNSET, "not sealed"
    ticket = owner.end_turn()
    overlay.shrink()
    assert overlay.known("a") is not UNSET, "not durable"

    await owner.committer.wait(ticket)
    overlay.put("b", bytes(1_000))
    overlay.shrink()
    assert overlay.known("a") is UNSET
    assert overlay.known("b") is not UNSET
    assert not overlay.complete


async def test_what_the_disk_says_is_older_than_what_was_written(owner: Owner) -> None:
    overlay = owner.overlay
    overlay.complete = False
    overlay.put("a", b"new")
    overlay.delete("b")
    overlay.remember({"a": b"old", "b": b"old", "c": b"found", "d": None})

    found = [overlay.lookup(key) for key in "abcde"]
    assert found == [b"new", None, b"found", None, UNSET]


# -- alarms -------------------------------------------------------------------


async def test_while_the_handler_runs_the_alarm_is_hidden_but_stored(
    owner: Owner, seals: list[Seal]
) -> None:
    overlay = owner.overlay
    overlay.set_alarm(ALARM)
    owner.end_turn()
    assert overlay.begin_alarm() == ALARM

    assert overlay.alarm is None
    assert overlay.stored_alarm == overlay.running_alarm == ALARM
    overlay.put("a", b"1")
    owner.end_turn()
    assert seals[-1].alarm is UNSET, "a crash now must fire it again"


@pytest.mark.parametrize("retry", [None, AlarmRow(20, 10, 1, 1)])
async def test_after_the_handler_the_alarm_is_gone_or_to_be_tried_again(
    owner: Owner, seals: list[Seal], retry: AlarmRow | None
) -> None:
    overlay = owner.overlay
    overlay.set_alarm(ALARM)
    overlay.begin_alarm()
    overlay.end_alarm(retry)
    owner.end_turn()

    assert overlay.alarm == overlay.stored_alarm == seals[-1].alarm == retry
    assert overlay.running_alarm is None


@pytest.mark.parametrize("chosen", [None, AlarmRow(30, 30), ALARM])
async def test_what_the_handler_decides_about_the_alarm_stands(
    owner: Owner, seals: list[Seal], chosen: AlarmRow | None
) -> None:
    overlay = owner.overlay
    overlay.set_alarm(ALARM)
    overlay.begin_alarm()
    overlay.set_alarm(chosen)
    assert overlay.alarm == chosen
    assert overlay.running_alarm is None
    owner.end_turn()
    overlay.end_alarm(AlarmRow(99, 10, 1, 1))

    assert overlay.alarm == seals[-1].alarm == chosen
    assert not overlay.is_unsealed


async def test_a_handler_that_deletes_everything_leaves_no_alarm(owner: Owner) -> None:
    overlay = owner.overlay
    overlay.set_alarm(ALARM)
    overlay.begin_alarm()
    overlay.delete_all()
    overlay.end_alarm(AlarmRow(99, 10, 1, 1))

    assert overlay.alarm is None


async def test_rolling_back_in_the_handler_hides_the_alarm_again(owner: Owner) -> None:
    overlay = owner.overlay
    overlay.set_alarm(ALARM)
    overlay.begin_alarm()

    async def callback(transaction: Any) -> None:
        transaction.set_alarm(owner.clock.now_ms() + 5)
        transaction.rollback()

    await owner.storage.transaction(callback)
    assert overlay.alarm is None
    assert overlay.running_alarm == ALARM
    overlay.end_alarm(None)
    assert overlay.stored_alarm is None


async def test_the_ticket_of_the_alarm_is_that_of_the_turn_that_changed_it(
    owner: Owner,
) -> None:
    overlay = owner.overlay
    for alarm in (ALARM, None):
        overlay.put("a", encode(1))
        owner.end_turn()
        overlay.set_alarm(alarm)
        assert owner.end_turn() == overlay.alarm_ticket == overlay.ticket
        overlay.put("a", encode(2))
        owner.end_turn()
        assert overlay.alarm_ticket == overlay.ticket - 1


async def test_an_overlay_of_a_new_object_has_no_number_until_it_writes(
    owner: Owner,
) -> None:
    assert isinstance(owner.overlay, Overlay)
    assert owner.overlay.num == 0
    owner.overlay.put("a", b"1")
    owner.end_turn()
    assert owner.overlay.num == 1
