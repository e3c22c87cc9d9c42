"""The wheel reminds in time, never before it, and never late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_actor import alarms
from durable_actor.alarms import AlarmWheel
from durable_actor.ids import IdSpace, ObjectId
from durable_actor.testing import START_MS, ManualClock

WINDOW_MS = 1_000
IDS = [IdSpace("Thing").from_name(f"{n}") for n in range(12)]


class World:
    """Objects with alarms, an index of those that are durable, and the wheel."""

    def __init__(self, *, window_ms: int = WINDOW_MS) -> None:
        self.clock = ManualClock()
        # Durable alarms. In the order of time an index answers in.
        self.index: dict[ObjectId, int] = {}
        self.running: set[ObjectId] = set()  # their handlers take a while
        self.are_slow = False
        self.fired: list[tuple[ObjectId, int]] = []  # every reminder
        self.delivered: list[tuple[ObjectId, int]] = []  # those that were due
        self.fills: list[tuple[int, int, int]] = []
        self.fill_errors = 0  # so many of the next fills fail
        self.fill_is_held = False
        self._release = asyncio.Event()
        self.wheel = AlarmWheel(
            self.clock, fill=self.fill, fire=self.fire, window_ms=window_ms
        )

    async def fill(
        self, after_ms: int, until_ms: int, limit: int
    ) -> list[tuple[ObjectId, int]]:
        self.fills.append((after_ms, until_ms, limit))
        rows = sorted(
            (due_at_ms, object_id)
            for object_id, due_at_ms in self.index.items()
            if after_ms < due_at_ms <= until_ms
        )
        await asyncio.sleep(0)
        while self.fill_is_held:  # what was read grows old meanwhile
            await self._release.wait()
        if self.fill_errors:
            self.fill_errors -= 1
            message = "the index cannot be read"
            raise OSError(message)
        return [(object_id, due_at_ms) for due_at_ms, object_id in rows[:limit]]

    def release_fill(self) -> None:
        self.fill_is_held = False
        self._release.set()
        self._release = asyncio.Event()

    def fire(self, object_id: ObjectId, due_at_ms: int) -> None:
        """Look, as an activation does, and tell the wheel what the alarm is now."""
        assert due_at_ms <= self.clock.now_ms(), "before its time"
        self.fired.append((object_id, due_at_ms))
        stored = self.index.get(object_id)
        if object_id in self.running:
            return
        if stored is not None and stored <= self.clock.now_ms():
            self.delivered.append((object_id, stored))
            if self.are_slow:
                self.running.add(object_id)
                return
            del self.index[object_id]
        self.wheel.set(object_id, self.index.get(object_id))

    def set(self, object_id: ObjectId, due_at_ms: int | None) -> None:
        """Make a change durable, and tell the wheel in the same step."""
        self.running.discard(object_id)
        if due_at_ms is None:
            self.index.pop(object_id, None)
        else:
            self.index[object_id] = due_at_ms
        self.wheel.set(object_id, due_at_ms)

    def finish(self) -> None:
        """Let the handlers that run end, and drop their alarms."""
        for object_id in list(self.running):
            self.set(object_id, None)

    @property
    def overdue(self) -> dict[ObjectId, int]:
        now_ms = self.clock.now_ms()
        return {
            object_id: due_at_ms
            for object_id, due_at_ms in self.index.items()
            if due_at_ms <= now_ms and object_id not in self.running
        }

    async def settle(self) -> None:
        ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        while ready:
            await asyncio.sleep(0)

    async def advance(self, by_ms: int) -> None:
        until_ms = self.clock.now_ms() + by_ms
        await self.settle()
        while (next_ms := self.clock.next_timer_at_ms) is not None:
            if next_ms > until_ms:
                break
            self.clock.jump(max(next_ms, self.clock.now_ms()))
            await self.settle()
        self.clock.jump(until_ms)
        await self.settle()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.wheel.start()
    await world.settle()
    yield world
    await world.wheel.stop()


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(alarms, "FILL_MAX", 3)
    monkeypatch.setattr(alarms, "FIRE_MAX", 2)
    yield


# -- in time ------------------------------------------------------------------


async def test_an_alarm_fires_at_its_time_and_not_before(world: World) -> None:
    due_at_ms = START_MS + 300
    world.set(IDS[0], due_at_ms)
    await world.advance(299)
    assert world.fired == []

    await world.advance(1)
    assert world.delivered == [(IDS[0], due_at_ms)]


async def test_alarms_fire_in_due_order(world: World) -> None:
    for number, delay_ms in ((0, 300), (1, 100), (2, 200)):
        world.set(IDS[number], START_MS + delay_ms)
    world.clock.jump(START_MS + 500)
    await world.settle()

    assert [object_id for object_id, _ in world.fired] == [IDS[1], IDS[2], IDS[0]]


async def test_what_was_due_before_the_start_fires_first(world: World) -> None:
    late = World()
    late.index = {IDS[0]: START_MS - 5_000, IDS[1]: START_MS - 9_000, IDS[2]: 1}
    late.wheel.start()
    await late.settle()

    assert [object_id for object_id, _ in late.delivered] == [IDS[2], IDS[1], IDS[0]]
    await late.wheel.stop()


async def test_an_alarm_beyond_the_window_waits_on_disk(world: World) -> None:
    world.set(IDS[0], START_MS + 10 * WINDOW_MS)
    assert len(world.wheel) == 0

    await world.advance(10 * WINDOW_MS - 1)
    assert world.fired == []
    await world.advance(1)
    assert len(world.delivered) == 1


async def test_an_alarm_that_is_moved_fires_once_at_its_last_time(world: World) -> None:
    for delay_ms in (100, 900, 400, 5_000, 600):
        world.set(IDS[0], START_MS + delay_ms)
    await world.advance(10_000)

    assert world.delivered == [(IDS[0], START_MS + 600)]
    assert len(world.fired) == 1


async def test_an_alarm_that_is_dropped_does_not_fire(world: World) -> None:
    world.set(IDS[0], START_MS + 100)
    world.set(IDS[1], START_MS + 3_000)
    world.set(IDS[0], None)
    world.set(IDS[1], None)
    await world.advance(10_000)

    assert world.fired == []
    assert len(world.wheel) == 0


async def test_a_reminder_does_not_put_off_an_earlier_one(world: World) -> None:
    world.set(IDS[0], START_MS + 100)
    world.wheel.remind(IDS[0], START_MS + 500)
    await world.advance(100)

    assert len(world.delivered) == 1


async def test_a_change_while_the_index_is_read_is_not_overwritten_by_what_was_read(
    world: World,
) -> None:
    """What was read is older; but an early reminder does no harm, a late one would."""
    world.set(IDS[0], START_MS + 1_600)
    world.set(IDS[1], START_MS + 1_600)
    world.fill_is_held = True
    await world.advance(600)
    world.set(IDS[0], START_MS + 700)
    world.set(IDS[1], START_MS + 1_900)
    world.set(IDS[2], START_MS + 1_500)
    world.release_fill()
    await world.advance(1_400)

    assert sorted(world.delivered) == sorted(
        [
            (IDS[0], START_MS + 700),
            (IDS[1], START_MS + 1_900),
            (IDS[2], START_MS + 1_500),
        ]
    )


# -- more than fits -------------------------------------------------------------


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("spread_ms", [0, 1, 400])
async def test_more_alarms_than_are_brought_in_at_once_all_fire(spread_ms: int) -> None:
    """With no spread all share one time, and no part of them can be asked for."""
    world = World()
    world.index = {
        object_id: START_MS + 100 + place * spread_ms
        for place, object_id in enumerate(IDS)
    }
    wanted = dict(world.index)
    world.wheel.start()
    await world.advance(100 + len(IDS) * spread_ms)

    assert dict(world.delivered) == wanted
    assert world.overdue == {}
    await world.wheel.stop()


@pytest.mark.usefixtures("small_bounds")
async def test_filling_ends_while_slow_handlers_keep_their_alarms_on_disk() -> None:
    """Overdue rows stay in the index until their handlers have succeeded."""
    world = World()
    world.are_slow = True
    world.index = dict.fromkeys(IDS, START_MS - 100)
    world.wheel.start()
    await world.advance(2_000)

    assert {object_id for object_id, _ in world.delivered} == set(IDS)
    assert len(world.delivered) == len(IDS)
    assert len(world.fills) < 12, "not again and again"
    world.finish()
    assert world.index == {}
    await world.wheel.stop()


async def test_an_object_that_sets_its_alarm_often_leaves_little_behind(
    world: World,
) -> None:
    for turn in range(20_000):
        world.set(IDS[0], START_MS + 900 + turn % 50)

    assert len(world.wheel) == 1
    assert len(world.wheel._heap) < 3_000


# -- errors ---------------------------------------------------------------------


async def test_a_fill_that_fails_is_tried_again() -> None:
    world = World()
    world.index = {IDS[0]: START_MS + 100}
    world.fill_errors = 2
    world.wheel.start()
    await world.advance(100)
    assert world.delivered == []

    await world.advance(2_000)
    assert len(world.delivered) == 1
    assert len(world.fills) >= 3
    await world.wheel.stop()


async def test_a_fill_that_fails_does_not_hide_what_was_set_meanwhile(
    world: World,
) -> None:
    world.set(IDS[0], START_MS + 1_400)
    world.fill_errors = 1
    world.fill_is_held = True
    await world.advance(600)
    world.set(IDS[1], START_MS + 1_550)
    world.release_fill()
    await world.advance(2_000)

    assert len(world.delivered) == 2


async def test_an_error_in_firing_one_does_not_stop_the_others() -> None:
    world = World()
    real = world.fire

    def fire(object_id: ObjectId, due_at_ms: int) -> None:
        if object_id == IDS[0]:
            message = "a mistake in an activation"
            raise LookupError(message)
        real(object_id, due_at_ms)

    world.wheel = AlarmWheel(
        world.clock, fill=world.fill, fire=fire, window_ms=WINDOW_MS
    )
    world.wheel.start()
    await world.settle()
    world.set(IDS[0], START_MS + 100)
    world.set(IDS[1], START_MS + 100)
    world.set(IDS[2], START_MS + 5_000)
    await world.advance(6_000)

    assert {object_id for object_id, _ in world.delivered} == {IDS[1], IDS[2]}
    await world.wheel.stop()


# -- clocks that jump -------------------------------------------------------------


async def test_a_clock_that_jumps_back_fires_nothing_twice(world: World) -> None:
    world.set(IDS[0], START_MS + 100)
    await world.advance(200)
    world.clock.jump(START_MS - 3_600_000)
    await world.advance(3_600_200)

    assert world.fired == [(IDS[0], START_MS + 100)]


async def test_after_a_jump_back_alarms_wait_for_their_time(world: World) -> None:
    world.set(IDS[0], START_MS + 500)
    world.clock.jump(START_MS - 5_000)
    world.set(IDS[1], START_MS - 4_000)
    await world.advance(1_000)
    assert world.delivered == [(IDS[1], START_MS - 4_000)]

    await world.advance(4_499)
    assert len(world.delivered) == 1
    await world.advance(1)
    assert len(world.delivered) == 2


async def test_after_a_jump_forward_everything_overdue_fires_once(world: World) -> None:
    for place, object_id in enumerate(IDS):
        world.set(object_id, START_MS + 100 + place * 1_000)
    world.clock.jump(START_MS + 3_600_000)
    await world.advance(1_000)

    assert len(world.delivered) == len(IDS)
    assert world.overdue == {}


# -- the end ----------------------------------------------------------------------


@pytest.mark.parametrize("is_filling", [True, False])
async def test_a_stopped_wheel_fires_nothing(is_filling: bool) -> None:
    world = World()
    world.index = {IDS[0]: START_MS - 1}
    world.fill_is_held = True
    world.wheel.start()
    await world.settle()
    if not is_filling:
        world.are_slow = True
        world.release_fill()
        await world.settle()
    fired = len(world.fired)
    await world.wheel.stop()
    world.wheel.set(IDS[1], START_MS + 1)
    world.clock.jump(START_MS + 10_000)
    await world.settle()

    assert len(world.fired) == fired
    assert world.clock.next_timer_at_ms is None


async def test_a_wheel_that_is_started_again_has_missed_nothing(world: World) -> None:
    world.fill_is_held = True
    await world.advance(600)
    world.set(IDS[0], START_MS + 1_300)
    world.wheel._due.clear()
    await world.wheel.stop()
    world.release_fill()
    world.wheel.start()
    await world.advance(2_000)

    assert len(world.delivered) == 1


# -- everything at once -------------------------------------------------------------

ids = st.sampled_from(IDS[:6])
# Coarse, so that many alarms share a time; past the window and back.
delays = st.integers(-2, 14).map(lambda step: step * 250)
steps = st.one_of(
    st.tuples(st.just("set"), ids, delays),
    st.tuples(st.just("set"), ids, delays),
    st.tuples(st.just("drop"), ids),
    st.tuples(st.just("remind"), ids, delays),
    st.tuples(st.just("advance"), st.sampled_from([1, 250, 500, 1_000, 3_000])),
    st.tuples(st.just("jump"), st.sampled_from([-5_000, -250, 250, 2_000, 60_000])),
    st.tuples(st.sampled_from(["hold", "release", "fail", "slow", "finish"])),
)


@settings(max_examples=150)
@given(
    before=st.dictionaries(ids, delays),
    steps=st.lists(steps, min_size=5, max_size=30),
)
async def test_invariant_alarm_never_late_whatever_happens(
    before: dict[ObjectId, int], steps: list[tuple[Any, ...]]
) -> None:
    """`World.fire` asserts "not early"; after each step nothing due may be left over.

    While a fill is held or has failed it may be; but not once the clock has gone a
    second beyond the latest time it showed during the trouble.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alarms, "FILL_MAX", 3)
        patch.setattr(alarms, "FIRE_MAX", 2)
        world = World()
        world.index = {
            object_id: START_MS + delay for object_id, delay in before.items()
        }
        world.wheel.start()
        await world.settle()
        in_trouble, latest_ms = False, START_MS
        for step in steps:
            match step:
                case ("set", object_id, delay_ms):
                    now_ms = world.clock.now_ms()
                    world.set(object_id, max(now_ms, now_ms + delay_ms))
                case ("drop", object_id):
                    world.set(object_id, None)
                case ("remind", object_id, delay_ms):
                    world.wheel.remind(object_id, world.clock.now_ms() + delay_ms)
                case ("advance", by_ms):
                    await world.advance(by_ms)
                case ("jump", by_ms):
                    world.clock.jump(world.clock.now_ms() + by_ms)
                case ("hold",):
                    world.fill_is_held = in_trouble = True
                case ("release",):
                    world.release_fill()
                case ("fail",):
                    world.fill_errors = 1
                    in_trouble = True
                case ("slow",):
                    world.are_slow = not world.are_slow
                case ("finish",):
                    world.finish()
            await world.settle()
            latest_ms = max(latest_ms, world.clock.now_ms())
            if not in_trouble:
                assert world.overdue == {}
        world.release_fill()
        world.fill_errors = 0
        await world.advance(latest_ms - world.clock.now_ms() + 1_000)
        assert world.overdue == {}
        world.are_slow = False
        world.finish()
        await world.advance(70_000)
        assert world.index == {}
        assert len(world.wheel) == 0
        await world.wheel.stop()


async def test_g14_a_crowd_is_fired_in_batches_at_the_pace_of_its_deliveries() -> None:
    clock = ManualClock()
    deliveries: list[asyncio.Future[None]] = []

    def fire(object_id: ObjectId, due_at_ms: int) -> asyncio.Future[None]:
        del object_id, due_at_ms
        deliveries.append(asyncio.get_running_loop().create_future())
        return deliveries[-1]

    async def fill(*_: int) -> list[tuple[ObjectId, int]]:
        return [(object_id, START_MS - 1) for object_id in IDS]

    wheel = AlarmWheel(clock, fill=fill, fire=fire, batch_max=4)
    wheel.start()
    await clock.settle()
    assert len(deliveries) == 4
    deliveries[0].set_result(None)
    await clock.settle()
    assert len(deliveries) == 4
    deliveries[1].set_result(None)  # half of them have ended
    await clock.settle()
    assert len(deliveries) == 8
    await clock.advance(alarms.BATCH_MS_MAX - 1)  # and those that go on and on
    assert len(deliveries) == 8
    await clock.advance(1)
    assert len(deliveries) == 12
    await wheel.stop()
