"""The parity report: what was replayed, and how ours compares.

`make parity` runs the tests and prints the report. It fails if a test fails or a case
has no verdict. With `--write`, it first brings `docs/parity.md` up to date.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.parity.cases import CASES, NOTED, ROOT, Finding, Verdict, load_findings

PAGE = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- generated: make parity -->", "<!-- end of what is generated -->"
VERDICTS: tuple[Verdict, ...] = ("equal", "different", "not applicable")
_HEAD = ("area", "cases", "replayed", *VERDICTS)


class _Outcomes:
    """Which tests passed, as pytest tells."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("/")[2]
        if report.failed:
            self.failed.add(name)
        elif report.when == "call" and report.passed:
            self.passed.add(name)


def rows(findings: Mapping[str, Finding]) -> list[list[str]]:
    """Return the table: one row for each area, and the sum."""
    counts: dict[str, Counter[str]] = {}
    for case in CASES.values():
        finding = findings.get(case.name)
        verdict = "unlisted" if finding is None else finding.verdict
        counts.setdefault(case.area, Counter())[verdict] += 1
    areas = {**counts, "all": sum(counts.values(), Counter())}
    return [
        [area, *(str(n) for n in (count.total(), _replayed(count)))]
        + [str(count[verdict]) for verdict in VERDICTS]
        for area, count in areas.items()
    ]


def _replayed(count: Counter[str]) -> int:
    return count["equal"] + count["different"]


def generated(findings: Mapping[str, Finding]) -> str:
    """Return the part of the page that is made from the verdicts."""
    table = [list(_HEAD), ["---"] * len(_HEAD), *rows(findings)]
    lines = [_line(row) for row in table]
    for verdict in VERDICTS[1:]:
        chosen = [f for f in _in_order(findings) if f.verdict == verdict]
        if chosen:
            lines += ["", f"## {verdict.capitalize()}", "", "| case | why |"]
            lines += [
                "| --- | --- |",
                *(_line([f"`{f.case}`", f.reason]) for f in chosen),
            ]
    return "\n".join(lines)


def _in_order(findings: Mapping[str, Finding]) -> list[Finding]:
    return [findings[name] for name in CASES if name in findings]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(findings: Mapping[str, Finding], text: str) -> str:
    """Return the page with its generated part brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{generated(findings)}\n\n{END}{after}"


def main() -> int:
    """Run the tests, print the report, and return the exit code."""
    findings = load_findings()
    if "--write" in sys.argv:
        PAGE.write_text(page(findings, PAGE.read_text()))
    outcomes = _Outcomes()
    folder = str(Path(__file__).parent)
    code = int(pytest.main(["-q", "-p", "no:cacheprovider", folder], [outcomes]))
    unlisted = sorted(set(CASES) - set(findings))
    unproven = sorted(
        f.case
        for f in findings.values()
        if f.test and f.test not in outcomes.passed - outcomes.failed
    )
    lines = [*_summary(findings), ""]
    lines += [f"{len(NOTED)} facts were noted beside the cases, each with a test."]
    for title, names in {
        "failed": sorted(outcomes.failed),
        "no verdict": unlisted,
        "a verdict, and no test that passed": unproven,
    }.items():
        if names:
            lines += ["", f"{title}: {', '.join(names)}"]
            code = code or 1
    sys.stdout.write("\n".join([*lines, ""]))
    return code


def _summary(findings: Mapping[str, Finding]) -> list[str]:
    """Return the table and the lists, for a terminal."""
    table = [list(_HEAD), *rows(findings)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = [""]
    for area, *counts in table:
        numbers = map(str.rjust, counts, widths[1:])
        lines.append("  ".join([area.ljust(widths[0]), *numbers]))
    for verdict in VERDICTS[1:]:
        chosen = [f for f in _in_order(findings) if f.verdict == verdict]
        if chosen:
            lines += ["", verdict]
        lines += [f"  {finding.case:32} {finding.reason}" for finding in chosen]
    return lines


if __name__ == "__main__":
    sys.exit(main())
