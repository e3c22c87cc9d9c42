"""Plans: what a seed makes clients ask for, and what goes wrong meanwhile.

A plan is plain data, so that it can be made smaller, printed and kept. What it leaves
open (who comes first, how long the disk takes, what survives) is drawn while it runs,
from the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from tests.simulation.runs import POISON
from tests.support.simulated_disk import SURVIVALS, Survival

NAMES = ("north", "south", "west")
RUNS = ("first", "second", POISON)


class Call(Struct, frozen=True, omit_defaults=True):
    """One call of a client, and how it asks."""

    method: str
    target: str
    args: tuple[int | str, ...] = ()
    after_ms: int = 0  # since the answer to the one before
    identity: bool = False  # has a request id, and is repeated until it is answered
    timeout_ms: int | None = None


class Life(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One life of the process: how it ends, and what goes wrong before."""

    # The first of these that comes about ends it; one in which none does is the last.
    crash_at_ms: int | None = None
    crash_at_step: int = 0
    cut_at: int = 0  # the power goes at this call of the disk
    cut_is_after: bool = False
    close_at_ms: int | None = None  # in order, whatever is under way
    survival: Survival = "nothing"
    error_at: int = 0  # this call of the disk fails
    full_ms: tuple[int, int] | None = None  # from when until when no file grows
    evictions: tuple[tuple[int, str], ...] = ()  # when, and whom
    jumps: tuple[tuple[int, int], ...] = ()  # when the clock jumps, and how far


