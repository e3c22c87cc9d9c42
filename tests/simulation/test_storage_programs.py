"""Storage is a sorted dict that survives: some programs of each size, and controls."""

from __future__ import annotations

import pytest

from tests.simulation.storage_programs import (
    CONTROLS,
    SEED,
    Author,
    search,
    shrink,
)

PROGRAMS = 60
CONTROL_PROGRAMS = 300


async def test_storage_answers_like_a_dict_and_finds_a_turn_after_a_crash() -> None:
    """`storage_programs` says what a program is; the seed in the error repeats it."""
    failed, problem, counts = await search(PROGRAMS)

    assert failed is None, f"--seed {failed}: {problem}"
    assert counts["programs: large"] == PROGRAMS // 2
    assert counts["programs: process"] > 0
    for kind in ("crashes_with_work", "evict", "restart", "transactions: rollback"):
        assert counts[kind] > 0, kind


@pytest.mark.parametrize("control", CONTROLS)
async def test_storage_that_is_wrong_is_found_out(control: str) -> None:
    failed, _, _ = await search(CONTROL_PROGRAMS, control=control)

    assert failed is not None, f"{CONTROL_PROGRAMS} programs did not notice"


def test_a_program_is_the_same_for_the_same_seed() -> None:
    programs = [Author(SEED + number).program() for number in range(20)]

    assert programs == [Author(SEED + number).program() for number in range(20)]
    assert len({repr(program) for program in programs}) == 20


async def test_a_program_is_made_shorter_as_long_as_it_still_fails() -> None:
    program = Author(SEED).program()
    call = ("call", [("put", "a", 1), ("get", "b"), ("put", "c", 1)])

    async def fails(shorter: list[tuple[object, ...]]) -> bool:
        return "('get', 'b')" in repr(shorter)

    assert await shrink([*program, call], fails) == [("call", [("get", "b")])]
