"""The report itself: every case has one verdict, and the page says the same."""

from __future__ import annotations

import pytest

from tests.parity.cases import CASES, Finding, load_findings, not_applicable, same
from tests.parity.report import BEGIN, END, PAGE, generated, page, rows
from tests.parity.translate import Refusal, agrees, differences, snake


def test_every_case_has_a_verdict() -> None:
    assert set(load_findings()) == set(CASES)


def test_whatever_is_not_equal_has_its_reason_in_one_line() -> None:
    for finding in load_findings().values():
        assert bool(finding.reason) is (finding.verdict != "equal")
        assert "\n" not in finding.reason
        assert bool(finding.test) is (finding.verdict in ("equal", "different"))


def test_the_page_is_up_to_date() -> None:
    """If this fails: `make parity ARGS=--write`."""
    text = PAGE.read_text()
    assert BEGIN in text
    assert END in text
    assert page(load_findings(), text) == text


def test_the_page_lists_what_is_not_equal_and_nothing_else() -> None:
    findings = load_findings()
    text = generated(findings)
    listed = {line.split("`")[1] for line in text.splitlines() if line[:3] == "| `"}
    assert listed == {f.case for f in findings.values() if f.verdict != "equal"}


def test_the_table_counts_each_case_once() -> None:
    *areas, total = rows(load_findings())
    assert total[1] == str(len(CASES)) == str(sum(int(row[1]) for row in areas))


def test_a_case_has_no_second_verdict() -> None:
    name = next(f.case for f in load_findings().values() if f.verdict == "equal")
    with pytest.raises(ValueError, match="two verdicts"):
        not_applicable(name, "for no reason")


def test_a_case_that_is_not_in_the_file_has_no_verdict() -> None:
    with pytest.raises(ValueError, match="no case"):
        not_applicable("nothing.of.the.kind", "for no reason")


def test_a_verdict_belongs_to_one_test() -> None:
    finding = next(f for f in load_findings().values() if f.verdict == "equal")

    def test_another() -> None: ...

    with pytest.raises(ValueError, match="two verdicts"):
        same(finding.case)(test_another)
    assert Finding(case="a", verdict="equal") != finding


def test_what_is_compared_can_differ() -> None:
    assert differences({"a": 1}, {"a": 1}) == set()
    assert differences({"a": 1}, {"a": 2}) == {"a"}
    assert differences({"a": 1}, {"a": True}) == {"a"}
    assert differences({"a": 1, "b": 1}, {"a": 1, "c": 1}) == {"b", "c"}
    assert not agrees({"b": 1, "a": 1}, {"a": 1, "b": 1})


def test_a_refusal_is_told_by_its_kind_and_its_text() -> None:
    refusal = Refusal("TypeError", "doSomething() was refused")
    assert refusal.matches(TypeError("do_something() was refused: 5"))
    assert not refusal.matches(ValueError("do_something() was refused: 5"))
    assert not refusal.matches(TypeError("something else"))
    assert not refusal.matches("do_something() was refused")
    assert not Refusal("Error", "m", {"durableObjectReset": True}).matches(
        KeyError("m")
    )
    assert snake("setAlarm and deleteAll()") == "set_alarm and delete_all()"
