"""The command line: `serve`, and what one asks of a daemon from a shell.

Thin functions over `server`, `client` and `doctor`. Exit statuses: 0 done, 1 failed,
2 usage, 3 not found, 4 no daemon there, 5 refused, 130 interrupted. `serve` has those
of `server.Exit`, and a line of JSON on stderr says why it ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import cyclopts
import msgspec
from cyclopts import App, Parameter

from durable_actor.client import DEFAULT_URL, Client, connect
from durable_actor.config import load_config
from durable_actor.daemon import doctor as doctor_module
from durable_actor.daemon import maintenance_commands, wire
from durable_actor.daemon.listening import Listen
from durable_actor.daemon.token_commands import tokens
from durable_actor.errors import ConfigError, DurableActorError, TransportError
from durable_actor.log import configure_logging

_CONFIG_FILE = Path("config.toml")
_VALUE_CHARS_MAX = 120  # of one stored value on a line; `--json` shows all of it
# The demo shows workflows, which this package does not know; so it is found by name.
_DEMO = "workflows.demo"


class Status(IntEnum):
    """Exit statuses of everything but `serve`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    REFUSED = 5
    INTERRUPTED = 130


_STATUS_BY_CODE: Mapping[str, Status] = {
    **dict.fromkeys(
        (
            "bad_arguments",
            "bad_request",
            "body_too_large",
            "config",
            "invalid_id",
            "invalid_input",
            "invalid_name",
            "invalid_time",
        ),
        Status.USAGE,
    ),
    **dict.fromkeys(
        (
            "method_not_found",
            "not_found",
            "run_not_found",
            "unknown_class",
            "unknown_workflow",
        ),
        Status.NOT_FOUND,
    ),
    **dict.fromkeys(
        (
            "deadlock",
            "draining",
            "host_refused",
            "illegal_transition",
            "overloaded",
            "run_exists",
            "unauthorized",
        ),
        Status.REFUSED,
    ),
}

app = App(
    name="durable-actor",
    help="Durable objects and durable workflows in one process.",
    version=lambda: version("durable-actor"),
    result_action="return_value",
)
workflows = App(name="workflows", help="Workflows and their runs.")
objects = App(name="objects", help="Objects that have stored something.")
alarms = App(name="alarms", help="Alarms that are set.")
for group in (workflows, objects, alarms, tokens):
    app.command(group)
maintenance_commands.add_to(app)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Remote:
    """Which daemon to ask, and how to show what it says."""

    url: Annotated[
        str,
        Parameter(help="http://host:port or unix:/path", env_var="DURABLE_ACTOR_URL"),
    ] = DEFAULT_URL
    token_file: Annotated[
        Path | None, Parameter(help="Holds the token; found by itself on one machine.")
    ] = None
    timeout: Annotated[
        str | None, Parameter(help='How long to wait, such as "10 seconds".')
    ] = None
    json: Annotated[
        bool, Parameter(negative="", help="One line of JSON, for programs.")
    ] = False


_HERE = Remote()


@app.command
def serve(
    *,
    config: Path | None = None,
    data_dir: Path | None = None,
    listen: str | None = None,
) -> int:
    """Serve the objects and workflows of the modules that `config` names.

    Args:
        config: The configuration; `config.toml` here if there is one.
        data_dir: Where objects are kept, instead of `storage.dir`.
        listen: HOST:PORT (port 0 takes a free one) or unix:PATH, instead of `[http]`.
    """
    # Only here: the other commands need neither a server nor a host.
    from durable_actor.daemon import server  # noqa: PLC0415

    try:
        address = None if listen is None else Listen.parse(listen)
    except ConfigError as error:
        return _ended(server.Exit.USAGE, "usage", str(error))
    try:
        if config is None and _CONFIG_FILE.exists():
            config = _CONFIG_FILE
        overrides = {"storage.dir": None if data_dir is None else str(data_dir)}
        settings = load_config(config, environ=os.environ, overrides=overrides)
        configure_logging(settings.log.level, settings.log.format)
        asyncio.run(server.serve(settings, _announce, listen=address))
    except Exception as error:  # noqa: BLE001  # the last place: it becomes the status
        status = server.Exit.of(error)
        if status is server.Exit.INTERNAL:
            server.log.exception("daemon.failed")
        code = error.code if isinstance(error, DurableActorError) else "internal"
        return _ended(status, code, str(error) or type(error).__name__)
    return server.Exit.DRAINED


