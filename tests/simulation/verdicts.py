"""Verdicts: what has to hold of a shard, and of everything once it has come to rest."""

from __future__ import annotations

import sqlite3

from durable_actor.codec import decode
from durable_actor.host import Host
from tests.simulation.cells import Cell
from tests.simulation.clients import Clients
from tests.simulation.diary import Diary
from tests.simulation.plans import NAMES
from tests.simulation.runs import (
    POISON,
    RECOVERIES_MAX,
    Client,
    Ledger,
    Workflows,
)
from tests.support.simulated_disk import SimulatedDisk

_CELLS = "SELECT num FROM object WHERE class = 'Cell'"


async def look_at_objects(host: Host, diary: Diary) -> None:
    """Read every register, and look for what should have ended."""
    for name in NAMES:
        stub = host.namespace(Cell).get_by_name(name)
        operation = diary.operation(name, "read", 0, "last look")
        operation.result = await stub.read(0)
        operation.answered = diary.next_moment()
        diary.note(f"last look at {name}: {operation.result}")
    stats = host.stats()
    diary.check(stats.events_waiting == 0, f"{stats.events_waiting} events wait")
    diary.check(not stats.alarms_near, f"{stats.alarms_near} reminders are left")


async def look_at_runs(
    host: Host, diary: Diary, clients: Clients, ledger: Ledger, lives: int
) -> None:
    """Every run has ended as it should, and posted what it had to."""
    client = Client.from_binding(host.namespace(Workflows))
    posts = ledger.posts
    # So many lives may have ended before a run got on. Of those that another run ended
    # only the first counts: from then on both are suspects, each with its own turn.
    lives += bool(ledger.kills)
    for run, steps in clients.runs.items():
        info = await client.get("chain", run).describe()
        diary.note(f"last look at run {run}: {info.status}")
        status = type(info.status).__name__
        expected = {"Completed"}
        if run in ledger.cancelled:
            expected = {"Cancelled"}
        elif ledger.kills[run]:
            expected = {"Failed"}
        elif lives > RECOVERIES_MAX:
            expected = {"Completed", "Failed"}
        if run in clients.cancels:
            expected.add("Cancelled")
        diary.check(status in expected, f"run {run} is {info.status}")
        if status == "Completed":
            output = await client.get("chain", run).result()
            known = ledger.handed.get((run, steps - 1))
            diary.check(output[:-1] == known, f"{run}: {output} after {known}")
            missing = [place for place in range(steps) if not posts[run, place]]
            diary.check(not missing, f"run {run} never posted {missing}")
    kills = ledger.kills[POISON]
    diary.check(kills <= RECOVERIES_MAX + 1, f"{POISON} killed {kills} times")
    diary.states["a run that kills its process was given up"] += kills > RECOVERIES_MAX


def wrong_in_tables(db: sqlite3.Connection) -> str:
    """Say what does not agree in tables that were folded (G2, G7)."""
    keys: dict[int, dict[str, bytes]] = {}
    rows = f"SELECT object, key, value FROM kv WHERE object IN ({_CELLS})"
    for num, key, value in db.execute(rows):
        keys.setdefault(num, {})[key] = value
    rows = f"SELECT object FROM alarm WHERE object IN ({_CELLS})"
    alarms = {num for (num,) in db.execute(rows)}
    armed = {num for num, found in keys.items() if "armed" in found}
    if alarms != armed:
        return f"alarms of {alarms}, objects that set one {armed}"
    for found in keys.values():
        if found.get("a") != found.get("b"):
            return f"half of a turn: {found}"
    return ""


def check_file(db: sqlite3.Connection, diary: Diary, *, is_folded: bool) -> None:
    """Look at the one file that a host leaves when it was closed in order."""
    (left,) = db.execute("SELECT count(*) FROM log WHERE seq > 0").fetchone()
    if is_folded:
        diary.check(left == 0, f"{left} rows of the log were not folded")
    (whole,) = db.execute("PRAGMA integrity_check").fetchone()
    diary.check(whole == "ok", f"the file is damaged: {whole}")
    wrong = wrong_in_tables(db) if left == 0 else ""
    diary.check(not wrong, f"after closing: {wrong}")


def emitted(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many events each object has emitted."""
    rows = db.execute(
        "SELECT o.name, k.value FROM kv k JOIN object o ON o.num = k.object"
        " WHERE k.key = 'events' AND o.class = 'Cell'"
    )
    return {name: int(decode(value)) for name, value in rows}


def open_file(disk: SimulatedDisk, name: str) -> sqlite3.Connection:
    """Open a database that nobody has open."""
    db = sqlite3.connect(disk.uri(name), uri=True, isolation_level=None)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")  # there is no shared memory
    return db
