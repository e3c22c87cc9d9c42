"""Configuration: `config.toml`, the environment and the command line, in one value.

Every limit, default and unit of the project is here. The keys that name things are
wrangler's; ours end in their unit. A flag wins over the environment, which wins over
the file, which wins over the default.

Promises
    A `Config` that was loaded fits its types and its bounds.
    A key nobody knows is an error that names its nearest neighbour, never ignored.
    Paths written in the file are relative to the file; all others to where we are.

Does not import the user's module, open a socket or touch the data directory.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta

from durable_actor.clock import duration_ms
from durable_actor.errors import ConfigError, InvalidTimeError

KIB = 1_024
MIB = 1_024 * KIB
HOUR_MS = 3_600_000

ENVIRON_PREFIX = "DURABLE_ACTOR_"
# Names that others gave to two of our keys; our own name wins over them.
_ENVIRON_ALIASES = {"PORT": "http.port", "DURABLE_ACTOR_DATA_DIR": "storage.dir"}
_PATHS = (
    "storage.dir",
    "http.token_file",
    "http.tokens_file",
    "http.tls_certificate_file",
    "http.tls_key_file",
    "http.tls_client_ca_file",
    "http.uds",
)

_CRON_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1)]
BindingName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]*\Z")]


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """A name in `env` for a class of objects."""

    name: BindingName
    class_name: Name


class DurableObjectsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which classes are found in `env`."""

    bindings: tuple[Binding, ...] = ()


