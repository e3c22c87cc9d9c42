"""The doors of the packages: what is public, and that all of it is there."""

from __future__ import annotations

import importlib
import inspect

import pytest

import durable_actor
from durable_actor import (
    DurableObjectNamespace,
    DurableObjectStorage,
    Headers,
    WebSocket,
)
from durable_actor.state import DurableObjectState


@pytest.mark.parametrize("door", ["durable_actor", "workflows"])
def test_every_name_a_door_lists_is_there(door: str) -> None:
    module = importlib.import_module(door)

    missing = [name for name in module.__all__ if not hasattr(module, name)]

    assert missing == []
    assert list(module.__all__) == sorted(module.__all__)


def test_what_the_door_exports_has_a_docstring() -> None:
    silent = [
        name
        for name in durable_actor.__all__
        if inspect.isclass(value := getattr(durable_actor, name)) and not value.__doc__
    ]

    assert silent == []


@pytest.mark.parametrize(
    ("cls", "camel", "snake"),
    [
        (DurableObjectStorage, "deleteAll", "delete_all"),
        (DurableObjectStorage, "setAlarm", "set_alarm"),
        (DurableObjectStorage, "getAlarm", "get_alarm"),
        (DurableObjectStorage, "deleteAlarm", "delete_alarm"),
        (DurableObjectNamespace, "idFromName", "id_from_name"),
        (DurableObjectNamespace, "newUniqueId", "new_unique_id"),
        (DurableObjectNamespace, "idFromString", "id_from_string"),
        (DurableObjectNamespace, "getByName", "get_by_name"),
        (DurableObjectState, "blockConcurrencyWhile", "block_concurrency_while"),
        (DurableObjectState, "waitUntil", "wait_until"),
        (DurableObjectState, "acceptWebSocket", "accept_web_socket"),
        (DurableObjectState, "getWebSockets", "get_web_sockets"),
        (DurableObjectState, "getTags", "get_tags"),
        (
            DurableObjectState,
            "setWebSocketAutoResponse",
            "set_web_socket_auto_response",
        ),
        (
            DurableObjectState,
            "getWebSocketAutoResponse",
            "get_web_socket_auto_response",
        ),
        (
            DurableObjectState,
            "getWebSocketAutoResponseTimestamp",
            "get_web_socket_auto_response_timestamp",
        ),
        (
            DurableObjectState,
            "setHibernatableWebSocketEventTimeout",
            "set_hibernatable_web_socket_event_timeout",
        ),
        (
            DurableObjectState,
            "getHibernatableWebSocketEventTimeout",
            "get_hibernatable_web_socket_event_timeout",
        ),
        (WebSocket, "serializeAttachment", "serialize_attachment"),
        (WebSocket, "deserializeAttachment", "deserialize_attachment"),
        (Headers, "getAll", "get_all"),
        (Headers, "getSetCookie", "get_set_cookie"),
    ],
)
def test_a_camel_case_name_is_the_same_function(
    cls: type, camel: str, snake: str
) -> None:
    assert getattr(cls, camel) is getattr(cls, snake)


@pytest.mark.parametrize(
    "name", ["put", "delete", "delete_all", "set_alarm", "delete_alarm"]
)
def test_a_write_is_not_a_coroutine_function(name: str) -> None:
    """So that a write nobody awaits is still made (decision 0001)."""
    assert not inspect.iscoroutinefunction(getattr(DurableObjectStorage, name))