def _announce(facts: Mapping[str, object]) -> None:
    try:
        print(json.dumps(facts), flush=True)
    except (OSError, ValueError):  # started without stdout; whoever did knows the port
        return


def _ended(status: int, code: str, detail: str) -> int:
    line = {"event": "exit", "status": int(status), "code": code, "detail": detail}
    print(json.dumps(line), file=sys.stderr, flush=True)
    return int(status)


@app.command
def demo(
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    data_dir: Path | None = None,
) -> int:
    """Show a counter, an alarm, and a run that finishes although the process dies.

    Args:
        as_json: Print one JSON object instead of the story.
        data_dir: Keep the data there; by default it is thrown away.
    """
    arguments = ["--json"] if as_json else []
    arguments += [] if data_dir is None else ["--data-dir", str(data_dir)]
    return int(import_module(_DEMO).main(arguments))


@app.command
def call(
    object_class: str,
    name: str,
    method: str,
    /,
    *args: str,
    kwargs: str = "{}",
    remote: Remote = _HERE,
) -> int:
    """Call a method of an object: `call Counter a increment 5`.

    Args:
        object_class: The class, or the name of a binding.
        name: The object's name.
        method: The method.
        *args: Arguments. What reads as JSON is JSON; anything else is text.
        kwargs: Named arguments, as a JSON object.
        remote: Which daemon.
    """
    target = "/".join(wire.segment(part) for part in (object_class, name, method))

    async def ask(client: Client) -> object:
        named = _json_of(kwargs, "--kwargs")
        body = {"args": [_value(text) for text in args], "kwargs": named}
        answer = await client.request("POST", f"/v1/objects/{target}", body)
        return answer["result"]

    return _run(ask, remote)


@objects.command(name="list")
def list_objects(
    object_class: str | None = None,
    /,
    *,
    prefix: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    remote: Remote = _HERE,
) -> int:
    """List objects in order of class and name, one page at a time.

    Args:
        object_class: Only of this class.
        prefix: Only names that begin with it.
        limit: At most so many, 1 to 1,000.
        cursor: Of the page before, to go on behind it.
        remote: Which daemon.
    """
    path = "/v1/objects" + _query(
        {"class": object_class, "prefix": prefix, "limit": limit, "cursor": cursor}
    )
    return _run(lambda client: client.request("GET", path), remote)


@objects.command(name="delete")
def delete_object(
    object_class: str,
    name: str,
    /,
    *,
    by_id: Annotated[bool, Parameter(name="--id", negative="")] = False,
    remote: Remote = _HERE,
) -> int:
    """Delete an object with everything it stored, its alarm included.

    Args:
        object_class: The class, or the name of a binding.
        name: The object's name.
        by_id: The name is an id, as `objects list` shows it.
        remote: Which daemon.
    """
    path = f"/v1/objects/{wire.segment(object_class)}/{wire.segment(name)}"
    path += "?by=id" if by_id else ""

    async def ask(client: Client) -> object:
        answer = await client.request("DELETE", path)
        if not answer["deleted"]:
            raise _NotDoneError(answer, Status.NOT_FOUND)
        return answer

    return _run(ask, remote)


