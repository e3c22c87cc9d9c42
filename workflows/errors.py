"""Every exception a caller or an author of workflows may catch, in one tree.

WorkflowError                    (a durable_actor.DurableActorError)
├── UnknownWorkflowError         no definition of that name; names the nearest
├── InvalidInputError            the input does not fit the definition's type
├── InvalidNameError             a run id or step name that cannot be used
├── RunExistsError               the id belongs to a run of something else
├── RunNotFoundError             no run of that id
├── WorkflowFailedError          the run ended as failed
├── WorkflowCancelledError       the run ended as cancelled
├── IllegalTransitionError       a status does not allow a change
├── StepFailedError              a step gave up; its `__cause__` is the last error
├── StepTimeoutError             one attempt took too long (also a TimeoutError)
├── StepNestingError             a step was called inside a step
├── NotInStepError               `step.attempt` and the like, outside of one
├── StepLimitError               more steps than one run may have
├── NonRetryableError            raised by step code: do not try again
├── NondeterminismError          a replay met another step than the recorded one
├── RecoveryExhaustedError       too many restarts without any progress
└── TrackerError                 a collector did not take a batch of events

The fields carry the facts and the messages are made from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from durable_actor import DurableActorError


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An exception as it is written down: its type's name, its text, and the step."""

    type: str
    message: str
    step: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Describe an exception; never fails.

        A failed step is described by what made it fail, and a group, which is how
        errors leave a `TaskGroup`, by its first error.
        """
        if isinstance(error, StepFailedError):
            return error.error
        if isinstance(error, BaseExceptionGroup):
            first, *others = _leaves(error)
            info = cls.of(first)
            if others:
                message = f"{info.message} (and {len(others)} more)"
                return cls(type=info.type, message=message, step=info.step)
            return info
        return cls(type=type(error).__name__, message=_message(error))


# An error is stored in the status of its run and sent with events; 2,000 characters
# keep the sentence that matters and not the page of HTML some services answer with.
_MESSAGE_CHARACTERS_MAX = 2_000


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001  # the author's __str__ may do anything
        text = f"its text could not be made: {type(broken).__name__}"
    if len(text) > _MESSAGE_CHARACTERS_MAX:
        text = text[: _MESSAGE_CHARACTERS_MAX - 3] + "..."
    # A file name with bytes of no encoding, say: kept readable, and storable.
    return text.encode(errors="replace").decode()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(error)
        else:
            found.append(error)
    return found


class WorkflowError(DurableActorError):
    """Base of everything this package raises on purpose."""

    code = "workflow_error"


class UnknownWorkflowError(WorkflowError):
    """No workflow of this name is registered; `nearest` is the closest one that is."""

    code = "unknown_workflow"
    outcome = "not_executed"

    def __init__(self, name: str, nearest: str | None = None) -> None:
        self.name = name
        self.nearest = nearest
        hint = f"; did you mean {nearest!r}?" if nearest is not None else ""
        super().__init__(f"there is no workflow {name!r}{hint}")


class InvalidInputError(WorkflowError, ValueError):
    """The input does not fit the workflow's input type; nothing was started."""

    code = "invalid_input"
    outcome = "not_executed"

    def __init__(self, workflow: str, detail: str) -> None:
        self.workflow = workflow
        self.detail = detail
        super().__init__(f"input of {workflow!r}: {detail}")


class InvalidNameError(WorkflowError, ValueError):
    """A name of a run or a step that cannot be used; the message says why."""

    code = "invalid_name"
    outcome = "not_executed"

    def __init__(self, what: str, name: object, detail: str) -> None:
        self.what = what
        self.name = name
        self.detail = detail
        super().__init__(f"the {what} {name!r} {detail}")


class RunExistsError(WorkflowError):
    """The id is taken by a run of another workflow or with another input.

    The same id with the same input is not an error: it answers with that run. Choose
    another id, or look at the existing run.
    """

    code = "run_exists"
    outcome = "not_executed"

    def __init__(self, run_id: str, workflow: str, detail: str) -> None:
        self.run_id = run_id
        self.workflow = workflow
        self.detail = detail
        super().__init__(f"run {run_id!r} of {workflow!r} exists already, {detail}")


class RunNotFoundError(WorkflowError):
    """There is no run of this id: never started, or deleted after its retention."""

    code = "run_not_found"
    outcome = "not_executed"

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"there is no run {run_id!r}")


