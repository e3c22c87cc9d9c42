"""Rounds: what the objects of a host share in one round of the event loop.

Theory of operation
    In one round many objects have something to do, each very little. So one callback
    ends the turns of all objects that wrote in the round, and one task drains the lines
    of those that have events, one after the other.

    Neither may let one object notice another. Before the task begins with an object it
    plans another task for the rest, so whoever suspends has its task to itself and
    holds nobody up. If a handler left something behind in the task (a context variable,
    a cancellation), the task ends, and a fresh one goes on.

    A go ends when its slice of time is over, as an object's does (G19): then the loop
    looks for what has arrived, and whoever has more to do is in line behind others.

Does not know what an object does with its events.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque

from durable_actor.surroundings import Live

_DRAINS_MAX = 64  # objects drained in one go; then other callbacks have their turn


class Rounds:
    """Ends turns and drains lines, for all activations of a host."""

    def __init__(self, context: contextvars.Context, *, slice_ms: int) -> None:
        self._context = context  # what each task starts with
        self._slice_seconds = slice_ms / 1_000
        self._turns: list[Live] = []  # those whose turn ends after this step
        self._drains: deque[Live] = deque()  # those with events in their line
        # Invariant: a task to drain them is planned, or under way and not suspended,
        # or there are none.
        self._drain_is_planned = False
        self._drainers: set[asyncio.Task[None]] = set()

    def plan_turn_end(self, activation: Live) -> None:
        """End the activation's turn as soon as the running step is over.

        The first object that writes in a round plans the callback; for the others it
        comes earlier than their own would, but never before the end of their step.
        """
        if not self._turns:
            asyncio.get_running_loop().call_soon(self._end_turns)
        self._turns.append(activation)

    def plan_drain(self, activation: Live) -> None:
        """Let the activation run the events in its line.

        A thousand activations that do not suspend share a few tasks.
        """
        self._drains.append(activation)
        if not self._drain_is_planned:
            self._plan_drain()

    def _end_turns(self) -> None:
        turns, self._turns = self._turns, []
        for activation in turns:
            activation.turn_ended()

    def _plan_drain(self) -> None:
        self._drain_is_planned = True
        task = asyncio.get_running_loop().create_task(
            self._drain(), name="drain", context=self._context.copy()
        )
        self._drainers.add(task)
        task.add_done_callback(self._drainers.discard)

    async def _drain(self) -> None:
        self._drain_is_planned = False
        task = asyncio.current_task()
        assert task is not None
        fresh, drains = contextvars.copy_context(), self._drains
        loop = asyncio.get_running_loop()
        until = loop.time() + self._slice_seconds
        for _ in range(_DRAINS_MAX):
            if not drains:
                return
            activation = drains.popleft()
            if drains and not self._drain_is_planned:
                self._plan_drain()
            await activation.drain(task)
            # What a handler left behind must not reach the next object's.
            if task.cancelling() or contextvars.copy_context() != fresh:
                break
            if loop.time() >= until:
                break
        if drains and not self._drain_is_planned:
            self._plan_drain()
