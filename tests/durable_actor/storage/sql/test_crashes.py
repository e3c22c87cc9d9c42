"""A kill at any moment leaves the end of a turn, and not one before the last reply.

The data directory is copied at every edge of every durable action, as SIGKILL would
leave it there. Each copy is opened afterwards, and has to show one of the states the
object could be in: rows, keys and alarm of one and the same turn.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from durable_actor import Config, DurableObject, ObjectResetError
from durable_actor.config import StorageConfig
from durable_actor.ids import ObjectId
from durable_actor.storage.database_keeper import Keeper
from durable_actor.storage.ports import Query, ShardDriver
from durable_actor.storage.shard import Shard
from durable_actor.storage.sql.history import History
from durable_actor.storage.sql.link import Link
from durable_actor.testing import TestHost, open_test_host

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

A = TypeVar("A")
State = tuple[tuple[str, ...], int]  # texts of the rows, and what the alarm counts
NOTHING: State = ((), 0)
FAR_MS = 10_000_000_000_000
# Each copy is read and written whole, so there is nothing in it that holds no data.
CONFIG = Config(storage=StorageConfig(wal_grow_bytes=0, ballast_bytes=0))


class Account(DurableObject, storage="sqlite"):
    """Each entry is a row, a key, and a count that the alarm carries."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sql = self.ctx.storage.sql
        self.sql.exec("CREATE TABLE IF NOT EXISTS entry (text TEXT PRIMARY KEY)")

    def write(self, text: str) -> None:
        self.sql.exec("INSERT INTO entry VALUES (?)", text)
        self.ctx.storage.put(text, text)
        found = self.sql.exec("SELECT count(*) AS n FROM entry").one()["n"]
        self.ctx.storage.set_alarm(FAR_MS + cast("int", found))

    async def add(self, *texts: str) -> None:
        """Write each text in a turn of its own."""
        for text in texts:
            self.write(text)
            self.env.copies.take()
            await self.ctx.storage.sync()

    async def add_together(self, *texts: str) -> None:
        async def all_of_them(_: object) -> None:
            for text in texts:
                self.write(text)
                await self.ctx.storage.sync()
                self.env.copies.take()

        await self.ctx.storage.transaction(all_of_them)

    async def undo(self, text: str) -> None:
        async def one(txn: Any) -> None:
            self.write(text)
            self.env.copies.take()
            txn.rollback()

        await self.ctx.storage.transaction(one)

    async def fill(self, text: str) -> None:
        """Write more than a page or two, so that the WAL is worth a checkpoint."""
        self.sql.exec("CREATE TABLE IF NOT EXISTS filling (data BLOB)")
        self.sql.exec("DELETE FROM filling")
        self.sql.exec("INSERT INTO filling VALUES (zeroblob(40000))")
        self.write(text)

    async def delete_all(self) -> None:
        self.ctx.storage.delete_all()
        self.sql.exec("CREATE TABLE entry (text TEXT PRIMARY KEY)")

    async def state(self) -> State:
        rows = self.sql.exec("SELECT text FROM entry ORDER BY text").raw()
        texts = tuple(cast("str", row[0]) for row in rows)
        assert tuple(await self.ctx.storage.list()) == texts
        assert tuple(key for key, _ in self.ctx.storage.kv.list()) == texts
        alarm = await self.ctx.storage.get_alarm()
        return texts, 0 if alarm is None else alarm - FAR_MS

    async def bookmark(self) -> str:
        return await self.ctx.storage.get_current_bookmark()

    async def restore(self, bookmark: str) -> None:
        await self.ctx.storage.on_next_session_restore_bookmark(bookmark)

    async def reset(self) -> None:
        self.ctx.abort("on purpose")

    async def alarm(self) -> None:
        raise AssertionError


@dataclass(slots=True)
class Copy:
    """The data directory at one moment, and the states it may show."""

    directory: Path
    after: str
    states: dict[str, list[State]]


@dataclass(slots=True)
class Copies:
    """Takes copies of a data directory."""

    directory: Path
    to: Path
    taken: list[Copy] = field(default_factory=list)
    is_on: bool = True
    # Per object: the last state that was acknowledged, and those that may follow.
    possible: dict[str, list[State]] = field(default_factory=dict)
    action: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: set[tuple[bytes, str]] = field(default_factory=set)

    def take(self, edge: str = "in a turn") -> None:
        if not self.is_on:
            return
        with self.lock:
            place = self.to / f"{len(self.taken):04}"
            states = {name: list(found) for name, found in self.possible.items()}
            looks = _looks(self.directory), repr(states)
            if looks in self.seen:
                return
            self.seen.add(looks)
            shutil.copytree(self.directory, place)
            self.taken.append(Copy(place, f"{self.action}, {edge}", states))


