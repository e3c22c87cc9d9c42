"""A replay answers in the recorded order, and notices when the function has changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durable_actor.testing import START_MS
from tests.workflows.support import Bench
from workflows import Completed, NondeterminismError, Paused, Step, workflow
from workflows.journal import Entry, Kind
from workflows.replay import Replay

Body = Callable[[Step], Awaitable[Any]]


def entry(
    step: str,
    called: int,
    *,
    ended: int | None = None,
    kind: Kind = "run",
    is_forked: bool = False,
) -> Entry:
    return Entry(
        step=step,
        kind=kind,
        state="sleeping" if ended is None else "done",
        called=called,
        ended=ended,
        is_forked=is_forked,
        began_at_ms=0,
        value=step,
    )


def test_an_empty_record_is_over_from_the_start() -> None:
    replay = Replay()
    assert replay.is_over
    assert replay.meet("a", "run", is_forked=False) is None
    replay.check_all_met("the end")


def test_a_recorded_step_is_met_once() -> None:
    replay = Replay([entry("a", 0, ended=0)])
    met = replay.meet("a", "run", is_forked=False)
    assert met is not None
    assert met.value == "a"
    assert replay.is_next("a")
    replay.hand_out("a")
    assert replay.is_over


def test_answers_come_in_the_order_they_were_recorded() -> None:
    replay = Replay(
        [
            entry("a", 0, ended=1, is_forked=True),
            entry("b", 1, ended=0, is_forked=True),
        ]
    )
    replay.meet("a", "run", is_forked=True)
    replay.meet("b", "run", is_forked=True)
    assert not replay.is_next("a")
    assert replay.first_of(["a", "b"]) == "b"
    replay.hand_out("b")
    assert replay.is_next("a")


def test_a_wait_that_is_not_over_must_be_met_but_has_no_answer() -> None:
    replay = Replay([entry("nap", 0, kind="sleep")])
    assert not replay.is_over
    replay.meet("nap", "sleep", is_forked=False)
    assert replay.is_over


def test_another_order_is_refused_while_nothing_branched() -> None:
    replay = Replay([entry("a", 0, ended=0), entry("b", 1, ended=1)])
    with pytest.raises(NondeterminismError) as caught:
        replay.meet("b", "run", is_forked=False)
    assert caught.value.expected == "step 'a'"
    assert caught.value.found == "step 'b'"


def test_another_order_is_accepted_where_branches_were_recorded() -> None:
    replay = Replay(
        [
            entry("a", 0, ended=0, is_forked=True),
            entry("b", 1, ended=1, is_forked=True),
        ]
    )
    assert replay.meet("b", "run", is_forked=True) is not None
    assert replay.meet("a", "run", is_forked=True) is not None


def test_another_kind_is_refused_everywhere() -> None:
    replay = Replay([entry("a", 0, ended=0, is_forked=True)])
    with pytest.raises(NondeterminismError) as caught:
        replay.meet("a", "sleep", is_forked=True)
    assert caught.value.found == "sleep 'a'"


def test_a_step_that_was_not_met_is_named() -> None:
    replay = Replay([entry("a", 0, ended=0, is_forked=True)])
    with pytest.raises(NondeterminismError) as caught:
        replay.check_all_met("the end of the function")
    assert caught.value.expected == "step 'a'"


async def before(step: Step) -> None:
    await step.run("a", len, "a")
    await step.run("b", len, "b")
    await step.sleep("nap", "1 hour")
    await step.run("c", len, "c")


async def renamed(step: Step) -> None:
    await step.run("a", len, "a")
    await step.run("bee", len, "b")
    await step.sleep("nap", "1 hour")


async def removed(step: Step) -> None:
    await step.run("a", len, "a")
    await step.sleep("nap", "1 hour")


async def reordered(step: Step) -> None:
    await step.run("b", len, "b")
    await step.run("a", len, "a")
    await step.sleep("nap", "1 hour")


async def swapped(step: Step) -> None:
    await step.run("a", len, "a")
    await step.sleep("b", "1 hour")


async def inserted(step: Step) -> None:
    await step.run("a", len, "a")
    await step.run("between", len, "x")
    await step.run("b", len, "b")
    await step.sleep("nap", "1 hour")


async def cut_off(step: Step) -> str:
    await step.run("a", len, "a")
    return "early"


async def raising(step: Step) -> None:
    await step.run("a", len, "a")
    raise ValueError


async def careless(step: Step) -> None:
    try:
        await renamed(step)
    except Exception:  # noqa: BLE001  # must not see that the replay went astray
        await step.run("d", len, "d")


CHANGES = [
    renamed,
    removed,
    reordered,
    swapped,
    inserted,
    cut_off,
    raising,
    careless,
]


async def after_a_deploy(old: Body, new: Body) -> Bench:
    """Pause a run of the old code, then wake it up with the new."""

    @workflow(name="changing")
    async def first(step: Step) -> Any:
        return await old(step)

    @workflow(name="changing")
    async def second(step: Step) -> Any:
        return await new(step)

    bench = Bench(first)
    await bench.activate()
    await bench.run("changing")
    bench.workflows["changing"] = second
    await bench.crash()
    return bench


@pytest.mark.parametrize("new", CHANGES)
async def test_g28_a_run_whose_code_was_changed_is_parked_and_its_journal_untouched(
    new: Body,
) -> None:
    bench = await after_a_deploy(before, new)
    steps = {k: v for k, v in bench.disk.keys.items() if k.startswith("step:")}
    await bench.advance("1 hour")
    assert isinstance(bench.status, Paused)
    assert bench.status.parked is not None
    assert bench.status.resume_at_ms is None
    assert bench.disk.alarm is None
    after = {k: v for k, v in bench.disk.keys.items() if k.startswith("step:")}
    assert after == steps
    last = bench.disk.events[-1]
    assert (last["type"], last["reason"]) == ("workflow.paused", "parked")


async def test_code_that_is_put_right_takes_a_parked_run_up_again() -> None:
    bench = await after_a_deploy(before, renamed)
    await bench.advance("1 hour")

    @workflow(name="changing")
    async def mended(step: Step) -> str:
        await before(step)
        return "mended"

    bench.workflows["changing"] = mended
    await bench.crash()
    parked = bench.status
    assert isinstance(parked, Paused), "it waits for somebody to say so"
    bench.orchestrator.resume()
    await bench.settle()
    assert bench.status == Completed(START_MS + 3_600_000)
    assert await bench.output() == "mended"


async def test_a_parked_run_can_be_cancelled() -> None:
    bench = await after_a_deploy(before, renamed)
    await bench.advance("1 hour")
    assert (await bench.cancel()).cancelled


async def test_steps_may_be_added_behind_the_recorded_ones() -> None:
    async def longer(step: Step) -> str:
        await before(step)
        return await step.run("d", str, "added")

    bench = await after_a_deploy(before, longer)
    await bench.advance("1 hour")
    assert await bench.output() == "added"


async def test_a_renamed_branch_is_noticed() -> None:
    ran: list[str] = []

    async def both(step: Step, *names: str) -> None:
        await asyncio.gather(*(step.run(name, ran.append, name) for name in names))
        await step.sleep("nap", "1 hour")

    bench = await after_a_deploy(
        lambda step: both(step, "a", "b"), lambda step: both(step, "a", "bee")
    )
    await bench.advance("1 hour")
    assert isinstance(bench.status, Paused)
    assert bench.status.parked is not None
    assert ran == ["a", "b"], "noticed before the new branch did anything"


async def test_a_workflow_that_is_gone_parks_its_runs() -> None:
    bench = await after_a_deploy(before, before)
    del bench.workflows["changing"]
    await bench.crash()
    await bench.advance("1 hour")
    assert isinstance(bench.status, Paused)
    assert "changing" in (bench.status.parked or "")


class Gates:
    """Steps that end when the test says so."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[str]] = {}
        self.begun: list[str] = []

    async def step(self, name: str) -> str:
        self.begun.append(name)
        self.waiting[name] = asyncio.get_running_loop().create_future()
        return await self.waiting[name]

    def open(self, *names: str) -> None:
        for name in names:
            self.waiting.pop(name).set_result(name)


