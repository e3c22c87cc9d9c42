"""Objects with a database: SQL, keys, alarm and the rest of a turn are one unit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from structlog.testing import capture_logs

from durable_actor import (
    Config,
    CorruptionError,
    DurableActorError,
    DurableObject,
    EventSink,
    ObjectResetError,
    OutboxEvent,
    StorageError,
    StorageFullError,
    StorageLimitError,
    interleave,
)
from durable_actor.config import SqlConfig, StorageConfig
from durable_actor.errors import SqlError
from durable_actor.ids import ObjectId
from durable_actor.storage import committer
from durable_actor.storage.database_keeper import Keeper
from durable_actor.storage.sql.cursor import SqlCursor
from durable_actor.storage.sql.database import Database
from durable_actor.storage.sql.files import SqlFile, database_path
from durable_actor.storage.sql.wal import wal_path
from durable_actor.storage.store import DriverKind
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import PausableDriver, take_over
from tests.support.scene import Scene, results
from tests.support.shards import fill_disk

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SMALL = StorageConfig(wal_grow_bytes=64 * 1024)
CREATE = "CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, text TEXT)"


class Sink:
    """Keeps the events that arrive."""

    def __init__(self) -> None:
        self.texts: list[object] = []

    async def deliver(self, events: Sequence[OutboxEvent], /) -> None:
        self.texts += [event.data["text"] for event in events]


class Ledger(DurableObject, storage="sqlite"):
    """Each entry changes a row, a key, the alarm and an attribute."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sql = self.ctx.storage.sql
        self.sql.exec(CREATE)
        self.cursor: SqlCursor | None = None

    @property
    def scene(self) -> Scene:
        return cast("Scene", self.env.scene)

    def write(self, text: str) -> int:
        self.sql.exec("INSERT INTO entry (text) VALUES (?)", text)
        count = self.count()
        self.ctx.storage.put("count", count)
        self.ctx.storage.put(f"entry:{count}", text)
        self.ctx.storage.set_alarm((10_000_000_000 + count) * 1_000)
        self.ctx.set_attributes({"count": str(count)})
        self.ctx.emit({"text": text})
        return count

    def count(self) -> int:
        return cast("int", self.sql.exec("SELECT count(*) AS n FROM entry").one()["n"])

    async def add(self, text: str) -> int:
        return self.write(text)

    async def add_and_fail(self, text: str) -> None:
        self.write(text)
        message = "on purpose"
        raise ValueError(message)

    async def add_and_abort(self, text: str) -> None:
        self.write(text)
        self.ctx.abort("on purpose")

    async def add_sync_and_abort(self, first: str, second: str) -> None:
        self.write(first)
        await self.ctx.storage.sync()
        self.write(second)
        self.ctx.abort("on purpose")

    async def texts(self) -> list[str]:
        rows = self.sql.exec("SELECT text FROM entry ORDER BY id")
        texts = [cast("str", row["text"]) for row in rows]
        keys = await self.ctx.storage.list(prefix="entry:")
        alarm = await self.ctx.storage.get_alarm()
        assert sorted(keys.values()) == sorted(texts)
        assert await self.ctx.storage.get("count", 0) == len(texts)
        assert alarm == ((10_000_000_000 + len(texts)) * 1_000 if texts else None)
        return texts

    async def rows(self) -> list[str]:
        rows = self.sql.exec("SELECT text FROM entry ORDER BY id")
        return [cast("str", row["text"]) for row in rows]

    async def only_read(self) -> int:
        return self.count()

    async def bookmark(self) -> str:
        return await self.ctx.storage.get_current_bookmark()

    async def bookmark_at(self, at_ms: int) -> str:
        return await self.ctx.storage.get_bookmark_for_time(at_ms)

    async def restore(self, bookmark: str) -> str:
        return await self.ctx.storage.on_next_session_restore_bookmark(bookmark)

    async def reset(self) -> None:
        self.ctx.abort("on purpose")

    async def forget_everything(self) -> None:
        self.ctx.storage.delete_all()

    async def alarm(self) -> None:
        pass


def ledger(test: TestHost, name: str = "a", **options: Any) -> Ledger:
    return test.host.namespace(Ledger).get_by_name(name, **options)


def fill(disk: PausableDriver, commits: int = 1) -> None:
    disk.failures.extend(StorageFullError("commit", "full") for _ in range(commits))


def id_of(stub: object) -> ObjectId:
    return cast("ObjectId", cast("Any", stub).id)


def path_of(test: TestHost, stub: Any) -> Path:
    return database_path(test.directory, id_of(stub).raw)


def files_of(test: TestHost, stub: Any) -> list[str]:
    path = path_of(test, stub)
    return sorted(one.name[len(path.stem) :] for one in path.parent.glob("*"))


def files(test: TestHost) -> list[Path]:
    folder = test.directory / "objects"
    return [one for one in folder.rglob("*") if one.is_file()]


def open_count(test: TestHost) -> int:
    return test.host.databases._files.open_count


async def reset(stub: Ledger) -> None:
    with pytest.raises(ObjectResetError):
        await stub.reset()


async def attribute(test: TestHost, name: str = "a") -> str | None:
    await test.host.committer.fold()
    page = await test.host.list_objects("Ledger", prefix=name)
    return page.objects[0].attributes.get("count") if page.objects else None


