"""`durable-actor demo`: a counter, an alarm, and an order that survives a `SIGKILL`.

    python -m workflows.demo [--json] [--data-dir DIR]

Theory of operation
    Two workers, one after the other, open a host on the same directory. Both are
    started by the same command line. The first finds the directory new and begins: it
    counts, sets an alarm, and places an order, whose workflow sleeps between two steps.
    That is when it is killed. The second is told nothing: its host finds on disk what
    was under way.

    Nothing that is shown is assumed. The code that runs says so itself, by adding a
    line to a file (`Trace`) with the id of its process, and the story is told from
    these lines. At the end they are compared with what the run's journal says.

It is longer than its story, because it also checks what it tells.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import msgspec
import structlog

from durable_actor import AlarmInfo, DurableObject, Host, SystemClock
from workflows import (
    Backoff,
    Paused,
    Retry,
    RunInfo,
    Step,
    WorkflowHandle,
    create_durable_workflows,
    workflow,
)

DEADLINE_SECONDS = 30  # for each worker; it takes three, but the machine may be busy
LOOK_SECONDS = 0.02
ALARM_DELAY_MS = 200
COOLING_OFF_MS = 2_000  # time to be killed in, also on a busy machine
_PACKAGES = Path(__file__).resolve().parent.parent


# What runs in the workers.


class Counter(DurableObject):
    """Counts."""

    async def increment(self) -> int:
        """Add one and return the value."""
        value = await self.value() + 1
        self.ctx.storage.put("value", value)
        return value

    async def value(self) -> int:
        """Return the value."""
        value: int = await self.ctx.storage.get("value", 0)
        return value


class Reminder(DurableObject):
    """Rings once, after a while."""

    async def remind_in(self, delay_ms: int) -> None:
        """Set the alarm."""
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms() + delay_ms)

    async def has_rung(self) -> bool:
        """Return whether it has."""
        has_rung: bool = await self.ctx.storage.get("has rung", default=False)
        return has_rung

    async def alarm(self, info: AlarmInfo) -> None:
        """Ring."""
        self.env.TRACE.add("alarm", due_at_ms=info.scheduled_at_ms)
        self.ctx.storage.put({"has rung": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is ordered."""

    id: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What comes of it."""

    order_id: str
    paid_cents: int
    parcels: tuple[str, ...]


ORDER = Order(id="order-17", items=("lamp", "book"))
PRICES_CENTS = {"lamp": 4_500, "book": 1_300}


@workflow
async def process_order(step: Step, order: Order) -> Receipt:
    """Charge, give time for second thoughts, pack."""
    price_cents = await step.run("fetch prices", fetch_prices, step, order)
    retry = Retry(max_attempts=3, delay=Backoff.exponential("100 ms"))
    paid_cents = await step.run(
        "charge card", charge_card, step, price_cents, retry=retry
    )
    await step.sleep("cooling off", COOLING_OFF_MS)
    parcels = [await step.run(f"pack {item}", pack, step, item) for item in order.items]
    await step.run("send parcels", send, step, tuple(parcels))
    return Receipt(order_id=order.id, paid_cents=paid_cents, parcels=tuple(parcels))


async def fetch_prices(step: Step, order: Order) -> int:
    """Return what the items cost together."""
    step.env.TRACE.add("step", "fetch prices", attempt=step.attempt)
    return sum(PRICES_CENTS[item] for item in order.items)


async def charge_card(step: Step, price_cents: int) -> int:
    """Take the money; the first attempt fails."""
    if step.attempt == 1:
        error = "the bank hung up"
        step.env.TRACE.add("step", "charge card", attempt=1, error=error)
        raise ConnectionError(error)
    step.env.TRACE.add("step", "charge card", attempt=step.attempt)
    return price_cents


async def pack(step: Step, item: str) -> str:
    """Return the number of the parcel."""
    step.env.TRACE.add("step", f"pack {item}", attempt=step.attempt)
    return f"{item} in a box"


async def send(step: Step, parcels: tuple[str, ...]) -> int:
    """Hand everything over."""
    step.env.TRACE.add("step", "send parcels", attempt=step.attempt)
    return len(parcels)


Workflows, WorkflowClient = create_durable_workflows(
    {"process_order": process_order}, name="Orders"
)


async def _work(directory: Path) -> None:
    """Be a worker: begin if the directory is new, and stay until the order is done."""
    render = structlog.processors.JSONRenderer()
    structlog.configure(processors=[structlog.processors.format_exc_info, render])
    trace = Trace(directory / "trace.jsonl")
    classes: list[type[DurableObject]] = [Counter, Reminder, Workflows]
    async with Host(directory / "data", classes=classes, env={"TRACE": trace}) as host:
        trace.add("opened", epoch=host.epoch)
        counter = host.namespace(Counter).get_by_name("visits")
        if host.epoch == 1:
            for _ in range(3):
                trace.add("counter", value=await counter.increment())
            await _ring(host.namespace(Reminder).get_by_name("tea"), trace)
            client = WorkflowClient.from_binding(host.namespace(Workflows))
            trace.add("order", ORDER.id)
            run = await client.start(process_order, ORDER, id=ORDER.id)
            await _until_asleep(run, trace)
        else:
            trace.add("counter", value=await counter.value())
        await _until_over(host)
        # Only now is the run asked anything.
        client = WorkflowClient.from_binding(host.namespace(Workflows))
        run = client.get(process_order, ORDER.id)
        receipt = msgspec.to_builtins(await run.result())
        trace.add("ended", receipt=receipt, steps=_steps(await run.describe()))


async def _ring(reminder: Reminder, trace: Trace) -> None:
    """Set the alarm and wait until it has rung."""
    trace.add("alarm set", delay_ms=ALARM_DELAY_MS)
    await reminder.remind_in(ALARM_DELAY_MS)
    while not await reminder.has_rung():  # noqa: ASYNC110  # asks as a client would
        await asyncio.sleep(LOOK_SECONDS)


async def _until_asleep(run: WorkflowHandle[Receipt], trace: Trace) -> None:
    """Wait for the sleep. What the handle answers is on disk, so is what it tells."""
    while True:
        info = await run.describe()
        asleep = [each for each in info.steps if each.state == "sleeping"]
        if asleep and isinstance(info.status, Paused):
            trace.add(
                "asleep",
                asleep[0].name,
                steps=_steps(info),
                due_at_ms=asleep[0].due_at_ms,
            )
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _until_over(host: Host) -> None:
    """Wait for the end of the run, by looking at the directory: nobody is called."""
    while True:
        page = await host.list_objects(Workflows.__name__)
        ended = ("completed", "failed", "cancelled")
        if any(entry.attributes.get("status") in ended for entry in page.objects):
            return
        await asyncio.sleep(LOOK_SECONDS)


def _steps(info: RunInfo) -> dict[str, int]:
    """Return the steps that are recorded as done, with how many attempts they took."""
    done = [each for each in info.steps if each.kind == "run" and each.state == "done"]
    return {each.name: each.attempts for each in done}


# What they say about it.


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a trace: what happened, when, and in which process."""

    what: str
    name: str
    pid: int
    at_ms: int
    facts: dict[str, Any]


