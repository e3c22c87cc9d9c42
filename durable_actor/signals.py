"""What nobody may catch: control flow that unwinds an object's code."""

from __future__ import annotations


class Abort(BaseException):
    """Unwinds a delivery whose activation is to be thrown away. Not an error.

    If you see this in a log, some code caught `BaseException` and kept it. Re-raise it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Interrupted(BaseException):
    """Unwinds object code that held the event loop for too long (RELIABILITY G20).

    The object is thrown away, whatever catches this: its memory may be half changed.
    """
