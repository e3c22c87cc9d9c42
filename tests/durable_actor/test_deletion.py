"""Deleting an object while something else happens to it."""

from __future__ import annotations

import asyncio
from typing import TypeVar, cast

import pytest

from durable_actor import DurableObject, Host, StorageFullError
from durable_actor.storage.database_overlay import DatabaseOverlay
from durable_actor.storage.ports import DeleteDatabase, Query
from durable_actor.testing import TestHost, open_test_host
from tests.support.drivers import PausableDriver

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

A = TypeVar("A")


class Notes(DurableObject, storage="sqlite"):
    async def write(self, text: str) -> None:
        self.ctx.storage.put("text", text)

    async def read(self) -> str:
        return cast("str", await self.ctx.storage.get("text", ""))


class SlowToDelete(PausableDriver):
    """Removes files when it is told to."""

    may_delete: asyncio.Event

    async def read(self, query: Query[A]) -> A:
        if isinstance(query, DeleteDatabase):
            await self.may_delete.wait()
        return await super().read(query)


def slow_to_delete(host: Host) -> SlowToDelete:
    driver = SlowToDelete(host.driver)
    driver.may_delete = asyncio.Event()
    host.driver = host.committer._driver = host.databases._driver = driver
    return driver


def notes(test: TestHost) -> Notes:
    return test.host.namespace(Notes).get_by_name("a")


@pytest.mark.parametrize("times", [1, 2])
async def test_files_of_a_new_object_are_not_removed_with_those_of_the_old_one(
    times: int,
) -> None:
    async with open_test_host() as test:
        await notes(test).write("old")
        driver = slow_to_delete(test.host)
        object_id = test.host.namespace(Notes).id_from_name("a")
        deletions = [
            asyncio.ensure_future(test.host.delete(object_id)) for _ in range(times)
        ]
        deleted_before = test.host.committer.durable_ticket
        while test.host.committer.durable_ticket < deleted_before + times:
            await asyncio.sleep(0)
        await test.host.committer.fold()  # now nobody knows of the old one any more
        writing = asyncio.ensure_future(notes(test).write("new"))
        while test.host.stats().objects_resident == 0:
            await asyncio.sleep(0)
        for _ in range(1_000):  # not `settle`: the disk is at work all the time
            await asyncio.sleep(0)
        await test.host.committer.fold()  # else the log would bring the files back
        driver.may_delete.set()
        await asyncio.gather(writing, *deletions)
        await test.restart()
        assert await notes(test).read() == "new"


async def test_an_object_whose_turn_cannot_be_written_is_deleted_nevertheless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_test_host() as test:
        await notes(test).write("old")
        object_id = test.host.namespace(Notes).id_from_name("a")
        activation = test.host._residents.find(object_id)
        assert activation is not None
        overlay = activation.overlay
        assert isinstance(overlay, DatabaseOverlay)
        overlay.put("text", b"x")

        def refuse() -> None:
            raise StorageFullError("commit", "full")

        monkeypatch.setattr(overlay.database, "commit", refuse)
        assert await test.host.delete(object_id)
        assert await notes(test).read() == ""
