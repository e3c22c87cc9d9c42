"""Every public name that Cloudflare spells in camelCase is here, as the same thing.

The table is the list: of a new name, write one line. The signatures behind the names
are held by `tests/typing/objects.py`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

import pytest

import durable_actor
import workflows
from durable_actor import (
    AlarmInfo,
    DurableActorError,
    DurableObject,
    DurableObjectNamespace,
    DurableObjectState,
    DurableObjectStorage,
    DurableObjectStub,
    DurableObjectTransaction,
    ObjectId,
    ObjectResetError,
)
from durable_actor.fetch import Headers, Request, Response
from durable_actor.storage.sql.cursor import RawCursor, SqlCursor
from durable_actor.storage.sql.surface import SqlStorage
from durable_actor.storage.sync_kv import SyncKeyValueStorage
from durable_actor.websockets import (
    WebSocket,
    WebSocketPair,
    WebSocketRequestResponsePair,
)
from workflows import Step


class Name(NamedTuple):
    """A name of Cloudflare's, and ours for it."""

    owner: type
    theirs: str
    ours: str


def names(owner: type, *pairs: str) -> list[Name]:
    """Return names, each as `theirs` if it is ours too, else as `theirs=ours`."""
    found = [pair.partition("=")[::2] for pair in pairs]
    return [Name(owner, theirs, ours or theirs) for theirs, ours in found]


# https://developers.cloudflare.com/durable-objects/api/
NAMES = [
    *names(
        DurableObjectNamespace,
        "idFromName=id_from_name",
        "newUniqueId=new_unique_id",
        "idFromString=id_from_string",
        "get",
        "getByName=get_by_name",
    ),
    *names(ObjectId, "toString=to_string", "equals", "name"),
    *names(DurableObjectStub, "id", "name", "fetch"),
    *names(
        DurableObjectState,
        "id",
        "storage",
        "waitUntil=wait_until",
        "blockConcurrencyWhile=block_concurrency_while",
        "abort",
        "acceptWebSocket=accept_web_socket",
        "getWebSockets=get_web_sockets",
        "getTags=get_tags",
        "setWebSocketAutoResponse=set_web_socket_auto_response",
        "getWebSocketAutoResponse=get_web_socket_auto_response",
        "getWebSocketAutoResponseTimestamp=get_web_socket_auto_response_timestamp",
        "setHibernatableWebSocketEventTimeout"
        "=set_hibernatable_web_socket_event_timeout",
        "getHibernatableWebSocketEventTimeout"
        "=get_hibernatable_web_socket_event_timeout",
    ),
    *names(
        DurableObjectStorage,
        "get",
        "put",
        "delete",
        "list",
        "deleteAll=delete_all",
        "getAlarm=get_alarm",
        "setAlarm=set_alarm",
        "deleteAlarm=delete_alarm",
        "transaction",
        "sync",
        "kv",
        "sql",
        "transactionSync=transaction_sync",
        "getCurrentBookmark=get_current_bookmark",
        "getBookmarkForTime=get_bookmark_for_time",
        "onNextSessionRestoreBookmark=on_next_session_restore_bookmark",
    ),
    *names(
        DurableObjectTransaction,
        "get",
        "put",
        "delete",
        "list",
        "getAlarm=get_alarm",
        "setAlarm=set_alarm",
        "deleteAlarm=delete_alarm",
        "rollback",
    ),
    *names(SyncKeyValueStorage, "get", "put", "delete", "list"),
    *names(DurableActorError, "retryable", "overloaded", "remote"),
    *names(DurableActorError, "durableObjectReset=durable_object_reset"),
    *names(ObjectResetError, "durableObjectReset=durable_object_reset"),
    # https://developers.cloudflare.com/durable-objects/api/sqlite-storage-api/
    *names(SqlStorage, "exec", "databaseSize=database_size"),
    *names(
        SqlCursor,
        "next",
        "toArray=to_list",
        "one",
        "raw",
        "columnNames=columns",
        "rowsRead=rows_read",
        "rowsWritten=rows_written",
    ),
    *names(RawCursor, "toArray=to_list", "columnNames=columns"),
    # https://developers.cloudflare.com/workers/runtime-apis/
    *names(
        WebSocket,
        "accept",
        "send",
        "close",
        "serializeAttachment=serialize_attachment",
        "deserializeAttachment=deserialize_attachment",
    ),
    *names(WebSocketRequestResponsePair, "request", "response"),
    *names(Headers, "append", "get", "getAll=get_all", "getSetCookie=get_set_cookie"),
    *names(Request, "text", "json", "body", "bodyUsed=body_used"),
    *names(Response, "text", "json", "body", "bodyUsed=body_used", "ok"),
    # https://developers.cloudflare.com/workflows/build/workers-api/
    *names(Step, "sleep", "sleepUntil=sleep_until"),
]

# What is a value, and not a function, has two names only where it is read.
VALUES = [
    (AlarmInfo(retry_count=1, is_retry=True, scheduled_at_ms=2), pair)
    for pair in (
        ("retryCount", "retry_count"),
        ("isRetry", "is_retry"),
        ("scheduledTime", "scheduled_at_ms"),
    )
] + [
    (WebSocketPair()[0], ("readyState", "ready_state")),
    (Response("x", status=404), ("statusText", "status_text")),
    (Response("x"), ("webSocket", "web_socket")),
]

# Handlers that a class may write in either spelling.
HANDLERS = ["webSocketMessage", "webSocketClose", "webSocketError"]


@pytest.mark.parametrize(
    "name", NAMES, ids=lambda name: f"{name.owner.__name__}.{name.theirs}"
)
def test_a_name_of_cloudflare_s_is_the_same_thing_as_ours(name: Name) -> None:
    theirs = inspect.getattr_static(name.owner, name.theirs)

    assert theirs is inspect.getattr_static(name.owner, name.ours)


@pytest.mark.parametrize(("value", "pair"), VALUES, ids=lambda value: str(value)[:40])
def test_a_value_of_cloudflare_s_is_the_same_as_ours(
    value: Any, pair: tuple[str, str]
) -> None:
    theirs, ours = pair

    assert getattr(value, theirs) == getattr(value, ours)


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


def test_our_name_is_theirs_in_snake_case_but_for_a_few() -> None:
    others = {name.theirs for name in NAMES if _snake(name.theirs) != name.ours}

    # A list is no array in Python, and an alarm's time has its unit in its name.
    assert others == {"toArray", "columnNames"}


def test_every_camel_case_name_is_in_the_table() -> None:
    """So that an alias cannot be written without its line."""
    listed = {(name.owner, name.theirs) for name in NAMES}
    listed |= {(type(value), theirs) for value, (theirs, _) in VALUES}
    owners = {owner for owner, _ in listed}
    found = {
        (owner, attribute)
        for owner in owners
        for attribute in vars(owner)
        if re.fullmatch("[a-z]+[A-Z][A-Za-z]*", attribute)
    }

    assert found - listed == set()


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_handler_of_cloudflare_s_is_never_called_through_a_stub(handler: str) -> None:
    async def handle(self: Any, *_: Any) -> None: ...

    cls = type("Receiver", (DurableObject,), {handler: handle})

    assert handler not in durable_actor.entrypoints.ClassInfo(cls).methods


def test_an_error_says_whether_its_object_was_reset() -> None:
    assert ObjectResetError("gone").durableObjectReset
    assert not DurableActorError("other").durableObjectReset
    assert not workflows.WorkflowFailedError.durable_object_reset
