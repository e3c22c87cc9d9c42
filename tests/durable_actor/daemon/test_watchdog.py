"""The watchdog: who blocks the loop is named, then interrupted, then all ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

import httpx2
import msgspec
import pytest

from durable_actor.config import WatchdogConfig
from durable_actor.daemon.interrupts import _is_object_code
from durable_actor.daemon.listening import Listen
from durable_actor.daemon.livez import LivezThread
from durable_actor.daemon.server import _reset
from durable_actor.daemon.watchdog import Watchdog
from durable_actor.entrypoints import DurableObject
from durable_actor.errors import ObjectResetError
from durable_actor.host import Host
from tests.durable_actor.daemon.process import Daemon

OFF = WatchdogConfig(log_ms=0, degraded_ms=0, interrupt_ms=0, exit_ms=0)
LIMIT_MS = 100
_HANG_SECONDS = 20  # what a test would wait if nothing was interrupted


class Blocking(DurableObject):
    """Objects that hold the loop, each in its way."""

    async def loop(self) -> None:
        self.ctx.storage.put("half", True)
        gives_up_at = time.monotonic() + _HANG_SECONDS
        while time.monotonic() < gives_up_at:
            pass

    async def sleep(self, seconds: float = _HANG_SECONDS) -> str:
        self.ctx.storage.put("half", True)
        time.sleep(seconds)  # noqa: ASYNC251  # that is the fault
        return "slept"

    async def lock(self) -> None:
        self.ctx.storage.put("half", True)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire(timeout=_HANG_SECONDS)

    async def regex(self) -> None:
        self.ctx.storage.put("half", True)
        re.match(r"(a+)+$", "a" * 64 + "b")

    async def task(self) -> None:
        async def work() -> None:
            await self.loop()

        self.work = asyncio.create_task(work())
        await asyncio.sleep(_HANG_SECONDS)

    async def inside_storage(self, seconds: float) -> str:
        """Hold the loop in a callback of ours that has begun a transaction."""
        self.ctx.storage.transaction_sync(lambda: time.sleep(seconds))
        return "went through"

    async def writes(self) -> None:
        for number in range(10**9):
            self.ctx.storage.put("a", number)
            self.ctx.storage.put("b", number)

    async def pair(self) -> list[object]:
        return [await self.ctx.storage.get(key) for key in "ab"]

    async def half(self) -> object:
        return await self.ctx.storage.get("half")

    async def alarm(self) -> None:
        await self.loop()

    async def alarm_soon(self) -> None:
        self.ctx.storage.set_alarm(self.ctx.clock.now_ms())


class Guarded:
    """A host whose loop is watched."""

    def __init__(self, host: Host, watchdog: Watchdog, ended: list[int]) -> None:
        self.host = host
        self.watchdog = watchdog
        self.ended = ended
        self.objects = host.namespace(Blocking)


@asynccontextmanager
async def watched(directory: Path, **limits: int) -> AsyncIterator[Guarded]:
    """Open a host with a watchdog; a limit that is not given is off."""
    ended: list[int] = []
    config = msgspec.structs.replace(OFF, **limits)
    async with Host(directory, classes=[Blocking]) as host:
        watchdog = Watchdog(config, reset=_reset, end=ended.append)
        watchdog.start()
        try:
            yield Guarded(host, watchdog, ended)
        finally:
            watchdog.stop()


async def test_g20_a_blocked_loop_is_told_of_with_its_stack_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(tmp_path, log_ms=20) as guarded:
        blocker = guarded.objects.get_by_name("a")
        with caplog.at_level(logging.WARNING, "durable_actor.watchdog"):
            for _ in range(3):
                await blocker.sleep(0.1)
                await asyncio.sleep(0.05)
            async with asyncio.timeout(30):  # another thread tells
                while not caplog.records:
                    await blocker.sleep(0.1)

    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if "loop.blocked" in line]) == 1
    assert "in sleep" in told[0]
    assert "time.sleep(seconds)" in told[0]
    assert guarded.watchdog.blocked == 3


async def test_g20_a_loop_that_comes_round_is_not_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(tmp_path, log_ms=100, exit_ms=200) as guarded:
        for _ in range(10):
            await asyncio.sleep(0.03)

    assert (guarded.watchdog.blocked, guarded.ended) == (0, [])


@pytest.mark.parametrize("how", ["loop", "sleep", "lock", "regex", "task"])
async def test_g20_a_handler_that_holds_the_loop_is_interrupted(
    tmp_path: Path, how: str
) -> None:
    async with watched(tmp_path, interrupt_ms=LIMIT_MS) as guarded:
        began = time.monotonic()
        with pytest.raises(ObjectResetError, match="held the event loop") as raised:
            await getattr(guarded.objects.get_by_name("a"), how)()
        passed = time.monotonic() - began

        assert passed >= LIMIT_MS / 1_000 * 0.8
        assert passed < _HANG_SECONDS / 2
        assert raised.value.outcome == "failed"
        assert guarded.watchdog.interrupted == 1
        # Nothing of the turn was written, and everybody else goes on.
        assert not await guarded.objects.get_by_name("a").half() or how == "task"
        assert await guarded.objects.get_by_name("b").sleep(0) == "slept"


async def test_g20_without_a_limit_nothing_is_interrupted(tmp_path: Path) -> None:
    async with watched(tmp_path, log_ms=20) as guarded:
        slept = await guarded.objects.get_by_name("a").sleep(3 * LIMIT_MS / 1_000)

    assert slept == "slept"
    assert guarded.watchdog.interrupted == 0


async def test_g20_an_alarm_that_holds_the_loop_counts_as_failed(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path, interrupt_ms=LIMIT_MS) as guarded:
        blocker = guarded.objects.get_by_name("a")
        await blocker.alarm_soon()
        while not guarded.watchdog.interrupted:
            await asyncio.sleep(0.01)
        half = await blocker.half()
        [alarm] = (await guarded.host.alarms()).alarms

    assert half is None
    assert alarm.retries == 1


async def test_g20_our_own_code_is_never_interrupted(tmp_path: Path) -> None:
    """A callback in the middle of a transaction of ours is let finish."""
    async with watched(tmp_path, interrupt_ms=LIMIT_MS) as guarded:
        blocker = guarded.objects.get_by_name("a")
        answer = await blocker.inside_storage(3 * LIMIT_MS / 1_000)

    assert answer == "went through"
    assert guarded.watchdog.interrupted == 0


async def test_g20_interrupts_between_writes_leave_nothing_half_done(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path, interrupt_ms=10) as guarded:
        for number in range(12):
            writer = guarded.objects.get_by_name(f"w{number % 3}")
            with pytest.raises(ObjectResetError, match="held the event loop"):
                await writer.writes()
            first, second = await writer.pair()
            assert first == second
            # The committer, the gates and the mailboxes work as before.
            assert await guarded.objects.get_by_name("b").sleep(0) == "slept"
        assert guarded.watchdog.interrupted == 12

    async with Host(tmp_path, classes=[Blocking]) as host:
        assert await host.namespace(Blocking).get_by_name("b").half() is True


async def test_g20_many_short_events_in_one_round_are_nobody_s_fault(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path, interrupt_ms=LIMIT_MS) as guarded:
        same = guarded.objects.get_by_name("a")
        calls = [same.sleep(0.02) for _ in range(12)]
        calls += [guarded.objects.get_by_name(f"{n}").sleep(0.02) for n in range(12)]
        answers = await asyncio.gather(*calls)

    assert set(answers) == {"slept"}
    assert guarded.watchdog.interrupted == 0


async def test_g20_a_loop_that_stays_blocked_ends_the_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # one with a descriptor
    async with watched(tmp_path, exit_ms=150) as guarded:
        await guarded.objects.get_by_name("a").sleep(0.4)

    errors = capfd.readouterr().err
    assert guarded.ended == [70]
    assert "in sleep" in errors
    line = json.loads(errors.splitlines()[-1])
    assert (line["event"], line["status"], line["code"]) == ("exit", 70, "watchdog")


def frame_of(call: Callable[[Callable[[], object]], object]) -> bool:
    """Return what is thought of a frame above `call`."""
    found: list[bool] = []

    def look() -> None:
        frame: FrameType | None = sys._getframe()
        found.append(_is_object_code(frame))

    call(look)
    return found[0]


def test_g20_code_that_nothing_of_ours_awaits_is_left_alone() -> None:
    assert not frame_of(lambda look: look())  # pytest's stack, and no loop beneath

    class Loud(logging.Handler):
        def __init__(self, look: Callable[[], object]) -> None:
            super().__init__()
            self._look = look

        def emit(self, record: logging.LogRecord) -> None:
            self._look()

    def log(look: Callable[[], object]) -> None:
        logger = logging.getLogger("loud")
        logger.addHandler(Loud(look))
        logger.warning("x")

    async def in_a_log(look: Callable[[], object]) -> None:
        log(look)

    async def alone(look: Callable[[], object]) -> None:
        look()

    assert frame_of(lambda look: asyncio.run(alone(look)))
    assert not frame_of(lambda look: asyncio.run(in_a_log(look)))


class Pulse:
    age_ms = 3
    is_alive = True


@contextmanager
def livez(pulse: Pulse) -> Iterator[str]:
    thread = LivezThread(Listen(host="127.0.0.1", port=0), pulse)
    thread.start()
    yield thread.url
    thread.stop()


def test_g20_livez_of_the_thread_tells_the_age_and_nothing_else() -> None:
    pulse = Pulse()
    with livez(pulse) as url:
        well = httpx2.get(f"{url}/livez")
        pulse.age_ms, pulse.is_alive = 2_000, False
        ill = httpx2.get(f"{url}/livez")
        others = [
            httpx2.request(method, url + path).status_code
            for method, path in [
                ("GET", "/"),
                ("GET", "/livez/x"),
                ("GET", "/metrics"),
                ("POST", "/livez"),
            ]
        ]
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET /livez")  # and nothing more
            began = time.monotonic()
            after_slow = httpx2.get(f"{url}/livez")
            waited = time.monotonic() - began
            assert slow.recv(1) == b""

    assert (well.status_code, well.json()) == (
        200,
        {"status": "alive", "loop_age_ms": 3},
    )
    assert (ill.status_code, ill.json()) == (
        503,
        {"status": "blocked", "loop_age_ms": 2_000},
    )
    assert others == [404, 404, 404, 405]
    assert after_slow.status_code == 503
    assert waited < 2


APP = """
import time
from durable_actor import DurableObject

