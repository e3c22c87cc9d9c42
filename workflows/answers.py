"""What starts a run, and what a run answers: values that cross to whoever asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from workflows.errors import ErrorInfo
from workflows.journal import Entry, RunRecord
from workflows.machine import Status

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCall:
    """What starts a run: the workflow's name, its input, and the run's id."""

    workflow: str
    input: Any = None
    id: str | None = None  # None: the object's name says


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(Generic[T]):
    """How far a run has come: `output` means something once `completed` is true."""

    id: str
    completed: bool
    status: Status
    output: T | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResult:
    """Whether the run will end as cancelled, and why or why not."""

    cancelled: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One step as its journal entry has it; `error` if it failed or will retry."""

    name: str
    kind: str
    state: str
    attempts: int
    began_at_ms: int
    due_at_ms: int | None
    error: ErrorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Everything about a run but its input, output and results."""

    id: str
    workflow: str
    status: Status
    created_at_ms: int
    started_at_ms: int | None
    recoveries: int
    cancel_requested: bool
    steps: list[StepInfo]


def describe(record: RunRecord, entries: Iterable[Entry]) -> RunInfo:
    """Return what may be said about a run without its values."""
    return RunInfo(
        id=record.run_id,
        workflow=record.workflow,
        status=record.status,
        created_at_ms=record.created_at_ms,
        started_at_ms=record.started_at_ms,
        recoveries=record.recoveries,
        cancel_requested=record.cancel_requested,
        steps=[_describe_step(entry) for entry in entries],
    )


def _describe_step(entry: Entry) -> StepInfo:
    has_error = entry.state in ("failed", "retrying")
    return StepInfo(
        name=entry.step,
        kind=entry.kind,
        state=entry.state,
        attempts=entry.attempts,
        began_at_ms=entry.began_at_ms,
        due_at_ms=entry.due_at_ms,
        error=ErrorInfo.of(entry.value) if has_error else None,
    )
