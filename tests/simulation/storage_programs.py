"""Storage programs: what an object may do with its storage, against a sorted dict.

    python -m tests.simulation.storage_programs [--programs 10000] [--seed N]
        [--break CONTROL]

A program is a list of steps made from a seed: calls that put, delete, list, set alarms
and run transactions, and between them evictions, folds, restarts and crashes, at rest
and in the middle of a call. It runs on a real host with a real shard. Each answer is
compared with that of a dict; after a crash, what is found must be what the dict held at
the end of a turn, and of none before the last that was acknowledged.

Programs come in two sizes: objects that are in memory whole, and, with every bound of
the cache made tiny, objects that are read from the disk a few keys at a time. One in
fifty has its shard in a process of its own.

A program that fails is made shorter as long as it still fails, and printed with its
seed. `--break` is the control: storage that is wrong in a known way must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import pprint
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import structlog

from durable_actor import DurableObject
from durable_actor.storage import committer as committer_module
from durable_actor.storage import kv
from durable_actor.storage import overlay as overlay_module
from durable_actor.storage import shard as shard_module
from durable_actor.storage.committer import Committer
from durable_actor.storage.facade import (
    DurableObjectStorage,
    DurableObjectTransaction,
    KeyValueStorage,
)
from durable_actor.storage.fold import ObjectChange
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.store import DriverKind
from durable_actor.testing import START_MS, TestHost, open_test_host

Step: TypeAlias = tuple[Any, ...]
State: TypeAlias = tuple[dict[str, Any], int | None]  # the keys and the alarm

SEED = 20_000
PROCESS_EVERY = 50
SHRINK_RUNS_MAX = 300
CALL_SECONDS_MAX = 20.0
KEYS = [
    *("", "a", "a\x00", "a\x00b", "ab", "a\ufffd", "a\U0010ffff", "b", "ba", "é"),
    *("\ud7ff", "\ue000", "\ufffd", "😀", "\U0010ffff", "\U0010ffff\U0010ffff"),
]
PREFIXES = ["", "a", "a\x00", "\ud7ff", "\U0010ffff", "z"]
# Operations that may suspend, which ends the turn of what was written before them.
SUSPENDING = frozenset(
    ("get", "get_many", "list", "list_pages", "yield", "sync", "transaction")
)
MEMORY = Path("/dev/shm")  # syncing costs nothing there, and counts as much


# -- making programs ------------------------------------------------------------


class Author:
    """Writes the program of a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def program(self) -> list[Step]:
        """Return a program; it begins with keys, so that there is something to lose."""
        rng = self._rng
        entries = {key: self._value() for key in rng.sample(KEYS, rng.randint(0, 12))}
        steps: list[Step] = [("call", [("put_many", entries)]), ("fold",), ("evict",)]
        return steps + [self._step() for _ in range(rng.randint(4, 14))]

    def _step(self) -> Step:
        rng = self._rng
        kind = rng.choices(
            ("call", "crash_in", "evict", "fold", "crash", "restart"),
            (12, 4, 4, 2, 2, 1),
        )[0]
        if kind == "call":
            return ("call", self._work(8))
        if kind == "crash_in":
            return (
                "crash_in",
                self._work(8),
                rng.choice((0, 1, 2, 3, 5, 8, 13, 30, 80)),
            )
        return (kind,)

    def _work(self, length: int, *, depth: int = 0) -> list[Step]:
        return [self._operation(depth) for _ in range(self._rng.randint(1, length))]

    def _operation(self, depth: int) -> Step:
        rng = self._rng
        kinds = {
            "put": 6,
            "put_many": 2,
            "delete": 4,
            "delete_later": 1,
            "delete_many": 2,
            "get": 3,
            "get_many": 2,
            "list": 4,
            "list_pages": 1,
            "alarm": 2,
            "yield": 3,
            "transaction": 0 if depth > 2 else 3,
            "sync": 0 if depth else 1,
            "delete_all": 0 if depth else 1,
        }
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        some = rng.sample(KEYS, rng.randint(0, 5))
        match kind:
            case "put":
                return (kind, rng.choice(KEYS), self._value())
            case "put_many":
                return (kind, {key: self._value() for key in some})
            case "delete" | "delete_later" | "get":
                return (kind, rng.choice(KEYS))
            case "delete_many" | "get_many":
                return (kind, some)
            case "list":
                return (kind, self._range())
            case "list_pages":
                return (kind, rng.randint(1, 4))
            case "alarm":
                return (kind, rng.choice((None, 1, 2, 3)))
            case "transaction":
                ending = rng.choice(("commit", "commit", "rollback", "raise"))
                return (kind, self._work(6, depth=depth + 1), ending)
            case _:
                return (kind,)

    def _value(self) -> Any:
        rng = self._rng
        return rng.choice((rng.randint(0, 99), "x" * rng.randint(1, 60), None))

    def _range(self) -> dict[str, Any]:
        rng = self._rng
        options: dict[str, Any] = {}
        if rng.random() < 0.4:
            options["prefix"] = rng.choice(PREFIXES)
        if rng.random() < 0.6:
            options[rng.choice(("start", "start_after"))] = rng.choice(KEYS)
        if rng.random() < 0.4:
            options["end"] = rng.choice(KEYS)
        if rng.random() < 0.5:
            options["limit"] = rng.randint(1, 5)
        if rng.random() < 0.5:
            options["reverse"] = True
        return options


