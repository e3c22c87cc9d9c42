"""G18, S2: the daemon keeps to its own description, whatever is sent.

The short version of `python -m tests.fuzz.openapi`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import openapi

EXAMPLES = 2


@pytest.mark.slow
def test_g18_s2_every_answer_is_as_described_and_none_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The control: one path that is open is held for one that is not, and found.
    monkeypatch.setattr(openapi, "OPEN", openapi.OPEN - {"/livez"})

    report = openapi.run(tmp_path, examples=EXAMPLES, seed=1)

    assert set(report.findings) == {"GET /livez: 200 without a token"}
    assert report.operations > 20
    assert {200, 400, 401, 404} <= set(report.by_status)
