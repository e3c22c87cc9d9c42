"""Log: how the daemon writes records down. The library only makes them.

Modules call `get_logger("durable_actor.x")` and log an event with fields. What becomes
of it is decided by whoever runs the program; the daemon calls `configure_logging` once,
before anything is logged. A program that has not configured structlog gets records of
the standard library, which says nothing below a warning: a guest does not print.

Promises
    Every record is one line of JSON, or one paragraph on a terminal, with `ts`,
    `level`, `event` and `logger`. Records of the standard library go the same way.
    Text from outside cannot move the cursor, forge a line or hide one.
    A stream that is broken, full or closed costs the record, never the program.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO

import structlog
from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

_FIRST = ("ts", "level", "event", "logger")
_INSTALLED = ("uvicorn", "uvicorn.access", "uvicorn.error", "apscheduler", "asyncio")


def get_logger(name: str) -> Logger:
    """Return a logger that follows whatever the program has configured by then."""
    return Logger(name)


class Logger:
    """Logs events with fields: to structlog if it is configured, else to logging."""

    def __init__(self, name: str) -> None:
        self._structured: structlog.stdlib.BoundLogger = structlog.get_logger(name)
        self._plain: structlog.stdlib.BoundLogger = structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    def debug(self, event: str, **fields: object) -> None:
        """Log the life of a delivery."""
        self._logger.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """Log the life of objects, runs and hosts."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what was strange and was coped with."""
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Log what a person should look at."""
        self._logger.error(event, **fields)

    def exception(self, event: str, **fields: object) -> None:
        """Log an error with the exception that is being handled."""
        self._logger.exception(event, **fields)  # noqa: LOG004  # our callers do

    @property
    def _logger(self) -> structlog.stdlib.BoundLogger:
        return self._structured if structlog.is_configured() else self._plain


def configure_logging(
    level: Level,
    format: Format,  # noqa: A002  # the name of the key in the configuration
    stream: TextIO | None = None,
) -> None:
    """Send every record of the process to a stream. For the daemon only.

    Args:
        level: Records below it are dropped.
        format: `auto` is for people on a terminal, and JSON elsewhere.
        stream: None is the standard error stream.
    """
    target = sys.stderr if stream is None else stream
    is_terminal = _is_terminal(target)
    render: list[Callable[[WrappedLogger, str, EventDict], EventDict | str]]
    if format == "console" or (format == "auto" and is_terminal):
        colors = is_terminal and not os.environ.get("NO_COLOR")
        colors = colors or bool(os.environ.get("FORCE_COLOR"))
        plain = ConsoleRenderer(
            colors=colors, timestamp_key="ts", sort_keys=False, pad_event_to=0
        )
        render = [_make_printable, plain]
    else:
        render = [_render_json]
    handler = _LineHandler(target)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[merge_contextvars],
            processors=[_add_origin, ExceptionRenderer(), *render],
        )
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if type(known) is _LineHandler]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in _INSTALLED:
        installed = logging.getLogger(name)
        installed.handlers.clear()
        installed.propagate = True
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[merge_contextvars, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=True,  # a dropped record costs a tenth of a call
    )


class _LineHandler(logging.Handler):
    """Writes each record in one go, and has nobody to complain to."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        if self._stream is None:  # the process was started without the stream
            return
        with contextlib.suppress(Exception):  # there is no log for the log
            self._write(self._format(record) + "\n")

    def _format(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001  # the arguments of any caller
            told = {"level": "error", "event": "log.unprintable", "logger": record.name}
            return json.dumps({**told, "error": type(error).__name__})

    def _write(self, line: str) -> None:
        assert self._stream is not None
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()


def _add_origin(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put first what every record has, and drop what structlog carries along."""
    record: logging.LogRecord = event.pop("_record")
    event.pop("_from_structlog", None)
    moment = datetime.fromtimestamp(record.created, UTC)
    told: EventDict = {
        "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": event.pop("event", ""),
        "logger": record.name,
    }
    return {**told, **{k: v for k, v in event.items() if k not in told}}


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Return one line. ASCII only: no terminal that shows it can be led astray."""
    try:
        return json.dumps(event, default=str, allow_nan=False)
    except (ValueError, TypeError):
        # NaN, a value inside itself, a key that is not text.
        return json.dumps({str(key): repr(value) for key, value in event.items()})


def _make_printable(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> EventDict:
    trace = event.pop("exception", None)
    shown = {_printable(key): _shown(value) for key, value in event.items()}
    if trace is not None:
        shown["exception"] = "\n".join(map(_printable, str(trace).split("\n")))
    return shown


def _shown(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _printable(value if isinstance(value, str) else repr(value))


def _printable(text: str) -> str:
    """Return the text with every character escaped that is not simply seen."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):  # closed
        return False