async def test_branches_with_one_name_keep_their_results_whoever_was_first() -> None:
    """In the first pass B is first to call "x"; in the replay A would be."""
    gates = Gates()
    passes: list[list[tuple[str, str]]] = []

    @workflow
    async def branches(step: Step) -> list[tuple[str, str]]:
        got: list[tuple[str, str]] = []
        passes.append(got)

        async def branch(name: str) -> None:
            await step.run(f"first {name}", gates.step, f"first {name}")
            got.append((name, await step.run("x", gates.step, f"x of {name}")))

        await asyncio.gather(branch("A"), branch("B"))
        await step.sleep("1 hour")
        return got

    bench = Bench(branches)
    await bench.activate()
    await bench.start("branches")
    await bench.settle()
    for name in ("first B", "first A", "x of A", "x of B"):
        gates.open(name)
        await bench.settle()
    await bench.crash()
    await bench.advance("1 hour")
    assert passes[0] == [("A", "x of A"), ("B", "x of B")]
    assert passes[-1] == passes[0]
    assert isinstance(bench.status, Completed)


async def test_a_replay_completes_in_the_order_of_the_first_pass() -> None:
    gates = Gates()
    orders: list[list[str]] = []

    @workflow
    async def racing(step: Step) -> None:
        order: list[str] = []
        orders.append(order)
        runs = [step.run(name, gates.step, name) for name in ("a", "b", "c")]
        for done in asyncio.as_completed(runs):
            name = await done
            order.append(await step.run(f"handle {name}", str, name))
        await step.sleep("1 hour")

    bench = Bench(racing)
    await bench.activate()
    await bench.start("racing")
    await bench.settle()
    for name in ("c", "a", "b"):
        gates.open(name)
        await bench.settle()
    await bench.crash()
    await bench.advance("1 hour")
    assert orders == [["c", "a", "b"], ["c", "a", "b"]]
    assert isinstance(bench.status, Completed)


