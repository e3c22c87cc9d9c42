"""The write-ahead log of one object's database, as bytes.

Theory of operation
    An object's database commits without a sync: SQLite appends frames to the `-wal`
    file, and we read what it appended and put it into the object's seal. The seal is
    what becomes durable. So the `-wal` may hold more than is durable (frames whose seal
    is still on its way) and, after a power cut, less or something else. Three functions
    bring the two together, by path and without SQLite:

    `replay` writes what the log of the shard holds into the `-wal`, before anything is
    open. `repair` cuts off, before the file is opened, what never became durable.
    `sync` makes the `-wal` itself durable, after which the log may forget its segments.

    SQLite begins its WAL anew, with new salts, only when everything in it has been
    copied into the database and synced. The salts are therefore a *generation*: a WAL
    of another generation than the durable position was begun after all that is durable
    had reached the database, and none of its frames is durable.

Promises
    After `replay` and `repair` the file, opened, shows exactly what is durable.
    All of it may be done again after a crash at any point.
    A `-wal` that lacks or has changed a durable byte is reported, never served.

The `-wal` carries no POSIX locks, so it may be opened beside SQLite. The database file
must not be: closing a second descriptor of it would drop SQLite's locks.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from durable_actor.errors import CorruptionError
from durable_actor.storage.integrity import sync_directory
from durable_actor.storage.sql.sums import (
    Sums,
    check_pages,
    merged,
    read_sums,
    sums_of,
    sums_path,
    write_sums,
)

PAGE_BYTES = 4096  # of every database we make
HEADER_BYTES = 32  # of a WAL
FRAME_HEADER_BYTES = 24
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES
_MAGIC = (0x377F0682, 0x377F0683)  # checksums of little-endian and of big-endian words
_FIRST_READ_BYTES = 8 * FRAME_BYTES  # most turns change fewer pages
_READ_BYTES = 1024 * 1024
_DATABASE_MAGIC = b"SQLite format 3\x00"
_ASIDE = "-aside"
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class WalPosition(Struct, frozen=True, array_like=True, gc=False):
    """A place in a WAL: which one (its two salts), and the end of a commit in it.

    `crc` is that of everything before it. SQLite's own checksums say as much, but to
    compute them here takes thirty times as long as to read the pages.
    """

    generation: bytes
    end: int
    crc: int = 0


class WalSegment(Struct, frozen=True, array_like=True, gc=False):
    """What one commit appended: `data`, at `offset` of the WAL of a generation.

    At offset 0 it brings the header with it, and the WAL begins anew.
    """

    generation: bytes
    offset: int
    data: bytes
    crc: int = 0  # of the WAL up to the end of this segment

    @property
    def position(self) -> WalPosition:
        """Where the WAL ends with this segment."""
        return WalPosition(self.generation, self.offset + len(self.data), self.crc)


class Frame(Struct, frozen=True, gc=False):
    """One page of a commit. `database_pages` is 0 except in its last frame."""

    page: int
    database_pages: int
    image: bytes


class WalTail:
    """Reads what each commit appends, through a descriptor of its own."""

    def __init__(self, path: Path, position: WalPosition | None) -> None:
        """Begin behind a position; `path` is the database's."""
        self._path = wal_path(path)
        self._fd = -1
        self.position = position

    def take(self) -> WalSegment | None:
        """Return what the commit just made has appended; None if it changed nothing.

        To be called once after every commit.

        Raises:
            CorruptionError: The frames do not end with a commit.
        """
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, _READ_FLAGS)
            except FileNotFoundError:
                return None
        header = os.pread(self._fd, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES:
            return None
        generation = header[16:24]
        position = self.position
        is_same = position is not None and position.generation == generation
        start = position.end if position is not None and is_same else HEADER_BYTES
        frames = self._read_commit(generation, start)
        if frames is None:
            return None
        data = frames if is_same else header + frames
        before = position.crc if position is not None and is_same else 0
        segment = WalSegment(
            generation, start if is_same else 0, data, zlib.crc32(data, before)
        )
        self.position = segment.position
        return segment

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_commit(self, generation: bytes, start: int) -> bytes | None:
        """Return the frames from `start` to the next commit frame, if there are any."""
        data = os.pread(self._fd, _FIRST_READ_BYTES, start)
        place = 0
        while True:
            if len(data) < place + FRAME_BYTES:
                size = max(len(data), FRAME_BYTES)
                more = os.pread(self._fd, size, start + len(data))
                if not more:
                    break
                data += more
                continue
            if data[place + 8 : place + 16] != generation:
                break  # left over from an earlier generation
            is_last = data[place + 4 : place + 8] != b"\0\0\0\0"
            place += FRAME_BYTES
            if is_last:
                return data[:place]
        if place:
            message = (
                f"{self._path}: {place // FRAME_BYTES} frames from byte {start} on do"
                " not end with a commit"
            )
            raise CorruptionError(message)
        return None


def wal_path(path: Path) -> Path:
    """Return the WAL's path; `path` is the database's."""
    return path.with_name(path.name + "-wal")


def aside_path(path: Path) -> Path:
    """Return where the database waits for an abandoned connection to be closed."""
    return path.with_name(path.name + _ASIDE)


def frames_of(segment: WalSegment) -> Iterator[Frame]:
    """Yield the frames of a segment.

    Raises:
        CorruptionError: Its length is not that of whole frames.
    """
    data = segment.data
    start = 0 if segment.offset else HEADER_BYTES
    if (len(data) - start) % FRAME_BYTES or len(data) <= start:
        message = f"a segment of {len(data)} bytes does not consist of whole frames"
        raise CorruptionError(message)
    for place in range(start, len(data), FRAME_BYTES):
        page, database_pages = struct.unpack_from(">II", data, place)
        image = data[place + FRAME_HEADER_BYTES : place + FRAME_BYTES]
        yield Frame(page, database_pages, image)


def create_database(path: Path) -> None:
    """Write an empty database in WAL mode, and the folders above it. Not synced.

    SQLite would need a rollback journal and three syncs for the same page.
    """
    _make_folders(path.parent)
    fd = os.open(path, _WRITE_FLAGS, 0o600)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, empty_database(), 0)
    finally:
        os.close(fd)


