"""Some seeds hold what is promised, planted bugs are found, and a seed says it all."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from tests.simulation import simulate as simulate_module
from tests.simulation.cells import Cell
from tests.simulation.histories import Operation, is_linearizable
from tests.simulation.loop import SimulatedLoop, StuckError
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.plans import Call, Life, Plan, from_json, plan_of, to_json
from tests.simulation.simulate import REGRESSIONS, first_found, shrink, simulate
from tests.simulation.world import run
from tests.support.simulated_disk import SURVIVALS, SimulatedDisk, Survival

try:
    SimulatedDisk()
except (FileNotFoundError, subprocess.CalledProcessError):
    pytest.skip(
        "gcc or sqlite3.h is missing: there is no disk to simulate",
        allow_module_level=True,
    )

SEEDS = 30
ROOT = Path(__file__).parents[2]
# They take seconds; but there is nothing here that a slow machine could fail.
_ON_A_BUSY_MACHINE = pytest.mark.timeout(300)
KEPT = sorted(REGRESSIONS.glob("*.json"))
# A seed that finds it, near the first; `simulate --mutants` looks for all of them.
QUICKLY_FOUND = (
    "reply-before-commit",
    "reads-not-gated",
    "synchronous-normal",
    "alarm-deleted-before-its-handler",
    "turn-in-two-transactions",
    "replies-not-kept",
)


@_ON_A_BUSY_MACHINE
def test_g1_g2_g3_g4_g6_g7_g8_g9_hold_on_some_seeds() -> None:
    """`simulate` says what a seed is; `world` says what is checked on each."""
    report = simulate(range(SEEDS))

    assert report.failed == []
    for state in ("crash while opening", "crash in a fold", "an alarm came again"):
        assert report.states[state] > 0, state


@_ON_A_BUSY_MACHINE
@pytest.mark.parametrize("mutant", QUICKLY_FOUND)
def test_a_planted_bug_is_found_and_told(mutant: str) -> None:
    _, seed, problem = first_found(mutant, 100)

    assert seed is not None, f"100 seeds did not notice {mutant}"
    assert problem


def test_there_are_a_dozen_planted_bugs_to_look_for() -> None:
    assert len(MUTANTS) >= 12


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_plan_that_failed_once_holds(path: Path) -> None:
    assert run(from_json(path.read_text())).diary.problems == []


@_ON_A_BUSY_MACHINE
def test_a_seed_decides_everything_under_any_hash_seed() -> None:
    code = (
        "from tests.simulation.simulate import simulate;"
        "print(simulate(range(500, 508)).digest)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
        )
        for hash_seed in ("1", "2")
    ]
    digests = {process.communicate()[0] for process in running}

    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
    assert simulate([500]).digest != simulate([501]).digest


def test_a_plan_that_is_kept_is_read_back_as_it_was() -> None:
    for seed in range(20):
        assert from_json(to_json(plan_of(seed))) == plan_of(seed)


def test_a_failing_plan_is_made_smaller_as_long_as_it_fails() -> None:
    call = Call(method="swap", target="north", args=(7, 0))
    other = Call(method="peek", target="south")
    plan = Plan(
        seed=1,
        clients=((other, other, call), (other,)),
        lives=(Life(crash_at_ms=5), Life(cut_at=3, jumps=((1, 5),))),
    )

    smallest = shrink(plan, lambda smaller: "swap" in to_json(smaller))

    assert smallest == Plan(seed=1, clients=((call,),))


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (lambda: _raise(), "never retrieved"),
        (lambda: asyncio.sleep(1_000_000), "tasks are left"),
    ],
)
def test_what_a_handler_leaves_behind_is_found(
    left: Callable[[], Coroutine[None, None, None]],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Cell.read

    async def careless(self: Cell, pauses: int) -> int:
        asyncio.get_running_loop().create_task(left())
        return await read(self, pauses)

    monkeypatch.setattr(Cell, "read", careless)
    problems = run(Plan(seed=1, clients=())).diary.problems

    assert any(told in problem for problem in problems), problems


async def _raise() -> None:
    raise ValueError


def test_a_call_that_is_never_answered_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def endless(self: Cell, amount: int, pauses: int) -> int:
        await asyncio.get_running_loop().create_future()
        return amount

    monkeypatch.setattr(Cell, "add", endless)
    call = Call(method="add", target="north", args=(1, 0))
    (problem,) = run(Plan(seed=1, clients=((call,),))).diary.problems

    assert problem.startswith("stuck:")


# -- its parts, each with a fault that it has to notice ------------------------


def test_g4_a_history_of_a_register_is_told_from_others() -> None:
    def history(second: int | None, read: int) -> list[Operation]:
        return [
            Operation("add", 5, 1, 2, 5),
            Operation("add", 7, 3, 6 if second is not None else 1 << 60, second),
            Operation("read", 0, 4, 5, read),
        ]

    assert is_linearizable(history(12, 5))
    assert is_linearizable(history(12, 12))
    assert is_linearizable(history(None, 5))  # never took effect, or not yet
    assert is_linearizable(history(None, 12))
    assert not is_linearizable(history(12, 0))  # forgets what was acknowledged
    assert not is_linearizable(history(7, 5))  # an update is lost
    stale = [Operation("add", 5, 1, 2, 5), Operation("read", 0, 3, 4, 0)]
    assert not is_linearizable(stale)
    twice = [Operation("add", 5, 1), Operation("read", 0, 3, 4, 10)]
    assert not is_linearizable(twice)
    gone = [Operation("add", 5, 1, is_void=True), Operation("read", 0, 3, 4, 5)]
    assert not is_linearizable(gone)


@pytest.mark.parametrize("survival", SURVIVALS)
def test_the_disk_keeps_what_was_synced_and_may_lose_the_rest(
    survival: Survival,
) -> None:
    lost = {_count_after_crash(survival, "FULL", seed) != 20 for seed in range(20)}
    lost_off = {_count_after_crash(survival, "OFF", seed) != 20 for seed in range(20)}

    assert lost == {False}
    assert (True in lost_off) is (survival != "kill")


def _count_after_crash(survival: Survival, synchronous: str, seed: int) -> int:
    def connect() -> sqlite3.Connection:
        db = sqlite3.connect(disk.uri("/disk/db"), uri=True, isolation_level=None)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        return db

    disk = SimulatedDisk(seed)
    db = connect()
    db.execute("CREATE TABLE t (n)")
    for number in range(20):
        db.execute("INSERT INTO t VALUES (?)", [number])
    disk.crash(survival)
    db.close()
    db = connect()
    try:
        return int(db.execute("SELECT count(*) FROM t").fetchone()[0])
    except sqlite3.DatabaseError:
        return -1
    finally:
        db.close()


def test_a_loop_in_which_nothing_can_happen_any_more_says_so() -> None:
    loop = SimulatedLoop(random.Random(1), 0.0)
    waiting = loop.create_future()

    with pytest.raises(StuckError):
        loop.run_life(waiting)
    loop.bury()


def test_an_unknown_mutant_is_an_error() -> None:
    with pytest.raises(KeyError), planted("nothing of the kind"):
        pass


def test_the_command_fails_with_a_seed_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_module, "_SHRINK_RUNS_MAX", 20)

    code = simulate_module.main(["--seeds", "8", "--mutant", "synchronous-off"])

    told = capsys.readouterr().out
    assert code == 1
    assert "as small as it gets:" in told
    assert '"clients"' in told
