"""The past of one object's database, to which it can be taken back.

Theory of operation
    A commit is a set of pages. The history keeps two files beside a database:
    `<64 hex>.base`, the database at the oldest moment that can be restored (absent:
    empty), and `<64 hex>.redo`, the pages of every commit since, one record each. The
    state at a moment is the base, overlaid with all records up to it. To restore is
    itself a record, of the pages that differ, so that it can be taken back too.

    Records are numbered by the caller (`seq`, ascending, such as the ticket), so that
    a fold repeated after a crash appends nothing twice. When the history grows too
    large or too old, its first records are moved into the base. A base knows its own
    number, and records up to it do nothing, so a crash between the two files is no
    harm: every page they have has its newest image in a later place or in the base.

Promises
    `append` and `restore` may be repeated after a crash at any point.
    Nothing is removed that is not written again (G11). Reading removes nothing. The log
    still holds what a crash left half written, so that the same bytes come again: only
    to these does it give way, if nothing else is there but zeros. Anything else is
    damage, and so is a gap: the `append` or `restore` that meets it reports it, and
    leaves the files as they are.

Pure file code: never opens a database, and `append` may run beside an open one.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from zlib import crc32

from msgspec import Struct

from durable_actor.errors import CorruptionError, StorageError
from durable_actor.storage.integrity import sync_directory
from durable_actor.storage.sql.sums import Sums, write_sums
from durable_actor.storage.sql.wal import (
    PAGE_BYTES,
    WalPosition,
    WalSegment,
    empty_database,
    frames_of,
    wal_path,
)

RETAINED_BYTES_MAX = 256 * 1024 * 1024
RETAINED_MS_MAX = 30 * 24 * 3_600_000  # as long as the original keeps it
_HEAD = struct.Struct(">4sQQII8sQ")  # see Record; how many pages; the end of the WAL
_NUMBERS = slice(4, 20)  # of a head: the record's number and time
_CRC = struct.Struct(">I")
_MAGIC = b"REDO"
_BASE_MAGIC = b"BASE"
_BOOKMARK = re.compile(r"([0-9a-f]{16})-([0-9a-f]{12})")
_COPY_PAGES = 256  # at a time
_NOWHERE = WalPosition(bytes(8), 0)


class Record(Struct, frozen=True, gc=False):
    """Where one commit lies in the redo file. `database_pages` is the size after it."""

    seq: int
    at_ms: int
    database_pages: int
    pages: tuple[int, ...]
    position: WalPosition  # where the WAL ended
    offset: int  # of the first image
    end: int


class Place(Struct, frozen=True, gc=False):
    """Where the image of a page is: in the redo file, or in the base."""

    in_redo: bool
    offset: int


def bookmark(seq: int, at_ms: int) -> str:
    """Return the text that names a moment. Texts sort in the order of their moments."""
    return f"{seq:016x}-{at_ms:012x}"


def bookmark_seq(text: object) -> int:
    """Return the number in a bookmark.

    Raises:
        StorageError: Not a bookmark.
    """
    found = _BOOKMARK.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise StorageError("restore", f"{text!r} is not a bookmark")
    return int(found[1], 16)


def bookmark_at_ms(text: str) -> int:
    """Return the time in a bookmark, in epoch milliseconds."""
    return int(text.rpartition("-")[2], 16)


class History:
    """The two files of one database. Made by its path; nothing need be there yet."""

    def __init__(self, path: Path) -> None:
        """Read which records there are. Changes nothing.

        Args:
            path: The database's.

        Raises:
            CorruptionError: The base is damaged.
        """
        self._database = path
        self._base = path.with_suffix(".base")
        self._redo = path.with_suffix(".redo")
        self._load()

    @property
    def last_seq(self) -> int:
        """The number of the newest moment; 0 if there is none."""
        return self._records[-1].seq if self._records else self._base_seq

    @property
    def current_bookmark(self) -> str:
        """The newest moment in the history."""
        if self._records:
            return bookmark(self._records[-1].seq, self._records[-1].at_ms)
        return bookmark(self._base_seq, self._base_at_ms)

    @property
    def size_bytes(self) -> int:
        """The size of the redo file."""
        return self._end

    @property
    def has_rest(self) -> bool:
        """Whether something that is no whole record is behind the last one.

        After a fold this is damage: a fold writes again what a crash left half written.
        """
        return self._redo.exists() and self._redo.stat().st_size > self._end

    def append(self, segment: WalSegment, *, seq: int, at_ms: int) -> bool:
        """Add one commit; False if it is there already. Durable after `sync`.

        Raises:
            CorruptionError: The segment does not consist of whole frames, or does not
                follow what is there. The history was not touched.
        """
        if seq <= self.last_seq and not self._forget_unfinished(seq):
            return False
        before = self._position
        if segment.offset and (segment.generation, segment.offset) != (
            before.generation,
            before.end,
        ):
            message = f"{self._redo}: the commit before {seq} is missing"
            raise CorruptionError(message)
        images: dict[int, bytes] = {}
        database_pages = 0
        for frame in frames_of(segment):
            images[frame.page] = frame.image
            database_pages = frame.database_pages
        kept = {page: images[page] for page in sorted(images) if page <= database_pages}
        head = seq, at_ms, database_pages, segment.position
        self._write(head, tuple(kept), lambda: iter(kept.values()))
        return True

    def sync(self) -> None:
        """Make the records durable, before the log forgets their segments."""
        if self._redo.exists():
            _sync_file(self._redo)
            sync_directory(self._redo.parent)

    def bookmark_for_time(self, at_ms: int) -> str:
        """Return the newest moment that is not after a time (epoch milliseconds).

        Raises:
            StorageError: The history does not reach back so far.
        """
        if at_ms < self._base_at_ms:
            detail = (
                f"the history begins at {self._base_at_ms}, {at_ms} is before it"
                " (both in epoch milliseconds)"
            )
            raise StorageError("bookmark", detail)
        for record in reversed(self._records):
            if record.at_ms <= at_ms:
                return bookmark(record.seq, record.at_ms)
        return bookmark(self._base_seq, self._base_at_ms)

    def restore(self, to: str, *, seq: int, at_ms: int) -> str:
        """Take the database back to a bookmark; return one that would undo this.

        The database must not be open, and all its segments must be in the history. The
        caller keeps the wish to restore, durably, until this returns; after a crash it
        asks again with the same `seq`. Afterwards the database has no WAL.

        Raises:
            StorageError: The bookmark is older than the history, or not of it.
            CorruptionError: The history is damaged; neither it nor the database was
                touched.
        """
        wanted = bookmark_seq(to)
        before = self.current_bookmark
        if seq > self.last_seq:
            if wanted < self._base_seq or wanted > self.last_seq:
                detail = (
                    f"the bookmark {to} is not within the history, which goes from"
                    f" {bookmark(self._base_seq, self._base_at_ms)} to {before}"
                )
                raise StorageError("restore", detail)
            self._check()
            self._append_return(wanted, seq, at_ms)
            self.sync()
        else:
            before = self._bookmark_before(seq)
        pages: list[int] = []
        state = self._state(self.last_seq)
        _replace(self._database, (_summed(image, pages) for image in state))
        wal_path(self._database).unlink(missing_ok=True)
        sync_directory(self._database.parent)
        end = self._position
        write_sums(self._database, Sums(end.generation, end.end, pages))
        return before

    def trim(
        self,
        now_ms: int,
        *,
        bytes_max: int = RETAINED_BYTES_MAX,
        age_ms_max: int = RETAINED_MS_MAX,
    ) -> int:
        """Move records that are too old or too many into the base; return how many.

        Copies the base, so it is for a thread and for a quiet moment.
        """
        count = 0
        for record in self._records:
            is_old = record.at_ms < now_ms - age_ms_max
            is_much = self.size_bytes - record.offset > bytes_max
            if not (is_old or is_much):
                break
            count += 1
        if not count:
            return 0
        last = self._records[count - 1]
        self._write_base(last)
        sync_directory(self._base.parent)
        _replace(self._redo, self._tail(last.end))
        sync_directory(self._redo.parent)
        self._load()
        return count

    def delete(self) -> None:
        """Forget everything: the object was deleted."""
        self._redo.unlink(missing_ok=True)
        self._base.unlink(missing_ok=True)
        self._load()

    def problem(self) -> str:
        """Return what of it is damaged, if anything is. Reads all of it.

        For after a fold, see `has_rest`.
        """
        if self.has_rest:
            return f"{self._redo.name}: what is at byte {self._end} is not whole"
        return self._changed()

    # -- reading ---------------------------------------------------------------

    def _changed(self) -> str:
        """Return what of the base and the records is not what was written."""
        if self._base_crc and self._base_pages:
            crc = 0
            with self._base.open("rb") as file:
                for _ in range(self._base_pages):
                    crc = crc32(file.read(PAGE_BYTES), crc)
            if crc != self._base_crc:
                return f"{self._base.name}: its pages are not what was written"
        if self._records:
            with self._redo.open("rb") as file:
                for record in self._records:
                    if not self._is_whole(file, record):
                        return f"{self._redo.name}: the record {record.seq} is damaged"
        return ""

    def _check(self) -> None:
        if changed := self._changed():
            raise CorruptionError(f"{self._redo.parent / changed}")

    @property
    def _position(self) -> WalPosition:
        """Where the WAL ended with the newest record."""
        return self._records[-1].position if self._records else self._base_position

    def _load(self) -> None:
        """Read what there is."""
        self._base_seq = self._base_at_ms = self._base_pages = 0
        self._base_crc = 0  # of all pages; 0: an earlier release wrote it
        self._base_position = _NOWHERE
        self._read_base()
        self._end = 0  # of the last whole record: where the next one goes
        self._records = self._scan()

    def _read_base(self) -> None:
        try:
            with self._base.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _HEAD.size - _CRC.size))
                trailer = file.read()
        except FileNotFoundError:
            return
        if len(trailer) != _HEAD.size + _CRC.size:
            raise CorruptionError(f"{self._base} is cut short")
        magic, seq, at_ms, pages, pages_crc, generation, end = _HEAD.unpack_from(
            trailer
        )
        whole = _CRC.unpack_from(trailer, _HEAD.size)[0] == crc32(trailer[: _HEAD.size])
        if (
            magic != _BASE_MAGIC
            or not whole
            or size != pages * PAGE_BYTES + len(trailer)
        ):
            raise CorruptionError(f"{self._base} is damaged")
        self._base_seq, self._base_at_ms, self._base_pages = seq, at_ms, pages
        self._base_crc = pages_crc
        self._base_position = WalPosition(generation, end)

    def _scan(self) -> list[Record]:
        records: list[Record] = []
        try:
            file = self._redo.open("rb")
        except FileNotFoundError:
            return records
        with file:
            size = file.seek(0, os.SEEK_END)
            while record := self._read_record(file, self._end, size):
                if records and record.seq <= records[-1].seq:
                    break  # a changed number would hide it
                records.append(record)
                self._end = record.end
            # What a crash left half written is at the end, since `sync` comes before
            # anything relies on it. A record before that is looked at when it is used,
            # but for those that are not to be used, since the base has them.
            while records and not self._is_whole(file, records[-1]):
                self._end = self._start(records.pop())
            covered = [record for record in records if record.seq <= self._base_seq]
            for record in covered:
                if not self._is_whole(file, record):
                    self._end = self._start(record)
                    return []
        return records[len(covered) :]

    def _read_record(self, file: IO[bytes], place: int, size: int) -> Record | None:
        """Return the record at a place, None if it is not all there."""
        file.seek(place)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        magic, seq, at_ms, database_pages, count, generation, wal = _HEAD.unpack(head)
        offset = place + _HEAD.size + 4 * count
        end = offset + PAGE_BYTES * count + _CRC.size
        if magic != _MAGIC or end > size:
            return None
        pages = struct.unpack(f">{count}I", file.read(4 * count))
        position = WalPosition(generation, wal)
        return Record(seq, at_ms, database_pages, pages, position, offset, end)

    def _forget_unfinished(self, seq: int) -> bool:
        """Forget a record if a crash left it half written, and those behind it.

        For one that the log still holds, as it does those behind it.
        """
        places = [n for n, record in enumerate(self._records) if record.seq == seq]
        if not places:
            return False
        record = self._records[places[0]]
        with self._redo.open("rb") as file:
            if self._is_whole(file, record):
                return False
        del self._records[places[0] :]
        self._end = self._start(record)
        return True

    def _start(self, record: Record) -> int:
        return record.offset - 4 * len(record.pages) - _HEAD.size

    def _is_whole(self, file: IO[bytes], record: Record) -> bool:
        start = self._start(record)
        file.seek(start)
        left, crc = record.end - _CRC.size - start, 0
        while left:
            part = file.read(min(left, _COPY_PAGES * PAGE_BYTES))
            if not part:
                return False
            crc = crc32(part, crc)
            left -= len(part)
        return file.read(_CRC.size) == _CRC.pack(crc)

    def _bookmark_before(self, seq: int) -> str:
        """Return the moment before a record, by which a repeated restore is undone."""
        for record in reversed(self._records):
            if record.seq < seq:
                return bookmark(record.seq, record.at_ms)
        return bookmark(self._base_seq, self._base_at_ms)

    def _places(self, seq: int) -> tuple[int, dict[int, Place]]:
        """Return a moment's size in pages, and where each of them is."""
        count = self._base_pages
        places = {
            page: Place(in_redo=False, offset=(page - 1) * PAGE_BYTES)
            for page in range(1, count + 1)
        }
        for record in self._records:
            if record.seq > seq:
                break
            count = record.database_pages
            for index, page in enumerate(record.pages):
                offset = record.offset + index * PAGE_BYTES
                places[page] = Place(in_redo=True, offset=offset)
        return count, places

    def _state(self, seq: int) -> Iterator[bytes]:
        """Yield the pages of the database at a moment, checking every record used."""
        self._check()
        count, places = self._places(seq)
        if not count:
            yield empty_database()
            return
        yield from self._images(range(1, count + 1), places)

    def _images(
        self, pages: range | list[int], places: dict[int, Place]
    ) -> Iterator[bytes]:
        redo = self._redo.open("rb") if self._redo.exists() else None
        base = self._base.open("rb") if self._base.exists() else None
        try:
            for page in pages:
                place = places.get(page)
                file = None if place is None else redo if place.in_redo else base
                if place is None or file is None:
                    message = f"{self._redo}: no image of page {page}"
                    raise CorruptionError(message)
                file.seek(place.offset)
                yield file.read(PAGE_BYTES)
        finally:
            for opened in (redo, base):
                if opened is not None:
                    opened.close()

    def _tail(self, start: int) -> Iterator[bytes]:
        """Yield the redo file from a place on."""
        with self._redo.open("rb") as file:
            file.seek(start)
            while part := file.read(_COPY_PAGES * PAGE_BYTES):
                yield part

    # -- writing ---------------------------------------------------------------

    def _write_base(self, last: Record) -> None:
        """Write the state after a record as the base, its checksum behind it."""
        crc = 0

        def parts() -> Iterator[bytes]:
            nonlocal crc
            for image in self._state(last.seq):
                crc = crc32(image, crc)
                yield image
            head = _HEAD.pack(
                *(_BASE_MAGIC, last.seq, last.at_ms, last.database_pages, crc),
                *(last.position.generation, last.position.end),
            )
            yield head + _CRC.pack(crc32(head))

        _replace(self._base, parts())

    def _append_return(self, wanted: int, seq: int, at_ms: int) -> None:
        """Append the record that takes the newest state back to an older one."""
        _, now = self._places(self.last_seq)
        count, then = self._places(wanted)
        if count:
            pages = [p for p in range(1, count + 1) if now.get(p) != then.get(p)]
        else:
            count, pages = 1, [1]

        def images() -> Iterator[bytes]:
            return self._images(pages, then) if then else iter([empty_database()])

        # Where the WAL ended is where the shard says that the database ends, still.
        self._write((seq, at_ms, count, self._position), tuple(pages), images)

    def _write(
        self,
        what: tuple[int, int, int, WalPosition],
        pages: tuple[int, ...],
        images: Callable[[], Iterator[bytes]],
    ) -> None:
        """Append a record behind the last one.

        Raises:
            CorruptionError: Something else is there that may be a damaged record.
        """
        start = self._end
        seq, at_ms, database_pages, position = what
        head = _HEAD.pack(
            _MAGIC,
            seq,
            at_ms,
            database_pages,
            len(pages),
            position.generation,
            position.end,
        )
        head += struct.pack(f">{len(pages)}I", *pages)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._redo, flags, 0o600)
        with os.fdopen(fd, "r+b", buffering=0) as raw:
            if raw.seek(0, os.SEEK_END) > start:
                raw.seek(start)
                if not _is_begun(raw, head, images()):
                    message = f"{self._redo}: what is at byte {start} is not whole"
                    raise CorruptionError(message)
            try:
                raw.truncate(start)
                raw.seek(start)
                _write_whole(raw, head)
                crc = crc32(head)
                for image in images():
                    _write_whole(raw, image)
                    crc = crc32(image, crc)
                _write_whole(raw, _CRC.pack(crc))
            except BaseException:
                with contextlib.suppress(OSError):
                    raw.truncate(start)  # the next one may be another
                raise
        offset = start + len(head)
        self._end = offset + len(pages) * PAGE_BYTES + _CRC.size
        record = Record(seq, at_ms, database_pages, pages, position, offset, self._end)
        self._records.append(record)


def _is_begun(file: IO[bytes], head: bytes, images: Iterator[bytes]) -> bool:
    """Whether what comes in a file is a record that a crash left half written.

    Its number and its time do not count: a restore that is asked for again has others.
    """
    found = file.read(len(head))
    named = slice(_NUMBERS.start, min(_NUMBERS.stop, len(found)))
    found = found[: named.start] + head[named] + found[named.stop :]
    return _is_part(found, head) and all(
        _is_part(file.read(PAGE_BYTES), image) for image in images
    )


def _is_part(found: bytes, whole: bytes) -> bool:
    """Whether bytes are those of a whole, as far as they go, or zero."""
    if found == whole:
        return True
    return all(byte in (0, wanted) for byte, wanted in zip(found, whole, strict=False))


def _summed(image: bytes, sums: list[int]) -> bytes:
    sums.append(crc32(image))
    return image


def _replace(path: Path, parts: Iterator[bytes]) -> None:
    """Write a file whole, or not at all."""
    temporary = path.with_name(path.name + "-new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600)
    with os.fdopen(fd, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_whole(raw: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[raw.write(view) :]


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
