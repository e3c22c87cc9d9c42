"""What the daemon serves that is loaded with ten times what it can do."""

from __future__ import annotations

import asyncio

from durable_actor import DurableObject


class Till(DurableObject):
    """Counts, durably."""

    async def sell(self, load: str = "") -> int:
        count: int = await self.ctx.storage.get("count", 0)
        self.ctx.storage.put("count", count + 1)
        return count + 1

    async def sold(self) -> int:
        count: int = await self.ctx.storage.get("count", 0)
        return count

    async def keep(self, key: str, load: str) -> None:
        self.ctx.storage.put(key, load)


class Desk(DurableObject):
    """Takes two milliseconds for each, whatever else the process does."""

    async def serve(self) -> None:
        await asyncio.sleep(0.002)


class Ledger(DurableObject, storage="sqlite"):
    """Counts in a database of its own."""

    async def book(self) -> int:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS entry (n INTEGER PRIMARY KEY)")
        sql.exec("INSERT INTO entry DEFAULT VALUES")
        return await self.booked()

    async def booked(self) -> int:
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS entry (n INTEGER PRIMARY KEY)")
        row = sql.exec("SELECT count(*) AS n FROM entry").one()
        return int(str(row["n"]))
