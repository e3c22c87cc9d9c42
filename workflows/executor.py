"""The executor: runs a definition once, and says how it ended. Writes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeAlias

from workflows.context import RunContext
from workflows.definition import WorkflowDefinition
from workflows.errors import NondeterminismError
from workflows.signals import Signal
from workflows.steps import Step


@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned."""

    output: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Unwound:
    """The pass was closed before the function ended; what it then did is not looked at.

    `is_swallowed`: the function did not let the signal through.
    """

    signal: Signal
    is_swallowed: bool


@dataclass(frozen=True, slots=True)
class Diverged:
    """The function took other steps than the recorded ones."""

    error: NondeterminismError


Outcome: TypeAlias = Returned | Raised | Unwound | Diverged


async def execute(
    definition: WorkflowDefinition[Any, Any],
    context: RunContext,
    step: Step,
    value: object,
) -> Outcome:
    """Run the function from its beginning to its end, or to the end of this pass.

    Raises:
        BaseException: Only what is neither the author's nor ours: the host cancels the
            task because the object goes away, or the interpreter is to stop.
    """
    context.begin()
    ending: Returned | Raised | None = None
    try:
        ending = Returned(await definition(step, value))
    except Exception as error:  # noqa: BLE001  # whatever an author's code raises
        ending = Raised(error)
    except (KeyboardInterrupt, SystemExit):
        context.end(is_checked=False)
        raise
    except BaseException as error:
        if context.signal is None:
            if not _is_inner_cancel(error):
                context.end(is_checked=False)
                raise
            ending = Raised(RuntimeError("the workflow's own code was cancelled"))
    signal = context.signal
    context.end(is_checked=True)
    if context.diverged is not None:
        return Diverged(context.diverged)
    if signal is not None:
        return Unwound(signal, is_swallowed=ending is not None)
    assert ending is not None
    return ending


def _is_inner_cancel(error: BaseException) -> bool:
    """Whether this is a CancelledError that nobody sent to this task."""
    task = asyncio.current_task()
    return (
        isinstance(error, asyncio.CancelledError)
        and task is not None
        and not task.cancelling()
    )
