"""What a type checker must know of objects and stubs. Checked by mypy, never run.

A line that must be an error is marked to be ignored; mypy reports an ignore that is
not needed, so each is a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, assert_type

from durable_actor import (
    AlarmEntry,
    AlarmInfo,
    AlarmPage,
    Client,
    DurableActorError,
    DurableObject,
    DurableObjectNamespace,
    DurableObjectState,
    DurableObjectTransaction,
    Env,
    EventSink,
    Headers,
    Host,
    ObjectId,
    ObjectPage,
    ReadyState,
    Request,
    Response,
    StateChange,
    StoredKey,
    StoredPage,
    Watch,
    WebSocket,
    WebSocketPair,
    WebSocketRequestResponsePair,
    interleave,
)
from durable_actor.storage.sql.cursor import SqlCursor
from durable_actor.storage.sql.statements import SqlValue
from durable_actor.storage.sql.surface import SqlStorage
from durable_actor.testing import TestHost, open_test_host


class Cart(DurableObject, concurrency="gated"):
    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        super().__init__(ctx, env)
        self.items: dict[str, int] = {}
        ctx.block_concurrency_while(self._load)

    async def _load(self) -> None:
        self.items = await self.ctx.storage.get("items", {})

    async def add(self, item: str, count: int = 1) -> int:
        self.items[item] = self.items.get(item, 0) + count
        self.ctx.storage.put("items", self.items)
        return self.items[item]

    @interleave
    async def count(self) -> int:
        return sum(self.items.values())

    async def alarm(self, info: AlarmInfo) -> None:
        assert_type(info.retry_count, int)
        assert_type(info.is_retry, bool)
        assert_type(info.scheduled_at, datetime)


async def a_stub_is_typed_as_its_class(host: Host) -> None:
    namespace = host.namespace(Cart)
    assert_type(namespace, DurableObjectNamespace[Cart])
    cart = namespace.get_by_name("a")
    assert_type(cart, Cart)
    assert_type(namespace.get(namespace.new_unique_id(), timeout="1 second"), Cart)
    assert_type(await cart.add("apple", count=2), int)
    assert_type(await cart.count(), int)
    assert_type(await asyncio.gather(cart.add("a"), cart.count()), tuple[int, int])


async def a_wrong_use_of_a_stub_is_an_error(host: Host) -> None:
    cart = host.namespace(Cart).get_by_name("a")
    await cart.add(1)  # type: ignore[arg-type]
    await cart.add("apple", "two")  # type: ignore[arg-type]
    await cart.add("apple", number=2)  # type: ignore[call-arg]
    await cart.add()  # type: ignore[call-arg]
    await cart.remove("apple")  # type: ignore[attr-defined]
    text: str = await cart.count()  # type: ignore[assignment]
    del text
    cart.count()  # type: ignore[unused-coroutine]


async def a_wrong_use_of_a_namespace_is_an_error(host: Host) -> None:
    namespace = host.namespace(Cart)
    assert_type(namespace.id_from_name("a"), ObjectId)
    namespace.get("a")  # type: ignore[arg-type]
    namespace.get_by_name(1)  # type: ignore[arg-type]
    namespace.get_by_name("a", timeout=1.5)  # type: ignore[arg-type]


async def env_is_open_and_its_namespaces_are_typed(env: Env) -> None:
    assert_type(env.CARTS, Any)
    assert_type(env.namespace(Cart).get_by_name("a"), Cart)


async def writes_may_go_unawaited(ctx: DurableObjectState) -> None:
    ctx.storage.put("key", 1)
    ctx.storage.put({"key": 1, "other": 2})
    ctx.storage.delete("key")
    ctx.storage.set_alarm(timedelta(hours=1))
    ctx.storage.delete_alarm()
    await ctx.storage.put("key", 1)
    ctx.storage.put(1, 1)  # type: ignore[call-overload]
    ctx.storage.set_alarm("tomorrow")  # type: ignore[arg-type]
    ctx.storage.sync()  # type: ignore[unused-coroutine]


async def reads_say_what_they_return(ctx: DurableObjectState) -> None:
    assert_type(await ctx.storage.get("key"), Any)
    assert_type(await ctx.storage.get(["key", "other"]), dict[str, Any])
    assert_type(await ctx.storage.list(prefix="k", limit=3), dict[str, Any])
    assert_type(await ctx.storage.delete("key"), bool)
    assert_type(await ctx.storage.delete(["key"]), int)
    assert_type(await ctx.storage.get_alarm(), int | None)
    ctx.storage.list(limit="3")  # type: ignore[arg-type]


async def callbacks_pass_their_result_on(ctx: DurableObjectState) -> None:
    async def number() -> int:
        return 1

    async def in_transaction(txn: DurableObjectTransaction) -> str:
        txn.put("key", 1)
        return "text"

    assert_type(await ctx.block_concurrency_while(number), int)
    assert_type(await ctx.wait_until(number()), int)
    assert_type(await ctx.storage.transaction(in_transaction), str)
    ctx.block_concurrency_while(number())  # type: ignore[arg-type]


def abort_never_returns(ctx: DurableObjectState) -> int:
    ctx.abort("no return needed after this")


async def sinks_and_events(ctx: DurableObjectState, sink: EventSink) -> None:
    class Source(DurableObject):
        event_sink = sink

    del Source
    event: Mapping[str, object] = {"n": 1}
    ctx.emit(event)
    ctx.emit(1)  # type: ignore[arg-type]
    ctx.set_attributes({"key": 1})  # type: ignore[dict-item]


async def the_host_and_its_test_double(tmp_path: str) -> None:
    async with Host(tmp_path, classes=[Cart], env={"NAME": "x"}) as host:
        assert_type(host, Host)
        assert_type(await host.list_objects("Cart", where={"a": "b"}), ObjectPage)
        host.namespace(int)  # type: ignore[type-var]
    async with open_test_host(classes=[Cart]) as test:
        assert_type(test, TestHost)
        await test.advance("1 hour")
        await test.advance(1.5)  # type: ignore[arg-type]


class Room(DurableObject):
    async def fetch(self, request: Request) -> Response:
        assert_type(request.method, str)
        assert_type(request.headers, Headers)
        assert_type(request.body, AsyncIterator[bytes] | None)
        assert_type(await request.bytes(), bytes)
        assert_type(await request.text(), str)
        assert_type(await request.json(), Any)
        client, server = WebSocketPair()
        assert_type(client, WebSocket)
        self.ctx.accept_web_socket(server, ["a"])
        self.ctx.acceptWebSocket(server, tags=("a", "b"))
        self.ctx.accept_web_socket("socket")  # type: ignore[arg-type]
        assert_type(self.ctx.get_web_sockets("a"), list[WebSocket])
        assert_type(self.ctx.getTags(server), list[str])
        pair = WebSocketRequestResponsePair("ping", "pong")
        self.ctx.setWebSocketAutoResponse(pair)
        self.ctx.set_web_socket_auto_response(None)
        at = self.ctx.getWebSocketAutoResponseTimestamp(server)
        assert_type(at, datetime | None)
        return Response(None, status=101, web_socket=client)

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        ws.send(message)
        ws.send(1)  # type: ignore[arg-type]
        ws.close(1000, "reason")
        ws.serializeAttachment({"any": "value"})
        assert_type(ws.deserializeAttachment(), Any)
        assert_type(ws.ready_state, ReadyState)


async def a_response_is_made_and_read(host: Host) -> None:
    room = host.namespace(Room).get_by_name("a")
    response = await room.fetch(Request("/", method="POST", body="text"))
    assert_type(response, Response)
    assert_type(response.status, int)
    assert_type(await response.json(), Any)
    assert_type(Response.json({"a": 1}, status=201), Response)
    assert_type(response.web_socket, WebSocket | None)
    assert_type(response.headers["a"], str)
    assert_type(response.headers.get("a"), str | None)
    Response(1)  # type: ignore[arg-type]
    Request("/", method=1)  # type: ignore[arg-type]
    await room.fetch("/")  # type: ignore[arg-type]


class WrongConcurrency(DurableObject, concurrency="parallel"):  # type: ignore[arg-type]
    pass


async def a_stub_can_be_watched(host: Host, client: Client) -> None:
    cart = host.namespace(Cart).get_by_name("a")
    assert_type(cart.watch(), Watch)
    assert_type(client.namespace(Cart).get_by_name("a").watch("line:"), Watch)
    async with cart.watch(prefix="line:") as changes:
        assert_type(changes, Watch)
        async for change in changes:
            assert_type(change, StateChange)
            assert_type(change.changed, Mapping[str, Any])
            assert_type(change.deleted, frozenset[str])
            assert_type(change.cleared, bool)
            assert_type(change.ticket, int)
            change.ticket = 1  # type: ignore[misc]
    cart.watch(1)  # type: ignore[arg-type]
    await cart.watch()  # type: ignore[misc]


class Hidden(DurableObject):
    async def watch(self) -> int:  # type: ignore[override]
        return 1


async def alarms_come_in_pages(host: Host, client: Client) -> None:
    assert_type(await host.alarms("Cart", before=timedelta(hours=1)), AlarmPage)
    page = assert_type(await client.alarms(limit=5), AlarmPage)
    assert_type(page.alarms, list[AlarmEntry])
    assert_type(page.alarms[0].due_at_ms, int)
    assert_type(await client.list_objects("Cart", prefix="a"), ObjectPage)
    assert_type(await client.delete(page_id(client)), bool)
    await host.alarms(before="tomorrow")  # type: ignore[arg-type]


async def stored_keys_come_in_pages(host: Host, client: Client) -> None:
    page = assert_type(await host.stored_keys("0" * 64, limit=5), StoredPage)
    assert_type(await client.stored_keys(page_id(client), prefix="a"), StoredPage)
    assert_type(page.keys, list[StoredKey])
    assert_type(page.keys[0].size_bytes, int)
    await host.stored_keys(b"")  # type: ignore[arg-type]


def page_id(client: Client) -> ObjectId:
    return client.namespace(Cart).id_from_name("a")


async def cloudflare_s_names_of_a_namespace_have_the_types_of_ours(host: Host) -> None:
    namespace = host.namespace(Cart)
    assert_type(namespace.idFromName("a"), ObjectId)
    assert_type(namespace.newUniqueId(), ObjectId)
    assert_type(namespace.idFromString("0" * 64), ObjectId)
    assert_type(namespace.getByName("a", timeout="1 second"), Cart)
    object_id = namespace.idFromName("a")
    assert_type(object_id.toString(), str)
    assert_type(object_id.to_string(), str)
    assert_type(object_id.equals(object_id), bool)
    object_id.equals("a")  # type: ignore[arg-type]
    namespace.idFromName(1)  # type: ignore[arg-type]


async def cloudflare_s_names_of_the_state_have_the_types_of_ours(
    ctx: DurableObjectState,
) -> None:
    async def number() -> int:
        return 1

    async def in_transaction(txn: DurableObjectTransaction) -> None:
        assert_type(await txn.getAlarm(), int | None)
        txn.setAlarm(timedelta(hours=1))
        txn.deleteAlarm()
        txn.setAlarm("tomorrow")  # type: ignore[arg-type]

    assert_type(await ctx.blockConcurrencyWhile(number), int)
    assert_type(await ctx.waitUntil(number()), int)
    ctx.storage.deleteAll()
    ctx.storage.setAlarm(1)
    ctx.storage.deleteAlarm()
    assert_type(await ctx.storage.getAlarm(), int | None)
    await ctx.storage.transaction(in_transaction)
    assert_type(ctx.getWebSockets("tag"), list[WebSocket])
    assert_type(ctx.getWebSocketAutoResponse(), WebSocketRequestResponsePair | None)
    assert_type(ctx.getHibernatableWebSocketEventTimeout(), int | None)
    ctx.setAlarm(1)  # type: ignore[attr-defined]


def cloudflare_s_names_of_sockets_have_the_types_of_ours(
    ctx: DurableObjectState, ws: WebSocket
) -> None:
    ctx.acceptWebSocket(ws, ["tag"])
    assert_type(ctx.getTags(ws), list[str])
    assert_type(ctx.getWebSocketAutoResponseTimestamp(ws), datetime | None)
    ctx.setWebSocketAutoResponse(WebSocketRequestResponsePair("ping", "pong"))
    ctx.setHibernatableWebSocketEventTimeout("1 second")
    ws.serializeAttachment({"user": 1})
    assert_type(ws.deserializeAttachment(), Any)


def cloudflare_s_names_of_messages_have_the_types_of_ours(
    request: Request, response: Response
) -> None:
    assert_type(request.bodyUsed, bool)
    assert_type(response.bodyUsed, bool)
    assert_type(response.headers.getSetCookie(), list[str])
    assert_type(response.headers.getAll("set-cookie"), list[str])


def cloudflare_s_names_of_sql_have_the_types_of_ours(
    sql: SqlStorage, cursor: SqlCursor
) -> None:
    assert_type(sql.databaseSize, int)
    assert_type(cursor.columnNames, list[str])
    assert_type(cursor.rowsRead, int)
    assert_type(cursor.rowsWritten, int)
    assert_type(cursor.toArray(), list[dict[str, SqlValue]])


async def cloudflare_s_names_of_recovery_have_the_types_of_ours(
    ctx: DurableObjectState,
) -> None:
    assert_type(ctx.storage.transactionSync(lambda: 1), int)
    assert_type(await ctx.storage.getCurrentBookmark(), str)
    assert_type(await ctx.storage.getBookmarkForTime(timedelta(hours=-1)), str)
    assert_type(await ctx.storage.onNextSessionRestoreBookmark("a"), str)


def cloudflare_s_names_of_an_alarm_have_the_types_of_ours(info: AlarmInfo) -> None:
    assert_type(info.retryCount, int)
    assert_type(info.isRetry, bool)
    assert_type(info.scheduledTime, int)


def cloudflare_s_names_of_an_error_have_the_types_of_ours(
    error: DurableActorError,
) -> None:
    assert_type(error.durableObjectReset, bool)
    assert_type(error.durable_object_reset, bool)
