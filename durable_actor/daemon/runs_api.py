"""Workflows over HTTP: the three routes of the original's worker, and `/v1/runs`.

The routes under `/workflow` have the paths and answers of the original, whose run ids
are `{workflow}-test` unless `?id=` says otherwise. `/v1` is the full face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
from starlette.responses import Response

from durable_actor.daemon import bodies
from durable_actor.daemon.objects_api import page_limit
from durable_actor.daemon.ports import RunsApi
from durable_actor.daemon.problems import nearest, no_workflow, refuse
from durable_actor.daemon.routing import Incoming, Route
from durable_actor.errors import ConfigError

STATUSES: Final = (
    "Pending",
    "Queued",
    "Running",
    "Paused",
    "Completed",
    "Failed",
    "Cancelled",
)
_NO_WORKFLOWS: Final = (
    "The application has no workflows: assign the engine class of"
    " create_durable_workflows() to a public name of its module."
)
_ID = {"id": "The run's id; `{workflow}-test` if not given."}


class StartRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to start. The same id starts one run, however often it is sent."""

    id: str | None = None  # None: a fresh one
    input: Any = None
    is_async: bool = msgspec.field(name="async", default=False)


class StartedAsOriginal(msgspec.Struct, frozen=True):
    """A run after its first stretch, as the original answers."""

    id: str
    completed: bool
    output: Any = None


class StatusAsOriginal(msgspec.Struct, frozen=True):
    """How a run is, as the original answers."""

    status: dict[str, Any] | None
    completed_steps: list[str]
    exists: bool


class Started(msgspec.Struct, frozen=True):
    """A run after its first stretch; `completed` is false if it sleeps or is queued."""

    id: str
    completed: bool
    output: Any = None
    status: dict[str, Any] | None = None


