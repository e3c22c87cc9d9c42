"""The committer: tickets, group commit, and what is durable but not yet folded.

Theory of operation
    Every seal gets the next ticket. Seals gather in a group; a group becomes one row of
    the log. If no commit is under way the group is flushed at the end of the turn;
    otherwise it gathers until the acknowledgement comes. There is no timer, so a lone
    caller waits for one commit and a thousand share one.

    A group has a bound in bytes: what exceeds it stands in line, in groups that are
    closed, and each commits after the one before. A seal over the bound goes alone. So
    a row of the log, and every copy of one on its way to the disk, is of bounded size
    however much is written at a time (G17).

    Groups commit one after the other, so "durable" is one number: every ticket up to
    `durable_ticket` is on disk, except those of groups that failed.

    What is durable but not folded stays here, newest value per key, so that an object
    may leave memory at any time and be read back whole: table first, this on top. While
    a fold runs there are two generations; the older one is dropped when it is done.

Promises
    A callback of `when_durable` runs once, in ticket order, after the sync.
    If a group fails, so does every later seal that was made before the failure was
    known, and `on_failure` hears of it, and of the first ticket that failed, before
    anyone else does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TypeVar

from msgspec import UNSET

from durable_actor.errors import (
    CorruptionError,
    HostClosedError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from durable_actor.log import get_logger
from durable_actor.seldom import Seldom
from durable_actor.storage.batch import EventRow, Seal, encode_batch
from durable_actor.storage.fold import ObjectChange
from durable_actor.storage.ports import (
    ENTRY_BYTES,
    HYDRATE_BYTES_MAX,
    Group,
    Loaded,
    LoadObjects,
    ReadRange,
    ShardDriver,
)
from durable_actor.storage.sql.wal import WalPosition
from durable_actor.storage.watches import KeyChanges, ReadState, Watch, Watches

T = TypeVar("T")
Settled = Callable[[StorageError | None], None]

_IDLE_FOLD_SECONDS = 0.05  # a pause this long is a good moment to fold
_FULL_RETRY_SECONDS = 1.0
_PAGE_KEYS = 1_000  # of an object whose whole state a watch needs
_LOG_TIMES_MAX = 4  # of its bound in bytes; then commits wait for the fold
_LOG_SEALS_MAX = 100_000  # beside its bytes: tiny seals are slow to replay at a start
_SEAL_BYTES = 150  # of a seal beside what it says: its directory row, and who waits

log = get_logger("durable_actor.storage")


class _Gathering:
    """The seals of one group, and who waits for them."""

    __slots__ = (
        "elsewhere",
        "last_ticket",
        "raw_ids",
        "seals",
        "settled",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.last_ticket = 0
        self.size_bytes = 0
        self.seals: list[Seal] = []
        self.raw_ids: list[bytes] = []
        self.elsewhere: dict[int, KeyChanges] = {}  # by ticket
        self.settled: list[Settled] = []


class Committer:
    """Makes seals durable, many at a time. One per shard."""

    def __init__(
        self,
        driver: ShardDriver,
        *,
        on_failure: Callable[[StorageError, int], None],
        on_space: Callable[[], None] = lambda: None,
        on_events: Callable[[Sequence[EventRow]], None] = lambda _: None,
        on_folded: Callable[[bytes, WalPosition], None] = lambda _, __: None,
        log_bytes_max: int = 8 * 1024 * 1024,
        group_rows_max: int = 256,
        group_bytes_max: int = 8 * 1024 * 1024,
    ) -> None:
        self._driver = driver
        self._on_failure = on_failure
        self._on_space = on_space  # the disk was full, and takes writes again
        self._on_events = on_events
        self._on_folded = on_folded  # pages of this object's database, up to there
        self._log_bytes_max = log_bytes_max
        self._group_rows_max = group_rows_max
        self._group_bytes_max = group_bytes_max
        self.last_ticket = driver.opened.last_ticket
        self.durable_ticket = driver.opened.last_ticket
        self._committed_ticket = driver.opened.last_ticket  # of the newest log row
        self._last_num = driver.opened.last_num
        self._last_event = driver.opened.last_event
        self._gathering = _Gathering()
        # Invariant: closed groups, oldest first; none of them is empty, nor is what is
        # gathering while there are any.
        self._line: deque[_Gathering] = deque()
        self._in_flight: asyncio.Task[None] | None = None
        # Invariant: None if and only if self._in_flight is. Holds every answer of the
        # group, so it must not outlive it.
        self._in_flight_group: _Gathering | None = None
        self._flush_planned = False
        self._planned: asyncio.Task[None] | None = None  # the last that was planned
        self._failed: list[tuple[int, int]] = []  # ticket ranges that never were
        self.failure: StorageError | None = None
        self.is_full = False
        self._probe_timer: asyncio.TimerHandle | None = None
        self._full_lines = Seldom()
        self._fresh: dict[bytes, ObjectChange] = {}
        self._folding: dict[bytes, ObjectChange] = {}
        self._log_bytes = 0
        self._log_seals = 0
        self._fold_task: asyncio.Task[StorageError | None] | None = None
        self._fold_timer: asyncio.TimerHandle | None = None
        self._loading: list[tuple[bytes, asyncio.Future[Loaded]]] = []
        self._load_tasks: set[asyncio.Task[None]] = set()
        self.groups = 0
        self.seals = 0
        self.watches = Watches()
        self.cached_bytes = 0  # of all objects in memory, told by their overlays

    def new_num(self) -> int:
        """Return a number that no object has had."""
        self._last_num += 1
        return self._last_num

    def new_event(self) -> int:
        """Return the next place in the outbox."""
        self._last_event += 1
        return self._last_event

    def seal(
        self,
        seal: Seal,
        raw_id: bytes = b"",
        elsewhere: KeyChanges | None = None,
        size_bytes: int = 0,
    ) -> int:
        """Take one turn's writes and return their ticket. Never suspends.

        Args:
            seal: The writes; not to be changed afterwards.
            raw_id: The object's id, by which `load` and `pending` find it.
            elsewhere: Keys it wrote to a database of its own, for who watches it.
            size_bytes: Of its keys, values and the like, about; its row not counted.

        Raises:
            StorageFailedError: The shard failed; nothing more is taken.
        """
        if self.failure is not None:
            raise self.failure
        size_bytes += _SEAL_BYTES
        gathering = self._gathering
        if gathering.size_bytes + size_bytes > self._group_bytes_max:
            gathering = self._next_gathering()
        gathering.size_bytes += size_bytes
        self.last_ticket += 1
        gathering.last_ticket = self.last_ticket
        gathering.seals.append(seal)
        gathering.raw_ids.append(raw_id)
        if elsewhere is not None:
            gathering.elsewhere[self.last_ticket] = elsewhere
        if self._in_flight is None:
            if len(gathering.seals) >= self._group_rows_max or self._line:
                self._flush()
            elif not self._flush_planned:
                self._flush_planned = True
                self._planned = asyncio.get_running_loop().create_task(
                    self._commit_gathered(), name="commit"
                )
        return self.last_ticket

    def when_durable(self, ticket: int, settled: Settled) -> None:
        """Call `settled(None)` once the ticket is on disk, or with what failed."""
        if ticket <= self.durable_ticket or self.failure is not None:
            settled(self.failure_of(ticket))
            return
        self._part_of(ticket).settled.append(settled)

    async def wait(self, ticket: int) -> None:
        """Return once the ticket is on disk.

        Raises:
            StorageError: It never will be.
        """
        if ticket <= self.durable_ticket and not self._failed:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(error: StorageError | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.when_durable(ticket, settle)
        await done

    def failure_of(self, ticket: int) -> StorageError | None:
        """Return why a ticket is not on disk, if it was given up."""
        if ticket > self.durable_ticket:
            return self.failure
        for first, last in self._failed:
            if first <= ticket <= last:
                return StorageFullError("commit", "the disk was full")
        return None

    async def load(self, raw_id: bytes) -> Loaded:
        """Return an object as it is now: the tables, and what is not folded on top.

        Objects that are asked for in the same turn are read together.
        """
        answer: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        if not self._loading:
            asyncio.get_running_loop().call_soon(self._start_load)
        self._loading.append((raw_id, answer))
        return await answer

    def pending(self, raw_id: bytes) -> tuple[ObjectChange, ...]:
        """Return what is durable of an object but may not be in the tables yet.

        The older change comes first. None of them is a copy: what becomes durable later
        is seen in them, too.
        """
        found = self._folding.get(raw_id), self._fresh.get(raw_id)
        return tuple(change for change in found if change is not None)

    def unsettled(self, raw_id: bytes) -> Iterator[Seal]:
        """Return the seals of an object that are not durable yet, oldest first."""
        for group in (self._in_flight_group, *self._line, self._gathering):
            if group is not None:
                for owner, seal in zip(group.raw_ids, group.seals, strict=True):
                    if owner == raw_id:
                        yield seal

    def fail(self, error: StorageFailedError) -> None:
        """Acknowledge nothing more: a write or sync beside the shard's has failed."""
        if self.failure is None:
            self._give_up(_Gathering(), error)

    def look_for_space(self) -> None:
        """Try whether a full disk takes writes again; done every second by itself."""
        is_tried = self._in_flight is not None or bool(self._gathering.seals)
        if self.is_full and self.failure is None and not is_tried:
            self.seal(Seal(num=0))  # of nobody; if it fails, the next try is planned

    def watch(
        self, raw_id: bytes, prefix: str = "", *, read_state: ReadState | None = None
    ) -> Watch:
        """Return what becomes durable of an object from now on.

        Args:
            raw_id: The object's id.
            prefix: Only keys that begin with it.
            read_state: Reads its keys, if they are in a database of its own.
        """

        async def read_keys(prefix: str) -> Mapping[str, bytes]:
            return await self._read_state(raw_id, prefix)

        return self.watches.open(raw_id, prefix, read_state or read_keys)

    async def fold(self) -> None:
        """Bring everything that is durable now into the tables.

        Raises:
            StorageError: The disk is full or broken, and the tables are behind.
        """
        if self._fold_task is not None:
            await asyncio.wait([self._fold_task])  # what is new may have missed it
        if self._fold_task is None:
            if self.failure is not None:
                raise self.failure
            if not self._log_bytes:
                return
            self._start_fold()
        assert self._fold_task is not None
        error = await asyncio.shield(self._fold_task)
        if error is not None:
            raise error

    async def close(self) -> None:
        """Commit what is sealed, fold, and close the shard.

        After a failure the file is left as it is: a sync that failed once may seem to
        work the next time, without having worked.
        """
        self._cancel_fold_timer()
        self._cancel_probe()
        while self._in_flight is not None or self._gathering.seals:
            self._flush()
            if self._in_flight is None:
                break  # failed, or dropped: nothing is flushed any more
            await asyncio.wait([self._in_flight])
        self.watches.end(HostClosedError("the host is closed"))
        if self._fold_task is not None:
            await asyncio.wait([self._fold_task])
        self._cancel_fold_timer()
        self._cancel_probe()
        for task in list(self._load_tasks):
            await asyncio.wait([task])
        if self.failure is None:
            await self._driver.close()
        else:
            await self._driver.drop()

    async def drop(self) -> None:
        """Stop without committing what is gathered, as a crash would."""
        self._cancel_fold_timer()
        self._cancel_probe()
        self.failure = StorageFailedError("commit", "the store was dropped")
        waits = (*self._load_tasks, self._planned, self._in_flight, self._fold_task)
        tasks = [task for task in waits if task is not None]
        await self._driver.drop()
        if tasks:
            await asyncio.wait(tasks)
        _tell(self._let_go(), self.failure)
        self.watches.end(HostClosedError("the host was dropped"))

    # -- commit ------------------------------------------------------------

    def _flush(self) -> None:
        """Commit what has gathered, unless a commit is under way."""
        group = self._take_gathered()
        if group is not None:
            self._in_flight = asyncio.get_running_loop().create_task(
                self._commit(group), name="commit"
            )

    async def _commit_gathered(self) -> None:
        """Commit what has gathered by the time this task begins: the turn has ended."""
        self._flush_planned = False
        group = self._take_gathered()
        if group is not None:
            self._in_flight = asyncio.current_task()
            await self._commit(group)

    def _take_gathered(self) -> _Gathering | None:
        gathering = self._gathering
        is_idle = self._in_flight is None and self.failure is None
        if not is_idle or not gathering.seals:
            return None
        if self._line:
            group = self._line.popleft()
        else:
            group, self._gathering = gathering, _Gathering()
        self._in_flight_group = group
        return group

    def _part_of(self, ticket: int) -> _Gathering:
        group = self._in_flight_group
        if group is not None and ticket <= group.last_ticket:
            return group
        if self._line and ticket <= self._line[-1].last_ticket:
            return next(part for part in self._line if ticket <= part.last_ticket)
        return self._gathering

    def _next_gathering(self) -> _Gathering:
        """Close the group that gathers, as it is full; return the one after it."""
        if self._gathering.seals:
            self._line.append(self._gathering)
            self._gathering = _Gathering()
        return self._gathering

    def _let_go(self) -> list[Settled]:
        """Forget all that has gathered; return who waits for it, in order."""
        parts = *self._line, self._gathering
        self._line.clear()
        self._gathering = _Gathering()
        return list(chain.from_iterable(part.settled for part in parts))

    async def _commit(self, group: _Gathering) -> None:
        last_ticket = group.last_ticket
        try:
            await self._room_in_log()
            batch = encode_batch(group.seals)
            row = Group(self._committed_ticket + 1, last_ticket, batch)
            await self._driver.commit(row)
        except StorageError as error:
            self._in_flight = self._in_flight_group = None
            self._give_up(group, error)
            return
        except BaseException as error:
            self._in_flight = self._in_flight_group = None
            self._give_up(group, _unexpected("commit", error))
            if not isinstance(error, Exception):
                raise
            return
        self._in_flight = self._in_flight_group = None
        was_full, self.is_full = self.is_full, False
        self.durable_ticket = last_ticket
        self._committed_ticket = last_ticket
        self.groups += 1
        self.seals += len(group.seals)
        self._log_bytes += len(batch)
        self._log_seals += len(group.seals)
        self._remember(group)
        # The next group may start before anyone hears of this one.
        self._flush()
        _tell(group.settled, None)
        if was_full:
            self._space_is_back()
        self._plan_fold()

    async def _room_in_log(self) -> None:
        """Return when the fold has caught up, if it was far behind.

        What is not folded is in memory, and is replayed at a start; a writer that is
        faster than the fold must not make it grow without end.
        """
        log_bytes_max = self._log_bytes_max * _LOG_TIMES_MAX
        while self._fold_task is not None and self._log_bytes > log_bytes_max:
            await asyncio.wait([self._fold_task])
            if self.failure is not None:
                raise self.failure

    def _give_up(self, group: _Gathering, error: StorageError) -> None:
        """A commit failed: so do its seals and all that came after them."""
        later = self._let_go()
        if self.failure is None:
            first_failed = self.durable_ticket + 1
            if isinstance(error, StorageFullError):
                # The group is known not to be there. Its tickets are not used again.
                self.is_full = True
                self._note_failed(first_failed, self.last_ticket)
                self.durable_ticket = self.last_ticket
                self._plan_probe()
            else:
                self.failure = error
            kept_back = self._full_lines.kept_back() if self.failure is None else 0
            if kept_back is not None:
                log.error(
                    "storage.commit_failed",
                    operation=error.operation,
                    error=str(error),
                    kept_back=kept_back,
                )
            if self.failure is not None:
                self.watches.end(self.failure)
            try:
                self._on_failure(error, first_failed)
            except Exception:
                log.exception("storage.callback_failed")
        _tell([*group.settled, *later], error)

    def _plan_probe(self) -> None:
        """Find out by ourselves when there is space again, if nobody else writes."""
        if self._probe_timer is None:
            loop = asyncio.get_running_loop()
            self._probe_timer = loop.call_later(_FULL_RETRY_SECONDS, self._probe)

    def _probe(self) -> None:
        self._probe_timer = None
        self.look_for_space()

    def _cancel_probe(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    def _space_is_back(self) -> None:
        self._cancel_probe()
        self._full_lines = Seldom()  # the next time is news
        log.info("storage.space_is_back")
        _tell([lambda _: self._on_space()], None)

    def _note_failed(self, first: int, last: int) -> None:
        """Remember tickets that never were; one range while the disk stays full."""
        if self._failed and self._failed[-1][1] == first - 1:
            first = self._failed.pop()[0]
        self._failed.append((first, last))

    # -- what is not folded --------------------------------------------------

    def _remember(self, group: _Gathering) -> None:
        fresh = self._fresh
        if self.watches.by_id:
            first_ticket = group.last_ticket - len(group.seals) + 1
            self.watches.tell(group.raw_ids, group.seals, first_ticket, group.elsewhere)
        for raw_id, seal in zip(group.raw_ids, group.seals, strict=True):
            if seal.num:
                change = fresh.get(raw_id)
                if change is None:
                    change = fresh[raw_id] = ObjectChange()
                change.add(seal)
            if seal.events:
                _tell([self._on_events], seal.events)

    def _plan_fold(self) -> None:
        if self._fold_task is not None:
            return
        if self._log_bytes > self._log_bytes_max or self._log_seals > _LOG_SEALS_MAX:
            self._start_fold()
        elif self._in_flight is None and self._fold_timer is None:
            loop = asyncio.get_running_loop()
            self._fold_timer = loop.call_later(_IDLE_FOLD_SECONDS, self._fold_if_idle)

    def _fold_if_idle(self) -> None:
        self._fold_timer = None
        if self._fold_task is not None or self.failure is not None:
            return
        # If it is busy again, the last commit of that stretch plans the next look.
        if self._in_flight is None:
            self._start_fold()

    def _cancel_fold_timer(self) -> None:
        if self._fold_timer is not None:
            self._fold_timer.cancel()
            self._fold_timer = None

    def _start_fold(self) -> None:
        self._cancel_fold_timer()
        # A fold that failed left its generation: it is folded again, below the new one.
        for raw_id, change in self._fresh.items():
            older = self._folding.get(raw_id)
            self._folding[raw_id] = change if older is None else older.lay_over(change)
        self._fresh = {}
        folded_bytes, folded_seals = self._log_bytes, self._log_seals
        self._fold_task = asyncio.get_running_loop().create_task(
            self._fold(folded_bytes, folded_seals), name="fold"
        )

    async def _fold(self, folded_bytes: int, folded_seals: int) -> StorageError | None:
        try:
            await self._driver.fold()
        except StorageFullError as error:
            kept_back = self._full_lines.kept_back()
            if kept_back is not None:
                log.warning(
                    "storage.fold_postponed", reason="disk full", kept_back=kept_back
                )
            self._fold_task = None
            loop = asyncio.get_running_loop()
            self._fold_timer = loop.call_later(_FULL_RETRY_SECONDS, self._fold_if_idle)
            return error
        except Exception as error:  # noqa: BLE001  # every waiter hears of it
            failure = (
                error if isinstance(error, StorageError) else _unexpected("fold", error)
            )
            self._fold_task = None
            self._give_up(_Gathering(), failure)
            return failure
        self._log_bytes -= folded_bytes
        self._log_seals -= folded_seals
        folded, self._folding = self._folding, {}
        self._fold_task = None
        for raw_id, change in folded.items():
            if change.position is not None:
                self._on_folded(raw_id, change.position)
        if self._fresh:
            self._plan_fold()
        return None

    # -- reading -------------------------------------------------------------

    def _start_load(self) -> None:
        asked, self._loading = self._loading, []
        task = asyncio.get_running_loop().create_task(self._load(asked), name="load")
        self._load_tasks.add(task)
        task.add_done_callback(self._load_tasks.discard)

    async def _load(self, asked: list[tuple[bytes, asyncio.Future[Loaded]]]) -> None:
        # What is pending now may be folded, and forgotten here, before the answer
        # comes; so it is kept and laid over the answer.
        before = [self.pending(raw) for raw, _ in asked]
        try:
            found = await self._driver.read(LoadObjects([raw for raw, _ in asked]))
        except Exception as error:  # noqa: BLE001  # goes to everyone who asked
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (raw, answer), loaded, earlier in zip(asked, found, before, strict=True):
            if not answer.done():
                answer.set_result(_overlay(loaded, *earlier, *self.pending(raw)))

    async def _read_state(self, raw_id: bytes, prefix: str) -> Mapping[str, bytes]:
        """Return the keys with a prefix; what becomes durable meanwhile may be missing.

        Taken before anything else, what is not folded stays right however much of it is
        folded while the pages are read.
        """
        pending = self.pending(raw_id)
        loaded = await self.load(raw_id)
        if loaded.damage is not None:
            raise CorruptionError(loaded.damage)
        state: dict[str, bytes | None] = dict(loaded.keys)
        start = None if loaded.complete else prefix
        while start is not None:
            query = ReadRange(loaded.num, start, None, _PAGE_KEYS, reverse=False)
            page = await self._driver.read(query)
            state.update(page.rows)
            ended_at = page.ended_at
            is_beyond = ended_at is None or not ended_at.startswith(prefix)
            start = None if is_beyond else f"{ended_at}\x00"
        for change in pending:
            if change.cleared:
                state = {}
            state.update(change.keys)
        return {
            key: value
            for key, value in state.items()
            if value is not None and key.startswith(prefix)
        }


def _tell(callbacks: Iterable[Callable[[T], None]], news: T) -> None:
    """Call each of them; one that raises must not keep the others from hearing."""
    for callback in callbacks:
        try:
            callback(news)
        except Exception:
            log.exception("storage.callback_failed")


def _unexpected(operation: str, error: BaseException) -> StorageFailedError:
    log.error("storage.unexpected", operation=operation, exc_info=error)
    return StorageFailedError(operation, f"{type(error).__name__}: {error}")


def _overlay(loaded: Loaded, *changes: ObjectChange) -> Loaded:
    """Return an object as the tables had it with later changes on top.

    Of a large object only what was loaded is brought up to date: whoever asks for the
    rest lays the changes over it then.
    """
    num, row, alarm = loaded.num, loaded.row, loaded.alarm
    position, restore = loaded.position, loaded.restore
    complete, keys, damage = loaded.complete, loaded.keys, loaded.damage
    for change in changes:
        if change.deleted:
            num, row, alarm, damage = 0, None, None, None
            position, restore = None, ""
        if change.cleared:
            complete, keys = True, {}
        news = change.keys if complete else [key for key in keys if key in change.keys]
        for key in news:
            value = change.keys[key]
            if value is None:
                keys.pop(key, None)
            else:
                keys[key] = value
        if change.row is not None:
            num, row = change.num, change.row
        if change.alarm is not UNSET:
            alarm = change.alarm
        position = change.position or position
        restore = restore if change.restore is None else change.restore
    if complete:
        complete, keys = _cut(keys)
    return Loaded(
        num=num,
        row=row,
        alarm=alarm,
        complete=complete,
        keys=keys,
        damage=damage,
        position=position,
        restore=restore,
    )


def _cut(keys: dict[str, bytes]) -> tuple[bool, dict[str, bytes]]:
    """Return so many keys as may be loaded at once, and whether that is all of them."""
    size_bytes = 0
    for count, (key, value) in enumerate(keys.items()):
        size_bytes += len(key) + len(value) + ENTRY_BYTES
        if size_bytes > HYDRATE_BYTES_MAX:
            return False, dict(islice(keys.items(), count))
    return True, keys
