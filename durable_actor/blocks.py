"""Blocks: the calls of `block_concurrency_while` of one object that are not over.

Theory of operation
    A block runs in a task of its own, while its object lets no event in. Blocks that
    were begun in the same place (outside of any block, or inside the same one) are
    siblings and run one after the other, in the order they were begun. One that was
    begun inside another runs beside it, as the outer one may wait for it. What runs in
    a block knows it by a context variable, which the tasks it starts inherit.

    A block that fails, or takes longer than a constructor may, breaks its object.

Does not know gates or activations: it is handed what to do when a block fails, and its
maker closes the gate and opens it again.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from durable_actor.clock import Clock, deadline
from durable_actor.errors import ObjectResetError, Outcome
from durable_actor.signals import Abort

T = TypeVar("T")
BLOCK_DEPTH_MAX = 64  # blocks inside blocks, as on Cloudflare
TOO_LONG = (
    "A call to block_concurrency_while() in a Durable Object waited for too long."
    " The call was canceled and the Durable Object was reset."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFailure:
    """Why a block breaks its object, and what the callers are to make of it."""

    reason: str
    outcome: Outcome = "failed"
    overloaded: bool = False


# Breaks the object; returns the error of whoever began the block.
BreakOff = Callable[[BlockFailure], ObjectResetError]


class _Block:
    """One block, and the one it was begun in."""

    __slots__ = ("depth", "parent", "task")

    def __init__(self, parent: _Block | None) -> None:
        self.parent = parent
        self.depth: int = 1 if parent is None else parent.depth + 1
        self.task: asyncio.Task[Any]


_current_block: contextvars.ContextVar[_Block | None] = contextvars.ContextVar(
    "durable_actor_block", default=None
)


class Blocks:
    """The open blocks of one object; made with the first, dropped with the last."""

    __slots__ = ("_clock", "_limit_ms", "_open")

    def __init__(self, clock: Clock, limit_ms: int) -> None:
        self._clock = clock
        self._limit_ms = limit_ms
        self._open: list[_Block] = []  # in the order they were begun

    def __len__(self) -> int:
        return len(self._open)

    @property
    def first(self) -> asyncio.Task[Any]:
        """The block that was begun before all others."""
        return self._open[0].task

    def begin(
        self, callback: Callable[[], Awaitable[T]], break_off: BreakOff, *, name: str
    ) -> asyncio.Task[T]:
        """Run `callback` in a block; whoever holds the gate calls `end` afterwards.

        Args:
            callback: What to run.
            break_off: Breaks the object when the block fails.
            name: Of the task.

        Raises:
            ObjectResetError: Nested too deeply; the object is broken.
        """
        block = _Block(_current_block.get())
        if block.depth > BLOCK_DEPTH_MAX:
            reason = "block_concurrency_while() calls are nested too deeply."
            raise break_off(BlockFailure(reason=reason))
        siblings = [b.task for b in self._open if b.parent is block.parent]
        block.task = task = asyncio.get_running_loop().create_task(
            self._run(callback, block, siblings, break_off), name=name
        )
        self._open.append(block)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """Take a block away whose task is done."""
        self._open = [block for block in self._open if block.task is not task]
        if not task.cancelled():
            task.exception()  # seen: the object is broken, and everyone was told

    async def _run(
        self,
        callback: Callable[[], Awaitable[T]],
        block: _Block,
        siblings: list[asyncio.Task[Any]],
        break_off: BreakOff,
    ) -> T:
        _current_block.set(block)
        if siblings and not siblings[-1].done():
            await asyncio.wait([siblings[-1]])
        scope: asyncio.Timeout | None = None
        try:
            async with deadline(self._clock, self._limit_ms) as scope:
                return await callback()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            reason = f"block_concurrency_while failed: {type(error).__name__}: {error}"
            failure = BlockFailure(reason=reason)
            if scope is not None and scope.expired():
                reason = f"{TOO_LONG} The limit is {self._limit_ms} ms."
                failure = BlockFailure(
                    reason=reason, outcome="unknown", overloaded=True
                )
            break_off(failure)
            # Nobody goes on behind the block, whatever they catch.
            raise Abort(reason) from error
