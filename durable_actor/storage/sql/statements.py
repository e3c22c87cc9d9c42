"""User SQL: where its statements end, and what they may do.

Promises
    What is not on a list here is refused (RELIABILITY S8): statements by their first
    word, then every access by SQLite's authorizer, while the statement is compiled.
    No statement ends or begins a transaction, opens another file, loads code, or
    touches a table of ours (`_cf_...`).
    Wrong bindings are found before anything runs.

`Guard` is asked by SQLite about each access. Our own statements pass while `trusted` is
set; they carry a mark that user SQL cannot know, because a compiled statement is kept
under its text and is not asked about again.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from durable_actor.errors import SqlError, StorageLimitError

SqlValue = str | int | float | bytes | None
RESERVED_PREFIX = "_cf_"
QUERY_EXCERPT_CHARS = 120
_PROGRESS_STEPS = 4_000  # of SQLite's machine, between two looks at the clock
_ROW_SLACK_BYTES = 16 * 1024  # a row is its largest value, a key and a header
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1

TRANSACTION_WORDS = frozenset(
    {"BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"}
)
_READING_WORDS = frozenset({"SELECT", "VALUES", "EXPLAIN", "PRAGMA"})
_WRITING_WORDS = frozenset(
    {
        "INSERT", "REPLACE", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "ANALYZE",
        "REINDEX",
    }
)  # fmt: skip
_FORBIDDEN_WORDS = frozenset({"ATTACH", "DETACH", "VACUUM"})
# Statements that change SQLite's own tables, on their way to what was asked for.
_SCHEMA_WORDS = frozenset(
    {"CREATE", "DROP", "ALTER", "ANALYZE", "REINDEX", "PRAGMA", "EXPLAIN"}
)
_MODULES = frozenset({"fts5", "fts5vocab"})
_SYSTEM_TABLES = frozenset(
    {
        "sqlite_master", "sqlite_schema", "sqlite_temp_master", "sqlite_temp_schema",
        "sqlite_sequence", "sqlite_stat1",
    }
)  # fmt: skip
_FORBIDDEN_TABLES = frozenset({"dbstat", "bytecode", "tables_used", "fts3tokenize"})
# PRAGMAs that only tell; those that take a name may be given one.
_TELLING_PRAGMAS = frozenset(
    {
        "table_info", "table_xinfo", "table_list", "index_list", "index_info",
        "index_xinfo", "foreign_key_list", "foreign_key_check", "quick_check",
        "data_version", "function_list", "page_count", "page_size", "encoding",
    }
)  # fmt: skip
_TELLING_WITHOUT_ARGUMENT = frozenset(
    {"data_version", "page_count", "page_size", "encoding", "foreign_keys"}
)
_SWITCH_PRAGMAS = frozenset({"defer_foreign_keys"})  # end with the transaction
_FUNCTION_NAMES = """
    abs changes char coalesce format glob hex ifnull iif instr last_insert_rowid length
    like likelihood likely lower ltrim max min nullif printf quote random randomblob
    replace round rtrim sign soundex sqlite_source_id sqlite_version substr substring
    total_changes trim typeof unhex unicode unlikely upper zeroblob concat concat_ws
    octet_length if string_agg subtype
    acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln
    log log10 log2 mod pi pow power radians sin sinh sqrt tan tanh trunc
    avg count group_concat sum total median percentile
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value
    last_value nth_value
    current_date current_time current_timestamp date datetime julianday strftime time
    timediff unixepoch
    json json_array json_array_length json_error_position json_extract json_group_array
    json_group_object json_insert json_object json_patch json_pretty json_quote
    json_remove json_replace json_set json_type json_valid jsonb jsonb_array
    jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object
    jsonb_patch jsonb_remove jsonb_replace jsonb_set -> ->>
    bm25 fts5 highlight match snippet
    sqlite_drop_column sqlite_rename_column sqlite_rename_quotefix sqlite_rename_table
    sqlite_rename_test sqlite_fail
"""  # the last two lines: what ALTER TABLE is made of; nobody else can call those
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    | (?P<parameter>\?\d*|[:@$\#][\w$]+(?:::[\w$]+)*(?:\([^)\s]*\))?)
    | (?P<number>\.?\d[\w.]*)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<end>;)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlLimits:
    """What statements and databases may be. Most defaults are Cloudflare's."""

    statement_bytes_max: int = 100_000
    parameters_max: int = 100
    columns_max: int = 100
    value_bytes_max: int = 2 * 1024 * 1024
    like_pattern_bytes_max: int = 50
    statement_ms_max: int = 5_000
    database_bytes_max: int = 1024 * 1024 * 1024
    turn_bytes_max: int = (
        64 * 1024 * 1024
    )  # of its pages, which are one entry of the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement of a query."""

    sql: str
    verb: str  # its first word, in upper case
    writes: bool  # whether it may write
    parameters: int
    names: tuple[str, ...]  # of its parameters, if all of them have one


