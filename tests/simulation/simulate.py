"""Deterministic simulation: real runtime code, and a seed that decides all the rest.

    python -m tests.simulation.simulate [--seeds 2000] [--first 0] [--mutant NAME]
    python -m tests.simulation.simulate --mutants     # each one has to be found
    python -m tests.simulation.simulate --plan FILE   # one plan that was kept

Each seed is a plan (`plans`) that is lived through in a world (`world`): a real host on
real SQLite, on an event loop in virtual time (`loop`) over a disk that loses power
(`tests.support.simulated_disk`). The histories of the objects are judged (`histories`),
and so is everything else that `world` names.

A seed that fails is told with its story, and made smaller as long as it still fails:
fewer clients, calls, lives and faults. What is printed then can be kept in
`regressions/`, which the test suite runs. Beside failures, states are counted that a
run is to come by, such as a crash between the sync and the acknowledgement: if one of
them is never reached, the command fails as well.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.plans import Plan, from_json, plan_of, to_json
from tests.simulation.world import run

REGRESSIONS = Path(__file__).with_name("regressions")
SEEDS_TO_REACH = 2_000  # so many seeds have to come by every state
MUTANT_SEEDS = 1_000  # and so many have to find every mutant
_CHUNK = 20
_SHRINK_RUNS_MAX = 600
STATES = (
    "I/O error: the host failed",
    "a call took too long",
    "a repeated call was answered",
    "a run that kills its process was given up",
    "a run was cancelled",
    "a step killed the process",
    "a step ran again",
    "alarm moved earlier",
    "alarm moved earlier while a later one commits",
    "alarm moved later",
    "alarm set inside its handler",
    "an alarm came again",
    "an event arrived twice",
    "clock jumped back",
    "clock jumped forward",
    "closed with calls under way",
    "crash between sync and acknowledgement",
    "crash in a checkpoint",
    "crash in a fold",
    "crash in a handler",
    "crash in an alarm handler",
    "crash in the sync of a commit",
    "crash in the write of a commit",
    "crash while opening",
    "crash with a group gathering",
    "crash with answers at the gate",
    "crash: kill survives",
    "crash: nothing survives",
    "crash: prefix survives",
    "crash: subset survives",
    "crash: torn survives",
    "disk full",
    "evicted",
    "eviction asked for before the gate opened",
    "opened after a crash while opening",
    "second crash while opening",
)


@dataclass(slots=True)
class Report:
    """What some seeds came to."""

    seeds: int = 0
    steps: int = 0
    failed: list[int] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    digest: str = ""  # of all that happened

    def add(self, other: Report) -> None:
        self.seeds += other.seeds
        self.steps += other.steps
        self.failed += other.failed
        self.states += other.states
        both = (self.digest + other.digest).encode()
        self.digest = hashlib.sha256(both).hexdigest()


def simulate(seeds: Iterable[int], mutant: str | None = None) -> Report:
    """Run seeds one after the other, in this process; a mutant until it is found."""
    report = Report()
    digest = hashlib.sha256()
    with planted(mutant):
        for seed in seeds:
            world = run(plan_of(seed))
            report.seeds += 1
            report.steps += world.steps
            report.states += world.diary.states
            digest.update(
                f"{seed}\n{world.diary.story}\n{world.diary.problems}\n".encode()
            )
            if world.diary.problems:
                report.failed.append(seed)
                if mutant is not None:
                    break
    report.digest = digest.hexdigest()
    return report


def first_found(mutant: str, seeds: int = MUTANT_SEEDS) -> tuple[str, int | None, str]:
    """Return the first seed that finds a mutant, and what was wrong with it."""
    with planted(mutant):
        for seed in range(seeds):
            world = run(plan_of(seed))
            if world.diary.problems:
                return mutant, seed, world.diary.problems[0]
    return mutant, None, ""


# -- making a plan smaller -----------------------------------------------------


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """Leave out what a plan can do without and still fail."""
    runs = 0
    has_changed = True
    while has_changed and runs < _SHRINK_RUNS_MAX:
        has_changed = False
        for smaller in _smaller(plan):
            runs += 1
            if fails(smaller):
                plan, has_changed = smaller, True
                break
            if runs >= _SHRINK_RUNS_MAX:
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    replace = msgspec.structs.replace
    for n in range(len(plan.clients)):
        yield replace(plan, clients=plan.clients[:n] + plan.clients[n + 1 :])
    for n in range(len(plan.lives)):
        yield replace(plan, lives=plan.lives[:n] + plan.lives[n + 1 :])
    for n, script in enumerate(plan.clients):
        for size in (len(script) // 2, 1):
            for start in reversed(range(0, len(script), size or 1)):
                shorter = script[:start] + script[start + (size or 1) :]
                yield replace(
                    plan, clients=(*plan.clients[:n], shorter, *plan.clients[n + 1 :])
                )
    for n, life in enumerate(plan.lives):
        for name, nothing in (("evictions", ()), ("jumps", ()), ("full_ms", None)):
            if getattr(life, name) != nothing:
                calmer = replace(life, **{name: nothing})
                yield replace(
                    plan, lives=(*plan.lives[:n], calmer, *plan.lives[n + 1 :])
                )
    usual = type(plan.settings)()
    for name in plan.settings.__struct_fields__:
        if getattr(plan.settings, name) != getattr(usual, name):
            calmer_settings = replace(plan.settings, **{name: getattr(usual, name)})
            yield replace(plan, settings=calmer_settings)


# -- the command ---------------------------------------------------------------


def _chunks(first: int, seeds: int) -> Iterator[range]:
    for start in range(first, first + seeds, _CHUNK):
        yield range(start, min(start + _CHUNK, first + seeds))


def _in_processes(first: int, seeds: int, mutant: str | None) -> Report:
    report = Report()
    with _pool() as pool:
        pending = _chunks(first, seeds)
        running = [pool.submit(simulate, part, mutant) for part in islice(pending, 4)]
        while running:
            report.add(running.pop(0).result())
            if report.failed:
                for left in running:
                    left.cancel()
                break
            running += [
                pool.submit(simulate, part, mutant) for part in islice(pending, 1)
            ]
    return report


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


def _tell_failure(plan: Plan, mutant: str | None) -> None:
    with planted(mutant):
        world = run(plan)
    kind = _kind(world.diary.problems[0])

    def fails(smaller: Plan) -> bool:
        with planted(mutant):
            return kind in [_kind(problem) for problem in run(smaller).diary.problems]

    _say(
        f"seed {plan.seed} fails:",
        *(f"  {problem}" for problem in world.diary.problems),
    )
    smallest = shrink(plan, fails)
    with planted(mutant):
        world = run(smallest)
    _say("as small as it gets:", world.diary.story)
    _say(*(f"  {problem}" for problem in world.diary.problems))
    _say(f"to keep it, as {REGRESSIONS.name}/NAME.json:", to_json(smallest))


def _kind(problem: str) -> str:
    """Return a problem without its numbers: the same bug, somewhere else."""
    return re.sub(r"[0-9.]+|north|south|west", "", problem)[:60]


def _tell_mutants(seeds: int) -> int:
    missed = 0
    with _pool() as pool:
        found = [pool.submit(first_found, name, seeds) for name in MUTANTS]
        for each in found:
            name, seed, problem = each.result()
            missed += seed is None
            place = "not found" if seed is None else f"seed {seed}"
            _say(f"{name:40} {place:>10}  {problem[:100]}")
    _say(f"{len(MUTANTS) - missed} of {len(MUTANTS)} found within {seeds} seeds")
    return 1 if missed else 0


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds and print a report; 1 if one has failed or a state was not reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.simulate")
    parser.add_argument("--seeds", type=int, default=SEEDS_TO_REACH)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--mutant", choices=sorted(MUTANTS))
    parser.add_argument("--mutants", action="store_true", help="try all of them")
    parser.add_argument("--plan", type=Path, help="run a plan that was kept")
    options = parser.parse_args(arguments)
    if options.plan is not None:
        with planted(options.mutant):
            world = run(from_json(options.plan.read_text()))
        _say(world.diary.story, *world.diary.problems)
        return 1 if world.diary.problems else 0
    if options.mutants:
        return _tell_mutants(min(options.seeds, MUTANT_SEEDS))
    started = time.monotonic()
    report = _in_processes(options.first, options.seeds, options.mutant)
    seconds = time.monotonic() - started
    for state in sorted({*STATES, *report.states}):
        _say(f"{report.states[state]:9}  {state}")
    _say(
        f"{report.seeds} seeds in {seconds:.0f} s, {report.seeds / seconds * 60:.0f} a"
        f" minute, {report.steps // max(report.seeds, 1)} steps each",
        f"digest {report.digest}",
    )
    if report.failed:
        _tell_failure(plan_of(min(report.failed)), options.mutant)
        return 1
    unreached = [state for state in STATES if not report.states[state]]
    if unreached and report.seeds >= SEEDS_TO_REACH:
        _say("never reached:", *(f"  {state}" for state in unreached))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
