"""The storage process: the same shard, behind a socket pair.

Why a process: a thread that runs SQLite must win the interpreter lock back at every
step, and while the event loop is busy each win can take a whole switch interval. A
process of its own competes with nobody.

Frames are a length (four bytes, little endian) and MessagePack: `[number, verb, body]`
one way, `[number, failure, body]` the other. Requests are started in the order they
arrive. The process ends when the socket does; it ignores SIGHUP, SIGINT and
SIGTERM, because its owner decides when writing is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from durable_actor import errors
from durable_actor.errors import DurableActorError, StorageError, StorageFailedError
from durable_actor.storage.ports import AnyQuery, Group, Opened, Query, ShardOptions
from durable_actor.storage.shard import Shard

A = TypeVar("A")
_LENGTH = struct.Struct("<I")
_CLOSE_SECONDS = 10.0

# The storage process needs a small part of the package. Its door would import the rest
# and triple the time to start, so the package is entered without it.
_PACKAGE = Path(__file__).parents[1]
_BOOTSTRAP = (
    "import sys, types; package = types.ModuleType('durable_actor');"
    " package.__path__ = [sys.argv[1]]; sys.modules['durable_actor'] = package;"
    " from durable_actor.storage.process import main; main(int(sys.argv[2]))"
)

_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw]).decode
_decode_group = msgspec.msgpack.Decoder(Group).decode
_decode_query = msgspec.msgpack.Decoder(AnyQuery).decode
_decode_failure = msgspec.msgpack.Decoder(tuple[str, str, str, str]).decode


class _Frames(asyncio.Protocol):
    """Cuts a byte stream into frames; whole ones go to `receive`."""

    def __init__(
        self,
        receive: Callable[[bytes], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + size
            if len(buffer) < end:
                break
            self._receive(bytes(buffer[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_LENGTH.pack(len(frame)) + frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class RemoteShard:
    """The owner's side: a `ShardDriver` whose shard lives in a storage process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._frames = _Frames(self._receive, self._disconnected)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._failure: StorageError | None = None
        self.opened: Opened

    @classmethod
    async def open(cls, options: ShardOptions, *, lock_fd: int | None) -> RemoteShard:
        """Start a storage process, hand it the lock, and open the shard there."""
        ours, theirs = socket.socketpair()
        keep = [theirs.fileno()] + ([] if lock_fd is None else [lock_fd])
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _BOOTSTRAP,
                str(_PACKAGE),
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=keep,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        finally:
            theirs.close()
        shard = cls(process)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: shard._frames, sock=ours)
        try:
            shard.opened = msgspec.msgpack.decode(
                await shard._ask("open", options), type=Opened
            )
        except BaseException:
            await shard.drop()
            raise
        return shard

    async def commit(self, group: Group) -> None:
        """See `ShardDriver.commit`."""
        await self._ask("commit", group)

    async def fold(self) -> None:
        """See `ShardDriver.fold`."""
        await self._ask("fold", None)

    async def read(self, query: Query[A]) -> A:
        """See `ShardDriver.read`."""
        body = await self._ask("read", query)
        return cast("A", msgspec.msgpack.decode(body, type=query.answer))

    async def close(self) -> None:
        """See `ShardDriver.close`. The process has ended afterwards."""
        try:
            await self._ask("close", None)
        finally:
            await self.drop()

    async def drop(self) -> None:
        """End the process without folding, as after a failure."""
        self._frames.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _ask(self, verb: str, body: object) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            answer.set_exception(self._failure)
            return answer
        self._number += 1
        self._waiting[self._number] = answer
        self._frames.send(_encode((self._number, verb, body)))
        return answer

    def _receive(self, frame: bytes) -> None:
        number, failure, body = _decode_frame(frame)
        answer = self._waiting.pop(number)
        if answer.done():
            return
        if failure:
            answer.set_exception(_unpack_failure(bytes(body)))
        else:
            answer.set_result(bytes(body))

    def _disconnected(self, error: Exception | None) -> None:
        detail = f"the storage process is gone ({error or 'its socket closed'})"
        self._failure = StorageFailedError("commit", detail)
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(self._failure)


class _Server:
    """The storage process's side."""

    def __init__(self) -> None:
        self.frames = _Frames(self._receive, self._disconnected)
        self.ended = asyncio.Event()
        self._shard: Shard | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _receive(self, frame: bytes) -> None:
        number, verb, body = _decode_frame(frame)
        task = asyncio.ensure_future(self._serve(number, verb, bytes(body)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, verb: str, body: bytes) -> None:
        try:
            answer = await self._do(verb, body)
        except DurableActorError as error:
            self.frames.send(_encode((number, "failed", _pack_failure(error))))
        except Exception as error:  # noqa: BLE001  # goes to whoever asked
            failure = StorageFailedError(verb, f"{type(error).__name__}: {error}")
            self.frames.send(_encode((number, "failed", _pack_failure(failure))))
        else:
            self.frames.send(_encode((number, "", answer)))

    async def _do(self, verb: str, body: bytes) -> object:
        if verb == "open":
            options = msgspec.msgpack.decode(body, type=ShardOptions)
            self._shard = await Shard.open(options)
            return self._shard.opened
        assert self._shard is not None, "the first frame opens the shard"
        if verb == "commit":
            await self._shard.commit(_decode_group(body))
        elif verb == "fold":
            await self._shard.fold()
        elif verb == "read":
            return await self._shard.read(cast("Query[object]", _decode_query(body)))
        elif verb == "close":
            shard, self._shard = self._shard, None
            await shard.close()
        else:
            message = f"unknown verb {verb!r}"
            raise ValueError(message)
        return None

    def _disconnected(self, _: Exception | None) -> None:
        self.ended.set()

    async def stop(self) -> None:
        """Let what is under way finish, then close the file as it is."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        if self._shard is not None:
            await self._shard.drop()


def _pack_failure(error: DurableActorError) -> tuple[str, str, str, str]:
    operation = getattr(error, "operation", "")
    detail = getattr(error, "detail", "") or getattr(error, "directory", "")
    detail = detail or str(error)
    holder = getattr(error, "holder", "")
    return (type(error).__name__, operation, detail, holder)


def _unpack_failure(body: bytes) -> DurableActorError:
    name, operation, detail, holder = _decode_failure(body)
    kind = getattr(errors, name, StorageFailedError)
    if issubclass(kind, StorageError):
        return kind(operation, detail)
    if issubclass(kind, errors.DataDirectoryInUseError):
        return kind(detail, holder)
    return cast("DurableActorError", kind(detail))


async def _main(fd: int) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: None)
    server = _Server()
    await loop.create_connection(lambda: server.frames, sock=socket.socket(fileno=fd))
    await server.ended.wait()
    await server.stop()


def main(fd: int) -> None:
    """Serve the socket with this descriptor until its other end is closed."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(fd))
