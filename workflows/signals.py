"""What nobody may catch: control flow that unwinds a workflow function.

Both derive from `BaseException`, so that `except Exception` in a workflow does not see
them. Only the executor catches them. By the time one is raised the decision behind it
is already sealed, so code that swallows it harms nobody: every further step raises it
again.
"""

from __future__ import annotations


class Signal(BaseException):
    """Unwinds one pass through a workflow function. Not an error.

    If you see this in a log, some code caught `BaseException` and kept it. Re-raise it.
    """


class Suspend(Signal):
    """Unwinds a run that has nothing to do until `resume_at_ms` (None: until told)."""

    def __init__(self, resume_at_ms: int | None) -> None:
        self.resume_at_ms = resume_at_ms
        super().__init__(resume_at_ms)


class Abandon(Signal):
    """Unwinds a run that takes no further step: it was cancelled, or has ended."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason)