class Guard:
    """SQLite's authorizer, and the clock of the running statement.

    Knows nothing of the database it guards, because its connection keeps it alive.
    """

    def __init__(self) -> None:
        self.trusted = False
        self.statement: Statement | None = None
        self.refused: str | None = None  # what the last refusal was about
        self.deadline = math.inf  # seconds of the monotonic clock

    def is_over(self) -> bool:
        """Whether the running statement has had its time; stops it if so."""
        return time.monotonic() > self.deadline

    def __call__(
        self,
        action: int,
        first: str | None,
        second: str | None,
        schema: str | None,
        _inside: str | None,
    ) -> int:
        """Answer SQLite: may it?"""
        if self.trusted:
            return sqlite3.SQLITE_OK
        refused = self._refuse(action, first or "", second or "", schema)
        if refused is None:
            return sqlite3.SQLITE_OK
        self.refused = refused
        return sqlite3.SQLITE_DENY

    def _refuse(
        self, action: int, first: str, second: str, schema: str | None
    ) -> str | None:
        """Return what is wrong with an access, None if nothing."""
        statement = self.statement
        if statement is None:
            return "a statement outside exec()"
        verb = statement.verb
        table = first.lower()
        if action == sqlite3.SQLITE_READ:
            return _refuse_read(table)
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return None
        if action == sqlite3.SQLITE_FUNCTION:
            allowed = second.lower() in _FUNCTIONS
            return None if allowed else f"function {second}"
        if action == sqlite3.SQLITE_PRAGMA:
            return _refuse_pragma(table, second, statement)
        if action == sqlite3.SQLITE_UPDATE and table == "sqlite_master":
            # Every table-valued function is declared so. SQLite itself refuses it to
            # whoever asks for it in so many words.
            return None
        if not statement.writes:
            return f"{verb} that writes"
        if action in _CHANGES:
            if schema == "temp" and table != "sqlite_temp_master":
                return f"temporary table {first}"
            if table.startswith("sqlite_") and verb not in _SCHEMA_WORDS:
                return f"table {first}"
            return f"table {first}" if _is_reserved(table) else None
        if action in _DEFINITIONS:
            if schema == "temp":
                return f"temporary {first}"
            if action in _DROPS and table.startswith("sqlite_") and verb != "ALTER":
                if table.startswith("sqlite_autoindex_"):
                    return None
                return f"dropping {first}"
            reserved = next((n for n in (first, second) if _is_reserved(n)), None)
            return None if reserved is None else f"the reserved name {reserved}"
        if action == sqlite3.SQLITE_ALTER_TABLE:
            if first == "temp":
                return f"temporary table {second}"
            return f"table {second}" if _is_reserved(second) else None
        if action in (sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_DROP_VTABLE):
            if schema == "temp" or _is_reserved(first):
                return f"virtual table {first}"
            allowed = second.lower() in _MODULES
            return None if allowed else f"virtual tables of {second}"
        if action in (sqlite3.SQLITE_ANALYZE, sqlite3.SQLITE_REINDEX):
            return None  # of ours too: it is what ANALYZE alone does
        return f"action {action}"


