"""A chat room: its members stay connected while it sleeps."""

from __future__ import annotations

import json

from durable_actor import (
    DurableObject,
    DurableObjectState,
    Env,
    Request,
    Response,
    WebSocket,
    WebSocketPair,
    WebSocketRequestResponsePair,
)


class Room(DurableObject):
    """Broadcasts what is said, and remembers the last words."""

    def __init__(self, ctx: DurableObjectState, env: Env) -> None:
        super().__init__(ctx, env)
        self.events = 0
        ctx.set_web_socket_auto_response(WebSocketRequestResponsePair("ping", "pong"))

    async def fetch(self, request: Request) -> Response:
        if request.headers.get("upgrade") != "websocket":
            return Response("knock with a WebSocket", status=426)
        client, server = WebSocketPair()
        name, _, rooms = request.query.partition("&")
        self.ctx.accept_web_socket(server, tags=[name, *rooms.split("&")])
        server.serialize_attachment(name)
        protocol = request.headers.get("sec-websocket-protocol", "")
        headers = {"Sec-WebSocket-Protocol": "chat"} if "chat" in protocol else {}
        return Response(status=101, web_socket=client, headers=headers)

    async def web_socket_message(self, ws: WebSocket, message: str | bytes) -> None:
        self.events += 1
        if isinstance(message, bytes):
            ws.send(message)
            return
        name = ws.deserialize_attachment()
        word, _, rest = message.partition(" ")
        match word:
            case "say":
                self.ctx.storage.put("last", f"{name}: {rest}")
                for other in self.ctx.get_web_sockets():
                    other.send(f"{name}: {rest}")
            case "to":
                tag, _, text = rest.partition(" ")
                for other in self.ctx.get_web_sockets(tag):
                    other.send(f"{name} to {tag}: {text}")
            case "flood":
                for _ in range(5_000):
                    ws.send("x" * 10_000)
            case "facts":
                ws.send(json.dumps({"events": self.events, "name": name}))
            case "headers":
                ws.send("x" * int(rest))
            case "bye":
                ws.close(4000, f"bye {name}")
            case "abort":
                self.ctx.abort("enough")

    async def web_socket_close(
        self, ws: WebSocket, code: int, reason: str, was_clean: bool
    ) -> None:
        told = [ws.deserialize_attachment(), code, reason, was_clean]
        self.ctx.storage.put("closed", told)

    async def web_socket_error(self, ws: WebSocket, error: Exception) -> None:
        self.ctx.storage.put("error", [ws.deserialize_attachment(), str(error)])

    async def get(self, key: str) -> object:
        value: object = await self.ctx.storage.get(key)
        return value

    async def members(self) -> list[str]:
        return [ws.deserialize_attachment() for ws in self.ctx.get_web_sockets()]
