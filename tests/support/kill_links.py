"""How the kill loop talks to the process it kills: the daemon's HTTP, or a pipe.

A link belongs to one life of the process. Whatever goes wrong on it is `LostError`: the
request may have been carried out or not, and nobody here knows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

from tests.support.kill_loop_app import LEDGER_VARIABLE

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
START_SECONDS_MAX = 30.0
_IN_USE = 75  # exit status: the storage process of the life before still has the lock
_HEAD_END = b"\r\n\r\n"

DriverKind = Literal["thread", "process"]


class LostError(Exception):
    """No answer came; the outcome is unknown."""


class RefusedError(LostError):
    """Another answer came than success; what that means is unknown as well."""


class Link(Protocol):
    """Requests to one life of the process."""

    async def increment(self, cls: str, name: str, key: str) -> int: ...

    async def value(self, cls: str, name: str) -> int: ...

    async def start(self, run: str) -> None: ...

    async def state(self, run: str) -> tuple[str | None, list[str] | None]:
        """Return a run's status, None if there is no run, and its output if any."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Which process is started, on which directory."""

    folder: Path
    driver: DriverKind
    is_embedded: bool = False
    acknowledges_early: bool = False  # the control
    listen: str = "127.0.0.1:0"

    @property
    def ledger(self) -> Path:
        """Where the steps of the runs post to."""
        return self.folder / "ledger"

    @property
    def command(self) -> list[str]:
        """The command line of the process."""
        data = str(self.folder / "data")
        app = "early_ack" if self.acknowledges_early else "kill_loop"
        if self.is_embedded:
            module = f"tests.support.{app}_app"
            script = ["-m", "tests.support.kill_loop_child", data]
            return [sys.executable, *script, "--driver", self.driver, "--app", module]
        script = ["-m", "durable_actor", "serve", "--config", str(HERE / f"{app}.toml")]
        where = ["--data-dir", data, "--listen", self.listen]
        return [sys.executable, *script, *where]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the process."""
        return {
            **os.environ,
            "DURABLE_ACTOR_STORAGE_DRIVER": self.driver,
            LEDGER_VARIABLE: str(self.ledger),
            # Compiled once, and not into the checkout.
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
            "PYTHONDONTWRITEBYTECODE": "",
        }


class Life:
    """One life of the process, from its ready line to its end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        setup: Setup,
        ready: Mapping[str, Any],
    ) -> None:
        self._process = process
        self._setup = setup
        self._ready = ready
        self._links: list[Link] = []
        self._lines: LineLink | None = None
        self._token = ""
        if not setup.is_embedded:
            self._token = Path(ready["token_file"]).read_text().strip()

    @classmethod
    async def start(cls, setup: Setup) -> tuple[Self, int]:
        """Start the process; tell how often the directory was still in use."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + START_SECONDS_MAX
        for tries in itertools.count():
            with (setup.folder / "stderr").open("ab") as errors:
                process = await asyncio.create_subprocess_exec(
                    *setup.command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    cwd=ROOT,
                    env=setup.environ,
                    start_new_session=True,
                )
            assert process.stdout is not None
            async with asyncio.timeout_at(gives_up_at):
                line = await process.stdout.readline()
                if line:
                    return cls(process, setup, json.loads(line)), tries
                status = await process.wait()
            if status != _IN_USE:
                text = (setup.folder / "stderr").read_text(errors="replace")[-2_000:]
                message = f"the process ended with {status} at its start:\n{text}"
                raise RuntimeError(message)
        raise AssertionError  # the loop has no end

    @property
    def token(self) -> str:
        """What the daemon wants to be shown."""
        return self._token

    async def connect(self) -> Link:
        """Return a link for one client."""
        link: Link
        if self._setup.is_embedded:
            if self._lines is None:
                self._lines = LineLink(self._process)
            link = self._lines
        else:
            link = await HttpLink.open(self._ready["listen"], self._token)
        self._links.append(link)
        return link

    async def kill(self, *, storage_too: bool) -> None:
        """End the process as a power button would, with or without its children."""
        if storage_too:
            os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        await self._process.wait()
        for link in self._links:
            link.close()

    async def stop(self) -> int:
        """Let the process end by itself."""
        for link in self._links:
            link.close()
        if not self._setup.is_embedded:
            self._process.terminate()
        elif self._process.stdin is not None:
            self._process.stdin.close()
        return await self._process.wait()


class HttpLink:
    """One keep-alive connection, one request at a time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def open(cls, url: str, token: str) -> Self:
        """Connect to a daemon."""
        address = urlsplit(url)
        try:
            reader, writer = await asyncio.open_connection(
                address.hostname, address.port
            )
        except OSError as error:
            raise LostError(repr(error)) from error
        head = f"Host: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
        return cls(reader, writer, head)

    async def increment(self, cls: str, name: str, key: str) -> int:
        path = f"/v1/objects/{cls}/{name}/increment"
        return int((await self._ask("POST", path, {}, key=key))["result"])

    async def value(self, cls: str, name: str) -> int:
        path = f"/v1/objects/{cls}/{name}/value"
        return int((await self._ask("POST", path, {}))["result"])

    async def start(self, run: str) -> None:
        await self._start(run)

    async def state(self, run: str) -> tuple[str | None, list[str] | None]:
        answer = await self._ask("GET", f"/v1/runs/note/{run}", None, may_miss=True)
        if "status" not in answer or not answer.get("exists"):
            return None, None
        status = answer["status"]["_tag"]
        if status != "Completed":
            return status, None
        # The same id finds the same run, and its output.
        return status, (await self._start(run, is_async=False))["output"]

    def close(self) -> None:
        self._writer.close()

    async def _start(self, run: str, *, is_async: bool = True) -> Mapping[str, Any]:
        body = {"id": run, "input": {"run": run}, "async": is_async}
        return await self._ask("POST", "/v1/workflows/note/runs", body)

    async def _ask(
        self,
        method: str,
        path: str,
        body: object,
        *,
        key: str | None = None,
        may_miss: bool = False,
    ) -> Mapping[str, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\n{self._head}"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        if key is not None:
            head += f"Idempotency-Key: {key}\r\n"
        try:
            self._writer.write(f"{head}\r\n".encode() + data)
            answer = await self._reader.readuntil(_HEAD_END)
            status = int(answer[9:12])
            size = 0
            for line in answer.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    size = int(value)
            content = await self._reader.readexactly(size)
        except (OSError, EOFError) as error:
            raise LostError(repr(error)) from error
        if status != 200 and not (may_miss and status == 404):
            raise RefusedError(f"{method} {path}: {status} {content[:300]!r}")
        found: Mapping[str, Any] = json.loads(content)
        return found


class LineLink:
    """Lines of JSON over the pipes of `kill_loop_child`; shared by all clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._is_over = False
        self._reading = asyncio.create_task(self._read(), name="lines")

    async def increment(self, cls: str, name: str, key: str) -> int:
        return int(await self._ask(op="increment", cls=cls, name=name, key=key))

    async def value(self, cls: str, name: str) -> int:
        return int(await self._ask(op="value", cls=cls, name=name))

    async def start(self, run: str) -> None:
        await self._ask(op="start", run=run)

    async def state(self, run: str) -> tuple[str | None, list[str] | None]:
        status, output = await self._ask(op="state", run=run)
        return status, output

    def close(self) -> None:
        self._reading.cancel()

    async def _ask(self, **request: str) -> Any:
        if self._is_over:
            raise LostError("the process is gone")
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._stdin.write(json.dumps({"n": number, **request}).encode() + b"\n")
        except OSError as error:
            raise LostError(repr(error)) from error
        return await answer

    async def _read(self) -> None:
        try:
            while line := await self._stdout.readline():
                answer = json.loads(line)
                waiting = self._waiting.pop(answer["n"])
                if waiting.done():
                    continue
                if "error" in answer:
                    waiting.set_exception(RefusedError(answer["error"]))
                else:
                    waiting.set_result(answer["result"])
        except (OSError, ValueError):
            pass  # a line that was cut off by the kill
        finally:
            self._is_over = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(LostError("the process is gone"))
