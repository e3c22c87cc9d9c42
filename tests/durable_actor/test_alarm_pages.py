"""`host.alarms()`: which alarms are set, in the order in which they fire."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from durable_actor import AlarmEntry, AlarmInfo, DurableObject, StorageFullError
from durable_actor.clock import Instant
from durable_actor.storage.store import DriverKind
from durable_actor.testing import START_MS, TestHost, open_test_host
from tests.support.drivers import take_over
from tests.support.scene import results

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Bell(DurableObject):
    async def ring_in(self, seconds: int) -> None:
        self.ctx.storage.set_alarm(timedelta(seconds=seconds))

    async def stay_silent(self) -> None:
        self.ctx.storage.delete_alarm()

    async def alarm(self, info: AlarmInfo) -> None:
        if self.ctx.id.name == "broken":
            raise ValueError


class Horn(Bell):
    pass


def bell(test: TestHost, name: str, cls: type[Bell] = Bell) -> Bell:
    return test.host.namespace(cls).get_by_name(name)


async def names(test: TestHost, before: Instant | None = None) -> list[str | None]:
    page = await test.host.alarms(before=before)
    assert page.cursor is None
    return [alarm.name for alarm in page.alarms]


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_alarms_come_in_the_order_in_which_they_fire(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        for name, seconds in [("late", 30), ("soon", 10), ("middle", 20)]:
            await bell(test, name).ring_in(seconds)
        page = await test.host.alarms()
        assert [alarm.name for alarm in page.alarms] == ["soon", "middle", "late"]
        assert page.alarms[0] == AlarmEntry(
            object_class="Bell",
            name="soon",
            id=str(test.host.namespace(Bell).id_from_name("soon")),
            due_at_ms=START_MS + 10_000,
            scheduled_at_ms=START_MS + 10_000,
            retries=0,
        )
        await bell(test, "soon").stay_silent()
        await bell(test, "late").ring_in(5)
        assert await names(test) == ["late", "middle"]
        await test.restart()
        assert await names(test) == ["late", "middle"]


async def test_an_alarm_that_fired_is_gone_and_one_that_failed_is_later() -> None:
    async with open_test_host() as test:
        await bell(test, "well").ring_in(10)
        await bell(test, "broken").ring_in(10)
        await test.advance("10 seconds")
        (alarm,) = (await test.host.alarms()).alarms
        assert (alarm.name, alarm.retries) == ("broken", 1)
        assert alarm.scheduled_at_ms == START_MS + 10_000
        assert START_MS + 12_000 <= alarm.due_at_ms <= START_MS + 12_500


async def test_those_of_one_class_are_listed() -> None:
    async with open_test_host() as test:
        await bell(test, "a").ring_in(1)
        await bell(test, "b", Horn).ring_in(2)
        page = await test.host.alarms("Horn")
        assert [(one.object_class, one.name) for one in page.alarms] == [("Horn", "b")]
        assert (await test.host.alarms("Nobody")).alarms == []


@pytest.mark.parametrize(
    "before",
    [
        START_MS + 20_000,
        timedelta(seconds=20),
        datetime.fromtimestamp(START_MS / 1_000 + 20, UTC),
    ],
)
async def test_those_before_a_time_are_listed(before: Instant) -> None:
    async with open_test_host() as test:
        for seconds in (10, 19, 20, 30):
            await bell(test, str(seconds)).ring_in(seconds)
        assert await names(test, before) == ["10", "19"]


async def test_pages_follow_each_other_and_miss_nothing() -> None:
    """Many are due at the same time: the place in between is exact."""
    async with open_test_host() as test:
        await asyncio.gather(
            *(bell(test, f"{n:02}").ring_in(1 + n % 3) for n in range(25))
        )
        found: list[str | None] = []
        cursor = None
        for _ in range(10):
            page = await test.host.alarms(limit=7, cursor=cursor)
            found += [one.name for one in page.alarms]
            due = [one.due_at_ms for one in page.alarms]
            assert due == sorted(due)
            cursor = page.cursor
            if cursor is None:
                break
        assert len(found) == 25
        assert set(found) == {f"{n:02}" for n in range(25)}


async def test_what_failed_to_commit_is_not_listed() -> None:
    async with open_test_host() as test:
        await bell(test, "a").ring_in(60)
        take_over(test.host).failures.append(StorageFullError("commit", "full"))
        await results([bell(test, "lost").ring_in(60)])
        assert await names(test) == ["a"]


@pytest.mark.parametrize("limit", [0, -1, 1_001])
async def test_a_page_has_a_size_between_1_and_1000(limit: int) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="limit"):
            await test.host.alarms(limit=limit)


@pytest.mark.parametrize(
    "cursor", ["", "zz", "00", "ff00", b"1 2".hex() + "2033", b"1 9e9".hex()]
)
async def test_a_wrong_cursor_is_refused(cursor: str) -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="cursor"):
            await test.host.alarms(cursor=cursor)


async def test_a_cursor_beyond_all_numbers_is_refused() -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="cursor"):
            await test.host.alarms(cursor=f"{2**63} 1".encode().hex())
