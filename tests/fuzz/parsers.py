"""What the parsers may do with any bytes: say what they mean, or refuse them in words.

Each target takes bytes and raises if a promise is broken. An exception that its parser
does not name is such a break.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from durable_actor import codec
from durable_actor.clock import duration_ms
from durable_actor.config import load_config
from durable_actor.daemon import wire
from durable_actor.errors import (
    ConfigError,
    DecodeError,
    EncodeError,
    ForeignIdError,
    InvalidIdError,
    InvalidTimeError,
    SqlError,
    StorageLimitError,
)
from durable_actor.ids import IdSpace
from durable_actor.storage.batch import decode_batch, encode_batch
from durable_actor.storage.fold import chunks, merge
from durable_actor.storage.kv import key_range
from durable_actor.storage.sql.statements import SqlLimits, Statement, parse
from durable_actor.transport import parse_url

_OUTCOMES = ("not_executed", "failed", "unknown")


def decode_values(data: bytes) -> None:
    """Codec: any bytes are a value or a `DecodeError`, and a value comes back."""
    try:
        value = codec.decode(data)
    except DecodeError:
        return
    try:
        first = codec.encode(value)
    except EncodeError as refused:
        if "nested deeper" in str(refused):
            return  # whoever made the bytes went further than we do
        raise
    again = codec.encode(codec.decode(first))
    # The order of a set is not promised, so the same bytes in any order.
    assert sorted(again) == sorted(first), f"{data!r} changes each time it is written"


def decode_failures(data: bytes) -> None:
    """Errors from the other side: an exception to raise, whatever has arrived."""
    try:
        error = codec.loads_error(data)
    except DecodeError:
        pass
    else:
        assert isinstance(error, Exception)
    told = wire.error_of(503, data)
    assert told.outcome in _OUTCOMES
    assert str(told) is not None


def read_ids(data: bytes) -> None:
    """Ids and names: an id leads back to itself, and to no other namespace."""
    text = _any_text(data)
    here, there = IdSpace("Here"), IdSpace("There")
    try:
        found = here.from_name(text)
    except InvalidIdError:
        pass
    else:
        assert here.parse(str(found)) == found
        try:
            there.parse(str(found))
        except ForeignIdError:
            pass
        else:
            raise AssertionError(f"{found!r} is of two namespaces")
    try:
        parsed = here.parse(text)
    except (InvalidIdError, ForeignIdError):
        return
    assert str(parsed) == text.lower()


def list_keys(data: bytes) -> None:
    """Key ranges: the options of `list`, against what they mean."""
    texts = [_any_text(part) for part in data[1:].split(b"\n")]
    chosen = data[0] if data else 0
    options: dict[str, Any] = {}
    for bit, name in enumerate(("prefix", "start", "start_after", "end")):
        if chosen >> bit & 1 and texts:
            options[name] = texts.pop(0)
    keys = [key for key in texts if _is_unicode(key)]
    wanted = {"prefix": None, "start": None, "start_after": None, "end": None}
    try:
        found = key_range(**(wanted | options), limit=None, reverse=False)
    except (StorageLimitError, TypeError):
        both = "start" in options and "start_after" in options
        assert both or not all(map(_is_unicode, options.values()))
        return
    for key in keys:
        fits = (
            key.startswith(options.get("prefix", ""))
            and key >= options.get("start", "")
            and ("start_after" not in options or key > options["start_after"])
            and ("end" not in options or key < options["end"])
        )
        assert found.has(key) == fits, f"{key!a} and {options!a}"


def read_config(data: bytes) -> None:
    """Configuration: a file, a variable, an address, a duration; or words."""
    path = Path(_folder().name) / "config.toml"
    path.write_bytes(data)
    with suppress(ConfigError):
        load_config(path, environ={}, overrides={})
    text = data.decode("utf-8", "replace")
    name, _, value = text.partition("=")
    with suppress(ConfigError):
        load_config(None, environ={f"DURABLE_ACTOR_{name}": value}, overrides={})
    with suppress(ConfigError):
        parse_url(text)
    with suppress(InvalidTimeError):
        assert duration_ms(text) >= 0


def read_batches(data: bytes) -> None:
    """The log: a batch comes back as it was, and can be folded."""
    try:
        seals = decode_batch(data)
    except DecodeError:
        return
    written = encode_batch(seals)
    assert encode_batch(decode_batch(written)) == written
    for statements in chunks(merge([written])):
        assert statements


def split_sql(data: bytes) -> None:
    """User SQL: what we call one statement, SQLite calls one, and reads as we do."""
    query = data.decode("utf-8", "replace")
    try:
        statements = parse(query, SqlLimits())
    except (SqlError, StorageLimitError):
        return
    database = _database()
    for statement in statements:
        _compare(database, statement)
    everything = list(database.split(query))
    if None not in everything:
        assert len(everything) == len(statements), f"{query!r}: {statements}"


def _compare(database: _Database, statement: Statement) -> None:
    views = list(database.split(statement.sql))
    assert len(views) <= 1, f"{statement.sql!r} hides another statement"
    if not views or views[0] is None:
        return  # SQLite refuses it
    parameters, is_readonly = views[0]
    assert parameters == statement.parameters, f"{statement}: {parameters} parameters"
    # A PRAGMA that writes is refused by the authorizer, which is not asked here.
    if not is_readonly and statement.verb != "PRAGMA":
        assert statement.writes, f"{statement} writes"


class _Database:
    """Statements as SQLite compiles them; none is run."""

    def __init__(self) -> None:
        self._sqlite = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
        self._sqlite.sqlite3_bind_parameter_count.argtypes = [ctypes.c_void_p]
        self._sqlite.sqlite3_stmt_readonly.argtypes = [ctypes.c_void_p]
        self._sqlite.sqlite3_finalize.argtypes = [ctypes.c_void_p]
        self._handle = ctypes.c_void_p()
        self._sqlite.sqlite3_open(b":memory:", ctypes.byref(self._handle))
        for sql in (b"CREATE TABLE t (a, b)", b"CREATE VIEW v AS SELECT a FROM t"):
            self._sqlite.sqlite3_exec(self._handle, sql, None, None, None)

    def split(self, query: str) -> Iterator[tuple[int, bool] | None]:
        """Yield what SQLite says of each statement; None, and no more, for an error."""
        rest = query.encode()
        while rest:
            buffer = ctypes.create_string_buffer(rest)
            compiled, tail = ctypes.c_void_p(), ctypes.c_void_p()
            failed = self._sqlite.sqlite3_prepare_v2(
                self._handle, buffer, -1, ctypes.byref(compiled), ctypes.byref(tail)
            )
            if failed:
                yield None
                return
            if compiled.value is not None:
                yield (
                    self._sqlite.sqlite3_bind_parameter_count(compiled),
                    bool(self._sqlite.sqlite3_stmt_readonly(compiled)),
                )
                self._sqlite.sqlite3_finalize(compiled)
            assert tail.value is not None
            rest = rest[tail.value - ctypes.addressof(buffer) :]


@cache
def _database() -> _Database:
    return _Database()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def _any_text(data: bytes) -> str:
    """Return any text at all, lone surrogates too."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