def empty_database() -> bytes:
    """Return the only page of a database without tables."""
    header = struct.pack(
        ">16sHBBBBBBII60xII",
        _DATABASE_MAGIC,
        PAGE_BYTES,
        *(2, 2),  # written and read in WAL mode
        *(0, 64, 32, 32),  # as every database has them
        *(1, 1),  # changes, pages
        *(1, 3_040_001),  # the change this holds for, and the SQLite that made it
    )
    leaf = struct.pack(">BHHHB", 0x0D, 0, 0, PAGE_BYTES & 0xFFFF, 0)
    return (header + leaf).ljust(PAGE_BYTES, b"\0")


def repair(path: Path, position: WalPosition | None) -> None:
    """Bring the files of a database to what is durable, before it is opened.

    Args:
        path: The database's, which is not open anywhere.
        position: The end of the last durable segment; None: there never was one, and
            whatever lies there goes.

    Raises:
        CorruptionError: Durable bytes are missing or changed. Nothing was touched.
    """
    _bring_back(path)
    wal = wal_path(path)
    if position is None:
        wal.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return
    try:
        fd = os.open(wal, _WRITE_FLAGS & ~os.O_CREAT)
    except FileNotFoundError:
        if not _is_database(path):
            message = f"{path}: the database is missing or not one, and has no WAL"
            raise CorruptionError(message) from None
        return
    try:
        is_kept = _trim(wal, fd, position)
    finally:
        os.close(fd)
    if not is_kept:
        if not _is_database(path):
            message = f"{path}: the database is missing or not one"
            raise CorruptionError(message)
        wal.unlink()
    elif not _is_database(path):
        _restore_first_page(path, position.end)


def replay(path: Path, segments: Sequence[WalSegment]) -> int:
    """Write the segments of the log into the WAL; return how many it took.

    For the start of a shard, before any database is open; may be repeated. A segment of
    a generation that is no longer there was copied into the database long ago and is
    left out. Where durable bytes are missing before a segment a hole stays: `repair`
    reports it, to this object alone, and nothing that is there is lost.

    Args:
        path: The database's.
        segments: Everything the log has for this object, oldest first.
    """
    _bring_back(path)
    # A WAL begins anew only after all before it has reached the database.
    first = max((i for i, one in enumerate(segments) if one.offset == 0), default=0)
    segments = segments[first:]
    if not segments:
        return 0
    _make_folders(path.parent)
    wal = wal_path(path)
    is_new = segments[0].offset == 0
    try:
        fd = os.open(wal, _WRITE_FLAGS if is_new else _WRITE_FLAGS & ~os.O_CREAT, 0o600)
    except FileNotFoundError:
        return 0
    try:
        if is_new:
            os.ftruncate(fd, 0)
            generation = segments[0].generation
        else:
            generation = os.pread(fd, HEADER_BYTES, 0)[16:24]
        taken = 0
        for segment in segments:
            if segment.generation != generation:
                continue
            _write_all(fd, segment.data, segment.offset)
            taken += 1
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync_folders(path)
    return taken


