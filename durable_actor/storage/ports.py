"""The seam between the runtime and a shard: commit, fold, read, close.

`Shard` is one side of it, in this process or in a storage process of its own; the
committer is the other. Questions and answers are structs, so that they cross a socket
unchanged.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from durable_actor.storage.batch import AlarmRow, EventRow, ObjectRow, ReplyRow
from durable_actor.storage.sql.wal import WalPosition

A = TypeVar("A")

# What a key and its value take in memory beside their bytes: two objects, and their
# place in a dict. Without it, a million tiny values would seem to be next to nothing.
ENTRY_BYTES = 150
HYDRATE_BYTES_MAX = 256 * 1024  # an object with more than this loads on demand
PAGE_BYTES_MAX = 4 * 1024 * 1024  # one page of a range; a larger value comes alone


class ShardOptions(Struct, frozen=True, kw_only=True):
    """How a shard is opened. Sizes are bytes."""

    path: str
    uri: str | None = None  # instead of the path: a test puts a faulty disk under it
    wal_bytes_max: int = 16 * 1024 * 1024
    wal_grow_bytes: int = 4 * 1024 * 1024
    hydrate_bytes_max: int = HYDRATE_BYTES_MAX
    history_bytes_max: int = 256 * 1024 * 1024  # of one object's database
    history_ms_max: int = 30 * 24 * 3_600_000
    ballast_bytes: int = 0
    synchronous: str = "FULL"  # NORMAL and OFF only as controls that must fail


class Opened(Struct, frozen=True, kw_only=True):
    """What was found when the shard was opened, after the log had been folded."""

    epoch: int
    last_ticket: int
    last_num: int
    last_event: int
    events_waiting: int


class Group(Struct, frozen=True, array_like=True):
    """One row of the log: the tickets it covers and the seals' bytes."""

    first_ticket: int
    last_ticket: int
    batch: bytes


class Loaded(Struct, frozen=True, array_like=True):
    """One object as the tables have it. `num` 0: never seen.

    `complete` says that `keys` is all there is; a large object loads on demand.
    `damage` names the first checksum that did not match.
    """

    num: int = 0
    row: ObjectRow | None = None
    alarm: AlarmRow | None = None
    complete: bool = True
    keys: dict[str, bytes] = {}
    damage: str | None = None
    # Of an object with a database: where its WAL ends, and where it is to go back to.
    position: WalPosition | None = None
    restore: str = ""


class KeyPage(Struct, frozen=True, array_like=True):
    """Some keys of a range with their values, in order.

    `ended_at` is the last key the page answers for; None if that is all of the range.
    """

    rows: list[tuple[str, bytes]]
    ended_at: str | None = None


class DueAlarm(Struct, frozen=True, array_like=True):
    """An object with an alarm, and when it is due."""

    num: int
    id: bytes
    object_class: str
    name: str | None
    due_at_ms: int


class DirectoryEntry(Struct, frozen=True, array_like=True):
    """One line of the directory, with what belongs to the object elsewhere."""

    num: int
    row: ObjectRow
    size_bytes: int
    alarm_at_ms: int | None


class ShardStatus(Struct, frozen=True, kw_only=True):
    """Sizes, for metrics and `doctor`."""

    database_bytes: int
    wal_bytes: int
    log_rows: int
    objects: int
    alarms: int
    checkpoints: int
    folds: int


class Query(Struct, Generic[A], frozen=True):
    """A question to a shard; `A` is its answer's type, `answer` too, at run time."""

    answer: ClassVar[Any]


class LoadObjects(Query["list[Loaded]"], frozen=True, tag="load"):
    """Each object with these ids, in their order."""

    answer: ClassVar[Any] = list[Loaded]
    ids: list[bytes]


class ReadKeys(Query["dict[str, bytes]"], frozen=True, tag="keys"):
    """The values of these keys, missing ones omitted."""

    answer: ClassVar[Any] = dict[str, bytes]
    num: int
    keys: list[str]