_CHANGES = frozenset(
    {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
)
_DROPS = frozenset(
    {
        sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_DROP_TABLE,
        sqlite3.SQLITE_DROP_TRIGGER,
        sqlite3.SQLITE_DROP_VIEW,
    }
)
_DEFINITIONS = _DROPS | {
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_CREATE_VIEW,
}


def secure(connection: sqlite3.Connection, guard: Guard, limits: SqlLimits) -> None:
    """Put the guard and the limits on a connection."""
    settings = {
        sqlite3.SQLITE_LIMIT_LENGTH: limits.value_bytes_max + _ROW_SLACK_BYTES,
        sqlite3.SQLITE_LIMIT_SQL_LENGTH: limits.statement_bytes_max + 1_000,
        sqlite3.SQLITE_LIMIT_COLUMN: limits.columns_max,
        sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: limits.parameters_max,
        sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: limits.like_pattern_bytes_max,
        sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
        sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 5,
        sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
        sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
        sqlite3.SQLITE_LIMIT_ATTACHED: 0,
        sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    }
    for category, value in settings.items():
        connection.setlimit(category, value)
    connection.set_progress_handler(guard.is_over, _PROGRESS_STEPS)
    connection.set_authorizer(guard)


def parse(query: object, limits: SqlLimits) -> tuple[Statement, ...]:
    """Return the statements of a query, each one allowed by its first word.

    Raises:
        TypeError: Not text.
        StorageLimitError: Longer than the limit.
        SqlError: No statement, or one that is never allowed.
    """
    if not isinstance(query, str):
        message = f"a query must be text, got {type(query).__name__}: {query!r}"
        raise TypeError(message)
    try:
        size = len(query) if query.isascii() else len(query.encode())
    except UnicodeEncodeError:
        raise refusal("the query is not valid Unicode", ascii(query)) from None
    if size > limits.statement_bytes_max:
        detail = (
            f"statement too long: {size} bytes, the limit is"
            f" {limits.statement_bytes_max}"
        )
        raise StorageLimitError("sql", detail)
    if "\0" in query:
        raise refusal("the query contains a NUL character; bind it instead", query)
    statements = _split(query)
    if not statements:
        raise refusal("SQL code did not contain a statement.", query)
    for statement in statements:
        if statement.parameters > limits.parameters_max:
            detail = (
                f"too many parameters: {statement.parameters}, the limit is"
                f" {limits.parameters_max}"
            )
            raise StorageLimitError("sql", detail)
        if statement is not statements[-1] and statement.parameters:
            detail = (
                "When executing multiple SQL statements in a single call, only the last"
                " statement can have parameters."
            )
            raise refusal(detail, query)
    return statements


def bound(
    statement: Statement, values: Sequence[object], limits: SqlLimits
) -> dict[str, SqlValue] | tuple[SqlValue, ...]:
    """Return a statement's bindings in the form that sqlite3 takes.

    Raises:
        SqlError: Not as many as the statement has parameters.
        TypeError: A value SQLite has no type for.
        StorageLimitError: An int beyond 64 bits, or a value that is too large.
    """
    if len(values) != statement.parameters:
        detail = "Wrong number of parameter bindings for SQL query."
        note = f"It has {statement.parameters} parameters, {len(values)} were given."
        error = refusal(detail, statement.sql)
        error.add_note(note)
        raise error
    checked = tuple(_checked(i, value, limits) for i, value in enumerate(values, 1))
    if statement.names:
        return dict(zip(statement.names, checked, strict=True))
    return checked


def refusal(detail: str, query: str, *, sqlite_name: str = "") -> SqlError:
    """Return the error of a statement, with its beginning."""
    excerpt = query.strip()
    if len(excerpt) > QUERY_EXCERPT_CHARS:
        excerpt = excerpt[:QUERY_EXCERPT_CHARS] + "..."
    return SqlError("sql", detail, query=excerpt, sqlite_name=sqlite_name)


@lru_cache(maxsize=512)  # a program has few queries, and runs them often
def _split(query: str) -> tuple[Statement, ...]:
    statements: list[Statement] = []
    tokens: list[re.Match[str]] = []
    for token in _TOKEN.finditer(query):
        if token.lastgroup == "space":
            continue
        if token.lastgroup != "end" or (_makes_trigger(tokens) and not _ends(tokens)):
            tokens.append(token)
        elif tokens:
            statements.append(_statement(query, tokens))
            tokens = []
    if tokens:
        statements.append(_statement(query, tokens))
    return tuple(statements)


def _makes_trigger(tokens: list[re.Match[str]]) -> bool:
    """Whether this is the beginning of a trigger, whose body has statements in it."""
    head = [token[0].upper() for token in tokens[:6]]
    for word in ("EXPLAIN", "QUERY", "PLAN", "CREATE", "TEMP", "TEMPORARY"):
        if head and head[0] == word:
            del head[0]
    return head[:1] == ["TRIGGER"]


def _ends(tokens: list[re.Match[str]]) -> bool:
    """Whether a trigger is complete: its last two tokens are `;` and END."""
    return tokens[-1][0].upper() == "END" and tokens[-2].lastgroup == "end"


def _statement(query: str, tokens: list[re.Match[str]]) -> Statement:
    sql = query[tokens[0].start() : tokens[-1].end()]
    verb = tokens[0][0].upper()
    words = [token[0].upper() for token in tokens if token.lastgroup == "word"]
    _check_words(sql, verb, tokens, words)
    writes = verb in _WRITING_WORDS or (
        verb in ("WITH", "EXPLAIN") and not _WRITING_WORDS.isdisjoint(words)
    )
    if verb == "PRAGMA" and "OPTIMIZE" in words:
        writes = True
    count, names = _parameters(tokens)
    return Statement(
        sql=sql, verb=verb, writes=writes, parameters=count, names=tuple(names)
    )


def _check_words(
    sql: str, verb: str, tokens: list[re.Match[str]], words: list[str]
) -> None:
    if verb in TRANSACTION_WORDS:
        detail = (
            f"{verb} is not available: the writes of a turn commit together by"
            " themselves. Use ctx.storage.transaction() or transaction_sync() for a"
            " part that can be rolled back."
        )
        raise refusal(detail, sql)
    if verb in _FORBIDDEN_WORDS:
        raise refusal(f"not authorized: {verb}", sql, sqlite_name="SQLITE_AUTH")
    for before, word in pairwise(words):
        if word == "ROLLBACK" and before in ("OR", "CONFLICT", "RAISE"):
            detail = (
                f"{before} ROLLBACK would undo the whole turn; use ABORT, and"
                " transaction_sync() around what belongs together"
            )
            raise refusal(detail, sql)
    if verb == "CREATE":
        # The authorizer is told a trigger's table, and that one is not temporary.
        names = [token[0].strip("\"'`[]").lower() for token in tokens[:8]]
        if ("temp", ".") in pairwise(names):
            detail = "not authorized: temporary objects"
            raise refusal(detail, sql, sqlite_name="SQLITE_AUTH")
    if verb in ("CREATE", "ALTER") and "TABLE" in words[:3]:
        # The authorizer is not told the name after RENAME TO, nor after REFERENCES.
        for token in tokens:
            if _is_reserved(token[0].strip("\"'`[]")):
                detail = f"not authorized: the reserved name {token[0]}"
                raise refusal(detail, sql, sqlite_name="SQLITE_AUTH")


def _parameters(tokens: list[re.Match[str]]) -> tuple[int, list[str]]:
    """Return how many parameters there are, and their names if sqlite3 may use them."""
    highest = 0
    seen: dict[str, int] = {}
    for token in tokens:
        if token.lastgroup != "parameter":
            continue
        text = token[0]
        if text == "?":
            highest += 1
        elif text[0] == "?":
            highest = max(highest, min(int(text[1:]), 1_000_000))
        elif text not in seen:
            highest += 1
            seen[text] = highest
    bare = [text[1:] for text in seen]
    named = len(seen) == highest and len(set(bare)) == len(bare)
    return highest, bare if named else []


def _checked(position: int, value: object, limits: SqlLimits) -> SqlValue:
    kind = type(value)
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            detail = (
                f"binding {position}: {_short(value)} does not fit into 64 bits; bind"
                " it as text"
            )
            raise StorageLimitError("sql", detail)
        return value
    size = 0
    result: SqlValue = None
    if isinstance(value, str):
        try:
            size = len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError as error:
            detail = f"binding {position} is not valid Unicode: {error.reason}"
            raise refusal(detail, "") from None
        result = value
    elif isinstance(value, bytes | bytearray | memoryview):
        result = bytes(value)
        size = len(result)
    else:
        message = (
            f"binding {position} is {kind.__name__}, and SQL has None, bool, int,"
            " float, str and bytes. Convert it, for example with str(), isoformat() or"
            " json.dumps()."
        )
        raise TypeError(message)
    if size > limits.value_bytes_max:
        detail = (
            f"binding {position}: string or blob too big: {size} bytes, the limit is"
            f" {limits.value_bytes_max}"
        )
        raise StorageLimitError("sql", detail)
    return result


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**40 else hex(value)[:40] + "..."


def _is_reserved(name: str) -> bool:
    return name.lower().startswith(RESERVED_PREFIX)


def _refuse_read(table: str) -> str | None:
    if table.startswith("sqlite_") and table not in _SYSTEM_TABLES:
        return f"table {table}"
    if table in _FORBIDDEN_TABLES or _is_reserved(table):
        return f"table {table}"
    return None


def _refuse_pragma(name: str, argument: str, statement: Statement) -> str | None:
    if argument and _is_reserved(argument):
        return f"the reserved name {argument}"
    if name in _SWITCH_PRAGMAS:
        return None
    if name == "optimize":
        return None if statement.writes else "PRAGMA optimize in another statement"
    if name in _TELLING_WITHOUT_ARGUMENT:
        return f"PRAGMA {name} with a value" if argument else None
    return None if name in _TELLING_PRAGMAS else f"PRAGMA {name}"
