"""The runs of the simulation: workflows whose steps post to a ledger outside.

The ledger outlives every crash: what is posted stays posted. It gives each post a
number, which is the step's result; from what the next step is handed it can tell
whether a result that was recorded has changed (G5), and whether a step begins that
should not (G21, G29).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from durable_actor.rpc import OutboxEvent
from workflows import Recovery, Step, create_durable_workflows, workflow

RECOVERIES_MAX = 2
POISON = "poison"  # a run of this name kills the process in its second step


class Ledger:
    """What the steps did, seen from outside."""

    check: Callable[[object, str], None]
    crash: Callable[[], None]
    saw: Callable[[str], None]

    def __init__(self) -> None:
        self.posts: Counter[tuple[str, int]] = Counter()
        self.handed: dict[tuple[str, int], list[int]] = {}
        self.cancelled: set[str] = set()  # and it was acknowledged
        self.kills: Counter[str] = Counter()
        self.numbers: dict[str, list[int]] = {}  # events, by run
        self.sink_fails: Callable[[], bool] = lambda: False
        self._next = 0

    def post(self, run: str, place: int, before: list[int]) -> int:
        """Take a post of one step, which knows the results of those before it."""
        self.check(run not in self.cancelled, f"{run}: step {place} after its end")
        is_new = (run, place + 1) not in self.handed
        self.check(is_new, f"{run}: step {place} ran again, though it was recorded")
        known = self.handed.setdefault((run, place), before)
        self.check(known == before, f"{run}: results changed: {known}, {before}")
        self.posts[run, place] += 1
        if self.posts[run, place] > 1:
            self.saw("a step ran again")
        if run == POISON and place == 1:
            self.kills[run] += 1
            self.crash()
        self._next += 1
        return self._next

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        """Take events of runs (G9)."""
        if self.sink_fails():
            message = "the tracker is away"
            raise ConnectionError(message)
        for event in events:
            seq, run = int(str(event.data["seq"])), str(event.data["workflowId"])
            arrived = self.numbers.setdefault(run, [])
            if seq > len(arrived):
                self.check(seq == len(arrived) + 1, f"{run}: event {seq} has a gap")
                arrived.append(seq)


class _Anyone:
    """The ledger of the world that runs now."""

    ledger: Ledger

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        await self.ledger.deliver(events)


BOOKS = _Anyone()


@workflow
async def chain(step: Step, order: Mapping[str, Any]) -> list[int]:
    """Post once a step; sleep between them."""
    results: list[int] = []
    for place in range(int(order["steps"])):

        async def post(place: int = place) -> int:
            return BOOKS.ledger.post(str(order["run"]), place, list(results))

        results.append(await step.run(f"post {place}", post))
        if order["sleep_ms"]:
            await step.sleep(f"rest {place}", int(order["sleep_ms"]))
    return results


Workflows, Client = create_durable_workflows(
    {"chain": chain},
    tracker=BOOKS,
    recovery=Recovery(max_attempts=RECOVERIES_MAX, delay=5),
    retention=None,
    resident_sleep=4,
)