class RunView(msgspec.Struct, frozen=True):
    """A run: `status._tag` is its status, beside it the facts that go with it."""

    status: dict[str, Any] | None
    completed_steps: list[str]
    exists: bool
    recoveries: int = 0
    cancel_requested: bool = False
    steps: list[dict[str, Any]] = []


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why."""

    reason: str | None = None


class Cancelled(msgspec.Struct, frozen=True):
    """Whether the run was cancelled; if not, `reason` says why not."""

    cancelled: bool
    reason: str | None = None


class RunPageView(msgspec.Struct, frozen=True):
    """Some runs; `cursor` leads to the next ones, and is null on the last page."""

    runs: list[dict[str, Any]]
    cursor: str | None


class WorkflowsView(msgspec.Struct, frozen=True):
    """The names of the workflows."""

    workflows: list[str]


class RunRoutes:
    """Handlers over the runs of all engine classes."""

    def __init__(self, apis: Sequence[RunsApi]) -> None:
        self._apis = apis
        self._api_by_name: dict[str, RunsApi] = {}
        for api in apis:
            for name in api.names():
                if name in self._api_by_name:
                    message = (
                        f"two engine classes have a workflow called {name!r};"
                        " rename one, or put both into one create_durable_workflows()"
                    )
                    raise ConfigError(message)
                self._api_by_name[name] = api

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        one = "/v1/runs/{workflow}/{id}"
        start_errors = (404, 408, 409, 415, 429, 504, 507)
        return [
            Route(
                method="POST",
                path="/workflow/{workflow}",
                name="runWorkflow",
                summary="Run until done, asleep or failed; the body is the input.",
                handler=self.run,
                verb="write",
                query={**_ID, "async": "`true` only queues the run."},
                request=Any,
                response=StartedAsOriginal,
                errors=start_errors,
            ),
            Route(
                method="GET",
                path="/workflow/{workflow}/status",
                name="workflowStatus",
                summary="The status of a run, and the steps it has completed.",
                handler=self.status,
                query=_ID,
                response=StatusAsOriginal,
                errors=(404,),
            ),
            Route(
                method="POST",
                path="/workflow/{workflow}/cancel",
                name="cancelWorkflow",
                summary="Cancel a run before its next step.",
                handler=self.cancel,
                verb="write",
                query=_ID,
                request=CancelRequest,
                response=Cancelled,
                errors=start_errors,
            ),
            Route(
                method="GET",
                path="/v1/workflows",
                name="listWorkflows",
                summary="The workflows this daemon serves.",
                handler=self.list_workflows,
                is_for_all=True,
                response=WorkflowsView,
            ),
            Route(
                method="POST",
                path="/v1/workflows/{workflow}/runs",
                name="startRun",
                summary="Start a run, or find the one that has this id.",
                handler=self.start_run,
                verb="write",
                request=StartRequest,
                response=Started,
                errors=start_errors,
            ),
            Route(
                method="GET",
                path="/v1/runs",
                name="listRuns",
                summary="Runs by status and workflow, in pages.",
                handler=self.list_runs,
                query={
                    "status": "Only runs with this status.",
                    "workflow": "Only runs of this workflow.",
                    "limit": "How many at most; 100 if not given.",
                    "cursor": "Where the page before ended.",
                },
                response=RunPageView,
                errors=(404,),
            ),
            Route(
                method="GET",
                path=one,
                name="getRun",
                summary="One run: its status and the steps it has completed.",
                handler=self.get_run,
                response=RunView,
                errors=(404,),
            ),
            Route(
                method="POST",
                path=one + "/cancel",
                name="cancelRun",
                summary="Cancel a run before its next step.",
                handler=self.cancel,
                verb="write",
                request=CancelRequest,
                response=Cancelled,
                errors=start_errors,
            ),
        ]

    async def run(self, incoming: Incoming) -> Response:
        """Start as the original does: the whole body is the input."""
        name = incoming.names["workflow"]
        api = self._api_of(name)
        is_async = _switch("async", incoming.query.get("async", "false"))
        value = await bodies.read_json(incoming, default={})
        run_id = _run_id(incoming)
        answer = await api.start(name, value, run_id=run_id, is_async=is_async)
        return bodies.json_response(_only(answer, StartedAsOriginal))

    async def start_run(self, incoming: Incoming) -> Response:
        """Start by a document with id, input and async."""
        name = incoming.names["workflow"]
        api = self._api_of(name)
        request = await bodies.read_struct(
            incoming, StartRequest, default=StartRequest()
        )
        answer = await api.start(
            name,
            request.input,
            run_id=uuid4().hex if request.id is None else _checked_id(request.id),
            is_async=request.is_async,
        )
        return bodies.json_response(answer)

    async def status(self, incoming: Incoming) -> Response:
        """Tell the status; of a run that is not there too, as the original does."""
        name = incoming.names["workflow"]
        answer = await self._api_of(name).status(name, _run_id(incoming))
        return bodies.json_response(_only(answer, StatusAsOriginal))

    async def get_run(self, incoming: Incoming) -> Response:
        """Tell the status, or 404."""
        name = incoming.names["workflow"]
        run_id = _run_id(incoming)
        answer = await self._api_of(name).status(name, run_id)
        if not answer["exists"]:
            raise refuse(
                "run_not_found",
                f"The workflow {name} has no run {run_id[:100]!r}.",
                f"GET /v1/runs?workflow={name} lists its runs.",
            )
        return bodies.json_response(answer)

    async def cancel(self, incoming: Incoming) -> Response:
        """Cancel a run."""
        name = incoming.names["workflow"]
        api = self._api_of(name)
        request = await bodies.read_struct(
            incoming, CancelRequest, default=CancelRequest()
        )
        answer = await api.cancel(name, _run_id(incoming), request.reason)
        return bodies.json_response(answer)

    async def list_workflows(self, incoming: Incoming) -> Response:
        """List the definitions, as far as they are for the caller."""
        names = filter(incoming.grant.covers_workflow, sorted(self._api_by_name))
        return bodies.json_response(WorkflowsView(list(names)))

    async def list_runs(self, incoming: Incoming) -> Response:
        """List one page of runs."""
        query = incoming.query
        workflow, status = query.get("workflow"), query.get("status")
        if status is not None and status not in STATUSES:
            raise refuse(
                "bad_request",
                f"status is {status[:40]!r}.",
                nearest(status, list(STATUSES)),
            )
        if workflow is not None:
            apis: Sequence[RunsApi] = [self._api_of(workflow)]
        else:
            apis = self._apis
        # Engine after engine: the cursor is the engine's number and its own cursor.
        number, inner = _cursor(query.get("cursor"), len(apis))
        if not apis:
            return bodies.json_response(RunPageView([], None))
        page = await apis[number].list(
            status=status,
            workflow=workflow,
            limit=page_limit(query.get("limit")),
            cursor=inner,
        )
        cursor = page["cursor"]
        if cursor is not None:
            cursor = f"{number}:{cursor}"
        elif number + 1 < len(apis):
            cursor = f"{number + 1}:"
        return bodies.json_response({"runs": page["runs"], "cursor": cursor})

    def _api_of(self, name: str) -> RunsApi:
        api = self._api_by_name.get(name)
        if api is None:
            known = list(self._api_by_name)
            raise no_workflow(name, nearest(name, known) if known else _NO_WORKFLOWS)
        return api


def _only(answer: Mapping[str, object], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the part of an answer that a type names."""
    return {name: answer[name] for name in kind.__struct_fields__}


def _run_id(incoming: Incoming) -> str:
    names = incoming.names
    run_id = names.get("id", incoming.query.get("id", f"{names['workflow']}-test"))
    return _checked_id(run_id)


def _checked_id(run_id: str) -> str:
    if not run_id:
        raise refuse("invalid_id", "The run's id is empty.", "Give it a name.")
    return run_id


def _switch(name: str, text: str) -> bool:
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise refuse("bad_request", f"{name} is {text[:20]!r}.", "Write true or false.")


def _cursor(text: str | None, count: int) -> tuple[int, str | None]:
    if text is None:
        return 0, None
    number, separator, inner = text.partition(":")
    if separator and number.isascii() and number.isdigit() and int(number[:4]) < count:
        return int(number), inner or None
    raise refuse(
        "bad_request",
        f"cursor is {text[:40]!r}.",
        "Send the cursor of the page before, unchanged.",
    )
