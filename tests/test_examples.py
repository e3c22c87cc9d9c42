"""Every example runs, prints what its docstring says, and leaves nothing behind."""

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from durable_actor import load_config
from durable_actor.daemon.loader import load
from examples import counter
from examples.collector import Collector
from examples.embedded_starlette import create_app
from examples.order_processing import Order, process_order

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SERVERS = {"collector"}  # run until they are stopped
PROGRAMS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - SERVERS)
DEADLINE_SECONDS = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program left."""

    output: str
    errors: str
    status: int
    files: list[Path]


def start(
    name: str, *arguments: str, environ: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """All programs, at once: they mostly wait."""
    folders = {name: tmp_path_factory.mktemp(name) for name in PROGRAMS}
    processes = {
        name: start(name, environ={"TMPDIR": str(folder)})
        for name, folder in folders.items()
    }
    results = {}
    try:
        for name, process in processes.items():
            output, errors = process.communicate(timeout=DEADLINE_SECONDS)
            results[name] = Ran(
                output=output,
                errors=errors,
                status=process.returncode,
                files=list(folders[name].iterdir()),
            )
    finally:
        for process in processes.values():
            process.kill()
    return results


def expected(name: str) -> str:
    """Return the output that the docstring of an example promises, its last part."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return textwrap.dedent(docstring.partition("Expected output")[2].partition("\n")[2])


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_prints_what_its_docstring_says(
    ran: dict[str, Ran], name: str
) -> None:
    assert ran[name].output.strip() == expected(name).strip(), ran[name].errors
    assert ran[name].status == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_complains_of_nothing(ran: dict[str, Ran], name: str) -> None:
    assert ran[name].errors == ""


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_leaves_nothing_behind(ran: dict[str, Ran], name: str) -> None:
    assert ran[name].files == []


async def test_the_counter_goes_on_in_a_directory_that_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await counter.count(tmp_path)
    await counter.count(tmp_path)
    assert "visits to the front page: 5, 6, 7" in capsys.readouterr().out


class TestOrderProcessing:
    def test_the_daemon_serves_it_by_default(self) -> None:
        config = load_config(ROOT / "config.toml", environ={}, overrides={})
        served = load(config.main, directory=ROOT)
        assert list(served.classes) == ["Workflows"]

    def test_its_input_can_be_json(self) -> None:
        value = {"id": "a", "items": ["lamp"], "cooling_off_ms": 5}
        order = Order(id="a", items=["lamp"], cooling_off_ms=5)
        assert process_order.convert_input(value) == order


class TestEmbeddedStarlette:
    def test_its_objects_and_runs_survive_a_restart(self, tmp_path: Path) -> None:
        with TestClient(create_app(tmp_path)) as client:
            assert client.post("/pages/front/visits").json() == {"visits": 1}
            assert client.post("/signups/ada").status_code == 202
            # Closed at once: the run is asleep, or has not even begun.

        with TestClient(create_app(tmp_path)) as client:
            assert client.get("/pages/front").json() == {"visits": 1}
            answer = client.get("/signups/ada?wait=1").json()
            assert answer == {"status": "Completed", "output": "ada is member 1"}

    def test_the_same_name_signs_up_once(self, tmp_path: Path) -> None:
        with TestClient(create_app(tmp_path)) as client:
            for _ in range(2):
                assert client.post("/signups/ada").json() == {"id": "ada"}
                answer = client.get("/signups/ada?wait=1").json()
                assert answer["output"] == "ada is member 1"

    def test_who_did_not_sign_up_is_not_found(self, tmp_path: Path) -> None:
        with TestClient(create_app(tmp_path)) as client:
            assert client.get("/signups/bob").status_code == 404


class TestCollector:
    def test_it_takes_the_events_of_a_run(self, tmp_path: Path) -> None:
        environ = {"COLLECTOR_TOKEN": "secret", "TMPDIR": str(tmp_path)}
        headers = {"Authorization": "Bearer secret"}
        with self.running(environ) as (url, lines):
            sender = start(
                "order_processing",
                environ={**environ, "COLLECTOR_URL": f"{url}/ingest"},
            )
            try:
                _, errors = sender.communicate(timeout=DEADLINE_SECONDS)
            finally:
                sender.kill()
            assert errors == ""
            address = f"{url}/events?workflowId=order-17"
            answer = httpx2.get(address, headers=headers, trust_env=False)
            events = answer.json()["events"]
            shown = [next(lines) for _ in events]

        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert events[-1]["type"] == "workflow.completed"
        _, *promised, etc = expected("collector").strip().splitlines()
        assert etc == "..."
        assert shown[: len(promised)] == promised

    @contextmanager
    def running(
        self, environ: Mapping[str, str]
    ) -> Iterator[tuple[str, Iterator[str]]]:
        """Run it on a free port; yield its address, and the lines it prints."""
        process = start("collector", "127.0.0.1:0", environ=environ)
        try:
            assert process.stdout is not None
            lines = (line.rstrip("\n") for line in process.stdout)
            yield next(lines).removeprefix("listening on "), lines
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE_SECONDS)

    def test_a_repeat_is_answered_and_not_kept(self) -> None:
        batch = {"events": [{"eventId": "1"}, {"eventId": "2"}]}
        with TestClient(Collector().app()) as client:
            assert client.post("/ingest", json=batch).json() == {"accepted": 2}
            assert client.post("/ingest", json=batch).json() == {"accepted": 0}
            assert client.get("/events").json() == batch

    def test_without_the_token_nothing_is_taken_or_told(self) -> None:
        headers = {"Authorization": "Bearer wrong"}
        with TestClient(Collector("secret").app()) as client:
            for given in ({}, headers):
                answer = client.post("/ingest", json={"events": []}, headers=given)
                assert answer.status_code == 401
                assert client.get("/events", headers=given).status_code == 401

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"events": [1]}'])
    def test_what_is_no_batch_is_refused(self, body: bytes) -> None:
        with TestClient(Collector().app()) as client:
            assert client.post("/ingest", content=body).status_code == 400

    def test_too_large_a_batch_is_refused(self) -> None:
        with TestClient(Collector().app()) as client:
            assert client.post("/ingest", content=b" " * 2_000_001).status_code == 413
