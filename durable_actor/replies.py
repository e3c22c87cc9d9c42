"""Kept replies: the answers to calls with an identity, so that a repeat runs nothing.

Promises
    A call with an identity runs once within the time its reply is kept; a repeat gets
    the same answer, or the same error (G6).
    A reply is kept in the seal of the turn that made it: both are durable, or neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from durable_actor.clock import Clock
from durable_actor.codec import decode, dumps_error, encode, loads_error
from durable_actor.ids import ObjectId
from durable_actor.storage.batch import ReplyRow
from durable_actor.storage.committer import Committer
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import ReadReplies, ShardDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRepliesLimits:
    """How long replies are kept, in milliseconds, and how many of one object."""

    ttl_ms: int = 24 * 3_600_000
    replies_max: int = 10_000


class KeptReplies:
    """The kept replies of one activation."""

    __slots__ = (
        "_clock",
        "_committer",
        "_driver",
        "_id",
        "_known",
        "_limits",
        "_overlay",
        "_under_way",
    )

    def __init__(
        self,
        committer: Committer,
        driver: ShardDriver,
        clock: Clock,
        overlay: Overlay,
        object_id: ObjectId,
        *,
        limits: KeptRepliesLimits,
    ) -> None:
        self._committer = committer
        self._driver = driver
        self._clock = clock
        self._overlay = overlay
        self._id = object_id
        self._limits = limits
        self._known: dict[str, ReplyRow] | None = None
        # Until when, and in which delivery.
        self._under_way: dict[str, tuple[asyncio.Future[None], int]] = {}

    def is_under_way_in(self, request_id: str, chain: tuple[int, ...]) -> bool:
        """Whether one of these deliveries runs the call with this identity."""
        under_way = self._under_way.get(request_id)
        return under_way is not None and under_way[1] in chain

    async def run(
        self,
        request_id: str,
        call: Callable[[], Awaitable[Any]],
        wrote: Callable[[], None],
        *,
        delivery: int,
    ) -> Any:
        """Return the answer of the call with this identity, running it at most once.

        Args:
            request_id: The identity.
            call: Runs it; raises at once if the arguments do not fit.
            wrote: Told that there is something to seal.
            delivery: The number of the delivery this is asked in.
        """
        known = self._known if self._known is not None else await self._load()
        while request_id in self._under_way:
            await asyncio.wait([self._under_way[request_id][0]])
        now_ms = self._clock.now_ms()
        kept = known.get(request_id)
        if kept is not None and kept.expires_at_ms > now_ms:
            return _open_reply(kept.reply)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way[request_id] = (done, delivery)
        try:
            return await self._run_and_keep(request_id, call, wrote, known)
        finally:
            del self._under_way[request_id]
            done.set_result(None)

    async def _run_and_keep(
        self,
        request_id: str,
        call: Callable[[], Awaitable[Any]],
        wrote: Callable[[], None],
        known: dict[str, ReplyRow],
    ) -> Any:
        raised: Exception | None = None
        called = call()  # arguments that do not fit are not kept
        try:
            result = await called
            reply = b"\x01" + encode(result)
        except Exception as error:  # noqa: BLE001  # kept, and raised again below
            raised = error
            reply = b"\x00" + dumps_error(error, include_traceback=False)
        row = ReplyRow(request_id, reply, self._clock.now_ms() + self._limits.ttl_ms)
        self._overlay.keep_reply(row)
        wrote()
        known[request_id] = row
        if len(known) > self._limits.replies_max:
            del known[next(iter(known))]
        if raised is not None:
            raise raised
        return decode(reply[1:])

    async def _load(self) -> dict[str, ReplyRow]:
        found: dict[str, ReplyRow] = {}
        if self._overlay.num:
            before = self._committer.pending(self._id.raw)
            rows = await self._driver.read(ReadReplies(self._overlay.num))
            found = {row.request_id: row for row in rows}
            for change in (*before, *self._committer.pending(self._id.raw)):
                found |= {row.request_id: row for row in change.replies or ()}
        if self._known is None:
            self._known = found
        return self._known


def _open_reply(reply: bytes) -> Any:
    if reply[:1] == b"\x01":
        return decode(reply[1:])
    raise loads_error(reply[1:])