class WorkflowFailedError(WorkflowError):
    """The run ended as failed; `error` says what its function raised, and where."""

    code = "workflow_failed"

    def __init__(self, run_id: str, workflow: str, error: ErrorInfo) -> None:
        self.run_id = run_id
        self.workflow = workflow
        self.error = error
        at = f" in step {error.step!r}" if error.step is not None else ""
        super().__init__(
            f"run {run_id!r} of {workflow!r} failed{at}: {error.type}: {error.message}"
        )


class WorkflowCancelledError(WorkflowError):
    """The run ended as cancelled, for `reason`."""

    code = "workflow_cancelled"

    def __init__(self, run_id: str, workflow: str, reason: str | None) -> None:
        self.run_id = run_id
        self.workflow = workflow
        self.reason = reason
        because = f": {reason}" if reason else ""
        super().__init__(f"run {run_id!r} of {workflow!r} was cancelled{because}")


class IllegalTransitionError(WorkflowError):
    """A run in this status does not allow this change. Nothing was changed."""

    code = "illegal_transition"
    outcome = "not_executed"

    def __init__(self, status: str, change: str) -> None:
        self.status = status
        self.change = change
        super().__init__(f"a run that is {status} cannot {change}")


class StepFailedError(WorkflowError):
    """A step gave up after `attempts`; a replay raises the same error again.

    `__cause__` is the last attempt's error and `error` describes it. Catch this to
    compensate with further steps; uncaught, it fails the run.
    """

    code = "step_failed"

    def __init__(self, step: str, attempts: int, error: ErrorInfo) -> None:
        self.step = step
        self.attempts = attempts
        self.error = error
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(
            f"step {step!r} failed after {tries}: {error.type}: {error.message}"
        )


class StepTimeoutError(WorkflowError, TimeoutError):
    """One attempt of a step took longer than its `timeout`, and was cancelled.

    What it had begun outside may still take effect; the next attempt has the same
    idempotency key.
    """

    code = "step_timeout"

    def __init__(self, step: str, timeout_ms: int) -> None:
        self.step = step
        self.timeout_ms = timeout_ms
        super().__init__(f"an attempt of step {step!r} took more than {timeout_ms} ms")


class StepNestingError(WorkflowError):
    """A step was called from the code of another step.

    The inner step could not be recorded before the outer one. Call both from the
    workflow function, one after the other.
    """

    code = "step_nesting"

    def __init__(self, outer: str, inner: str) -> None:
        self.outer = outer
        self.inner = inner
        super().__init__(
            f"step {inner!r} was called inside step {outer!r};"
            " steps are called from the workflow function, not from each other"
        )


class NotInStepError(WorkflowError):
    """An attribute that exists only while a step runs was asked for outside of one."""

    code = "not_in_step"

    def __init__(self, attribute: str) -> None:
        self.attribute = attribute
        super().__init__(
            f"step.{attribute} is known only inside the function given to step.run"
        )


class StepLimitError(WorkflowError):
    """The run has as many steps as one run may have.

    Split it: start a run for each part, or pass batches to a step.
    """

    code = "step_limit"

    def __init__(self, steps_max: int) -> None:
        self.steps_max = steps_max
        super().__init__(f"a run may have at most {steps_max} steps")


class NonRetryableError(WorkflowError):
    """Raise it in a step to fail the step at once, whatever its retry policy says."""

    code = "non_retryable"


class NondeterminismError(WorkflowError):
    """A replay met another step than the recorded one.

    The function was changed while this run was under way, or does something that
    differs from time to time. The run is parked and nothing recorded was touched:
    deploy code that takes the same steps as before and call `resume()`.
    """

    code = "nondeterminism"

    def __init__(self, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(f"the replay should have met {expected}, but met {found}")


class RecoveryExhaustedError(WorkflowError):
    """The run was interrupted `recoveries` times in a row without any progress."""

    code = "recovery_exhausted"

    def __init__(self, recoveries: int) -> None:
        self.recoveries = recoveries
        super().__init__(
            f"interrupted again after {recoveries} recoveries without any progress"
        )


class TrackerError(WorkflowError):
    """The collector at `endpoint` did not take a batch; `status` if it answered.

    The host offers the same events again later. No run waits for that.
    """

    code = "tracker_failed"
    retryable = True

    def __init__(
        self, endpoint: str, detail: str, *, status: int | None = None
    ) -> None:
        self.endpoint = endpoint
        self.detail = detail
        self.status = status
        super().__init__(f"{endpoint}: {detail}")