class Settings(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Sizes that decide which ways through the code are taken."""

    is_new: bool = False  # begins with an empty disk
    log_bytes_max: int = 8_388_608
    wal_bytes_max: int = 16_777_216
    wal_grow_bytes: int = 4_096
    group_rows_max: int = 256
    group_bytes_max: int = 8_388_608
    is_partial: bool = False  # objects are in memory in part
    idle_ms: int = 10_000
    slow: float = 0.1  # how often the disk takes long
    sink_fails: float = 0.0
    alarms_fail: int = 0  # so many handlers of the seed do


class Plan(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that is decided beforehand."""

    seed: int
    clients: tuple[tuple[Call, ...], ...]
    lives: tuple[Life, ...] = ()  # one more follows, in which nothing goes wrong
    settings: Settings = Settings()


def plan_of(seed: int) -> Plan:
    """Return the plan of a seed."""
    return _Author(seed).plan()


def to_json(plan: Plan) -> str:
    """Write a plan so that a person can read it."""
    return msgspec.json.format(msgspec.json.encode(plan)).decode()


def from_json(text: str) -> Plan:
    """Read a plan that was kept."""
    return msgspec.json.decode(text, type=Plan)


class _Author:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = random.Random(f"plan {seed}")
        self._amounts: Iterator[int] = iter(())

    def plan(self) -> Plan:
        rng = self._rng
        clients = rng.choice((1, 2, 3, 3, 4))
        calls = rng.choice((4, 6, 8, 10))
        names = NAMES[: rng.choice((1, 2, 2, 3))]
        # So far apart that no sum of some is the sum of others, by any likely chance.
        amounts = rng.sample(range(1_000, 10_000_000), clients * calls * 2)
        self._amounts = iter(amounts)
        settings = self._settings()
        scripts = [[self._call(names) for _ in range(calls)] for _ in range(clients)]
        if rng.random() < 0.35:
            self._add_runs(scripts)
        return Plan(
            seed=self._seed,
            clients=tuple(tuple(script) for script in scripts),
            lives=tuple(self._life(names) for _ in range(rng.choice((0, 1, 2, 3, 4)))),
            settings=settings,
        )

    def _settings(self) -> Settings:
        rng = self._rng
        return Settings(
            is_new=rng.random() < 0.1,
            log_bytes_max=rng.choice((1, 300, 1_000, 8_388_608)),
            wal_bytes_max=rng.choice((1, 20_000, 16_777_216)),
            wal_grow_bytes=rng.choice((1, 4_096, 40_000)),
            group_rows_max=rng.choice((1, 2, 256)),
            # Of its own, so that every other choice of a seed stays as it was.
            group_bytes_max=random.Random(f"group bytes {self._seed}").choice(
                (1, 400, 1_000, 8_388_608)
            ),
            is_partial=rng.random() < 0.25,
            idle_ms=rng.choice((0, 4, 40, 10_000)),
            slow=rng.choice((0.02, 0.1, 0.5)),
            sink_fails=rng.choice((0.0, 0.0, 0.3)),
            alarms_fail=rng.choice((0, 0, 1, 3)),
        )

    def _call(self, names: tuple[str, ...]) -> Call:
        rng, amount = self._rng, next(self._amounts)
        target, other = rng.choice(names), rng.choice(NAMES)
        pauses = rng.choice((0, 0, 1, 2, 4))
        kinds: dict[str, tuple[int, tuple[int | str, ...]]] = {
            "add": (8, (amount, pauses)),
            "swap": (3, (amount, pauses)),
            "read": (5, (pauses,)),
            "peek": (3, ()),
            "twice": (2, (amount, next(self._amounts), pauses)),
            "move": (2, (amount, pauses)),
            "undo": (2, (amount, pauses)),
            "block": (1, (amount, pauses)),
            "post": (1, (amount,)),
            "fall": (1, (amount, pauses)),
            "relay": (2, (other, amount, pauses)),
            "transfer": (2, (other, amount, pauses)),
            "arm": (
                4,
                (
                    amount,
                    rng.choice((0, 1, 3, 10, 30, 2_000)),
                    rng.choice((0, 0, 2, 20)),
                ),
            ),
            "disarm": (1, ()),
        }
        if target == other:
            del kinds["relay"], kinds["transfer"]
        method = rng.choices(list(kinds), [kinds[kind][0] for kind in kinds])[0]
        return Call(
            method=method,
            target=target,
            args=kinds[method][1],
            after_ms=rng.choice((0, 0, 1, 2, 5, 20)),
            identity=method in ("add", "swap", "move", "arm") and rng.random() < 0.4,
            timeout_ms=rng.choice((1, 3)) if rng.random() < 0.06 else None,
        )

    def _add_runs(self, scripts: list[list[Call]]) -> None:
        """Start one run or two, early; perhaps cancel one."""
        rng = self._rng
        for run in rng.choice((("first",), ("first", "second"), ("first", POISON))):
            steps, sleep_ms = rng.randint(2, 4), rng.choice((0, 0, 2, 30))
            start = Call(
                method="start", target=run, args=(steps, sleep_ms), identity=True
            )
            rng.choice(scripts).insert(rng.randint(0, 2), start)
        if rng.random() < 0.3:
            cancel = Call(
                method="cancel",
                target="first",
                after_ms=rng.choice((0, 1, 3, 20)),
                identity=True,
            )
            script = rng.choice(scripts)
            script.insert(rng.randint(0, len(script)), cancel)

    def _life(self, names: tuple[str, ...]) -> Life:
        rng = self._rng
        kind: Literal["time", "step", "cut", "error", "close"] = rng.choices(
            ("time", "step", "cut", "error", "close"), (3, 3, 6, 1, 1)
        )[0]
        # Opening takes about a dozen calls of the disk, a commit three or four.
        call = rng.choice(
            (rng.randint(1, 14), rng.randint(10, 40), rng.randint(14, 150))
        )
        return Life(
            crash_at_ms=rng.randint(1, 60) if kind in ("time", "error") else None,
            crash_at_step=rng.choice((rng.randint(1, 400), rng.randint(300, 2_500)))
            if kind == "step"
            else 0,
            cut_at=call if kind == "cut" else 0,
            cut_is_after=rng.random() < 0.7,
            close_at_ms=rng.randint(1, 60) if kind == "close" else None,
            survival=rng.choices(SURVIVALS, (1, 5, 2, 2, 2))[0],
            error_at=call if kind == "error" else 0,
            full_ms=(rng.randint(0, 30), rng.randint(5, 80))
            if rng.random() < 0.15
            else None,
            evictions=tuple(
                (rng.randint(0, 40), rng.choice(names))
                for _ in range(rng.choice((0, 0, 1, 4)))
            ),
            jumps=tuple(
                (rng.randint(0, 40), rng.choice((-100_000, -20, -3, 5, 50, 100_000)))
                for _ in range(rng.choice((0, 0, 0, 1, 2)))
            ),
        )
