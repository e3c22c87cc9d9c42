"""What the tests of parity share with those of the runtime."""

from __future__ import annotations

import pytest

from tests.durable_actor.conftest import nothing_left_behind, small_heap

__all__ = ["nothing_left_behind", "small_heap"]


@pytest.fixture(autouse=True)
def _clean(nothing_left_behind: None) -> None:
    """Let no test leave a task or an unseen exception behind."""