# -- one turn, one unit -------------------------------------------------------


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_everything_of_a_turn_survives_a_crash(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        assert await ledger(test).add("one") == 1
        assert await ledger(test).add("two") == 2
        await test.restart()
        assert await ledger(test).texts() == ["one", "two"]
        assert await attribute(test) == "2"
        assert await ledger(test).add("three") == 3


async def test_nothing_of_a_turn_stays_if_its_commit_fails() -> None:
    sink = Sink()

    class Told(Ledger):
        event_sink: ClassVar[EventSink | None] = sink

    async with open_test_host() as test:
        told = test.host.namespace(Told, "Ledger").get_by_name("a")
        repeated = test.host.namespace(Told, "Ledger").get_by_name("a", request_id="r")
        fill(take_over(test.host))
        (error,) = await results([repeated.add("lost")])
        assert isinstance(error, DurableActorError)
        assert await told.texts() == []
        assert await attribute(test) is None
        # The reply was not kept either: the repeat runs.
        assert await repeated.add("kept") == 1
        assert await repeated.add("kept") == 1
        assert await told.texts() == ["kept"]
        assert await attribute(test) == "1"
        await test.settle()
        assert sink.texts == ["kept"]


async def test_later_turns_in_the_wal_go_with_the_one_that_failed() -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        disk = take_over(test.host)
        disk.pause()
        fill(disk)
        calls = []
        for text in ("two", "three", "four"):
            calls.append(asyncio.ensure_future(ledger(test).add(text)))
            await test.settle()
        disk.resume()
        found = await results(calls)
        assert all(isinstance(one, DurableActorError) for one in found)
        assert await ledger(test).texts() == ["one"]
        assert await ledger(test).add("two") == 2
        await test.restart()
        assert await ledger(test).texts() == ["one", "two"]


async def test_a_crash_before_the_commit_leaves_the_turn_before() -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        disk = take_over(test.host)
        disk.pause()
        calls = [asyncio.ensure_future(ledger(test).add(text)) for text in "xyz"]
        await test.settle()
        await test.crash()
        await results(calls)
        await test.start()
        assert await ledger(test).texts() == ["one"]


async def test_an_aborted_turn_is_gone_and_the_one_before_is_there() -> None:
    async with open_test_host() as test:
        with pytest.raises(ObjectResetError):
            await ledger(test).add_and_abort("gone")
        assert await ledger(test).texts() == []
        with pytest.raises(ObjectResetError):
            await ledger(test).add_sync_and_abort("one", "gone")
        assert await ledger(test).texts() == ["one"]


async def test_what_a_failed_handler_wrote_stays() -> None:
    async with open_test_host() as test:
        with pytest.raises(ValueError, match="on purpose"):
            await ledger(test).add_and_fail("one")
        await test.restart()
        assert await ledger(test).texts() == ["one"]


async def test_a_kept_reply_and_its_rows_are_there_together() -> None:
    async with open_test_host() as test:
        for _ in range(2):
            assert await ledger(test, request_id="r").add("one") == 1
        await test.restart()
        assert await ledger(test, request_id="r").add("one") == 1
        assert await ledger(test).texts() == ["one"]


class Peer(DurableObject, storage="sqlite"):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ctx.storage.sql.exec(CREATE)

    async def tell(self, other: str, text: str) -> list[int]:
        sql = self.ctx.storage.sql
        sql.exec("INSERT INTO entry (text) VALUES (?)", text)
        found = await self.env.namespace(Peer).get_by_name(other).hear(text)
        sql.exec("INSERT INTO entry (text) VALUES (?)", text)
        return [await self.count(), found]

    async def hear(self, text: str) -> int:
        self.ctx.storage.sql.exec("INSERT INTO entry (text) VALUES (?)", text)
        return await self.count()

    async def count(self) -> int:
        found = self.ctx.storage.sql.exec("SELECT count(*) AS n FROM entry").one()
        return cast("int", found["n"])


async def test_a_call_inside_a_turn_depends_on_the_rows_before_it() -> None:
    async with open_test_host() as test:
        peers = test.host.namespace(Peer)
        assert await peers.get_by_name("a").tell("b", "x") == [2, 1]
        fill(take_over(test.host))
        await results([peers.get_by_name("a").tell("b", "lost")])
        assert await peers.get_by_name("a").count() == 2
        assert await peers.get_by_name("b").count() == 1
        await test.restart()
        assert await test.host.namespace(Peer).get_by_name("a").count() == 2


# -- starting -----------------------------------------------------------------


class Fragile(DurableObject, storage="sqlite"):
    """Its constructor makes tables in two turns, and may fail in the second."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS first (n)")
        self.ctx.block_concurrency_while(self.prepare)

    async def prepare(self) -> None:
        self.ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS second (n)")
        if self.env.failures.pop():
            message = "on purpose"
            raise ValueError(message)
        self.ctx.storage.put("is ready", True)

    async def tables(self) -> list[str]:
        rows = self.ctx.storage.sql.exec(
            "SELECT name FROM sqlite_schema WHERE name IN ('first', 'second')"
        )
        assert await self.ctx.storage.get("is ready")
        return sorted(cast("str", row["name"]) for row in rows)


async def test_a_constructor_that_fails_leaves_an_object_that_can_start() -> None:
    async with open_test_host(env={"failures": [False, True, True]}) as test:
        fragile = test.host.namespace(Fragile).get_by_name("a")
        for _ in range(2):
            with pytest.raises(ObjectResetError):
                await fragile.tables()
        assert await fragile.tables() == ["first", "second"]


async def test_an_object_that_only_reads_leaves_no_file_behind() -> None:
    class Reader(DurableObject, storage="sqlite"):
        async def read(self) -> object:
            found = self.ctx.storage.sql.exec("SELECT count(*) FROM sqlite_schema")
            return found.raw().to_list(), await self.ctx.storage.get("key")

        async def keys(self) -> object:
            return await self.ctx.storage.list()

    async with open_test_host() as test:
        reader = test.host.namespace(Reader).get_by_name("a")
        assert await reader.keys() == {}
        assert files(test) == []
        await reader.read()
        assert await test.host.evict(id_of(reader))
        assert files(test) == []
        await reader.read()
        await test.host.close()
        assert files(test) == []
        await test.start()
        assert not (await test.host.list_objects()).objects


async def test_files_and_folders_are_for_the_owner_only() -> None:
    before = os.umask(0)
    try:
        async with open_test_host() as test:
            await ledger(test).add("one")
            await test.host.committer.fold()
            assert len(files(test)) == 3  # the database, its WAL and its history
            for one in files(test):
                assert stat.S_IMODE(one.stat().st_mode) == 0o600, one
                assert stat.S_IMODE(one.parent.stat().st_mode) == 0o700
            objects = test.directory / "objects"
            assert stat.S_IMODE(objects.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["../../x", "a/b", ".", "ä\u2028\U0001f600", " ", "'"])
async def test_a_name_never_becomes_a_path(name: str) -> None:
    async with open_test_host() as test:
        await ledger(test, name).add("one")
        await test.restart()
        assert await ledger(test, name).texts() == ["one"]
        assert {one.parent.parent.name for one in files(test)} == {"objects"}


# -- leaving memory -----------------------------------------------------------


@pytest.mark.parametrize("is_folded", [True, False])
async def test_eviction_is_not_noticed(*, is_folded: bool) -> None:
    async with open_test_host() as test:
        texts = []
        for number in range(20):
            texts.append(str(number))
            assert await ledger(test).add(str(number)) == number + 1
            if is_folded:
                await test.host.committer.fold()
            assert await test.host.evict(id_of(ledger(test)))
            assert await ledger(test).texts() == texts


async def test_more_objects_than_may_be_open_all_work() -> None:
    config = Config(storage=SMALL, sql=SqlConfig(open_max=3))
    async with open_test_host(config=config) as test:
        names = [str(n) for n in range(20)]
        for count in range(1, 4):
            found = await asyncio.gather(
                *(ledger(test, name).add(str(count)) for name in names)
            )
            assert found == [count] * len(names)
            for name in names:
                assert len(await ledger(test, name).texts()) == count
                await test.host.committer.fold()
            assert open_count(test) <= len(names)
        await test.host.committer.fold()
        await ledger(test, "one more").add("x")
        assert open_count(test) <= 3
        await test.restart()
        for name in names:
            assert await ledger(test, name).texts() == ["1", "2", "3"]


async def test_objects_that_start_wait_for_room_among_the_open_databases() -> None:
    config = Config(storage=SMALL, sql=SqlConfig(open_max=3))
    async with open_test_host(config=config) as test:
        for number in range(50):
            await ledger(test, str(number)).add("x")
            assert open_count(test) <= 5


async def test_nothing_is_kept_of_an_object_that_left_memory() -> None:
    async with open_test_host() as test:
        for name in map(str, range(20)):
            await ledger(test, name).add("one")
            await test.host.committer.fold()
            await test.host.evict(id_of(ledger(test, name)))
        await test.advance("1 minute")  # a manual clock keeps timers till they are due
        gc.collect()
        kept = [
            type(one) for one in gc.get_objects() if type(one) in (Database, SqlFile)
        ]
        # What the host's last tasks still know; none of it is open.
        assert kept.count(Database) == 0
        assert kept.count(SqlFile) < 3
        assert open_count(test) == 0


class Hoard(DurableObject, storage="sqlite"):
    """Has more keys than fit in memory."""

    async def fill(self, count: int) -> None:
        for number in range(count):
            self.ctx.storage.put(f"key {number:05}", bytes(10_000))

    async def read_each(self, count: int) -> int:
        found = 0
        for number in range(count):
            found += len(await self.ctx.storage.get(f"key {number:05}"))
        return found


async def test_reading_every_key_of_a_large_object_does_not_fill_memory() -> None:
    async with open_test_host() as test:
        hoard = test.host.namespace(Hoard).get_by_name("a")
        await hoard.fill(1_000)
        await test.restart()
        hoard = test.host.namespace(Hoard).get_by_name("a")
        assert await hoard.read_each(1_000) == 10_000_000
        assert test.host.stats().cached_bytes < 2 * 1024 * 1024


# -- the disk -----------------------------------------------------------------


async def test_a_data_directory_is_found_again_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    async with open_test_host("data") as test:
        await ledger(test).add("one")
        disk = take_over(test.host)
        disk.pause()
        lost = asyncio.ensure_future(ledger(test).add("lost"))
        await test.settle()
        monkeypatch.chdir(tmp_path / "elsewhere")
        await test.crash()  # which must not copy what is not durable
        await results([lost])
        monkeypatch.chdir(tmp_path)
        await test.start()
        assert await ledger(test).texts() == ["one"]


# -- transactions -------------------------------------------------------------


class Bank(Ledger):
    """Transactions of both kinds."""

    async def kept(self, *texts: str) -> None:
        async def all_of_them(_: object) -> None:
            for text in texts:
                self.write(text)
                await asyncio.sleep(0)

        await self.ctx.storage.transaction(all_of_them)

    async def undone(self, text: str, *, how: str) -> None:
        async def one(txn: Any) -> None:
            self.write(text)
            await asyncio.sleep(0)
            if how == "rollback":
                txn.rollback()
            else:
                raise KeyError(how)

        try:
            await self.ctx.storage.transaction(one)
        except KeyError:
            pass

    async def mixed(self) -> None:
        """Keep 'outer', 'inner sync' and 'after'; undo the rest."""

        def fails() -> None:
            self.write("gone 1")
            self.ctx.storage.transaction_sync(lambda: self.write("gone 2"))
            raise KeyError

        async def inner(_: object) -> None:
            self.write("gone 3")
            await asyncio.sleep(0)
            self.ctx.storage.transaction_sync(lambda: self.write("gone 4"))
            raise KeyError

        async def outer(_: object) -> None:
            self.write("outer")
            for broken in (fails, fails):
                with pytest.raises(KeyError):
                    self.ctx.storage.transaction_sync(broken)
            await asyncio.sleep(0)
            with pytest.raises(KeyError):
                await self.ctx.storage.transaction(inner)
            self.ctx.storage.transaction_sync(lambda: self.write("inner sync"))

        await self.ctx.storage.transaction(outer)
        self.write("after")

    async def async_in_sync(self) -> None:
        async def nothing() -> None:
            raise AssertionError

        transaction_sync: Any = self.ctx.storage.transaction_sync
        transaction_sync(nothing)

    async def slow(self, text: str, *, fails: bool) -> None:
        async def one(_: object) -> None:
            self.write(text)
            await self.scene.reach("inside")
            if fails:
                raise KeyError

        try:
            await self.ctx.storage.transaction(one)
        except KeyError:
            pass

    @interleave
    async def note(self, text: str) -> None:
        await self.scene.reach("noting")
        self.sql.exec("INSERT INTO entry (text) VALUES (?)", text)

    @interleave
    async def look(self) -> int:
        await self.scene.reach("looking")
        return self.count()

    async def across_an_abort(self) -> None:
        def one() -> None:
            self.write("gone")
            self.ctx.abort("on purpose")

        self.ctx.storage.transaction_sync(one)

    async def delete_all_inside(self) -> None:
        self.ctx.storage.transaction_sync(self.ctx.storage.delete_all)


def bank(test: TestHost, name: str = "a") -> Bank:
    return test.host.namespace(Bank).get_by_name(name)


async def test_a_transaction_keeps_all_of_its_turns_or_none() -> None:
    async with open_test_host() as test:
        await bank(test).kept("one", "two")
        await bank(test).undone("gone", how="rollback")
        await bank(test).undone("gone", how="error")
        assert await bank(test).texts() == ["one", "two"]
        await test.restart()
        assert await bank(test).texts() == ["one", "two"]


async def test_transactions_of_both_kinds_may_be_nested() -> None:
    async with open_test_host() as test:
        await bank(test).mixed()
        assert await bank(test).texts() == ["outer", "inner sync", "after"]
        await test.restart()
        assert await bank(test).texts() == ["outer", "inner sync", "after"]


async def test_an_async_function_is_no_synchronous_transaction() -> None:
    async with open_test_host() as test:
        with pytest.raises(TypeError, match="plain function"):
            await bank(test).async_in_sync()
        assert await bank(test).texts() == []


async def test_an_abort_inside_a_transaction_leaves_nothing_of_it() -> None:
    async with open_test_host() as test:
        with pytest.raises(ObjectResetError):
            await bank(test).across_an_abort()
        assert await bank(test).texts() == []


async def test_delete_all_is_refused_inside_a_transaction() -> None:
    async with open_test_host() as test:
        await bank(test).add("one")
        with pytest.raises(StorageError, match="within a transaction"):
            await bank(test).delete_all_inside()
        assert await bank(test).texts() == ["one"]


async def test_a_crash_inside_a_transaction_leaves_nothing_of_it() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await bank(test).add("one")
        slow = asyncio.ensure_future(bank(test).slow("gone", fails=False))
        await test.settle()
        await test.restart()
        await results([slow])
        assert await bank(test).texts() == ["one"]


@pytest.mark.parametrize("fails", [True, False])
async def test_sql_that_writes_beside_a_transaction_is_refused(*, fails: bool) -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        beside = asyncio.ensure_future(bank(test).note("beside"))
        await test.settle()
        slow = asyncio.ensure_future(bank(test).slow("inside", fails=fails))
        await test.settle()
        scene.open("noting")
        await test.settle()
        scene.open("inside")
        await slow
        # Never told that it was kept, and then lost.
        (error,) = await results([beside])
        assert isinstance(error, StorageError)
        assert "transaction" in str(error)
        assert await bank(test).rows() == ([] if fails else ["inside"])


async def test_sql_that_reads_beside_a_transaction_is_answered_at_its_end() -> None:
    scene = Scene()
    async with open_test_host(env={"scene": scene}) as test:
        await bank(test).add("one")
        look = asyncio.ensure_future(bank(test).look())
        await test.settle()
        slow = asyncio.ensure_future(bank(test).slow("two", fails=False))
        await test.settle()
        scene.open("looking")
        await test.settle()
        assert not look.done()
        scene.open("inside")
        await slow
        assert await look == 2


class Gate(DurableObject, storage="sqlite"):
    """Events interleave."""

    concurrency = "gated"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ctx.storage.sql.exec(CREATE)

    async def add(self, text: str) -> int:
        sql = self.ctx.storage.sql
        for half in (1, 2):
            sql.exec("INSERT INTO entry (text) VALUES (?)", f"{text}{half}")
            await asyncio.sleep(0)
        found = sql.exec("SELECT count(*) AS n FROM entry").one()["n"]
        return cast("int", found)

    async def move(self, text: str) -> None:
        async def one(_: object) -> None:
            await self.add(text)

        await self.ctx.storage.transaction(one)


async def test_gated_events_share_a_database() -> None:
    async with open_test_host() as test:
        gate = test.host.namespace(Gate).get_by_name("a")
        await asyncio.gather(*(gate.add(text) for text in "abc"))
        await asyncio.gather(*(gate.move(text) for text in "def"))
        assert await gate.add("g") == 14
        await test.restart()
        assert await test.host.namespace(Gate).get_by_name("a").add("h") == 16


# -- cursors ------------------------------------------------------------------


class Reader(DurableObject, storage="sqlite"):
    """Holds a cursor for longer than it should."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sql = self.ctx.storage.sql
        self.sql.exec(CREATE)

    def begin(self) -> SqlCursor:
        return self.sql.exec("SELECT id FROM entry ORDER BY id")

    async def fill(self, count: int) -> None:
        for number in range(count):
            self.sql.exec("INSERT INTO entry VALUES (?, 'text')", number)

    async def across_awaits(self) -> list[int]:
        found = []
        for row in self.begin():
            await self.ctx.storage.sync()
            self.sql.exec("DELETE FROM entry")
            found.append(cast("int", row["id"]))
        return found

    async def across_a_rollback(self) -> int:
        cursors: list[SqlCursor] = []

        def one() -> None:
            self.sql.exec("INSERT INTO entry VALUES (1000, 'gone')")
            cursors.append(self.begin())
            raise KeyError

        with pytest.raises(KeyError):
            self.ctx.storage.transaction_sync(one)
        return len(cursors[0].to_list()) + len(self.begin().to_list())

    async def keep(self) -> None:
        self.env.cursors.append(self.begin())

    async def abort_with_one(self) -> None:
        self.env.cursors.append(self.begin())
        self.ctx.abort("on purpose")


async def test_a_cursor_goes_on_with_the_rows_of_its_own_turn() -> None:
    async with open_test_host() as test:
        reader = test.host.namespace(Reader).get_by_name("a")
        await reader.fill(5)
        assert await reader.across_awaits() == [0, 1, 2, 3, 4]
        assert await reader.across_awaits() == []


async def test_a_cursor_survives_a_rollback_around_it() -> None:
    async with open_test_host() as test:
        reader = test.host.namespace(Reader).get_by_name("a")
        await reader.fill(5)
        assert await reader.across_a_rollback() == 6 + 5


async def test_a_cursor_that_is_held_keeps_nothing_open() -> None:
    cursors: list[SqlCursor] = []
    async with open_test_host(env={"cursors": cursors}) as test:
        reader = test.host.namespace(Reader).get_by_name("a")
        await reader.fill(5)
        await reader.keep()
        await test.host.committer.fold()
        assert await test.host.evict(id_of(reader))
        assert open_count(test) == 0
        assert len(cursors[0].to_list()) == 5
        with pytest.raises(ObjectResetError):
            await reader.abort_with_one()
        assert next(cursors[1].raw())[0] == 0
        with pytest.raises(SqlError):
            cursors[1].to_list()


# -- deleting -----------------------------------------------------------------


async def test_nothing_of_a_deleted_object_is_left() -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        await test.host.committer.fold()
        assert await test.host.delete(id_of(ledger(test)))
        assert files(test) == []
        assert await ledger(test).texts() == []
        assert await ledger(test).add("new") == 1
        await test.restart()
        assert await ledger(test).texts() == ["new"]


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_a_name_may_be_used_again_at_once(driver: DriverKind) -> None:
    async with open_test_host(driver=driver) as test:
        bookmarks = []
        for number in range(10):
            old = ledger(test)
            for text in ("secret", f"secret {number}"):
                await old.add(text)
            bookmarks.append(await old.bookmark())
            deleting = asyncio.ensure_future(test.host.delete(id_of(old)))
            await asyncio.sleep(0)
            found = await asyncio.gather(
                *(ledger(test).texts() for _ in range(3)), return_exceptions=True
            )
            assert await deleting
            # Before the deletion, or told of it, or after it; never a part.
            for one in found:
                told = isinstance(one, ObjectResetError)
                assert told or one in ([], ["secret", f"secret {number}"])
            assert await ledger(test).texts() == []
            await ledger(test).add("new")
            for bookmark in bookmarks:
                await ledger(test).restore(bookmark)
                await reset(ledger(test))
                assert "secret" not in await ledger(test).rows()
            await test.host.committer.fold()
            everything = b"".join(one.read_bytes() for one in files(test))
            assert b"secret" not in everything
            await test.host.delete(id_of(ledger(test)))


# -- back in time -------------------------------------------------------------


class Bare(DurableObject, storage="sqlite"):
    """Writes nothing before it is asked to."""

    async def go_back_to_now(self) -> None:
        now = await self.ctx.storage.get_current_bookmark()
        await self.ctx.storage.on_next_session_restore_bookmark(now)
        self.ctx.abort("restart")

    async def write(self) -> int:
        n = cast("int", self.ctx.storage.kv.get("n", 0)) + 1
        self.ctx.storage.put("n", n)
        return n


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_an_object_that_holds_nothing_may_be_taken_back_to_it(
    *, is_deleted: bool
) -> None:
    """A restore that cannot be done must not keep the object from starting."""
    async with open_test_host() as test:
        bare = test.host.namespace(Bare).get_by_name("a")
        if is_deleted:
            await bare.write()
            await test.host.delete(test.host.namespace(Bare).id_from_name("a"))
        for _ in range(2):
            await results([bare.go_back_to_now()])
        assert [await bare.write() for _ in range(3)] == [1, 2, 3]
        await results([bare.go_back_to_now()])
        assert await bare.write() == 4


async def test_a_bookmark_leads_back_and_its_restore_can_be_undone() -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        first = await ledger(test).bookmark()
        await ledger(test).add("two")
        undo = await ledger(test).restore(first)
        assert await ledger(test).texts() == [
            "one",
            "two",
        ]  # not before it starts again
        await reset(ledger(test))
        assert await ledger(test).rows() == ["one"]
        await ledger(test).restore(undo)
        await reset(ledger(test))
        assert await ledger(test).texts() == ["one", "two"]
        await test.restart()
        assert await ledger(test).texts() == ["one", "two"]
        assert await ledger(test).add("three") == 3


async def test_a_restored_object_goes_on_from_there() -> None:
    async with open_test_host() as test:
        bookmarks = []
        for number in range(6):
            await ledger(test).add(str(number))
            bookmarks.append(await ledger(test).bookmark())
        assert bookmarks == sorted(bookmarks)
        for number in (3, 0, 5, 1):
            await ledger(test).restore(bookmarks[number])
            assert await test.host.evict(id_of(ledger(test)))
            wanted = [str(n) for n in range(number + 1)]
            assert await ledger(test).rows() == wanted
            await ledger(test).add("new")
            await test.restart()
            assert await ledger(test).texts() == [*wanted, "new"]


async def test_a_bookmark_may_be_found_by_time() -> None:
    async with open_test_host() as test:
        times = []
        for number in range(3):
            await ledger(test).add(str(number))
            times.append(test.clock.now_ms())
            await test.advance("1 minute")
        bookmark = await ledger(test).bookmark_at(times[1] + 1)
        await ledger(test).restore(bookmark)
        await reset(ledger(test))
        assert await ledger(test).rows() == ["0", "1"]
        empty = await ledger(test).bookmark_at(times[0] - 1)
        await ledger(test).restore(empty)
        await reset(ledger(test))
        assert await ledger(test).rows() == []


async def test_a_bookmark_that_is_none_is_refused() -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        now = await ledger(test).bookmark()
        later = f"{int(now[:16], 16) + 5:016x}{now[16:]}"
        for bad in ("", "x", later, now.upper() + " "):
            with pytest.raises(StorageError):
                await ledger(test).restore(bad)
        await reset(ledger(test))
        assert await ledger(test).texts() == ["one"]


async def test_a_bookmark_older_than_the_history_is_refused() -> None:
    config = Config(storage=SMALL, sql=SqlConfig(history_bytes_max=100_000))
    async with open_test_host(config=config) as test:
        await ledger(test).add("0")
        first, first_at_ms = await ledger(test).bookmark(), test.clock.now_ms()
        for number in range(1, 60):
            await test.advance("1 second")
            await ledger(test).add(str(number))
            await test.host.committer.fold()
        await test.host.committer.fold()
        redo = path_of(test, ledger(test)).with_suffix(".redo")
        assert redo.stat().st_size < 2 * 100_000
        with pytest.raises(StorageError, match="history"):
            await ledger(test).bookmark_at(first_at_ms)
        with pytest.raises(StorageError, match="history"):
            await ledger(test).restore(first)
        recent = await ledger(test).bookmark_at(test.clock.now_ms() - 2_500)
        await ledger(test).restore(recent)
        await reset(ledger(test))
        assert await ledger(test).rows() == [str(n) for n in range(57)]


async def test_an_object_that_never_wrote_can_go_back_to_nothing() -> None:
    async with open_test_host() as test:
        await ledger(test).restore(await ledger(test).bookmark())
        await reset(ledger(test))
        assert await ledger(test).texts() == []
        assert await ledger(test).add("one") == 1


# -- the class changes --------------------------------------------------------


class Plain(DurableObject):
    async def fill(self, value: bytes) -> None:
        self.ctx.storage.put("key", value)

    async def read(self) -> int:
        return len(await self.ctx.storage.get("key", b""))


class Grown(DurableObject, storage="sqlite"):
    async def fill(self, value: bytes) -> None:
        self.ctx.storage.put("key", value)

    async def read(self) -> int:
        return len(await self.ctx.storage.get("key", b""))


@pytest.mark.parametrize("size_bytes", [10, 100_000])
@pytest.mark.parametrize(("before", "after"), [(Plain, Grown), (Grown, Plain)])
async def test_a_class_that_changed_its_storage_says_so_and_loses_nothing(
    before: type[Plain], after: type[Plain], size_bytes: int
) -> None:
    async with open_test_host() as test:
        await (
            test.host.namespace(before, "Thing")
            .get_by_name("a")
            .fill(bytes(size_bytes))
        )
        await test.restart()
        with pytest.raises(ObjectResetError, match="database"):
            await test.host.namespace(after, "Thing").get_by_name("a").read()
        await test.restart()
        thing = test.host.namespace(before, "Thing").get_by_name("a")
        assert await thing.read() == size_bytes
        assert await test.host.delete(id_of(thing))
        await test.restart()
        changed = test.host.namespace(after, "Thing").get_by_name("a")
        assert await changed.read() == 0
        await changed.fill(b"new")
        assert files(test) == [] if after is Plain else files(test) != []


# -- size ---------------------------------------------------------------------


class Page(DurableObject, storage="sqlite"):
    """Writes a page in each turn."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ctx.storage.sql.exec(CREATE)

    async def write(self, number: int) -> None:
        self.ctx.storage.sql.exec(
            "INSERT OR REPLACE INTO entry VALUES (?, ?)", number % 10, "x" * 3_000
        )

    async def forget_everything(self) -> None:
        self.ctx.storage.delete_all()

    async def tables(self) -> int:
        found = self.ctx.storage.sql.exec("SELECT count(*) AS n FROM sqlite_schema")
        return cast("int", found.one()["n"])


def wal_bytes(test: TestHost, stub: Any) -> int:
    path = path_of(test, stub)
    wal = path.with_name(path.name + "-wal")
    return wal.stat().st_size if wal.exists() else 0


async def test_a_large_wal_is_copied_into_the_database_when_it_is_folded() -> None:
    async with open_test_host() as test:
        page = test.host.namespace(Page).get_by_name("a")
        for _ in range(5):
            for number in range(150):
                await page.write(number)
            await test.host.committer.fold()
        assert wal_bytes(test, page) < 3 * 1024 * 1024


async def test_the_wal_of_an_object_that_never_rests_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable_actor.databases._REST_BYTES", 1024 * 1024)
    storage = StorageConfig(wal_grow_bytes=64 * 1024, log_bytes_max=256 * 1024)
    async with open_test_host(config=Config(storage=storage)) as test:
        page = test.host.namespace(Page).get_by_name("a")

        async def write(part: int) -> None:
            for number in range(300):
                await page.write(number * 5 + part)

        await asyncio.gather(*(write(part) for part in range(5)))
        assert wal_bytes(test, page) < 3 * 1024 * 1024


async def test_delete_all_leaves_no_table_and_no_key() -> None:
    async with open_test_host() as test:
        for _ in range(2):
            await ledger(test).add("one")
            await ledger(test).forget_everything()
            await test.restart()
            assert await ledger(test).texts() == []
        page = test.host.namespace(Page).get_by_name("a")
        await page.write(1)
        await page.forget_everything()
        assert await page.tables() == 2  # of keys


async def test_delete_all_that_the_database_refuses_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Database) -> None:
        raise SqlError("sql", "the test says no")

    async with open_test_host() as test:
        await ledger(test).add("one")
        with monkeypatch.context() as patch:
            patch.setattr(Database, "clear", refuse)
            with pytest.raises(SqlError, match="says no"):
                await ledger(test).forget_everything()
        assert await ledger(test).texts() == ["one"]
        await test.restart()
        assert await ledger(test).texts() == ["one"]


# -- a full disk --------------------------------------------------------------


async def test_a_full_disk_loses_the_turn_and_nothing_else(small_disk: Path) -> None:
    async with open_test_host(small_disk / "data") as test:
        await ledger(test).add("one")
        await ledger(test, "b").add("one")
        await test.host.committer.fold()
        ballast = fill_disk(small_disk, free_blocks=3)
        found = await results(ledger(test).add("x" * 3_000) for _ in range(10))
        acknowledged = sum(isinstance(one, int) for one in found)
        assert acknowledged < 10
        # One that is not in memory, and one that never was.
        await results([ledger(test, "b").add("y" * 9_000), ledger(test, "c").add("x")])
        assert not test.host.failed.is_set()
        ballast.unlink()
        assert len(await ledger(test).texts()) == acknowledged + 1
        await ledger(test).add("two")
        await ledger(test, "c").add("three")
        await test.restart()
        assert len(await ledger(test).texts()) == acknowledged + 2
        assert (await ledger(test, "b").texts())[:1] == ["one"]


@pytest.mark.parametrize("free_blocks", range(12))
async def test_a_fold_on_a_full_disk_is_made_up_for(
    small_disk: Path, free_blocks: int
) -> None:
    async with open_test_host(small_disk / "data") as test:
        counts = dict.fromkeys("abcd", 0)
        for name in counts:
            await ledger(test, name).add("one")
            counts[name] += 1
        ballast = fill_disk(small_disk, free_blocks=free_blocks)
        for _ in range(3):
            with contextlib.suppress(StorageFullError):
                await test.host.committer.fold()
            for name in counts:
                (found,) = await results([ledger(test, name).add("more")])
                counts[name] += isinstance(found, int)
                await results([test.host.evict(id_of(ledger(test, name)))])
        assert not test.host.failed.is_set()
        ballast.unlink()
        await test.host.committer.fold()
        for name, count in counts.items():
            assert len(await ledger(test, name).rows()) == count
        await test.restart()
        for name, count in counts.items():
            assert len(await ledger(test, name).rows()) == count
            assert len(await ledger(test, name).bookmark()) > 0


async def test_an_object_deleted_on_a_full_disk_makes_room(small_disk: Path) -> None:
    async with open_test_host(small_disk / "data") as test:
        for number in range(10):
            await ledger(test).add(f"{number}" * 1_000)
        await test.host.committer.fold()
        ballast = fill_disk(small_disk, free_blocks=2)
        await results([ledger(test).add("x" * 9_000)])
        assert await test.host.delete(id_of(ledger(test)))
        assert files(test) == []
        await ledger(test, "b").add("one")
        ballast.unlink()
        await test.restart()
        assert await ledger(test, "b").texts() == ["one"]


async def test_a_wish_to_go_back_outlasts_a_full_disk(small_disk: Path) -> None:
    async with open_test_host(small_disk / "data") as test:
        for number in range(10):
            await ledger(test).add(f"{number}" * 1_000)
            if number == 0:
                first = await ledger(test).bookmark()
        await ledger(test).restore(first)
        await test.host.committer.fold()
        ballast = fill_disk(small_disk, free_blocks=2)
        await results([ledger(test).reset()])
        await results([ledger(test).rows()])
        ballast.unlink()
        assert await ledger(test).rows() == ["0" * 1_000]
        await test.restart()
        assert await ledger(test).rows() == ["0" * 1_000]


# -- at a limit ---------------------------------------------------------------


class Tight(DurableObject, storage="sqlite"):
    """Meets the limit of its database between a key and the end of the turn."""

    async def fill(self) -> None:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE filling (data BLOB)")
        with contextlib.suppress(StorageLimitError):
            while True:
                sql.exec("INSERT INTO filling VALUES (zeroblob(9000))")

    async def put_and_make_room(self) -> str:
        self.ctx.storage.put("key", "kept")
        with pytest.raises(StorageLimitError):
            self.ctx.storage.transaction_sync(lambda: None)
        self.ctx.storage.sql.exec("DELETE FROM filling")
        return cast("str", await self.ctx.storage.get("key"))

    async def get(self) -> object:
        return await self.ctx.storage.get("key")


async def test_a_key_that_met_a_limit_is_written_when_there_is_room() -> None:
    config = Config(storage=SMALL, sql=SqlConfig(database_bytes_max=200_000))
    async with open_test_host(config=config) as test:
        await test.host.namespace(Tight).get_by_name("a").fill()
        await test.restart()
        tight = test.host.namespace(Tight).get_by_name("a")
        assert await tight.put_and_make_room() == "kept"
        await test.restart()
        assert await test.host.namespace(Tight).get_by_name("a").get() == "kept"


# -- what happens at once -----------------------------------------------------


async def test_a_fold_under_way_brings_nothing_of_a_deleted_object_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fold, entered, go_on = Keeper.fold, threading.Event(), threading.Event()

    def slow_fold(keeper: Keeper, *args: Any) -> None:
        entered.set()
        go_on.wait()
        fold(keeper, *args)

    monkeypatch.setattr(Keeper, "fold", slow_fold)
    async with open_test_host() as test:
        await ledger(test).add("secret")
        folding = asyncio.ensure_future(test.host.committer.fold())
        await asyncio.to_thread(entered.wait)
        deleting = asyncio.ensure_future(test.host.delete(id_of(ledger(test))))
        raw_id = id_of(ledger(test)).raw
        while not any(one.deleted for one in test.host.committer.pending(raw_id)):
            await asyncio.sleep(0)
        again = asyncio.ensure_future(ledger(test).add("new"))
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
        await folding
        assert await deleting
        assert await again == 1
        await test.host.committer.fold()
        for one in files(test):
            assert b"secret" not in one.read_bytes(), one
        await ledger(test).bookmark()
        await test.restart()
        assert await ledger(test).texts() == ["new"]


async def test_a_bookmark_nobody_waits_for_disturbs_no_fold() -> None:
    async with open_test_host() as test:
        for number in range(20):
            await ledger(test).add(str(number))
            asking = asyncio.ensure_future(
                test.host.databases.bookmark(id_of(ledger(test)))
            )
            for _ in range(number):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        first = await ledger(test).bookmark()
        await test.restart()
        assert await ledger(test).bookmark() == first
        assert len(await ledger(test).texts()) == 20


async def test_two_thousand_turns_are_opened_again_quickly() -> None:
    async with open_test_host() as test:
        page = test.host.namespace(Page).get_by_name("a")
        for number in range(2_000):
            await page.write(number)
        before = time.process_time()
        await test.restart()
        assert await test.host.namespace(Page).get_by_name("a").tables() == 3
        assert time.process_time() - before < 5  # about 0.3 s; bounded by the log


async def test_a_checkpoint_that_fails_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: Database) -> None:
        raise StorageFullError("checkpoint", "full")

    config = Config(storage=SMALL, sql=SqlConfig(open_max=2))
    monkeypatch.setattr("durable_actor.databases._CHECKPOINT_BYTES", 1)
    async with open_test_host(config=config) as test:
        with monkeypatch.context() as patch:
            patch.setattr(Database, "checkpoint", fails)
            for name in "abcd":
                await ledger(test, name).add("one")
                await test.host.committer.fold()
            await test.advance("1 minute")  # all leave memory
            assert test.host.stats().objects_resident == 0
        for name in "abcd":
            assert await ledger(test, name).texts() == ["one"]


async def test_a_crash_while_going_back_loses_nothing_that_comes_after() -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        first = await ledger(test).bookmark()
        await ledger(test).add("two")
        await ledger(test).restore(first)
        await reset(ledger(test))
        take_over(test.host).pause()
        # Tickets that the next process gives away again.
        lost = [asyncio.ensure_future(ledger(test, name).add("x")) for name in "bcd"]
        await test.settle()
        lost.append(asyncio.ensure_future(cast("Any", ledger(test).rows())))
        await asyncio.sleep(0)
        await test.settle()
        await test.crash()
        await results(lost)
        await test.start()
        assert await ledger(test).rows() == ["one"]
        for text in ("three", "four"):
            await ledger(test).add(text)
            await test.host.committer.fold()
        mark = await ledger(test).bookmark()
        await ledger(test).add("five")
        await ledger(test).restore(mark)
        await test.restart()
        assert await ledger(test).rows() == ["one", "three", "four"]


# -- damage ------------------------------------------------------------------


NAMES = ("hurt", "well")


@pytest.mark.parametrize("driver", ["thread", "process"])
async def test_a_wal_that_was_cut_short_is_the_trouble_of_its_object_alone(
    driver: DriverKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "_IDLE_FOLD_SECONDS", 1_000)  # only when told to
    async with open_test_host(driver=driver) as test:
        await asyncio.gather(*(ledger(test, name).add("one") for name in NAMES))
        await test.host.committer.fold()
        await asyncio.gather(*(ledger(test, name).add("two") for name in NAMES))
        wal = wal_path(path_of(test, ledger(test, "hurt")))
        await test.crash()
        os.truncate(wal, 5_000)
        await test.start()

        assert await ledger(test, "well").rows() == ["one", "two"]
        with pytest.raises(CorruptionError, match=wal.name):
            await ledger(test, "hurt").rows()
        await ledger(test, "well").add("three")
        await test.host.committer.fold()
        await test.restart()
        assert await ledger(test, "well").rows() == ["one", "two", "three"]
        with pytest.raises(CorruptionError, match=wal.name):
            await ledger(test, "hurt").rows()


@pytest.mark.parametrize("damage", ["all", "a_record"])
async def test_g11_without_its_history_an_object_only_cannot_go_back(
    damage: str,
) -> None:
    with capture_logs() as logs:
        await go_on_without_history(damage)

    assert "database.history_damaged" in {line["event"] for line in logs}


async def go_on_without_history(damage: str) -> None:
    async with open_test_host() as test:
        await ledger(test).add("one")
        await test.host.committer.fold()
        before = await ledger(test).bookmark()
        await ledger(test).add("two")
        await test.host.committer.fold()
        await ledger(test).add("three")
        history = path_of(test, ledger(test)).with_suffix(".redo")
        await test.crash()
        found = history.read_bytes()
        damaged = b"not it" + found[6:] if damage == "a_record" else b"not what it was"
        history.write_bytes(damaged)
        await test.start()

        assert await ledger(test).rows() == ["one", "two", "three"]
        await ledger(test).add("four")
        await test.host.committer.fold()
        for ask in (ledger(test).bookmark(), ledger(test).restore(before)):
            with pytest.raises(StorageError, match="history is damaged"):
                await ask
        await test.restart()
        assert await ledger(test).rows() == ["one", "two", "three", "four"]
        assert history.read_bytes() == damaged, "nothing is deleted"


async def test_the_directory_knows_the_size_of_a_database() -> None:
    async with open_test_host() as test:
        await ledger(test).add("x" * 10_000)
        page = await test.host.list_objects("Ledger")
        assert 10_000 < page.objects[0].size_bytes < 100_000


async def test_a_list_of_a_database_is_bounded_and_comes_in_pages() -> None:
    small = StorageConfig(list_bytes_max=200_000)
    async with open_test_host(config=Config(storage=small)) as test:
        many = test.host.namespace(Many).get_by_name("a")
        await many.fill(1_500)
        await test.restart()
        many = test.host.namespace(Many).get_by_name("a")

        with pytest.raises(StorageLimitError, match="start_after"):
            await many.names()
        assert await many.names(limit=250) == [f"k{n:04}" for n in range(250)]
        last = [f"k{n:04}" for n in range(1_499, 1_249, -1)]
        assert await many.names(limit=250, reverse=True) == last


class Many(DurableObject, storage="sqlite"):
    async def fill(self, count: int) -> None:
        for number in range(count):
            self.ctx.storage.put(f"k{number:04}", number)

    async def names(self, **options: Any) -> list[str]:
        return list(await self.ctx.storage.list(**options))


class Parts(DurableObject, storage="sqlite"):
    async def keep(self) -> str:
        def write() -> str:
            self.ctx.storage.sql.exec("CREATE TABLE kept (x)")
            return "v"

        return self.ctx.storage.transaction_sync(write)

    async def run_async(self, *, disguised: bool) -> None:
        async def write() -> None:
            self.ctx.storage.sql.exec("CREATE TABLE t (x)")

        def hide() -> object:
            self.ctx.storage.sql.exec("CREATE TABLE u (x)")
            return write()

        self.ctx.storage.transaction_sync(hide if disguised else write)

    async def run_a_number(self) -> None:
        number: Any = 5
        self.ctx.storage.transaction_sync(number)

    async def tables(self) -> list[object]:
        query = "SELECT name FROM sqlite_schema WHERE name IN ('t', 'u', 'kept')"
        return [row["name"] for row in self.ctx.storage.sql.exec(query)]


async def test_transaction_sync_takes_plain_functions_and_returns_their_value() -> None:
    async with open_test_host() as test:
        parts = test.host.namespace(Parts).get_by_name("a")
        assert await parts.keep() == "v"
        for disguised in (False, True):
            with pytest.raises(TypeError, match="plain function"):
                await parts.run_async(disguised=disguised)
        with pytest.raises(TypeError, match="needs a function"):
            await parts.run_a_number()
        assert await parts.tables() == ["kept"]