class Blocking(DurableObject):
    async def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    async def deaf(self) -> None:
        sum(range(10 ** 13))  # no thread and no handler of Python runs meanwhile
"""


def serve(start_daemon: Callable[..., Daemon], tmp_path: Path, limits: str) -> Daemon:
    (tmp_path / "blocking_app.py").write_text(APP)
    config = tmp_path / "config.toml"
    config.write_text(f'main = "blocking_app.py"\n[watchdog]\n{limits}')
    return start_daemon(config=config).wait_ready()


def wait_until_it_comes_round(url: str) -> None:
    """Return once the loop is well; on a busy machine even a sound one may be late."""
    deadline = time.monotonic() + 30
    while (seen := httpx2.get(url)).status_code != 200:
        assert time.monotonic() < deadline, seen.text


def test_g20_livez_answers_while_the_loop_is_blocked(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    limits = 'degraded_ms = 100\nlivez_listen = "127.0.0.1:0"'
    daemon = serve(start_daemon, tmp_path, limits)
    url = daemon.ready["livez"] + "/livez"
    wait_until_it_comes_round(url)
    answers: list[httpx2.Response] = []

    def call() -> None:
        with daemon.http() as http:
            body = {"args": [0.8]}
            answers.append(http.post("/v1/objects/Blocking/a/sleep", json=body))

    caller = threading.Thread(target=call)
    caller.start()
    while (seen := httpx2.get(url)).status_code == 200:
        assert caller.is_alive()
    caller.join()

    assert seen.json()["loop_age_ms"] >= 100
    assert answers[0].json() == {"result": "slept"}
    with daemon.http() as http:
        metrics = http.get("/metrics").text
        assert http.get("/livez").status_code == 200
    wait_until_it_comes_round(url)
    assert "durable_loop_degraded_total 1.0" in metrics
    assert daemon.stop()[0] == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


def test_g20_a_c_call_that_keeps_the_interpreter_ends_with_70_and_a_stack(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = serve(start_daemon, tmp_path, "interrupt_ms = 100\nexit_ms = 300")
    with daemon.http() as http, pytest.raises(httpx2.TransportError):
        http.post("/v1/objects/Blocking/a/deaf")
    status, errors = daemon.wait()

    assert status == 70
    assert "in deaf" in errors


def test_g20_a_process_that_was_stopped_was_not_blocked(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = serve(start_daemon, tmp_path, "log_ms = 100\nexit_ms = 300")
    daemon.signal(signal.SIGSTOP)
    time.sleep(1)
    daemon.signal(signal.SIGCONT)
    with daemon.http() as http:
        answer = http.post("/v1/objects/Blocking/a/sleep", json={"args": [0]})
        metrics = http.get("/metrics").text

    assert answer.json() == {"result": "slept"}
    assert "durable_loop_degraded_total 0.0" in metrics
    assert daemon.stop()[0] == 0