@objects.command(name="show")
def show_object(
    object_class: str,
    name: str,
    /,
    *,
    by_id: Annotated[bool, Parameter(name="--id", negative="")] = False,
    prefix: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    remote: Remote = _HERE,
) -> int:
    """Show the keys an object has stored, one to a line, without waking it.

    Args:
        object_class: The class, or the name of a binding; it need not be served.
        name: The object's name.
        by_id: The name is an id, as `objects list` shows it.
        prefix: Only keys that begin with it.
        limit: At most so many, 1 to 1,000.
        cursor: Of the page before, to go on behind it.
        remote: Which daemon.
    """
    path = f"/v1/storage/{wire.segment(object_class)}/{wire.segment(name)}"
    path += _query(
        {
            "by": "id" if by_id else None,
            "prefix": prefix,
            "limit": limit,
            "cursor": cursor,
        }
    )
    notes: list[str] = []

    async def ask(client: Client) -> object:
        page = await client.request("GET", path)
        if not page["exists"]:
            nothing = f"{object_class} {_printable(name)} has stored nothing"
            raise _NotDoneError(page if remote.json else nothing, Status.NOT_FOUND)
        if remote.json:
            return page
        if page["cursor"] is not None:
            notes.append(f"there is more: --cursor {page['cursor']}")
        return [_stored_line(stored) for stored in page["keys"]]

    status = _run(ask, remote)
    for note in notes:
        print(note, file=sys.stderr)
    return status


@alarms.command(name="list")
def list_alarms(
    object_class: str | None = None,
    /,
    *,
    before: int | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    remote: Remote = _HERE,
) -> int:
    """List alarms, the one that fires first first, one page at a time.

    Args:
        object_class: Only of objects of this class.
        before: Only those due before it, in epoch milliseconds.
        limit: At most so many, 1 to 1,000.
        cursor: Of the page before, to go on behind it.
        remote: Which daemon.
    """
    path = "/v1/alarms" + _query(
        {"class": object_class, "before": before, "limit": limit, "cursor": cursor}
    )
    return _run(lambda client: client.request("GET", path), remote)


@workflows.command(name="list")
def list_workflows(*, remote: Remote = _HERE) -> int:
    """List the workflows the daemon serves."""

    async def ask(client: Client) -> object:
        return (await client.request("GET", "/v1/workflows"))["workflows"]

    return _run(ask, remote)


@workflows.command
def runs(
    *,
    status: str | None = None,
    workflow: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    remote: Remote = _HERE,
) -> int:
    """List runs, one page at a time."""
    path = "/v1/runs" + _query(
        {"status": status, "workflow": workflow, "limit": limit, "cursor": cursor}
    )
    return _run(lambda client: client.request("GET", path), remote)


@workflows.command
def run(
    workflow: str,
    /,
    *,
    input: str = "{}",  # noqa: A002  # the name of the option
    id: str | None = None,  # noqa: A002  # the name of the option
    is_async: Annotated[bool, Parameter(name="--async", negative="")] = False,
    remote: Remote = _HERE,
) -> int:
    """Run a workflow until it is done, asleep or failed.

    Args:
        workflow: Its name.
        input: Its input, as JSON.
        id: The run's id; the same id again finds the same run. Default: a fresh one.
        is_async: Only queue it.
        remote: Which daemon.
    """

    async def ask(client: Client) -> object:
        body: dict[str, object] = {"input": _json_of(input, "--input")}
        body |= {"async": is_async} | ({} if id is None else {"id": id})
        path = f"/v1/workflows/{wire.segment(workflow)}/runs"
        return await client.request("POST", path, body)

    return _run(ask, remote)


@workflows.command(name="status")
def show_status(workflow: str, id: str, /, *, remote: Remote = _HERE) -> int:  # noqa: A002  # as above
    """Show the status of a run and the steps it has completed."""
    return _run(lambda client: client.request("GET", _run_path(workflow, id)), remote)


@workflows.command
def cancel(
    workflow: str,
    id: str,  # noqa: A002  # as above
    /,
    *,
    reason: str | None = None,
    remote: Remote = _HERE,
) -> int:
    """Cancel a run before its next step."""
    path = _run_path(workflow, id) + "/cancel"

    async def ask(client: Client) -> object:
        answer = await client.request("POST", path, {"reason": reason})
        if not answer["cancelled"]:
            raise _NotDoneError(answer, Status.REFUSED)
        return answer

    return _run(ask, remote)


