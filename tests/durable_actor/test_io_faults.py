"""The disk fails at any call of a session: nothing acknowledged is lost (G1, G2, G13).

A kill proves nothing about durability: the kernel still has what was written. Here
every change that no sync covers is undone, in part or altogether, and every call is
made to fail once; see `tests/support/io_session.py` for the session. The controls leave
one defence out each, and must lose something, or the tests would see nothing.

The suite takes some calls of the session; `python -m tests.support.sweep` takes each.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.io_session import Weakening
from tests.support.sweep import CUTS, ERRORS, MODES, Point, compile_shim, sweep

_FAULTS = 30  # of all modes together; a point takes a tenth of a second
_CONTROL_FAULTS = 100  # at most; it ends with the first that finds something


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the disk never failed, durability is not proven")
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def points(shim: Path) -> list[Point]:
    found = list(sweep(shim, MODES, faults=_FAULTS))
    assert {point.mode for point in found} == set(MODES)
    for point in found:
        if not point.at:
            assert point.acknowledged > 40, "without a fault, all of it succeeds"
            assert point.calls > 100
    return [point for point in found if point.at]


def of(points: Sequence[Point], *modes: str) -> list[Point]:
    return [point for point in points if point.mode in modes]


@pytest.mark.timeout(120)
def test_g1_nothing_acknowledged_is_lost_wherever_power_is_cut(
    points: list[Point],
) -> None:
    cuts = of(points, *CUTS, "kill")

    assert [point.lost for point in cuts if point.lost] == []
    assert [point.opening for point in cuts if point.opening] == []
    assert len({point.acknowledged for point in cuts}) > 2, "cut all over it"


def test_g2_a_turn_is_found_whole_or_not_at_all_after_any_fault(
    points: list[Point],
) -> None:
    assert [point.found for point in points if point.torn] == []


def test_g13_after_any_failed_call_the_next_start_has_all_that_was_acknowledged(
    points: list[Point],
) -> None:
    failed = of(points, *ERRORS)

    assert [point.lost for point in failed if point.lost] == []
    assert [point.opening for point in failed if point.opening] == []


def test_g13_every_failed_call_is_told_or_known_to_be_harmless(
    points: list[Point],
) -> None:
    failed = of(points, "eio", "eio-cut", "eio-read")

    assert [point.hit for point in failed if point.is_silent] == []
    assert any(point.errors for point in failed)


def test_g12_what_a_full_disk_refuses_is_not_there_and_later_calls_succeed(
    points: list[Point],
) -> None:
    full = of(points, "enospc", "enospc-once")

    assert [point.problems for point in full if point.problems] == []
    for point in full:
        refused = sum(one[0] == "refused" for one in point.said)
        if point.at > 200:  # later than the opening, which may be refused itself
            assert point.acknowledged > refused, point.errors


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "weakening",
    [
        Weakening(synchronous="NORMAL"),
        Weakening(synchronous="OFF"),
        Weakening(has_output_gate=False),
    ],
    ids=["normal", "off", "no-gate"],
)
def test_g1_control_with_a_defence_less_something_is_lost(
    shim: Path, weakening: Weakening
) -> None:
    found = sweep(shim, ["none"], faults=_CONTROL_FAULTS, weakening=weakening)

    assert any(point.lost for point in found)


@pytest.mark.timeout(120)
def test_g2_control_a_turn_that_is_written_in_two_is_found_torn(shim: Path) -> None:
    halves = Weakening(has_whole_turns=False)
    found = sweep(shim, ["kill"], faults=_CONTROL_FAULTS, weakening=halves)

    assert any(point.torn for point in found)