class ReadRange(Query["KeyPage"], frozen=True, tag="range"):
    """Keys from `start` (inclusive) to `end` (exclusive), in order.

    A page ends after `limit` rows, or after the row that brings the values to
    `bytes_max`.
    """

    answer: ClassVar[Any] = KeyPage
    num: int
    start: str
    end: str | None
    limit: int
    reverse: bool
    bytes_max: int = PAGE_BYTES_MAX


class ReadAlarms(Query["list[DueAlarm]"], frozen=True, tag="alarms"):
    """The earliest alarms due after one time and not after another."""

    answer: ClassVar[Any] = list[DueAlarm]
    after_ms: int
    until_ms: int
    limit: int


class StoredAlarm(Struct, frozen=True, array_like=True):
    """One alarm that is set, and whose it is."""

    num: int
    id: bytes
    object_class: str
    name: str | None
    alarm: AlarmRow


class ListAlarms(Query["list[StoredAlarm]"], frozen=True, tag="list_alarms"):
    """Alarms in order of (due time, number of the object), after a place."""

    answer: ClassVar[Any] = list[StoredAlarm]
    object_class: str | None
    before_ms: int | None
    after: tuple[int, int] | None
    limit: int


class ReadDirectory(Query["list[DirectoryEntry]"], frozen=True, tag="directory"):
    """Objects in order of (class, name, id), after a place."""

    answer: ClassVar[Any] = list[DirectoryEntry]
    object_class: str | None
    prefix: str
    where: dict[str, str]
    after: tuple[str, str, bytes] | None
    limit: int


class ReadOutbox(Query["list[EventRow]"], frozen=True, tag="outbox"):
    """The oldest undelivered events after a place."""

    answer: ClassVar[Any] = list[EventRow]
    after: int
    limit: int


class ReadReplies(Query["list[ReplyRow]"], frozen=True, tag="replies"):
    """The kept replies of one object."""

    answer: ClassVar[Any] = list[ReplyRow]
    num: int


class ExpireReplies(Query[int], frozen=True, tag="expire"):
    """Drop kept replies whose time is over; answers how many."""

    answer: ClassVar[Any] = int
    now_ms: int


class ReadBookmark(Query[str], frozen=True, tag="bookmark"):
    """The bookmark of an object's database, of now or of a time."""

    answer: ClassVar[Any] = str
    id: bytes
    at_ms: int | None


class RestoreDatabase(Query[str], frozen=True, tag="restore"):
    """Take a database that is not open back; answers a bookmark that undoes it."""

    answer: ClassVar[Any] = str
    id: bytes
    bookmark: str
    seq: int  # a ticket that nothing else has
    at_ms: int


class DeleteDatabase(Query[None], frozen=True, tag="delete_database"):
    """Remove the files of a database whose object was deleted, durably."""

    answer: ClassVar[Any] = None
    id: bytes


class ReadStatus(Query[ShardStatus], frozen=True, tag="status"):
    """Sizes and counts."""

    answer: ClassVar[Any] = ShardStatus


AnyQuery: TypeAlias = (
    LoadObjects
    | ReadKeys
    | ReadRange
    | ReadAlarms
    | ListAlarms
    | ReadDirectory
    | ReadOutbox
    | ReadReplies
    | ExpireReplies
    | ReadBookmark
    | RestoreDatabase
    | DeleteDatabase
    | ReadStatus
)


class ShardDriver(Protocol):
    """One shard, wherever its connection lives."""

    @property
    def opened(self) -> Opened: ...

    async def commit(self, group: Group) -> None:
        """Make the group durable: appended to the log, and synced.

        Raises:
            StorageFullError: The disk is full; the group was not applied.
            StorageFailedError: Anything else; nothing more may be acknowledged.
        """
        ...

    async def fold(self) -> None:
        """Bring every group committed so far into the tables."""
        ...

    async def read(self, query: Query[A]) -> A:
        """Answer a question from the tables."""
        ...

    async def close(self) -> None:
        """Fold, checkpoint and close."""
        ...

    async def drop(self) -> None:
        """Close without folding, as after a failure or for a crash."""
        ...
