"""Kept replies: the answers to calls with an identity, so that a repeat runs nothing.

Promises
    A call with an identity runs once within the time its reply is kept; a repeat gets
    the same answer, or the same error (G6).
    A reply is kept in the seal of the turn that made it: both are durable, or neither.
    A repeat that comes when its reply may have been dropped runs nothing either, and
    is told that nobody knows.

Theory of operation
    The replies of one object are bounded in time and number; the oldest go first, and
    the seal that keeps one too many drops the oldest from the disk. What was dropped
    is older than all that is kept, so one moment says it all: nothing is known of calls
    answered before it. A repeat tells how long ago it was sent first (by the clock that
    does not jump, on its own side); if that is before the moment, its call may be among
    those that were forgotten. Whoever sends an identity for the first time is believed.

    The identities are in memory from the first call that has one; of the replies only
    the newest, as repeats come soon. An older one is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from durable_actor.clock import Clock
from durable_actor.codec import decode, dumps_error, encode, loads_error
from durable_actor.errors import DurableActorError, ReplyExpiredError
from durable_actor.ids import ObjectId
from durable_actor.storage.batch import ReplyRow
from durable_actor.storage.committer import Committer
from durable_actor.storage.overlay import Overlay
from durable_actor.storage.ports import ReadReplies, ShardDriver

# What a repeat may take from the count of its age to its arrival.
_ON_THE_WAY_MS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRepliesLimits:
    """How long replies are kept, in milliseconds, and how many of one object."""

    ttl_ms: int = 24 * 3_600_000
    replies_max: int = 10_000
    resident_bytes_max: int = 64 * 1_024  # of one object, in memory


@dataclass(slots=True)
class ReplyCounters:
    """What became of the replies of all objects of a host."""

    kept: int = 0
    repeated: int = 0  # told again, so that nothing ran
    dropped: int = 0  # before their time, as there were too many
    expired: int = 0  # repeats that came too late to be told anything


class KeptReplies:
    """The kept replies of one activation."""

    __slots__ = (
        "_clock",
        "_committer",
        "_counters",
        "_driver",
        "_forgotten_ms",
        "_id",
        "_known",
        "_limits",
        "_overlay",
        "_resident",
        "_resident_bytes",
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
        counters: ReplyCounters,
    ) -> None:
        self._committer = committer
        self._driver = driver
        self._clock = clock
        self._overlay = overlay
        self._id = object_id
        self._limits = limits
        self._counters = counters
        # Until when each is kept, oldest first; None: not read yet.
        self._known: dict[str, int] | None = None
        # Calls answered before then may have been forgotten; wall clock.
        self._forgotten_ms = 0
        # The newest replies themselves, and how much they are.
        self._resident: dict[str, bytes] = {}
        self._resident_bytes = 0
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
        first_sent_ms: int = 0,
    ) -> Any:
        """Return the answer of the call with this identity, running it at most once.

        Args:
            request_id: The identity.
            call: Runs it; raises at once if the arguments do not fit.
            wrote: Told that there is something to seal.
            delivery: The number of the delivery this is asked in.
            first_sent_ms: Of a repeat, when that was; 0: this is no repeat.

        Raises:
            ReplyExpiredError: A repeat, whose reply may have been dropped.
        """
        known = self._known if self._known is not None else await self._load()
        while request_id in self._under_way:
            await asyncio.wait([self._under_way[request_id][0]])
        now_ms = self._clock.now_ms()
        if known.get(request_id, 0) > now_ms:
            self._counters.repeated += 1
            return _open_reply(await self._reply(request_id))
        forgotten_ms = max(self._forgotten_ms, now_ms - self._limits.ttl_ms)
        if first_sent_ms and first_sent_ms - _ON_THE_WAY_MS <= forgotten_ms:
            self._counters.expired += 1
            raise self._expired(request_id)
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
        known: dict[str, int],
    ) -> Any:
        raised: Exception | None = None
        called = call()  # arguments that do not fit are not kept
        try:
            result = await called
            reply = b"\x01" + encode(result)
        except Exception as error:  # noqa: BLE001  # kept, and raised again below
            raised = has_run(error)
            reply = b"\x00" + dumps_error(error, include_traceback=False)
        now_ms = self._clock.now_ms()
        row = ReplyRow(request_id, reply, now_ms + self._limits.ttl_ms)
        self._overlay.keep_reply(row)
        wrote()
        self._counters.kept += 1
        known.pop(request_id, None)  # an expired one of the same name was older
        known[request_id] = row.expires_at_ms
        self._drop_oldest(known, now_ms)
        self._make_resident(request_id, reply)
        if raised is not None:
            raise raised
        return decode(reply[1:])

    def _drop_oldest(self, known: dict[str, int], now_ms: int) -> None:
        """Forget what is over its time, and, here and on the disk, what is too many."""
        while len(known) > 1:
            oldest, expires_at_ms = next(iter(known.items()))
            if expires_at_ms > now_ms:
                if len(known) <= self._limits.replies_max:
                    return
                self._overlay.keep_reply(ReplyRow(oldest, b"", 0))
                self._forgotten_ms = expires_at_ms - self._limits.ttl_ms
                self._counters.dropped += 1
            del known[oldest]
            self._resident_bytes -= len(self._resident.pop(oldest, b""))

    def _make_resident(self, request_id: str, reply: bytes) -> None:
        self._resident_bytes -= len(self._resident.pop(request_id, b""))
        self._resident[request_id] = reply
        self._resident_bytes += len(reply)
        # The newest stays: it is in no seal yet, so nobody else has it.
        while (
            self._resident_bytes > self._limits.resident_bytes_max
            and len(self._resident) > 1
        ):
            oldest = next(iter(self._resident))
            self._resident_bytes -= len(self._resident.pop(oldest))

    async def _reply(self, request_id: str) -> bytes:
        reply = self._resident.get(request_id)
        if reply is None:
            row = (await self._read()).get(request_id)
            if row is None or not row.reply:  # dropped while it was looked for
                raise self._expired(request_id)
            reply = row.reply
        return reply

    async def _load(self) -> dict[str, int]:
        rows = await self._read()
        if self._known is None:
            self._known = {
                row.request_id: row.expires_at_ms
                for row in sorted(rows.values(), key=_when_it_ends)
                if row.reply
            }
            if len(self._known) >= self._limits.replies_max:
                oldest = next(iter(self._known.values()))
                self._forgotten_ms = oldest - self._limits.ttl_ms
        return self._known

    async def _read(self) -> dict[str, ReplyRow]:
        """Return all that is kept, on the disk or on its way there."""
        if not self._overlay.num:
            return {}
        before = self._committer.pending(self._id.raw)
        rows = await self._driver.read(ReadReplies(self._overlay.num))
        found = {row.request_id: row for row in rows}
        for change in (*before, *self._committer.pending(self._id.raw)):
            found |= {row.request_id: row for row in change.replies or ()}
        return found

    def _expired(self, request_id: str) -> ReplyExpiredError:
        return ReplyExpiredError(
            f"the call {request_id!r} was sent first so long ago that its reply may"
            " have been dropped; it was not run now, and may have run before",
            object_class=self._id.namespace,
            object_name=self._id.name,
            object_id=str(self._id),
        )


def has_run(error: Exception) -> Exception:
    """Return what a handler raised, saying that the call ran.

    An error that the handler got from somewhere else says what became of that other
    call, and whoever believed it of this one would send this one again.
    """
    if isinstance(error, DurableActorError) and error.outcome == "not_executed":
        error.outcome = "failed"
    return error


def _when_it_ends(row: ReplyRow) -> int:
    return row.expires_at_ms


def _open_reply(reply: bytes) -> Any:
    if reply[:1] == b"\x01":
        return decode(reply[1:])
    raise loads_error(reply[1:])