def is_large(seed: int) -> bool:
    """Whether the program of this seed runs with tiny bounds."""
    return seed % 2 == 1


def driver_of(seed: int) -> DriverKind:
    """Return where the shard of this program's host lives."""
    return "process" if seed % PROCESS_EVERY == PROCESS_EVERY - 1 else "thread"


# -- running them -----------------------------------------------------------------


class WrongError(Exception):
    """The storage and the dict disagree."""


class UndoError(Exception):
    """Raised in a transaction to roll it back."""


class Cell(DurableObject):
    """The object under test; what it does is in the hands of the machine."""

    async def play(self) -> None:
        """Do the work that the machine has for this call."""
        await self.env.machine.work(self.ctx.storage)

    async def alarm(self) -> None:
        """Never: the clock stands still."""
        raise AssertionError


class Machine:
    """Plays a program on a host and on a dict."""

    def __init__(self) -> None:
        self.test: TestHost
        self.counts: Counter[str] = Counter()
        self.problem: str | None = None
        self._model: dict[str, Any] = {}
        self._alarm: int | None = None
        self._steps: Sequence[Step] = ()
        self._found: list[State] | None = None  # to be told the state, and do no work
        # What the dict held at each end of a turn since the last acknowledged one. Each
        # await may be such an end.
        self._history: list[State] = [({}, None)]

    async def play(self, step: Step) -> None:
        """Play one step of a program."""
        self.counts[step[0]] += 1
        match step:
            case ("call", steps):
                await self._call(steps)
            case ("crash_in", steps, passes):
                await self._crash_in(steps, passes)
            case ("evict",):
                cells = self.test.host.namespace(Cell)
                await self.test.host.evict(cells.id_from_name("cell"))
            case ("fold",):
                await self.test.host.committer.fold()
            case ("crash",):
                await self._crash()
            case ("restart",):
                await self.test.host.close()
                await self.test.start()
                await self._call([("list", {})])
            case _:
                raise AssertionError(step)

    async def work(self, storage: DurableObjectStorage) -> None:
        """Play the operations of a call, inside the object."""
        if self._found is not None:
            self._found.append((await storage.list(), await storage.get_alarm()))
            return
        for step in self._steps:
            await self._operate(storage, step, storage)
        self._end_turn()

    async def _call(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        async with asyncio.timeout(CALL_SECONDS_MAX):
            await self._cell().play()
        self._acknowledge(len(self._history) - 1)

    async def _crash_in(self, steps: Sequence[Step], passes: int) -> None:
        self._steps = steps
        call = asyncio.ensure_future(self._cell().play())
        for _ in range(passes):
            await asyncio.sleep(0)
        if call.done() and call.exception() is None:
            self._acknowledge(len(self._history) - 1)
        await self._crash(call)

    async def _crash(self, call: asyncio.Future[None] | None = None) -> None:
        await self.test.crash()
        if call is not None:
            await asyncio.wait([call])
            call.exception()  # it was cut off, or came to its end
        await self.test.start()
        cells = self.test.host.namespace(Cell)
        found = self._found = []
        await cells.get_by_name("cell").play()
        self._found = None
        places = [n for n, state in enumerate(self._history) if state == found[0]]
        if not places:
            self._wrong(f"found {found[0]} after a crash, none of {self._history}")
        self.counts["crashes"] += 1
        self.counts["crashes_with_work"] += len(self._history) > 1
        self.counts["crashes_newer"] += places[-1] > 0
        keys, self._alarm = found[0]
        self._model = dict(keys)
        self._history = [found[0]]

    def _cell(self) -> Cell:
        return self.test.host.namespace(Cell).get_by_name("cell")

    def _end_turn(self) -> None:
        self._history.append((dict(self._model), self._alarm))

    def _acknowledge(self, place: int) -> None:
        del self._history[:place]

    async def _operate(
        self, storage: DurableObjectStorage, step: Step, face: KeyValueStorage
    ) -> None:
        is_outside = face is storage
        self.counts[step[0]] += 1
        model = self._model
        if is_outside and step[0] in SUSPENDING:
            self._end_turn()
        match step:
            case ("put", key, value):
                face.put(key, value)
                model[key] = value
            case ("put_many", entries):
                await face.put(entries)
                model.update(entries)
            case ("delete", key):
                deleted, existed = face.delete(key), key in model
                model.pop(key, None)
                self._end_turn_if(is_outside)
                self._compare(await deleted, existed, step)
            case ("delete_later", key):
                face.delete(key)
                model.pop(key, None)
            case ("delete_many", keys):
                deleted_keys, count = face.delete(keys), len({*keys} & {*model})
                for key in keys:
                    model.pop(key, None)
                self._end_turn_if(is_outside)
                self._compare(await deleted_keys, count, step)
            case ("get", key):
                self._compare(await face.get(key, "no"), model.get(key, "no"), step)
            case ("get_many", keys):
                expected = {key: model[key] for key in sorted({*keys} & {*model})}
                self._compare(_pairs(await face.get(keys)), _pairs(expected), step)
            case ("list", options):
                found = await face.list(**options)
                self._compare(_pairs(found), self._listed(**options), step)
            case ("list_pages", limit):
                await self._list_pages(face, limit, step)
            case ("alarm", None):
                face.delete_alarm()
                self._alarm = None
            case ("alarm", minutes):
                self._alarm = START_MS + minutes * 60_000
                face.set_alarm(self._alarm)
            case ("yield",):
                await asyncio.sleep(0)
            case ("sync",):
                await storage.sync()
                self._acknowledge(len(self._history) - 1)
            case ("delete_all",):
                storage.delete_all()
                model.clear()
                self._alarm = None
            case ("transaction", steps, ending):
                await self._transact(storage, steps, ending)
            case _:
                raise AssertionError(step)
        self._compare(await face.get_alarm(), self._alarm, step)

    async def _transact(
        self, storage: DurableObjectStorage, steps: Sequence[Step], ending: str
    ) -> None:
        before = dict(self._model), self._alarm
        self.counts[f"transactions: {ending}"] += 1

        async def callback(transaction: DurableObjectTransaction) -> None:
            for step in steps:
                await self._operate(storage, step, transaction)
            if ending == "raise":
                raise UndoError
            if ending == "rollback":
                transaction.rollback()

        is_kept = False
        try:
            await storage.transaction(callback)
            is_kept = ending == "commit"
        except UndoError:
            pass
        finally:
            if not is_kept:
                keys, self._alarm = before
                self._model.clear()
                self._model.update(keys)

    async def _list_pages(self, face: KeyValueStorage, limit: int, step: Step) -> None:
        found: list[tuple[str, Any]] = []
        page = await face.list(limit=limit)
        while page:
            found += page.items()
            page = await face.list(limit=limit, start_after=found[-1][0])
        self._compare(found, self._listed(), step)

    def _end_turn_if(self, is_outside: bool) -> None:
        if is_outside:
            self._end_turn()

    def _compare(self, found: object, expected: object, step: Step) -> None:
        if found != expected:
            self._wrong(f"{step}: found {found!r}, expected {expected!r}")

    def _wrong(self, problem: str) -> None:
        self.problem = self.problem or problem
        raise WrongError(problem)

    def _listed(
        self,
        *,
        prefix: str = "",
        start: str = "",
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[tuple[str, Any]]:
        chosen = [
            key
            for key in sorted(self._model, key=str.encode, reverse=reverse)
            if key.startswith(prefix)
            and key >= start
            and (start_after is None or key > start_after)
            and (end is None or key < end)
        ]
        return [(key, self._model[key]) for key in chosen[:limit]]


def _pairs(values: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(values.items())


async def run(
    program: Sequence[Step], *, large: bool, driver: DriverKind
) -> tuple[str | None, Counter[str]]:
    """Play one program on a directory of its own; return what was wrong, and counts."""
    machine = Machine()
    place = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="programs-", dir=place) as folder,
        sizes(large=large),
    ):
        async with open_test_host(
            folder, classes=[Cell], env={"machine": machine}, driver=driver
        ) as machine.test:
            try:
                for step in (*program, ("crash",)):
                    await machine.play(step)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is wrong
                problem = machine.problem or f"{type(error).__name__}: {error}"
                return problem, machine.counts
    return None, machine.counts


@contextmanager
def sizes(*, large: bool) -> Iterator[None]:
    """Make every bound of the cache tiny, or leave all as they are."""
    if not large:
        yield
        return
    with (
        patch.object(shard_module, "HYDRATE_KEYS_MAX", 2),
        patch.object(shard_module, "HYDRATE_VALUE_BYTES_MAX", 40),
        patch.object(shard_module, "_INLINE_BYTES_MAX", 20),
        patch.object(shard_module, "_PAGE_INLINE_BYTES_MAX", 20),
        patch.object(kv, "PAGE_KEYS_MAX", 2),
        patch.object(overlay_module, "PARTIAL_CACHE_BYTES_MAX", 500),
        patch.object(committer_module, "HYDRATE_BYTES_MAX", 600),
    ):
        yield


async def shrink(program: list[Step], fails: Callable[[list[Step]], Any]) -> list[Step]:
    """Leave out steps, and operations of calls, as long as the program still fails."""
    runs = 0
    has_changed = True
    while has_changed and runs < SHRINK_RUNS_MAX:
        has_changed = False
        for shorter in _shorter(program):
            runs += 1
            if await fails(shorter):
                program, has_changed = shorter, True
                break
            if runs >= SHRINK_RUNS_MAX:
                break
    return program


def _shorter(program: list[Step]) -> Iterator[list[Step]]:
    for place in reversed(range(len(program))):
        yield program[:place] + program[place + 1 :]
    for place, step in enumerate(program):
        if step[0] in ("call", "crash_in", "transaction"):
            for inner in _shorter(step[1]):
                yield [
                    *program[:place],
                    (step[0], inner, *step[2:]),
                    *program[place + 1 :],
                ]


# -- the controls -------------------------------------------------------------------


@contextmanager
def broken(control: str | None) -> Iterator[None]:
    """Make the storage wrong in a known way, in the length of this context."""
    if control is None:
        yield
        return
    with CONTROLS[control]():
        yield


@contextmanager
def _forget_deletes_on_reload() -> Iterator[None]:
    add = ObjectChange.add

    def wrong(change: ObjectChange, seal: Any) -> None:
        add(change, seal)
        for key in [key for key, value in change.keys.items() if value is None]:
            del change.keys[key]

    with patch.object(ObjectChange, "add", wrong):
        yield


@contextmanager
def _keep_a_key_at_rollback() -> Iterator[None]:
    rollback = Overlay.rollback

    def wrong(overlay: Overlay) -> None:
        undo = overlay._undo[-1] if overlay._undo else None
        if undo is not None and undo.cache:
            undo.cache.popitem()
        rollback(overlay)

    with patch.object(Overlay, "rollback", wrong):
        yield


@contextmanager
def _drop_what_is_not_durable() -> Iterator[None]:
    with patch.object(Overlay, "_needed", lambda _: set()):
        yield


@contextmanager
def _acknowledge_before_the_commit() -> Iterator[None]:
    def wrong(_: Committer, ticket: int, settled: Callable[[None], None]) -> None:
        del ticket
        settled(None)

    with patch.object(Committer, "when_durable", wrong):
        yield


@contextmanager
def _tear_a_turn() -> Iterator[None]:
    seal = Committer.seal

    def wrong(
        committer: Committer, whole: Any, raw_id: bytes = b"", *rest: Any, **more: Any
    ) -> int:
        if len(whole.keys) > 3 and not whole.cleared:
            half = dict(list(whole.keys.items())[:2])
            first = type(whole)(whole.num, half, row=whole.row)
            seal(committer, first, raw_id)
            committer._flush()
        return seal(committer, whole, raw_id, *rest, **more)

    with patch.object(Committer, "seal", wrong):
        yield


CONTROLS = {
    "forget-deletes": _forget_deletes_on_reload,
    "rollback-keeps-a-key": _keep_a_key_at_rollback,
    "drop-what-is-not-durable": _drop_what_is_not_durable,
    "acknowledge-early": _acknowledge_before_the_commit,
    "tear-a-turn": _tear_a_turn,
}


# -- many of them -----------------------------------------------------------------


async def search(
    programs: int, *, seed: int = SEED, control: str | None = None
) -> tuple[int | None, str | None, Counter[str]]:
    """Run programs until one fails; return its seed, what was wrong, and counts."""
    counts: Counter[str] = Counter()
    with broken(control):
        for number in range(seed, seed + programs):
            problem, found = await run(
                Author(number).program(),
                large=is_large(number),
                driver=driver_of(number),
            )
            counts += found
            counts["programs"] += 1
            counts["programs: large"] += is_large(number)
            counts["programs: process"] += driver_of(number) == "process"
            if problem is not None:
                return number, problem, counts
    return None, None, counts


async def _explain(seed: int, control: str | None) -> list[Step]:
    async def fails(program: list[Step]) -> bool:
        problem, _ = await run(program, large=is_large(seed), driver=driver_of(seed))
        return problem is not None

    with broken(control):
        return await shrink(Author(seed).program(), fails)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run programs and print a report; 1 if one has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.storage_programs")
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=SEED, help="of the first program")
    parser.add_argument("--break", dest="control", choices=sorted(CONTROLS))
    options = parser.parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )
    started = time.monotonic()
    failed, problem, counts = asyncio.run(
        search(options.programs, seed=options.seed, control=options.control)
    )
    report: dict[str, Any] = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "failed_seed": failed,
        **dict(sorted(counts.items())),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if failed is None:
        return 0
    sys.stdout.write(f"{problem}\nagain: --seed {failed} --programs 1\n")
    shortest = asyncio.run(_explain(failed, options.control))
    sys.stdout.write(pprint.pformat(shortest) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
