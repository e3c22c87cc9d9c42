"""Clients and handles, beside what `test_engine.py` tells of them."""

from collections.abc import Callable
from typing import Any, cast, get_args

import pytest

from durable_actor import (
    CallOptions,
    DurableObjectNamespace,
    ObjectId,
    ObjectResetError,
    Request,
    Response,
    Watch,
)
from durable_actor.testing import START_MS
from workflows import (
    Cancelled,
    Completed,
    Failed,
    InvalidNameError,
    Paused,
    Pending,
    Queued,
    Running,
    RunNotFoundError,
    RunResult,
    Status,
    Step,
    UnknownWorkflowError,
    WorkflowCall,
    WorkflowCancelledError,
    WorkflowClient,
    WorkflowFailedError,
    cloudflare_status,
    create_durable_workflows,
    workflow,
)
from workflows.client import CLOUDFLARE_STATUS
from workflows.errors import ErrorInfo


@workflow
async def ship(step: Step, order: str) -> str:
    return order


Workflows, Client = create_durable_workflows({"shipping": ship})


class Recorder:
    """A router that notes calls and answers what it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str | None, str, tuple[object, ...]]] = []

    async def call(
        self,
        target: ObjectId,
        method: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        options: CallOptions,
    ) -> object:
        self.calls.append((target.name, method, args))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def fetch(
        self, target: ObjectId, request: Request, options: CallOptions
    ) -> Response:
        raise NotImplementedError

    def watch(self, target: ObjectId, prefix: str = "") -> Watch:
        raise NotImplementedError


def client_of(recorder: Recorder, **options: Any) -> WorkflowClient:
    return Client.from_binding(DurableObjectNamespace(recorder, "Workflows"), **options)


def result(status: Status, output: Any = None) -> RunResult[Any]:
    is_complete = isinstance(status, Completed)
    return RunResult(id="r1", completed=is_complete, status=status, output=output)


async def test_a_run_is_the_object_named_after_its_workflow_and_its_id() -> None:
    recorder = Recorder(result(Queued(START_MS)))
    handle = await client_of(recorder).start(ship, "o1", id="r1")
    call = WorkflowCall(workflow="shipping", input="o1", id="r1")
    assert recorder.calls == [("shipping:r1", "run_async", (call,))]
    assert (handle.id, handle.workflow) == ("r1", "shipping")


async def test_a_client_on_one_object_calls_that_object() -> None:
    recorder = Recorder(result(Completed(START_MS), "o1"))
    client = client_of(recorder, id_from_name="order-1")
    assert (await client.run(ship, "o1")).output == "o1"
    assert recorder.calls[0][:2] == ("order-1", "run")


async def test_fresh_ids_sort_by_time_and_never_meet() -> None:
    recorder = Recorder(*[result(Queued(START_MS))] * 100)
    client = client_of(recorder)
    ids = [(await client.start(ship, "o")).id for _ in range(100)]
    assert len(set(ids)) == 100
    assert [one[:8] for one in ids] == sorted(one[:8] for one in ids)


@pytest.mark.parametrize("run_id", ["", "x" * 257])
async def test_an_id_that_cannot_name_a_run_is_refused(run_id: str) -> None:
    recorder = Recorder()
    with pytest.raises(InvalidNameError):
        await client_of(recorder).run(ship, "o", id=run_id)
    with pytest.raises(InvalidNameError):
        client_of(recorder).get(ship, run_id)
    assert recorder.calls == []


async def test_a_workflow_that_is_not_of_this_client_is_refused_before_any_call() -> (
    None
):
    recorder = Recorder()
    with pytest.raises(UnknownWorkflowError) as caught:
        await client_of(recorder).run("shiping")
    assert caught.value.nearest == "shipping"
    assert recorder.calls == []


async def test_a_client_without_definitions_takes_any_name() -> None:
    recorder = Recorder(result(Completed(START_MS), 1))
    namespace: DurableObjectNamespace[Any] = DurableObjectNamespace(recorder, "W")
    await WorkflowClient.from_binding(namespace).run("anything", id="r1")
    assert recorder.calls[0][0] == "anything:r1"


async def test_the_result_of_a_run_is_its_output_or_its_error() -> None:
    recorder = Recorder(
        result(Completed(START_MS), "shipped"),
        result(Failed(START_MS, ErrorInfo(type="OSError", message="m", step="s"))),
        result(Cancelled(START_MS, "why")),
    )
    handle = client_of(recorder).get(ship, "r1")
    assert await handle.result() == "shipped"
    with pytest.raises(WorkflowFailedError) as failed:
        await handle.result()
    assert (failed.value.run_id, failed.value.error.step) == ("r1", "s")
    with pytest.raises(WorkflowCancelledError) as cancelled:
        await handle.result()
    assert cancelled.value.reason == "why"


async def test_waiting_for_a_result_survives_a_reset_of_the_object() -> None:
    reset = ObjectResetError("its disk was full")
    recorder = Recorder(reset, reset, result(Completed(START_MS), "shipped"))
    assert await client_of(recorder).get(ship, "r1").result() == "shipped"


async def test_an_object_that_is_reset_every_time_is_given_up() -> None:
    recorder = Recorder(*[ObjectResetError("broken")] * 10)
    with pytest.raises(ObjectResetError):
        await client_of(recorder).get(ship, "r1").result()
    assert len(recorder.calls) == 5


async def test_a_run_that_is_not_there_has_no_status() -> None:
    handle = client_of(Recorder(None, None)).get(ship, "r1")
    with pytest.raises(RunNotFoundError) as caught:
        await handle.status()
    assert caught.value.run_id == "r1"
    with pytest.raises(RunNotFoundError):
        await handle.describe()


def test_every_status_has_cloudflares_word() -> None:
    assert set(CLOUDFLARE_STATUS) == {kind.__name__ for kind in get_args(Status)}
    assert cloudflare_status(Pending()) == cloudflare_status(Queued(1)) == "queued"
    assert cloudflare_status(Running(1)) == "running"
    assert cloudflare_status(Paused(1)) == "waiting"
    assert cloudflare_status(Completed(1)) == "complete"
    assert cloudflare_status(Cancelled(1)) == "terminated"


def test_the_names_of_the_original_are_there() -> None:
    pairs: list[tuple[type, str, str]] = [
        (WorkflowClient, "fromBinding", "from_binding"),
        (WorkflowClient, "runAsync", "run_async"),
        (Workflows, "runAsync", "run_async"),
        (Workflows, "getStatus", "status"),
        (Workflows, "getCompletedSteps", "completed_steps"),
        (Workflows, "getMeta", "meta"),
    ]
    for cls, camel, snake in pairs:
        find = cast("Callable[[type, str], Any]", getattr)
        one, other = find(cls, camel), find(cls, snake)
        assert getattr(one, "__func__", one) is getattr(other, "__func__", other)