class Trace:
    """A file of happenings that only grows. A line is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, what: str, name: str = "", **facts: object) -> None:
        """Add one line, in one write: it is there, whatever happens to us next."""
        line = Happening(
            what=what,
            name=name,
            pid=os.getpid(),
            at_ms=SystemClock().now_ms(),
            facts=facts,
        )
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(file)

    def read(self) -> list[Happening]:
        """Return all lines so far."""
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().splitlines(keepends=True)
        return [
            msgspec.json.decode(line, type=Happening)
            for line in lines
            if line.endswith(b"\n")
        ]


# What starts them, kills one, and tells.


class DemoError(Exception):
    """The demonstration could not be given, or showed something else."""


class Worker:
    """A worker process. Leaving the context ends it, whatever it is doing."""

    def __init__(self, directory: Path, number: int) -> None:
        self._trace = Trace(directory / "trace.jsonl")
        self._log = directory / f"worker-{number}.log"
        command = [sys.executable, "-m", "workflows.demo", "--worker", str(directory)]
        found = os.environ.get("PYTHONPATH")
        paths = [str(_PACKAGES), *([found] if found else [])]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # ourselves
                command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def watch(self, seen: int, until: str) -> Iterator[Happening]:
        """Yield what is new in the trace as it comes, up to and with `until`."""
        ends_at = time.monotonic() + DEADLINE_SECONDS
        while True:
            status = self._process.poll()  # before the last look
            for happening in self._trace.read()[seen:]:
                seen += 1
                yield happening
                if happening.what == until:
                    return
            if status is not None:
                raise self._failed(f"ended early, with status {status}")
            if time.monotonic() > ends_at:
                raise self._failed(f"was still busy after {DEADLINE_SECONDS} seconds")
            time.sleep(LOOK_SECONDS)

    def kill(self) -> int:
        """Kill it, and return the signal it died of."""
        self._process.kill()
        return -self._process.wait()

    def wait(self) -> None:
        """Return once it has ended by itself, and well."""
        try:
            status = self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._failed("did not end") from None
        if status != 0:
            raise self._failed(f"ended with status {status}")

    def _failed(self, how: str) -> DemoError:
        said = self._log.read_text(encoding="utf-8", errors="replace")[-4_000:]
        return DemoError(f"worker {self.pid} {how}; it said:\n{said}")


@dataclass(frozen=True, slots=True)
class Performance:
    """What was seen, from the beginning to the receipt."""

    happenings: list[Happening]

    def all(self, what: str) -> list[Happening]:
        """Return the happenings of one kind."""
        return [each for each in self.happenings if each.what == what]

    @property
    def recorded_before(self) -> dict[str, int]:
        """The steps that were on disk before the kill, with their attempts."""
        steps: dict[str, int] = self.all("asleep")[0].facts["steps"]
        return steps

    @property
    def recorded(self) -> dict[str, int]:
        """The steps that were on disk in the end, with their attempts."""
        steps: dict[str, int] = self.all("ended")[0].facts["steps"]
        return steps

    @property
    def receipt(self) -> dict[str, Any]:
        """What the order came to."""
        receipt: dict[str, Any] = self.all("ended")[0].facts["receipt"]
        return receipt

    @property
    def steps(self) -> dict[str, list[Happening]]:
        """Every time the code of a step ran, by step."""
        steps: dict[str, list[Happening]] = {}
        for each in self.all("step"):
            steps.setdefault(each.name, []).append(each)
        return steps

    @property
    def not_repeated(self) -> list[str]:
        """The steps that were recorded before the kill, and ran nowhere after it."""
        (killed,) = self.all("killed")
        later = {each.name for each in self.all("step") if each.at_ms > killed.at_ms}
        return [name for name in self.recorded_before if name not in later]

    def problems(self) -> Iterator[str]:
        """Yield what is not as it was promised."""
        first, second = (each.pid for each in self.all("opened"))
        (killed,), (asleep,) = self.all("killed"), self.all("asleep")
        if killed.facts != {"victim": first, "signal": signal.SIGKILL}:
            yield f"worker {first} was not killed: {killed.facts}"
        if not self.recorded_before or self.recorded_before == self.recorded:
            yield "the kill did not come between two steps"
        if self.steps.keys() != self.recorded.keys():
            yield f"ran {list(self.steps)}, but recorded {list(self.recorded)}"
        for name, attempts in self.recorded.items():
            worker = first if name in self.recorded_before else second
            ran = [each.pid for each in self.steps.get(name, [])]
            if ran != [worker] * attempts:
                expected = f"{attempts} attempts, in worker {worker} only"
                yield f"step {name!r} was to make {expected}; it ran in {ran}"
        if set(self.not_repeated) != set(self.recorded_before):
            yield "a recorded step was repeated"
        woken = [each.at_ms for each in self.all("step") if each.pid == second]
        if not woken or woken[0] < asleep.facts["due_at_ms"]:
            yield "the sleep was cut short"
        *_, before, after = (each.facts["value"] for each in self.all("counter"))
        if before != after:
            yield f"the counter said {before} before the kill, and {after} after it"
        alarms = self.all("alarm")
        if len(alarms) != 1 or alarms[0].at_ms < alarms[0].facts["due_at_ms"]:
            yield f"the alarm was to ring once, and not early: {alarms}"
        if self.receipt["order_id"] != ORDER.id:
            yield f"the receipt is for another order: {self.receipt}"

    def to_json(self) -> dict[str, object]:
        """Return what a program wants to know."""
        problems = list(self.problems())
        (killed,), alarm = self.all("killed"), self.all("alarm")[0]
        return {
            "ok": not problems,
            "problems": problems,
            "workers": [each.pid for each in self.all("opened")],
            "kills": [
                {
                    "pid": killed.facts["victim"],
                    "signal": killed.facts["signal"],
                    "at_ms": killed.at_ms,
                    "recorded": list(self.recorded_before),
                }
            ],
            "counter": [each.facts["value"] for each in self.all("counter")],
            "alarm": {"due_at_ms": alarm.facts["due_at_ms"], "at_ms": alarm.at_ms},
            "steps": [
                {
                    "name": name,
                    "attempts": attempts,
                    "ran": [
                        {"pid": each.pid, "at_ms": each.at_ms, **each.facts}
                        for each in self.steps.get(name, [])
                    ],
                }
                for name, attempts in self.recorded.items()
            ],
            "not_repeated": self.not_repeated,
            "receipt": self.receipt,
        }


def perform(directory: Path, tell: Callable[[Happening], None]) -> Performance:
    """Run the workers, kill the first, and return what was seen.

    Raises:
        DemoError: A worker ended by itself, or did not get on.
    """
    trace = Trace(directory / "trace.jsonl")
    seen: list[Happening] = []

    def watch(worker: Worker, until: str) -> None:
        for happening in worker.watch(len(seen), until):
            seen.append(happening)
            tell(happening)

    with Worker(directory, 1) as first:
        watch(first, "asleep")
        trace.add("killed", victim=first.pid, signal=first.kill())
    with Worker(directory, 2) as second:
        watch(second, "ended")
        second.wait()
    return Performance(seen)


class Narrator:
    """Tells what happens, while it happens, in plain text."""

    def begin(self, directory: Path) -> None:
        """Say what is about to be seen."""
        _say("Objects and a workflow, in a process that is killed halfway.")
        _say(f"They are kept in {directory}")
        _say("The number before a line is the process that does it.")
        _say("\n1. A counter")

    def tell(self, happening: Happening) -> None:
        """Tell one happening."""
        facts, pid = happening.facts, happening.facts.get("victim", happening.pid)

        def line(text: str) -> None:
            _say(f"    {pid:>8}  {text}")

        match happening.what:
            case "opened" if facts["epoch"] == 1:
                line("opens a host on a new directory")
            case "opened":
                line("opens a host on the same directory; nobody mentions the order")
            case "counter":
                line(f"the counter says {facts['value']}")
            case "alarm set":
                _say("\n2. An alarm")
                line(f"sets an alarm, to ring in {facts['delay_ms']} ms")
            case "alarm":
                late_ms = happening.at_ms - facts["due_at_ms"]
                line(f"the alarm rings, {late_ms} ms after its time")
            case "order":
                _say("\n3. An order, whose workflow is to sleep between two steps")
                line(f"places {happening.name}")
            case "step":
                line(f"runs step: {_attempt(happening)}")
            case "asleep":
                line(f"the order sleeps: {happening.name}")
                line(f"on disk by now: {', '.join(facts['steps'])}")
            case "killed":
                _say("\n4. A kill")
                line("gets SIGKILL, between two steps, and is gone")
            case "ended":
                line("the order is done")

    def end(self, performance: Performance) -> None:
        """Show the timeline, and what it proves."""
        _say("\n5. The timeline of the order, as the processes reported it")
        places = [each.what for each in performance.happenings]
        shown = performance.happenings[places.index("order") :]
        began_at_ms = shown[0].at_ms
        _say(f"    {'seconds':>8}  {'process':>8}  attempt  what")
        for each in shown:
            seconds = (each.at_ms - began_at_ms) / 1_000
            process = each.facts.get("victim", each.pid)
            attempt = each.facts.get("attempt", "")
            text = _PLAIN.get(each.what, each.name)
            if each.facts.get("error"):
                text += f": fails, {each.facts['error']}"
            if text:
                _say(f"    {seconds:8.3f}  {process:>8}  {attempt:>7}  {text}")

        first, second = (each.pid for each in performance.all("opened"))
        receipt = performance.receipt
        _say(f"\n    not repeated by {second}: {', '.join(performance.not_repeated)}")
        _say(
            f"    receipt of {receipt['order_id']}: {receipt['paid_cents']} cents paid;"
        )
        _say(f"    {', '.join(receipt['parcels'])}")
        _say("")
        problems = list(performance.problems())
        for problem in problems:
            _say(f"FAILED: {problem}")
        if not problems:
            count = len(performance.recorded)
            _say(f"Checked: {count} steps were recorded, and each of them ran in one")
            _say(f"process only, {first} or {second}; the sleep went on while nobody")
            _say("ran, and was not cut short; the counter came back as it was.")


_PLAIN = {
    "order": "order placed",
    "killed": "KILLED",
    "opened": "the directory is opened again",
    "ended": "done",
    "counter": "",
}


def _attempt(step: Happening) -> str:
    attempt, error = step.facts["attempt"], step.facts.get("error")
    again = f", attempt {attempt}" if attempt > 1 else ""
    return f"{step.name}{again}" + (f", which fails: {error}" if error else "")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Give the demonstration, and return 0 if it showed what it promises.

    Args:
        argv: The options; None: none, whatever the command line of this process says.
    """
    parser = argparse.ArgumentParser(prog="durable-actor demo")
    parser.add_argument("--json", action="store_true", help="one JSON object instead")
    parser.add_argument("--data-dir", type=Path, help="keep the data here; a new one")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv or [])
    if options.worker is not None:
        asyncio.run(_work(options.worker))
        return 0
    if options.data_dir is None:
        with tempfile.TemporaryDirectory(prefix="durable-actor-demo-") as temporary:
            return _show(Path(temporary), as_json=options.json)
    options.data_dir.mkdir(parents=True, exist_ok=True)
    if any(options.data_dir.iterdir()):
        sys.stderr.write(f"{options.data_dir} is not empty; name a new directory\n")
        return 1
    return _show(options.data_dir, as_json=options.json)


def _show(directory: Path, *, as_json: bool) -> int:
    narrator = Narrator()
    if not as_json:
        narrator.begin(directory)
    try:
        performance = perform(directory, (lambda _: None) if as_json else narrator.tell)
    except DemoError as error:
        if as_json:
            _say(msgspec.json.encode({"ok": False, "problems": [str(error)]}).decode())
        else:
            _say(f"FAILED: {error}")
        return 1
    if as_json:
        _say(msgspec.json.encode(performance.to_json()).decode())
    else:
        narrator.end(performance)
    return 1 if any(performance.problems()) else 0


if __name__ == "__main__":
    # Under its own name: what the workers store must not belong to `__main__`.
    sys.exit(import_module("workflows.demo").main(sys.argv[1:]))
