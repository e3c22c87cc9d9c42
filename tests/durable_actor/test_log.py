"""Records become lines, whatever is in them and wherever they go."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from durable_actor.log import _LineHandler, configure_logging


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the logging of the test process as it was found."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_a_line_of_json_with_the_four_keys_first() -> None:
    stream = io.StringIO()
    configure_logging("info", "auto", stream)

    structlog.get_logger("durable_actor.alarms").warning("alarm.retry", attempt=2)

    (record,) = lines(stream)
    assert list(record) == ["ts", "level", "event", "logger", "attempt"]
    assert record["level"] == "warning"
    assert record["event"] == "alarm.retry"
    assert record["logger"] == "durable_actor.alarms"
    assert record["ts"].endswith("Z")


def test_records_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    configure_logging("warning", "json", stream)

    structlog.get_logger("a").info("dropped")
    logging.getLogger("b").info("dropped")
    structlog.get_logger("a").error("kept")
    logging.getLogger("b").error("kept")

    assert [record["event"] for record in lines(stream)] == ["kept", "kept"]


@pytest.mark.parametrize("name", ["uvicorn.error", "apscheduler.x", "asyncio", "other"])
def test_records_of_the_standard_library_go_the_same_way(name: str) -> None:
    stream = io.StringIO()
    logging.getLogger(name).addHandler(logging.StreamHandler(io.StringIO()))
    configure_logging("info", "json", stream)

    logging.getLogger(name).info("started %s in %d", "it", 5)

    (record,) = lines(stream)
    assert record["event"] == "started it in 5"
    assert record["logger"] == name
    logging.getLogger(name).handlers.clear()


async def test_the_context_of_a_task_is_in_its_records() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)

    async def deliver(call_id: int) -> None:
        with structlog.contextvars.bound_contextvars(call_id=call_id):
            await asyncio.sleep(0)
            structlog.get_logger("a").info("done")
            logging.getLogger("b").info("done too")

    await asyncio.gather(deliver(1), deliver(2))

    assert [record["call_id"] for record in lines(stream)] == [1, 1, 2, 2]


def test_an_exception_is_told_with_its_traceback() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)

    for log in (structlog.get_logger("a"), logging.getLogger("b")):
        try:
            raise KeyError("why")
        except KeyError:
            log.exception("failed")

    for record in lines(stream):
        assert "KeyError: 'why'" in record["exception"]
        assert "test_log.py" in record["exception"]


class Odd:
    def __repr__(self) -> str:
        return "\x1b]0;owned\x07"


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


def test_what_json_cannot_hold_is_told_as_text() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    # pytest's own handlers fail on what they cannot show.
    root = logging.getLogger()
    root.handlers[:] = [known for known in root.handlers if type(known) is _LineHandler]
    inside: list[Any] = []
    inside.append(inside)

    log = structlog.get_logger("a")
    for value in (float("nan"), inside, {(1, 2): 3}, Odd(), b"x", "\ud800", Silent()):
        log.info("odd", value=value)
    logging.getLogger("b").info("%d", "no number")

    assert len(lines(stream)) == 8
    assert stream.getvalue().isascii()


def test_a_warning_is_a_record() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    (record,) = lines(stream)
    assert (record["logger"], record["level"]) == ("py.warnings", "warning")


def test_a_terminal_gets_colours_unless_they_are_unwanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stream, variable, is_coloured in [
        (Terminal(), None, True),
        (Terminal(), "NO_COLOR", False),
        (io.StringIO(), None, False),
        (io.StringIO(), "FORCE_COLOR", True),
    ]:
        with monkeypatch.context() as patch:
            if variable is not None:
                patch.setenv(variable, "1")
            configure_logging("info", "console", stream)
        structlog.get_logger("a").info("started", port=1)
        assert ("\x1b[" in stream.getvalue()) is is_coloured
        assert "started" in stream.getvalue()


def test_text_from_outside_cannot_act_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream)
    # pytest's own handlers would put the text in its report, which cannot hold it.
    root = logging.getLogger()
    ours = [h for h in root.handlers if type(h).__module__ == "durable_actor.log"]
    monkeypatch.setattr(root, "handlers", ours)
    evil = "a\x1b[2J\r\nforged\x00\x7f\x9b\u202e\u2028\ud800 é"

    structlog.get_logger("a").info(evil, field=evil, odd=Odd(), deep={"k": [evil]})
    logging.getLogger("b").info("%s", evil)
    try:
        raise ValueError(evil)
    except ValueError:
        structlog.get_logger("a").exception("failed")

    told = stream.getvalue()
    assert "é" in told
    assert all(character == "\n" or character.isprintable() for character in told)
    # Only the traceback takes more than one line, and the forged one is within it.
    assert len(told.split("Traceback")[0].splitlines()) <= 4


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), BlockingIOError(), OSError(28, "full"), ValueError("closed")],
    ids=lambda error: type(error).__name__,
)
def test_a_stream_that_fails_costs_only_the_record(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json", Broken(error))
    structlog.get_logger("a").info("lost")
    logging.getLogger("b").info("lost")
    assert capsys.readouterr() == ("", "")


def test_a_closed_stream_and_none_at_all_cost_only_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = Terminal()
    closed.close()
    configure_logging("info", "auto", closed)
    structlog.get_logger("a").info("lost")

    monkeypatch.setattr(sys, "stderr", None)
    configure_logging("info", "auto")
    structlog.get_logger("a").info("lost")


def test_a_stream_of_few_characters_gets_the_others_escaped() -> None:
    raw = io.BytesIO()
    configure_logging("info", "console", io.TextIOWrapper(raw, encoding="ascii"))
    structlog.get_logger("a").info("café")
    assert b"caf\\xe9" in raw.getvalue()


def test_configuring_again_replaces_the_stream() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "json", first)
    configure_logging("info", "json", second)

    logging.getLogger("b").info("once")

    assert (len(lines(first)), len(lines(second))) == (0, 1)


def test_a_process_outlives_the_reader_of_its_log() -> None:
    script = (
        "import structlog, sys\n"
        "from durable_actor.log import _LineHandler, configure_logging\n"
        "configure_logging('info', 'json')\n"
        "sys.stdin.readline()\n"
        "for n in range(10_000): structlog.get_logger('a').info('x', n=n)\n"
        "print('alive')\n"
    )
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    ) as process:
        os.close(writer)
        os.close(reader)
        out, _ = process.communicate("go\n", timeout=30)
    assert out == "alive\n"