async def test_workers_that_share_a_queue_are_replayed() -> None:
    gates = Gates()

    @workflow
    async def pool(step: Step) -> dict[str, str]:
        items = [f"item {n}" for n in range(6)]
        results: dict[str, str] = {}

        async def worker() -> None:
            while items:
                item = items.pop(0)
                results[item] = await step.run("process", gates.step, item)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(worker())
        return results

    bench = Bench(pool)
    await bench.activate()
    await bench.start("pool")
    await bench.settle()
    for name in ("item 2", "item 0", "item 3", "item 1"):
        gates.open(name)
        await bench.settle()
    assert gates.begun == [f"item {n}" for n in range(6)]
    gates.begun.clear()
    await bench.crash()
    await bench.advance("1 second")
    assert sorted(gates.begun) == ["item 4", "item 5"], "only what was under way"
    gates.open("item 4", "item 5")
    await bench.settle()
    assert await bench.output() == {f"item {n}": f"item {n}" for n in range(6)}


async def test_the_loser_of_a_race_is_not_missed_afterwards() -> None:
    gates = Gates()

    @workflow
    async def race(step: Step) -> str:
        work = asyncio.create_task(step.run("work", gates.step, "work"))
        late = asyncio.create_task(step.sleep("too late", "10 minutes"))
        done, _ = await asyncio.wait({work, late}, return_when=asyncio.FIRST_COMPLETED)
        late.cancel()
        await step.sleep("1 hour")
        return "in time" if work in done else "too late"

    bench = Bench(race)
    await bench.activate()
    await bench.start("race")
    await bench.settle()
    gates.open("work")
    await bench.settle()
    await bench.crash()
    await bench.advance("1 hour")
    assert await bench.output() == "in time"


async def test_a_branch_that_sleeps_does_not_hold_up_one_that_works() -> None:
    gates = Gates()

    @workflow
    async def two(step: Step) -> str:
        async def slow() -> None:
            await step.run("one", gates.step, "one")
            await step.sleep("2 hours")

        async def naps() -> None:
            await step.sleep("1 hour")
            await step.run("two", gates.step, "two")

        await asyncio.gather(slow(), naps())
        return "both"

    bench = Bench(two)
    await bench.activate()
    await bench.start("two")
    await bench.advance("1 hour")
    assert gates.begun == ["one", "two"], "its sleep ended although a step was running"
    gates.open("two")
    await bench.settle()
    assert bench.status is not None
    assert type(bench.status).__name__ == "Running"
    gates.open("one")
    await bench.settle()
    assert bench.status == Paused(START_MS + 3 * 3_600_000)
    await bench.advance("2 hours")
    assert await bench.output() == "both"


async def test_ten_thousand_steps_are_read_at_once_and_replayed_in_order() -> None:
    @workflow
    async def long(step: Step) -> int:
        total = 0
        for _ in range(10_000):
            total += await step.run("add", len, "x")
        await step.sleep("1 hour")
        return total

    bench = Bench(long, tracker=False)
    await bench.activate()
    await bench.run("long")
    await bench.crash()
    bench.storage.reads = 0
    await bench.advance("1 hour")
    assert await bench.output() == 10_000
    assert bench.storage.reads < 10


async def test_a_thousand_branches_are_replayed() -> None:
    @workflow
    async def wide(step: Step) -> int:
        names = [f"part {n}" for n in range(1_000)]
        parts = await asyncio.gather(*(step.run(name, len, name) for name in names))
        await step.sleep("1 hour")
        return len(parts)

    bench = Bench(wide, tracker=False)
    await bench.activate()
    await bench.run("wide")
    await bench.crash()
    await bench.advance("1 hour")
    assert await bench.output() == 1_000
