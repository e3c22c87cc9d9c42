"""Times keep their zone."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from tests.durable_actor.codec.samples import (
    round_trip,
    same,
)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 10, 27, 1, 30, fold=1, tzinfo=ZoneInfo("Europe/London")),
        datetime(2024, 10, 27, 1, 30, fold=0, tzinfo=ZoneInfo("Europe/London")),
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
        datetime.fromisoformat("0001-01-01T00:00:00.000001"),
        datetime(9999, 12, 31, tzinfo=timezone(timedelta(hours=-5), "EST")),
        datetime.fromisoformat("2024-10-27").replace(fold=1),
        time(1, 2, 3, 4, tzinfo=timezone(timedelta(seconds=1, microseconds=1))),
        time(1, fold=1, tzinfo=ZoneInfo("Asia/Kathmandu")),
        # Python reads its own ISO text of this one as UTC.
        time(1, tzinfo=timezone(timedelta(microseconds=1))),
    ],
    ids=str,
)
def test_a_time_keeps_its_zone_and_its_fold(value: datetime | time) -> None:
    assert same(value, round_trip(value))
