"""When the data of a finished run is deleted."""

import pytest

from workflows.errors import ErrorInfo
from workflows.machine import Cancelled, Completed, Failed, Paused, Running, Status
from workflows.retention import ended_at_ms, purge_at_ms


@pytest.mark.parametrize(
    "status",
    [Completed(5), Failed(5, ErrorInfo(type="E", message="")), Cancelled(5)],
)
def test_a_finished_run_is_deleted_so_long_after_its_end(status: Status) -> None:
    assert ended_at_ms(status) == 5
    assert purge_at_ms(status, 100) == 105
    assert purge_at_ms(status, None) is None


@pytest.mark.parametrize("status", [Running(5), Paused(5)])
def test_a_run_that_has_not_ended_is_kept(status: Status) -> None:
    assert ended_at_ms(status) is None
    assert purge_at_ms(status, 100) is None