@app.command
def doctor(
    directory: Path = Path("data"),
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Look for what could go wrong here: 0 clean, 1 findings, 2 cannot read."""
    report = doctor_module.examine(directory)
    if as_json:
        print(json.dumps(dataclasses.asdict(report) | {"status": report.status}))
        return report.status
    print(", ".join(f"{name} {number}" for name, number in report.versions.items()))
    for finding in report.findings:
        print(f"{finding.severity}: {finding.check}: {finding.detail}")
        if finding.remedy:
            print(f"    {finding.remedy}")
    if report.status == 0:
        print(f"{report.directory} looks well")
    return report.status


class _NotDoneError(Exception):
    """The daemon answered, but did not do what it was asked."""

    def __init__(self, answer: object, status: Status) -> None:
        self.answer = answer
        self.status = status
        super().__init__()


def _run(ask: Callable[[Client], Awaitable[object]], remote: Remote) -> int:
    """Ask a daemon, show the answer, and return the exit status."""

    async def talk() -> object:
        async with connect(
            remote.url,
            token_file=remote.token_file,
            timeout=remote.timeout,
            retries=0,  # a person is told at once, and decides
        ) as client:
            return await ask(client)

    try:
        _show(asyncio.run(talk()), remote)
    except _NotDoneError as refused:
        _show(refused.answer, remote)
        return refused.status
    except TransportError as error:
        return _fail(error, Status.UNREACHABLE, remote)
    except DurableActorError as error:
        status = _STATUS_BY_CODE.get(error.code, Status.FAILED)
        return _fail(error, status, remote)
    return Status.DONE


def _show(answer: object, remote: Remote) -> None:
    if remote.json:
        print(json.dumps(answer))
    elif isinstance(answer, str):
        print(answer)
    elif isinstance(answer, list) and all(isinstance(item, str) for item in answer):
        for line in answer:
            print(line)
    else:
        print(json.dumps(answer, indent=2, ensure_ascii=False))


def _stored_line(stored: Mapping[str, Any]) -> str:
    key, size_bytes = _printable(stored["key"]), stored["size_bytes"]
    if stored["unreadable"] is not None:
        return f"{key}: unreadable, {size_bytes:,} bytes: {stored['unreadable']}"
    text = json.dumps(stored["value"], ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(stored["value"])
    if len(text) > _VALUE_CHARS_MAX:
        text = f"{text[:_VALUE_CHARS_MAX]}... ({size_bytes:,} bytes)"
    return f"{key}: {text}"


def _printable(text: str) -> str:
    """Return a name or key as it is, or as JSON if it would be misread on a line."""
    is_plain = text.isprintable() and text == text.strip() != ""
    return text if is_plain else json.dumps(text)


def _fail(error: DurableActorError, status: Status, remote: Remote) -> int:
    if remote.json:
        told = {"code": error.code, "detail": str(error), "outcome": error.outcome}
        print(json.dumps(told), file=sys.stderr)
    else:
        print(f"{error.code}: {error}", file=sys.stderr)
    return status


def _query(given: Mapping[str, str | int | None]) -> str:
    chosen = {key: value for key, value in given.items() if value is not None}
    return f"?{urlencode(chosen)}" if chosen else ""


def _run_path(workflow: str, run_id: str) -> str:
    return f"/v1/runs/{wire.segment(workflow)}/{wire.segment(run_id)}"


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return text


def _json_of(text: str, option: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise ConfigError(f"{option} is no JSON: {error}") from None


def run_command(tokens: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    try:
        result = app(tokens, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        if tokens[:1] == ["serve"]:
            return _ended(64, "usage", str(error))
        print(f"{error}\nTry: durable-actor --help", file=sys.stderr)
        return Status.USAGE
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    except BrokenPipeError:
        return Status.FAILED
    return int(result) if isinstance(result, int) else Status.DONE


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run_command(sys.argv[1:]))