def _looks(directory: Path) -> bytes:
    looks = hashlib.blake2b()
    for one in sorted(directory.rglob("*")):
        looks.update(str(one).encode() + (one.read_bytes() if one.is_file() else b""))
    return looks.digest()


class CopyingDriver:
    """Takes a copy before and after each call."""

    def __init__(self, driver: ShardDriver, copies: Copies) -> None:
        self._driver = driver
        self._copies = copies
        self.opened = driver.opened
        self.close, self.drop = driver.close, driver.drop

    async def _between(self, name: str, call: Awaitable[A]) -> A:
        self._copies.take(f"before {name}")
        answer = await call
        self._copies.take(f"after {name}")
        return answer

    async def commit(self, group: Any) -> None:
        await self._between("commit", self._driver.commit(group))

    async def fold(self) -> None:
        await self._between("fold", self._driver.fold())

    async def read(self, query: Query[A]) -> A:
        name = type(query).__name__
        return await self._between(name, self._driver.read(query))


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Copy at every step inside the shard and around every change of a file, too."""
    copies = Copies(tmp_path / "data", tmp_path / "copies")
    copies.to.mkdir()

    def around(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            copies.take(f"before {name}")
            answer = function(*args, **kwargs)
            copies.take(f"after {name}")
            return answer

        monkeypatch.setattr(owner, name, wrapped)

    around(Keeper, "fold")
    around(Keeper, "restore")
    around(Keeper, "delete")
    around(History, "append")
    around(History, "sync")
    around(History, "_append_return")
    around(Link, "abandon")
    around(Link, "close")
    around(Path, "rename")
    around(Path, "replace")
    around(Path, "unlink")
    transact = Shard._transact

    async def transact_wrapped(self: Shard, statements: Any) -> int:
        copies.take("before a chunk")
        answer = await transact(self, statements)
        copies.take("after a chunk")
        return answer

    monkeypatch.setattr(Shard, "_transact", transact_wrapped)
    monkeypatch.setattr("durable_actor.databases._CHECKPOINT_BYTES", 60_000)
    # Only when the story says so: a copy is of one moment, and nothing goes on beside.
    monkeypatch.setattr("durable_actor.storage.committer._IDLE_FOLD_SECONDS", 1e6)
    yield copies
    copies.is_on = False


class Story:
    """What is done to the objects, and what each may be after it."""

    def __init__(self, test: TestHost, copies: Copies) -> None:
        self.test = test
        self.copies = copies
        self.now: dict[str, State] = {}
        self.bookmarks: dict[str, tuple[str, State]] = {}

    def account(self, name: str) -> Account:
        return self.test.host.namespace(Account).get_by_name(name)

    def id_of(self, name: str) -> ObjectId:
        return self.test.host.namespace(Account).id_from_name(name)

    async def do(
        self, name: str, action: Awaitable[object], text: str, *states: State
    ) -> None:
        """Do something that leads through these states, and is told to be done."""
        before = self.now.get(name, NOTHING)
        self.copies.action = f"{name}: {text}"
        self.copies.possible[name] = [before, *states]
        try:
            await action
        except ObjectResetError:
            assert text == "reset"
        after = states[-1] if states else before
        self.now[name] = after
        self.copies.possible[name] = [after]
        self.copies.take("at its end")
        assert await self.account(name).state() == after, text

    async def add(self, name: str, *texts: str) -> None:
        states, (before, count) = [], self.now.get(name, NOTHING)
        for text in texts:
            before = tuple(sorted((*before, text)))
            states.append((before, count := len(before)))
        del count
        await self.do(name, self.account(name).add(*texts), "add", *states)

    async def fill(self, name: str, text: str) -> None:
        texts = tuple(sorted((*self.now.get(name, NOTHING)[0], text)))
        await self.do(name, self.account(name).fill(text), "fill", (texts, len(texts)))

    async def add_together(self, name: str, *texts: str) -> None:
        after = tuple(sorted((*self.now.get(name, NOTHING)[0], *texts)))
        action = self.account(name).add_together(*texts)
        await self.do(name, action, "add together", (after, len(after)))

    async def undo(self, name: str, text: str) -> None:
        await self.do(name, self.account(name).undo(text), "undo")

    async def delete_all(self, name: str) -> None:
        await self.do(name, self.account(name).delete_all(), "delete all", NOTHING)

    async def delete(self, name: str) -> None:
        action = self.test.host.delete(self.id_of(name))
        await self.do(name, action, "delete", NOTHING)

    async def fold(self, name: str) -> None:
        await self.do(name, self.test.host.committer.fold(), "fold")

    async def evict(self, name: str) -> None:
        await self.do(name, self.test.host.evict(self.id_of(name)), "evict")

    async def mark(self, name: str) -> None:
        bookmark = await self.account(name).bookmark()
        self.bookmarks[name] = bookmark, self.now[name]

    async def restore(self, name: str) -> None:
        bookmark, (texts, _) = self.bookmarks[name]
        after = texts, self.now[name][1]  # the alarm stays
        self.copies.possible[name] = [self.now[name], after]
        # A crash is a new start, too.
        self.copies.action = f"{name}: restore"
        await self.account(name).restore(bookmark)
        await self.do(name, self.account(name).reset(), "reset", after)


async def first_story(story: Story) -> None:
    await story.add("a", "one")
    await story.add("a", "two", "three")
    await story.fold("a")
    await story.add("b", "one")
    await story.add_together("a", "four", "five")
    await story.undo("a", "gone")
    await story.evict("a")
    await story.add("a", "six")
    await story.fold("b")
    await story.delete_all("b")
    await story.evict("b")
    await story.add("b", "again")


async def of_checkpoints(story: Story) -> None:
    for number in range(4):
        await story.fill("a", f"fill {number}")
        await story.fold("a")
        await story.add("a", f"after {number}")
    await story.evict("a")
    await story.fill("a", "more")
    await story.fold("a")
    await story.evict("a")
    await story.add("a", "last")


async def of_going_back(story: Story) -> None:
    await story.add("a", "one")
    await story.mark("a")
    await story.add("a", "two")
    await story.fold("a")
    await story.add("a", "three")
    await story.restore("a")
    await story.add("a", "four")
    await story.fold("a")
    await story.mark("a")
    await story.delete_all("a")
    await story.restore("a")
    await story.evict("a")
    await story.add("a", "five")


async def of_deletion(story: Story) -> None:
    await story.add("a", "one")
    await story.delete("a")
    await story.add("a", "two")
    await story.fold("a")
    await story.add("a", "three")
    await story.delete("a")
    await story.fold("a")
    await story.add("a", "four")
    await story.evict("a")
    await story.delete("a")
    await story.add("a", "five")
    await story.fold("a")


STORIES = [first_story, of_checkpoints, of_going_back, of_deletion]


async def tell(story: Callable[[Story], Awaitable[None]], copies: Copies) -> None:
    """Play a story, with a copy at every edge."""
    env = {"copies": copies}
    async with open_test_host(copies.directory, env=env, config=CONFIG) as test:
        driver = CopyingDriver(test.host.driver, copies)
        test.host.driver = test.host.committer._driver = driver
        test.host.databases._driver = driver
        await story(Story(test, copies))
        copies.is_on = False


async def differences(copies: Copies) -> list[str]:
    """Open every copy; return what none of the states explains."""
    found = []
    for copy in copies.taken:
        env = {"copies": copies}
        try:
            async with open_test_host(copy.directory, env=env, config=CONFIG) as test:
                accounts = test.host.namespace(Account)
                for name, states in copy.states.items():
                    account = accounts.get_by_name(name)
                    state = await account.state()
                    if state not in states:
                        found.append(f"{copy.after}: {name} is {state}, not {states}")
                    await account.add("afterwards")
                    await test.host.committer.fold()
                await test.restart()
                accounts = test.host.namespace(Account)
                for name in copy.states:
                    assert "afterwards" in (await accounts.get_by_name(name).state())[0]
                    await accounts.get_by_name(name).bookmark()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is one
            found.append(f"{copy.after}: {error!r}")
        shutil.rmtree(copy.directory)
    return found


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
async def test_every_kill_leaves_the_end_of_a_turn(
    story: Callable[[Story], Awaitable[None]], copies: Copies
) -> None:
    await tell(story, copies)
    assert len(copies.taken) > 50
    assert await differences(copies) == []


async def test_without_repair_a_turn_that_was_lost_is_seen_again(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the test above would see it."""
    await tell(first_story, copies)
    monkeypatch.setattr("durable_actor.storage.sql.database.repair", lambda *_: None)
    assert await differences(copies) != []
