"""Exchange: one request to an object, and its response.

A `fetch` is an event like a call, but what it takes and gives may be streams. The
request's is made in the caller's context, the response's in the object's, where it goes
on in the background after the handler has returned.

Promises
    The head of the response, and each piece of its body, leaves after what it may rest
    on is durable.
    What nobody takes (the caller has gone, the object broke) is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from durable_actor.activation import Activation
from durable_actor.delivery import Delivery, current_delivery
from durable_actor.entrypoints import Method
from durable_actor.errors import StorageError
from durable_actor.fetch import Request, Response, copy_of, stream_of, with_body
from durable_actor.gates import Effect
from durable_actor.mailbox import Envelope
from durable_actor.streams import Start, Stream
from durable_actor.websockets import BROKEN, Close, Gate, end_of


class Exchange:
    """One request on its way to an object, and the response on its way back.

    Args:
        method: The object's handler.
        request: What the caller asks; the object gets a copy.
        sender: The delivery it comes from, if it comes from an object.
        start: Starts the task that makes the request's body, if no object does.
    """

    def __init__(
        self,
        method: Method,
        request: Request,
        sender: Delivery | None,
        *,
        start: Start,
    ) -> None:
        self._method = method
        self._sender = sender
        self._response: Response | None = None
        self._has_begun = False
        self._request = Request(request)
        stream = stream_of(self._request)
        if stream is not None:
            flow = Stream(
                stream,
                start=start if sender is None else _activation_of(sender).wait_until,
                before_each=_nothing
                if sender is None
                else _durable(_activation_of(sender)),
                at_end=_nothing,
            )
            with_body(self._request, flow)
        self.envelope = Envelope("fetch", self._run, (self._request,), {})

    def take(self) -> Response:
        """Return the response, which the output gate has let out."""
        assert self._response is not None
        response, self._response = self._response, None
        if response.web_socket is not None and self._sender is not None:
            # What the calling object sends there leaves through its own gate.
            end_of(response.web_socket).gate = _gate_of(_activation_of(self._sender))
        return response

    async def give_up(self) -> None:
        """End what is under way: nobody takes the response."""
        response, self._response = self._response, None
        if response is not None:
            await _discard(response)
        elif not self._has_begun:
            await self._request.aclose()  # else its reader closes it

    async def _run(self, instance: Any, request: Request) -> None:
        delivery = current_delivery.get()
        assert delivery is not None, "a request is handled in a delivery"
        activation = _activation_of(delivery)
        self._has_begun = True
        goes_on = False
        try:
            given: object = await self._method.function(instance, request)
            if not isinstance(given, Response):
                message = (
                    "Incorrect type for Promise: the Promise did not resolve to"
                    f" 'Response'. fetch returned {type(given).__name__}."
                )
                raise TypeError(message)
            response = copy_of(given)
            stream = stream_of(given)
            if self.envelope.reply.done():
                await _discard(response)
                return
            if stream is not None:
                goes_on = True
                flow = Stream(
                    stream,
                    start=activation.wait_until,
                    before_each=_durable(activation),
                    at_end=request.aclose,
                )
                with_body(response, flow)
            if response.web_socket is not None:
                _keep_in_memory(response, activation)
            self._response = response
        finally:
            if not goes_on:
                await request.aclose()


async def _discard(response: Response) -> None:
    await response.aclose()
    if response.web_socket is not None:
        end = end_of(response.web_socket)
        end.is_wired = True  # nobody reads there
        end.close(Close(BROKEN, "the caller has gone", was_clean=False))


def _keep_in_memory(response: Response, activation: Activation) -> None:
    """Keep an object that holds an end in memory, unless the end can hibernate."""
    assert response.web_socket is not None
    end = end_of(response.web_socket).peer
    if end.tags is not None or not end.is_accepted:
        return
    end.gate = _gate_of(activation)
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended() -> None:
        end.gate = None
        if not closed.done():
            closed.set_result(None)

    def broken(future: asyncio.Future[None]) -> None:
        if future.cancelled():
            end.gate = None
            end.peer_has_closed = True
            end.close(Close(BROKEN, "the object was reset"))

    end.on_closed = ended
    closed.add_done_callback(broken)
    activation.wait_until(closed)


def _activation_of(delivery: Delivery) -> Activation:
    assert isinstance(delivery.activation, Activation)
    return delivery.activation


def _gate_of(activation: Activation) -> Gate:
    return lambda effect: activation.let_out(unless_failed(effect))


def unless_failed(effect: Callable[[], None]) -> Effect:
    """Return the effect as the output gate wants it: a failure keeps it back."""

    def settled(failure: StorageError | None) -> None:
        if failure is None:
            effect()

    return settled


def _durable(activation: Activation) -> Callable[[], Awaitable[None]]:
    async def durable() -> None:
        let_out: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settled(failure: StorageError | None) -> None:
            if let_out.done():
                return
            if failure is None:
                let_out.set_result(None)
            else:
                let_out.set_exception(failure)

        activation.let_out(settled)
        await let_out

    return durable


async def _nothing() -> None:
    """Wait for nothing: no object is behind what comes from outside."""