def sync(path: Path) -> None:
    """Make the WAL and the names of the files durable, from whatever process.

    A database without a WAL was closed in order, and SQLite has synced it.
    """
    wal = wal_path(path)
    for one in (wal, aside_path(wal)):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(one, _READ_FLAGS)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        _sync_folders(path)


def delete_database(path: Path) -> None:
    """Remove a database that is not open, and everything beside it."""
    wal = wal_path(path)
    for one in (path, wal, aside_path(path), aside_path(wal), sums_path(path)):
        one.unlink(missing_ok=True)


def wal_pages(path: Path, end: int) -> tuple[dict[int, int], int]:
    """Return each page in a WAL with the checksum of its newest image, and the size.

    Args:
        path: The database's; it may be open, as only its WAL is read.
        end: Of the WAL, in bytes.

    Returns:
        The size is that of the database in pages after the last commit, 0 without one.
    """
    pages: dict[int, int] = {}
    count = 0
    try:
        file = wal_path(path).open("rb")
    except FileNotFoundError:
        return pages, count
    with file:
        file.seek(HEADER_BYTES)
        for _ in range((end - HEADER_BYTES) // FRAME_BYTES):
            frame = file.read(FRAME_BYTES)
            page, database_pages = struct.unpack_from(">II", frame)
            pages[page] = zlib.crc32(frame[FRAME_HEADER_BYTES:])
            count = database_pages or count
    return pages, count


def check_database(path: Path, position: WalPosition, *, bytes_max: int | None) -> None:
    """Check the pages that are not in the WAL, of a database that was just repaired.

    One that is larger than `bytes_max` is only checked for having all it should have.

    Raises:
        CorruptionError: A page changed, or the WAL is missing.
    """
    sums = read_sums(path)
    covered, count = wal_pages(path, position.end)
    if not covered:
        if sums is None or (sums.generation, sums.end) != (
            position.generation,
            position.end,
        ):
            message = f"{path}: it was not closed in order, and its WAL is missing"
            raise CorruptionError(message)
        count = len(sums.pages)
    if bytes_max is not None and path.stat().st_size > bytes_max:
        merged(sums, covered, count)
    else:
        check_pages(path, sums, covered, count)


def note_checkpoint(path: Path, position: WalPosition | None) -> None:
    """Write down what a checkpoint has left in the database; it may be open.

    Raises:
        OSError: The file cannot be written.
        CorruptionError: What an earlier checkpoint left is not known.
    """
    if position is None:
        return
    old = read_sums(path)
    if old is not None and (old.generation, old.end) == (
        position.generation,
        position.end,
    ):
        return
    in_wal, count = wal_pages(path, position.end)
    pages = merged(old, in_wal, count)
    write_sums(path, Sums(position.generation, position.end, pages))


def adopt(path: Path, position: WalPosition) -> None:
    """Write the checksums of a database that an earlier release has left without.

    Taken on trust: there is nothing to compare it with. It is not open anywhere.
    """
    _bring_back(path)
    if sums_path(path).exists() or not _is_database(path):
        return
    generation, end = position.generation, position.end
    with contextlib.suppress(FileNotFoundError), wal_path(path).open("rb") as file:
        if file.read(HEADER_BYTES)[16:24] == generation:
            generation, end = bytes(8), 0  # what the checkpoint before has left
    write_sums(path, Sums(generation, end, sums_of(path)))


def _bring_back(path: Path) -> None:
    """Undo what a crash in the middle of abandoning a connection has left."""
    for one in (wal_path(path), path):
        aside = aside_path(one)
        if aside.exists():
            if one.exists():
                message = f"{aside} and {one} both exist; one of them is not ours"
                raise CorruptionError(message)
            aside.rename(one)


def _trim(wal: Path, fd: int, position: WalPosition) -> bool:
    """Cut the WAL at a position; False if all of it is of another generation."""
    header = os.pread(fd, HEADER_BYTES, 0)
    if len(header) < HEADER_BYTES or header == bytes(HEADER_BYTES):
        return False  # made, and nothing in it ever reached the disk
    seeds = _header_seeds(header)
    if seeds is None:
        message = f"{wal}: the header's checksum does not match"
        raise CorruptionError(message)
    if header[16:24] != position.generation:
        return False
    size = os.fstat(fd).st_size
    if size < position.end:
        message = f"{wal} has {size} bytes of {position.end} that are durable"
        raise CorruptionError(message)
    if _crc_of(fd, position.end) != position.crc:
        _check_frames(wal, fd, position, seeds)
        message = f"{wal}: its first {position.end} bytes are not what was committed"
        raise CorruptionError(message)
    os.ftruncate(fd, position.end)
    return True


def _crc_of(fd: int, end: int) -> int:
    crc, place = 0, 0
    while place < end and (data := os.pread(fd, min(_READ_BYTES, end - place), place)):
        crc = zlib.crc32(data, crc)
        place += len(data)
    return crc


def _header_seeds(header: bytes) -> tuple[int, int] | None:
    """Return what the checksums of the frames start from; None: a bad header."""
    magic, _, page_bytes, *_ = struct.unpack(">8I", header)
    if magic not in _MAGIC or page_bytes != PAGE_BYTES:
        return None
    order = ">" if magic & 1 else "<"
    seeds = _checksum(header[:24], (0, 0), order)
    return seeds if struct.pack(">II", *seeds) == header[24:] else None


def _check_frames(
    wal: Path, fd: int, position: WalPosition, seeds: tuple[int, int]
) -> None:
    """Find the frame that is not as it was; SQLite would drop it and the rest."""
    order = ">" if os.pread(fd, 4, 0)[3] & 1 else "<"
    place, is_last = HEADER_BYTES, False
    while place < position.end:
        frame = os.pread(fd, FRAME_BYTES, place)
        if len(frame) == FRAME_BYTES and frame[8:16] == position.generation:
            seeds = _checksum(frame[:8], seeds, order)
            seeds = _checksum(frame[FRAME_HEADER_BYTES:], seeds, order)
        if frame[16:24] != struct.pack(">II", *seeds):
            message = f"{wal}: the checksum of the frame at byte {place} does not match"
            raise CorruptionError(message)
        is_last = frame[4:8] != b"\0\0\0\0"
        place += FRAME_BYTES
    if place != position.end or not is_last:
        message = f"{wal}: byte {position.end} is not the end of a commit"
        raise CorruptionError(message)


def _checksum(data: bytes, seeds: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = seeds
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for first, second in zip(words, words, strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _is_database(path: Path) -> bool:
    """Whether the first page was ever written. Only for a file nobody has open."""
    try:
        with path.open("rb") as file:
            return file.read(16) == _DATABASE_MAGIC
    except FileNotFoundError:
        return False


def _restore_first_page(path: Path, end: int) -> None:
    """Write the page that a power cut took from a database never checkpointed.

    A checkpoint syncs the database, so one that is empty has had none, and the WAL
    must hold every page.
    """
    wal = wal_path(path)
    pages: set[int] = set()
    count = 0
    with wal.open("rb") as file:
        file.seek(HEADER_BYTES)
        while file.tell() < end:
            page, database_pages = struct.unpack(">II16x", file.read(24))
            file.seek(PAGE_BYTES, os.SEEK_CUR)
            pages.add(page)
            count = database_pages or count
    if not pages.issuperset(range(1, count + 1)):
        message = f"{path}: the database is missing or not one, and its WAL is not all"
        raise CorruptionError(message)
    create_database(path)


def _make_folders(folder: Path) -> None:
    """Create `objects` and the folder in it, for the owner only."""
    for one in (folder.parent, folder):
        try:
            one.mkdir(mode=0o700)
        except FileExistsError:
            continue
        one.chmod(0o700)  # whatever the umask says
        sync_directory(one.parent)


def _sync_folders(path: Path) -> None:
    sync_directory(path.parent)
    sync_directory(path.parent.parent)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
