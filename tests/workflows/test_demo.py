"""The demonstration: run twice as a newcomer would, then taken apart."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from workflows import demo

DEADLINE_SECONDS = 50


class Given:
    """The two demonstrations: one kept and told as JSON, one in prose."""

    def __init__(self, folder: Path) -> None:
        self.kept = folder / "kept"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        # Both at once: they mostly wait.
        as_json = self._start("--json", "--data-dir", str(self.kept))
        in_prose = self._start()
        self.json_text, self.json_status = self._end(as_json)
        self.prose, self.prose_status = self._end(in_prose)
        self.json: dict[str, Any] = json.loads(self.json_text)

    def _start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "workflows.demo", *options],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _end(self, process: subprocess.Popen[str]) -> tuple[str, int]:
        try:
            text, _ = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
        return text, process.returncode


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def performance(given: Given) -> demo.Performance:
    return demo.Performance(demo.Trace(given.kept / "trace.jsonl").read())


def test_it_ends_well(given: Given) -> None:
    assert (given.json_status, given.prose_status) == (0, 0), given.prose
    assert given.json["problems"] == []
    assert given.json["ok"] is True


def test_there_is_one_kill_and_it_is_a_real_one(given: Given) -> None:
    (kill,) = given.json["kills"]
    first, second = given.json["workers"]
    assert first != second
    assert (kill["pid"], kill["signal"]) == (first, signal.SIGKILL)
    assert not Path(f"/proc/{first}").exists()


def test_each_step_ran_in_one_process(given: Given) -> None:
    (kill,) = given.json["kills"]
    first, second = given.json["workers"]
    ran = {
        step["name"]: {each["pid"] for each in step["ran"]}
        for step in given.json["steps"]
    }
    before = kill["recorded"]
    assert ran == {name: {first if name in before else second} for name in ran}
    assert 0 < len(before) < len(ran)
    assert given.json["not_repeated"] == before


def test_a_step_ran_as_often_as_its_attempts_say(given: Given) -> None:
    for step in given.json["steps"]:
        attempts = [each["attempt"] for each in step["ran"]]
        assert attempts == list(range(1, step["attempts"] + 1))
    assert max(step["attempts"] for step in given.json["steps"]) == 2


def test_the_counter_and_the_receipt_are_right(given: Given) -> None:
    assert given.json["counter"] == [1, 2, 3, 3]
    assert given.json["receipt"] == {
        "order_id": "order-17",
        "paid_cents": 5_800,
        "parcels": ["lamp in a box", "book in a box"],
    }


def test_the_prose_is_plain_text_with_a_timeline(given: Given) -> None:
    assert given.prose.isascii()
    assert "\x1b" not in given.prose
    assert "SIGKILL" in given.prose
    assert "not repeated by" in given.prose
    timeline = given.prose.partition("5. The timeline")[2]
    for step in given.json["steps"]:
        assert step["name"] in timeline


def test_it_leaves_nothing_behind(given: Given) -> None:
    assert list(given.temporary.iterdir()) == []


def test_a_directory_that_is_in_use_is_refused(
    given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--data-dir", str(given.kept)]) == 1
    assert "not empty" in capsys.readouterr().err


def test_a_worker_that_fails_is_explained(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory", encoding="utf-8")
    with pytest.raises(demo.DemoError, match="ended early, with status 1"):
        demo.perform(tmp_path, lambda _: None)


class TestItWouldNoticeThat:
    """The demonstration checks itself; here it is given something to find."""

    def problems(self, happenings: list[demo.Happening]) -> list[str]:
        return list(demo.Performance(happenings).problems())

    def change(
        self, performance: demo.Performance, what: str, **facts: object
    ) -> Iterator[demo.Happening]:
        """Yield the happenings, with other facts in those of one kind."""
        for each in performance.happenings:
            is_meant = each.what == what
            changed = {**each.facts, **facts} if is_meant else each.facts
            yield msgspec.structs.replace(each, facts=changed)

    def test_nothing_is_wrong(self, performance: demo.Performance) -> None:
        assert self.problems(performance.happenings) == []

    def test_a_step_was_repeated(self, performance: demo.Performance) -> None:
        first, last = performance.all("step")[0], performance.happenings[-1]
        again = msgspec.structs.replace(first, pid=last.pid, at_ms=last.at_ms)
        problems = self.problems([*performance.happenings, again])
        assert "a recorded step was repeated" in problems
        assert any("'fetch prices'" in problem for problem in problems)

    def test_a_step_was_recorded_and_never_ran(
        self, performance: demo.Performance
    ) -> None:
        (first, *_) = performance.all("step")
        happenings = [each for each in performance.happenings if each is not first]
        assert self.problems(happenings)

    def test_nobody_was_killed(self, performance: demo.Performance) -> None:
        happenings = list(self.change(performance, "killed", signal=0))
        assert any("was not killed" in each for each in self.problems(happenings))

    def test_the_kill_came_too_late(self, performance: demo.Performance) -> None:
        steps = performance.recorded
        happenings = list(self.change(performance, "asleep", steps=steps))
        assert any("between two steps" in each for each in self.problems(happenings))

    def test_the_sleep_was_cut_short(self, performance: demo.Performance) -> None:
        happenings = list(self.change(performance, "asleep", due_at_ms=2**50))
        assert self.problems(happenings) == ["the sleep was cut short"]

    def test_the_counter_forgot(self, performance: demo.Performance) -> None:
        happenings = list(performance.happenings)
        last = happenings.index(performance.all("counter")[-1])
        happenings[last] = msgspec.structs.replace(happenings[last], facts={"value": 2})
        assert any("the counter said 3" in each for each in self.problems(happenings))

    def test_the_alarm_rang_early(self, performance: demo.Performance) -> None:
        happenings = list(self.change(performance, "alarm", due_at_ms=2**50))
        assert any("the alarm" in each for each in self.problems(happenings))
