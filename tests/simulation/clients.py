"""The clients: they go on with their scripts in each life, and note the answers."""

from __future__ import annotations

import asyncio
from collections import Counter

from durable_actor.errors import CallTimeoutError, DurableActorError
from durable_actor.host import Host
from tests.simulation.cells import Cell
from tests.simulation.diary import Diary
from tests.simulation.histories import Operation
from tests.simulation.plans import RUNS, Call, Plan
from tests.simulation.runs import Client, Ledger, Workflows

_ATTEMPTS_MAX = 20
# The kinds of calls whose one turn is their only effect.
_ONE_TURN = frozenset(("add", "swap", "move", "block", "arm", "fall"))


class Clients:
    """All clients of a world."""

    def __init__(self, plan: Plan, diary: Diary, ledger: Ledger) -> None:
        self._plan = plan
        self._diary = diary
        self._ledger = ledger
        self._positions = [0] * len(plan.clients)
        self._asked: dict[int, list[Operation]] = {}  # by the number of the call
        self._attempts: Counter[int] = Counter()
        self.runs: dict[str, int] = {}  # acknowledged, with the number of their steps
        self.cancels: set[str] = set()  # asked for; perhaps nobody heard

    def __len__(self) -> int:
        return len(self._positions)

    def told(self, call: int, result: int) -> None:
        """Somebody outside was told in the middle of a call."""
        (operation,) = self._asked[call]
        operation.result, operation.answered = result, self._diary.next_moment()

    async def client(self, number: int, host: Host) -> None:
        """Go on with the script of one client."""
        script, loop = self._plan.clients[number], self._diary.loop
        while self._positions[number] < len(script):
            place = self._positions[number]
            call = script[place]
            # All arrive on a grid of a millisecond: else two would never meet.
            at_ms = int(loop.time() * 1_000) + call.after_ms + 1
            await asyncio.sleep(at_ms / 1_000 - loop.time())
            if await self._ask(number * 1_000 + place, call, host):
                self._positions[number] += 1

    async def _ask(self, number: int, call: Call, host: Host) -> bool:
        """Make a call; False: it has an identity, and is to be made again."""
        if call.target in RUNS:
            return await self._ask_run(number, call, host)
        operations = self._asked.get(number)
        if operations is None:
            operations = self._asked[number] = self._expect(call)
        elif not call.identity:
            # It was under way when the process died; nobody knows what became of it.
            return True
        self._attempts[number] += 1
        is_first = self._attempts[number] == 1
        label = f"{call.target}.{call.method}{call.args}"
        args = (*call.args, number) if call.method == "post" else call.args
        stub = host.namespace(Cell).get_by_name(
            call.target,
            request_id=f"request {number}" if call.identity else None,
            timeout=call.timeout_ms if self._attempts[number] < 3 else None,
        )
        self._diary.note(f"? {label}" + ("" if is_first else " again"))
        try:
            answer = await getattr(stub, call.method)(*args)
        except DurableActorError as error:
            self._diary.note(
                f"! {label}: {type(error).__name__} {error} ({error.outcome})"
            )
            if isinstance(error, CallTimeoutError):
                self._diary.states["a call took too long"] += 1
            is_void = is_first and error.outcome != "unknown"
            if is_void and call.method in _ONE_TURN:
                for operation in operations:
                    operation.is_void = operation.result is None
                return True
            return not call.identity or self._attempts[number] > 20
        self._diary.note(f"= {label}: {answer}")
        if not is_first:
            self._diary.states["a repeated call was answered"] += 1
        answers = answer if isinstance(answer, tuple | list) else (answer,)
        for operation, result in zip(operations, answers, strict=True):
            operation.result = result
            operation.answered = min(operation.answered, self._diary.next_moment())
        return True

    async def _ask_run(self, number: int, call: Call, host: Host) -> bool:
        """Start or cancel a run; False: nobody knows, so it is to be asked again."""
        run, ledger = call.target, self._ledger
        client = Client.from_binding(host.namespace(Workflows))
        self._attempts[number] += 1
        self._diary.note(f"? {call.method} of run {run}")
        try:
            if call.method == "start":
                order = {"run": run, "steps": call.args[0], "sleep_ms": call.args[1]}
                await client.start("chain", order, id=run)
                self.runs[run] = int(call.args[0])
            else:
                self.cancels.add(run)
            if (
                call.method == "cancel"
                and (await client.get("chain", run).cancel("enough")).cancelled
            ):
                ledger.cancelled.add(run)
                self._diary.states["a run was cancelled"] += 1
        except DurableActorError as error:
            self._diary.note(f"! {call.method} of run {run}: {error} ({error.outcome})")
            return self._attempts[number] > 20
        self._diary.note(f"= {call.method} of run {run}")
        return True

    def _expect(self, call: Call) -> list[Operation]:
        """Return what a call does on which registers."""
        target, args = call.target, call.args
        match call.method:
            case "add" | "move" | "block" | "post" | "fall":
                return [self._diary.operation(target, "add", args[0], call.method)]
            case "swap":
                return [self._diary.operation(target, "set", args[0], "swap")]
            case "twice":
                return [
                    self._diary.operation(target, "add", args[0], "first of two"),
                    self._diary.operation(target, "add", args[1], "second of two"),
                ]
            case "relay":
                return [self._diary.operation(str(args[0]), "add", args[1], "relay")]
            case "transfer":
                return [
                    self._diary.operation(str(args[0]), "add", args[1], "transfer to"),
                    self._diary.operation(target, "add", args[1], "transfer from"),
                ]
            case _:
                return [self._diary.operation(target, "read", 0, call.method)]
