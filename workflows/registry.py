"""Names to definitions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from workflows.definition import WorkflowDefinition, check_workflow_name
from workflows.errors import UnknownWorkflowError


class Registry:
    """The workflows of one engine class, under the names they were given there."""

    def __init__(self, workflows: Mapping[str, WorkflowDefinition[Any, Any]]) -> None:
        for name, definition in workflows.items():
            check_workflow_name(name)
            if not isinstance(definition, WorkflowDefinition):
                message = f"{name!r} is not a workflow; decorate it with @workflow"
                raise TypeError(message)
        self._definitions = dict(workflows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._definitions)

    def __len__(self) -> int:
        return len(self._definitions)

    def find(self, name: str) -> WorkflowDefinition[Any, Any]:
        """Return a definition.

        Raises:
            UnknownWorkflowError: There is none of that name; names the nearest.
        """
        found = self._definitions.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._definitions, n=1)
            raise UnknownWorkflowError(name, near[0] if near else None)
        return found

    def name_of(self, workflow: WorkflowDefinition[Any, Any] | str) -> str:
        """Return the name a definition is registered under.

        Raises:
            UnknownWorkflowError: It is not registered here.
        """
        if isinstance(workflow, str):
            self.find(workflow)
            return workflow
        for name, definition in self._definitions.items():
            if definition is workflow:
                return name
        near = difflib.get_close_matches(workflow.name, self._definitions, n=1)
        raise UnknownWorkflowError(workflow.name, near[0] if near else None)