class WorkflowBinding(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow, and the name in `env` it is started by."""

    name: Name
    binding: BindingName
    class_name: Name | None = None  # None: a function, found by `name`


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens again and again: a call to an object, or a run."""

    name: Name
    cron: Name | None = None
    every: str | Positive | None = None  # "10 minutes", or milliseconds
    timezone: str = "UTC"  # of `cron`; UTC has no hour twice, and none missing
    object: str | None = None  # "Class/name"
    method: Name | None = None
    args: tuple[Any, ...] = ()
    workflow: Name | None = None
    input: Any = None


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the daemon listens, and what a client may ask of it."""

    host: Name = "127.0.0.1"  # nobody else can reach it until someone decides so
    port: Port = 8_787  # wrangler's; 0 takes a free one and prints it
    uds: Name | None = None  # a Unix socket instead of host and port
    token_file: Name | None = None  # None: a token is made in the data directory
    tokens_file: Name | None = None  # None: `tokens.json` there, if it is there
    tls_certificate_file: Name | None = None  # with its chain; then all is https
    tls_key_file: Name | None = None  # None: it is in the file of the certificate
    tls_client_ca_file: Name | None = None  # then who comes without a certificate goes
    allowed_hosts: tuple[str, ...] = ()  # beside the names of the loopback interface
    allowed_origins: tuple[str, ...] = ()  # no web page, unless it is named
    allow_public: bool = False  # to listen beyond loopback takes a second decision
    body_bytes_max: Positive = 1 * MIB  # a call is not an upload
    header_bytes_max: Positive = 8 * KIB  # what most proxies allow
    headers_max: Positive = 64  # browsers send about twenty
    header_timeout_ms: Positive = 5_000  # no honest client dawdles over a header
    body_timeout_ms: Positive = 30_000  # 1 MiB at 35 kB/s: a poor mobile line
    # Of a request that an object's `fetch` reads piece by piece; Durable Objects' own.
    fetch_body_bytes_max: Positive = 100 * MIB
    write_timeout_ms: Positive = (
        30_000  # a caller that takes nothing for so long is gone
    )
    idle_timeout_ms: Positive = 75_000  # longer than the 60 s after which proxies close
    connections_max: Positive = 10_000  # a bound on memory, not what one process serves
    in_flight_max: Positive = 20_000  # calls accepted and not yet answered
    # Of one token of the tokens file; the owner's own has no share, but all of it.
    in_flight_per_token_max: Positive = 1_000
    bodies_bytes_max: Positive = 256 * MIB  # of all requests, as they are read


class StorageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where objects are kept, and how much at a time."""

    dir: Name = "data"
    # auto: a thread when embedded, a process of its own under the daemon, where user
    # code that holds the interpreter would hold up every commit as well.
    driver: Literal["auto", "thread", "process"] = "auto"
    log_bytes_max: Positive = 8 * MIB  # then it is folded; bounds the replay at a start
    wal_bytes_max: Positive = 16 * MIB  # then it is checkpointed, before the next group
    wal_grow_bytes: Positive = 4 * MIB  # fewer, larger growths: each costs a sync more
    group_rows_max: Positive = 256  # of one commit: enough to share a sync, still quick
    group_bytes_max: Positive = 8 * MIB  # of one commit; a larger turn goes alone
    hydrate_bytes_max: Positive = 256 * KIB  # a smaller object is read whole at once
    cache_bytes_max: Positive = 256 * MIB  # of all objects; the rest is read again
    list_bytes_max: Positive = (
        128 * MIB
    )  # of one answer of `list`; more is read in pages
    # Room kept for a moment with a full disk; given back to end in order. 0: none
    ballast_bytes: NotNegative = 16 * MIB
    value_bytes_max: Positive = 2 * MIB  # Durable Objects' own limit
    key_bytes_max: Positive = 2_048  # Durable Objects' own limit
    batch_entries_max: Positive = 128  # Durable Objects' own limit
    # Of keys and values of one turn or transaction: one entry of the log, in memory
    # several times over on its way to the disk.
    turn_bytes_max: Positive = 64 * MIB
    outbox_events_max: Positive = 50_000  # per shard; a sink may be away for a while
    reply_ttl_ms: Positive = 24 * HOUR_MS  # a client that repeats a call does so today
    replies_per_object_max: Positive = 10_000  # then the oldest goes first


class SqlConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The databases of objects with `storage = "sqlite"`."""

    # Then the longest idle one closes. Three descriptors each: in all no more than a
    # third of those the process may have.
    open_max: Positive = 256
    database_bytes_max: Positive = 1_024 * MIB  # of one object
    statement_ms_max: Positive = 5_000  # the event loop waits while a statement runs
    # What is kept to go back to: of one object, and for how long.
    history_bytes_max: Positive = 256 * MIB
    history_ms_max: Positive = 30 * 24 * HOUR_MS  # Durable Objects' own time


class ObjectsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How many objects live in memory, and how much may wait for one."""

    idle_ms: NotNegative = 10_000  # Durable Objects' own time until an idle one sleeps
    resident_max: Positive = (
        100_000  # a bound on memory; the longest idle ones go first
    )
    mailbox_events_max: Positive = 1_000  # a second of work at a millisecond each
    mailbox_bytes_max: Positive = 16 * MIB  # eight of the largest values
    mailbox_age_ms_max: Positive = 10_000  # whoever waited longer has given up
    # Arrivals in 10 s at one object; 0: as many as it can take.
    mailbox_rate_max: NotNegative = 0
    queued_bytes_max: Positive = 256 * MIB  # in all mailboxes together
    # Of what waits, bodies and caches together; 0: a quarter of what it may have,
    # by its cgroup and its limits, or 1 GiB.
    memory_bytes_max: NotNegative = 0
    slice_ms: NotNegative = 5  # of a busy object; then others have their turn
    constructor_timeout_ms: Positive = 30_000  # Durable Objects' own limit


class WebSocketsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How large messages may be, and how much may wait for a slow reader."""

    message_bytes_max: Positive = 1 * MIB  # Durable Objects' own limit
    fragments_max: Positive = 1_024  # of one message, however small they are
    queue_messages_max: Positive = 1_024  # sent and not yet taken; then it is closed
    queue_bytes_max: Positive = 4 * MIB  # four of the largest messages
    sockets_per_object_max: Positive = 32_768  # Durable Objects' own limit
    ping_interval_ms: Positive = 20_000  # shorter than what proxies call idle
    ping_timeout_ms: Positive = 20_000  # no answer for so long: the client is gone


class AlarmsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How alarms are fired, and tried again."""

    retry_limit: NotNegative = 6  # Durable Objects' own; two minutes with the base
    retry_base_ms: Positive = 2_000  # Durable Objects' own; doubles with each failure
    window_ms: Positive = 60_000  # alarms due within it are in memory, the rest on disk
    batch_max: Positive = 64  # started at once: a late crowd must not stop the loop


class RunsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How workflow runs are recovered and kept."""

    recovery_delay_ms: NotNegative = 1_000  # after a start, calls go before repairs
    stale_threshold_ms: Positive = 60_000  # a run silent for so long has lost its alarm
    recovery_attempts_max: Positive = 5  # a run that kills the process each time
    retention_ms: NotNegative = 7 * 24 * HOUR_MS  # someone was away over the weekend
    resident_sleep_ms_max: NotNegative = 60_000  # longer sleeps leave memory


class WatchdogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon does when its event loop does not come round; 0 is off."""

    log_ms: NotNegative = 100  # then callers notice, and the stack tells who it is
    degraded_ms: NotNegative = 1_000  # then `/livez` of the thread says 503
    interrupt_ms: NotNegative = 10_000  # of one delivery; as long as others may wait
    exit_ms: NotNegative = 60_000  # nothing helped: exit 70, and be started again
    livez_listen: Name | None = None  # "127.0.0.1:8788" or "unix:PATH"; None: nowhere


class CrashesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon makes of starts that follow a crash; 0 is off."""

    deaths_max: NotNegative = 3  # with the same event running: it is not run again
    starts_max: NotNegative = 5  # unclean ones in a row: reads only
    starts_window_ms: Positive = 60_000  # that these starts are counted in


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    # auto: colours on a terminal, JSON lines elsewhere.
    format: Literal["auto", "console", "json"] = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set."""

    name: Name = "durable-actor"
    main: tuple[Name, ...] = ()  # modules, or paths of `.py` files
    durable_objects: DurableObjectsConfig = DurableObjectsConfig()
    workflows: tuple[WorkflowBinding, ...] = ()
    vars: dict[str, Any] = {}
    schedules: tuple[Schedule, ...] = ()
    shutdown_grace_ms: NotNegative = 25_000  # Kubernetes kills after 30 s
    debug: bool = False  # tracebacks to clients; on loopback only
    http: HttpConfig = HttpConfig()
    storage: StorageConfig = StorageConfig()
    sql: SqlConfig = SqlConfig()
    objects: ObjectsConfig = ObjectsConfig()
    web_sockets: WebSocketsConfig = WebSocketsConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    runs: RunsConfig = RunsConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    crashes: CrashesConfig = CrashesConfig()
    log: LogConfig = LogConfig()
    # Not a key: the folder of the file, where the user's modules are looked for first.
    directory: str = "."


def load_config(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
) -> Config:
    """Return the configuration from a file, the environment and flags.

    Args:
        path: Of the file; None if there is none.
        environ: `http.port` is `DURABLE_ACTOR_HTTP_PORT`, and so on for every key that
            is not a table; a list of texts is separated by commas, and an empty
            variable is none.
        overrides: By key, such as `{"http.port": 0}`; None means not given.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value does not fit;
            names the key.
    """
    layers = _Layers({} if path is None else _read(path), str(path))
    _check_keys(layers.values, Config, "")
    here = Path.cwd()
    folder = here if path is None else path.absolute().parent
    layers.resolve_paths(folder)
    for key, name, text in _from_environ(environ):
        layers.set(key, _parse(text, _KEYS[key]), name)
    for key, value in overrides.items():
        if value is None:
            continue
        if key not in _KEYS:
            raise ConfigError(f"{key}: {_unknown(key, _KEYS)}")
        parsed = _parse(value, _KEYS[key]) if isinstance(value, str) else value
        layers.set(key, parsed, "command line")
    layers.resolve_paths(here)
    config = layers.convert(folder)
    _check_names(config)
    for index, schedule in enumerate(config.schedules):
        _check_schedule(schedule, f"schedules[{index}]")
    return config


class _Layers:
    """The values as they are laid over one another, and where each came from."""

    def __init__(self, values: dict[str, Any], origin: str) -> None:
        self.values = values
        self._origin = origin
        self._origins: dict[str, str] = {}

    def set(self, key: str, value: object, origin: str) -> None:
        *tables, last = key.split(".")
        table = self.values
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                return  # `convert` tells that the file has no table there
        table[last] = value
        self._origins[key] = origin

    def resolve_paths(self, folder: Path) -> None:
        """Make the paths absolute that no earlier call has."""
        for key in _PATHS:
            text = _at(self.values, key)
            if isinstance(text, str) and text and not Path(text).is_absolute():
                *tables, last = key.split(".")
                _at(self.values, ".".join(tables))[last] = str(folder / text)
        main = self.values.get("main")
        if isinstance(main, str):
            main = [main]
        if isinstance(main, list):
            self.values["main"] = [_resolve_main(item, folder) for item in main]

    def convert(self, folder: Path) -> Config:
        self.values.setdefault("storage", {})
        if isinstance(self.values["storage"], dict):
            self.values["storage"].setdefault("dir", str(folder / StorageConfig().dir))
        try:
            return msgspec.convert(
                {**self.values, "directory": str(folder)}, Config, strict=True
            )
        except msgspec.ValidationError as error:
            raise ConfigError(self._explain(str(error))) from None

    def _explain(self, text: str) -> str:
        problem, _, place = text.partition(" - at `$")
        key = place.removesuffix("`").removeprefix(".")
        value = _at(self.values, key)
        expected = _expected(problem, key)
        got = f", got {_show(value)}" if expected.startswith("expected") else ""
        origin = self._origins.get(key, self._origin)
        return f"{key}: {expected}{got} ({origin})"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: this is not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None


def _check_keys(table: dict[str, Any], kind: type[msgspec.Struct], path: str) -> None:
    """Refuse keys nobody knows, with the place they stand at."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    fields.pop("directory", None)
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"{path}{key}: {_unknown(key, fields)}")
        inner = fields[key]
        if _is_table(inner) and isinstance(value, dict):
            _check_keys(value, inner, f"{path}{key}.")
        elif get_origin(inner) is tuple and isinstance(value, list):
            for index, item in enumerate(value):
                if _is_table(get_args(inner)[0]) and isinstance(item, dict):
                    _check_keys(item, get_args(inner)[0], f"{path}{key}[{index}].")


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield key, variable and text of what the environment sets."""
    ours = {ENVIRON_PREFIX + key.replace(".", "_").upper(): key for key in _KEYS}
    sections = {
        f"{ENVIRON_PREFIX}{key.partition('.')[0].upper()}_"
        for key in _KEYS
        if "." in key
    }
    for name in environ:
        # Other names with our prefix are not ours to judge: a container platform sets
        # DURABLE_ACTOR_SERVICE_HOST for a service of our name, for instance.
        is_ours = any(name.startswith(section) for section in sections)
        if is_ours and name not in ours:
            raise ConfigError(f"{name}: {_unknown(name, ours)}")
    for name, key in [*_ENVIRON_ALIASES.items(), *ours.items()]:
        if environ.get(name):
            yield key, name, environ[name]


def _parse(text: str, kind: Any) -> Any:
    """Return a text as the type wants it; as it is if that fails, to be refused."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if kind is bool:
        return _BOOLS.get(text.strip().lower(), text)
    if get_origin(kind) is tuple:
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            return text
    return text


_BOOLS = {"true": True, "1": True, "yes": True, "on": True} | {
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def _check_names(config: Config) -> None:
    """Refuse two things of one name in `env`, and two schedules of one name."""
    names: dict[str, str] = {}
    for index, binding in enumerate(config.durable_objects.bindings):
        _claim(names, binding.name, f"durable_objects.bindings[{index}].name")
    for index, workflow in enumerate(config.workflows):
        _claim(names, workflow.binding, f"workflows[{index}].binding")
    for name in config.vars:
        _claim(names, name, "vars")
    names = {}
    for index, schedule in enumerate(config.schedules):
        _claim(names, schedule.name, f"schedules[{index}].name")


def _claim(names: dict[str, str], name: str, key: str) -> None:
    if name in names:
        raise ConfigError(f"{key}: {name!r} is already the name at {names[name]}")
    names[name] = key


def cron_expression(text: str) -> str:
    """Return the five fields of a cron expression that may be a nickname: `@daily`."""
    return _CRON_NICKNAMES.get(text.strip().lower(), text)


def _check_schedule(schedule: Schedule, key: str) -> None:
    if (schedule.cron is None) == (schedule.every is None):
        raise ConfigError(f"{key}: give either `cron` or `every`")
    if (schedule.object is None) == (schedule.workflow is None):
        raise ConfigError(f"{key}: give either `object` and `method`, or `workflow`")
    if schedule.object is not None:
        if not re.fullmatch(r"[^/]+/.+", schedule.object, re.DOTALL):
            message = f'{key}.object: write "Class/name", got {_show(schedule.object)}'
            raise ConfigError(message)
        if schedule.method is None:
            raise ConfigError(f"{key}.method: is missing; name a method of the object")
        if schedule.input is not None:
            raise ConfigError(f"{key}.input: is for workflows; an object gets `args`")
    elif schedule.method is not None or schedule.args:
        raise ConfigError(f"{key}: `method` and `args` are for objects; use `input`")
    try:
        ZoneInfo(schedule.timezone)
    except Exception:  # noqa: BLE001  # it raises half a dozen types for a bad name
        message = f"{key}.timezone: {_show(schedule.timezone)} is not a known time zone"
        raise ConfigError(message) from None
    try:
        if schedule.cron is not None:
            CronSim(cron_expression(schedule.cron), datetime(2000, 1, 1, tzinfo=UTC))
        elif duration_ms(schedule.every or 0) == 0:
            raise ConfigError(f"{key}.every: must be longer than nothing")
    except CronSimError as error:
        message = f"{key}.cron: {_show(schedule.cron)} is no cron expression: {error}"
        raise ConfigError(message) from None
    except InvalidTimeError as error:
        raise ConfigError(f"{key}.every: {error}") from None


def _resolve_main(item: Any, folder: Path) -> Any:
    is_path = isinstance(item, str) and (item.endswith(".py") or "/" in item)
    return str(folder / item) if is_path else item


def _at(values: Any, key: str) -> Any:
    """Return what stands at a key such as `schedules[0].name`; None if nothing does."""
    for name in re.findall(r"[^.\[\]]+", key):
        try:
            values = values[int(name)] if isinstance(values, list) else values[name]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return values


def _expected(problem: str, key: str) -> str:
    """Return msgspec's words in ours."""
    choices = get_args(_KEYS.get(key))
    if problem.startswith("Invalid enum value") and choices:
        return "expected " + " or ".join(_show(choice) for choice in choices)
    if missing := re.fullmatch(r"Object missing required field `(.+)`", problem):
        return f"`{missing[1]}` is missing"
    problem = problem.partition(", got `")[0].replace("`", "")
    problem = problem.replace("object", "table").replace(" | null", "")
    return problem[:1].lower() + problem[1:]


def _unknown(key: str, known: Mapping[str, object]) -> str:
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.4):
        return f"is not a key; did you mean `{near[0]}`?"
    return f"is not a key; known are {', '.join(known)}"


def _show(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004  # one line


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _find_keys(kind: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(kind):
        if _is_table(field.type):
            yield from _find_keys(field.type, f"{path}{field.name}.")
        else:
            yield path + field.name, field.type


_TABLES = {"durable_objects.bindings", "workflows", "vars", "schedules", "directory"}
# What the environment and flags may set, by type.
_KEYS: Mapping[str, Any] = {
    key: kind for key, kind in _find_keys(Config) if key not in _TABLES
}
