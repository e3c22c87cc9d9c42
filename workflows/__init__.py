"""Durable workflows: async functions whose steps are remembered.

Reading order: `errors` and `signals` are its words; `machine` its rules; `journal` its
memory, and `replay` how it is read again; `context`, `steps` and `definition` what
authors write with; `executor`, `recovery` and `orchestrator` the engine room; `engine`,
`client` and `factory` its edges.
"""

from workflows.answers import (
    CancelResult,
    RunInfo,
    RunResult,
    StepInfo,
    WorkflowCall,
)
from workflows.backoff import Backoff, Retry
from workflows.client import WorkflowClient, WorkflowHandle, cloudflare_status
from workflows.definition import WorkflowDefinition, workflow
from workflows.engine import WorkflowEngine
from workflows.errors import (
    ErrorInfo,
    IllegalTransitionError,
    InvalidInputError,
    InvalidNameError,
    NondeterminismError,
    NonRetryableError,
    NotInStepError,
    RecoveryExhaustedError,
    RunExistsError,
    RunNotFoundError,
    StepFailedError,
    StepLimitError,
    StepNestingError,
    StepTimeoutError,
    TrackerError,
    UnknownWorkflowError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
)
from workflows.factory import DurableWorkflows, create_durable_workflows
from workflows.http_tracker import HttpBatchTracker, HttpTracker
from workflows.machine import (
    Cancelled,
    Completed,
    Failed,
    Paused,
    Pending,
    Queued,
    Running,
    Status,
)
from workflows.recovery import Recovery
from workflows.steps import Step
from workflows.tracker import InMemoryTracker, NoopTracker, Tracker

__all__ = [
    "Backoff",
    "CancelResult",
    "Cancelled",
    "Completed",
    "DurableWorkflows",
    "ErrorInfo",
    "Failed",
    "HttpBatchTracker",
    "HttpTracker",
    "IllegalTransitionError",
    "InMemoryTracker",
    "InvalidInputError",
    "InvalidNameError",
    "NonRetryableError",
    "NondeterminismError",
    "NoopTracker",
    "NotInStepError",
    "Paused",
    "Pending",
    "Queued",
    "Recovery",
    "RecoveryExhaustedError",
    "Retry",
    "RunExistsError",
    "RunInfo",
    "RunNotFoundError",
    "RunResult",
    "Running",
    "Status",
    "Step",
    "StepFailedError",
    "StepInfo",
    "StepLimitError",
    "StepNestingError",
    "StepTimeoutError",
    "Tracker",
    "TrackerError",
    "UnknownWorkflowError",
    "WorkflowCall",
    "WorkflowCancelledError",
    "WorkflowClient",
    "WorkflowDefinition",
    "WorkflowEngine",
    "WorkflowError",
    "WorkflowFailedError",
    "WorkflowHandle",
    "cloudflare_status",
    "create_durable_workflows",
    "workflow",
]
