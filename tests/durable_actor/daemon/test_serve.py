"""The real daemon: a process, its socket, its signals and its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.durable_actor.daemon.process import FIXTURE_CONFIG, Daemon, exit_line

Start = Callable[..., Daemon]


def test_the_ready_line_is_all_there_is_on_stdout(start_daemon: Start) -> None:
    daemon = start_daemon().wait_ready()
    status, errors = daemon.stop()

    assert daemon.process.stdout is not None
    assert daemon.process.stdout.read() == b""
    assert status == 0
    assert daemon.ready["event"] == "ready"
    assert daemon.ready["pid"] == daemon.process.pid
    assert daemon.ready["listen"].startswith("http://127.0.0.1:")
    assert daemon.ready["epoch"] == 1
    assert Path(daemon.ready["data_dir"]).is_dir()
    assert all(json.loads(line)["event"] for line in errors.splitlines())


def test_s2_the_token_is_made_once_and_for_its_owner_only(start_daemon: Start) -> None:
    first = start_daemon().wait_ready()
    token, path = first.token, Path(first.ready["token_file"])
    first.stop()
    second = start_daemon().wait_ready()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.parent == Path(first.ready["data_dir"])
    assert len(token) >= 43
    assert second.token == token
    assert second.ready["epoch"] == 2
    assert token not in b"".join(second._errors).decode()


def test_the_original_s_routes_give_the_original_s_answers(daemon: Daemon) -> None:
    with daemon.http() as http:
        done = http.post("/workflow/simple", json={"value": 21}).json()
        listed = http.post("/workflow/steps", json={"items": ["a", "b"]}).json()
        asleep = http.post("/workflow/sleeping", json={}).json()
        asleep_status = http.get("/workflow/sleeping/status").json()
        steps_status = http.get("/workflow/steps/status").json()
        queued = http.post("/workflow/slow?async=true", json={}).json()
        cancelled = http.post("/workflow/slow/cancel").json()
        none = http.get("/workflow/slow/status?id=other").json()

    assert (done["id"], done["completed"], done["output"]) == ("simple-test", True, 42)
    assert listed["output"] == ["A", "B"]
    assert asleep["completed"] is False
    assert asleep_status["status"]["_tag"] == "Paused"
    assert steps_status["exists"] is True
    assert steps_status["completed_steps"] == ["process-a", "process-b"]
    assert (queued["id"], queued["completed"]) == ("slow-test", False)
    assert cancelled["cancelled"] is True
    assert (none["status"], none["exists"]) == (None, False)


def test_objects_are_called_by_class_and_by_binding(daemon: Daemon) -> None:
    with daemon.http() as http:
        one = http.post("/v1/objects/Counter/a%2Fb/increment").json()
        three = http.post(
            "/v1/objects/COUNTERS/a%2Fb/increment", json={"kwargs": {"by": 2}}
        ).json()
        other = http.post("/v1/objects/Counter/a/value").json()
        entry = http.get("/v1/objects/Counter/a%2Fb").json()
        page = http.get("/v1/objects?class=Counter").json()

    assert (one, three, other) == ({"result": 1}, {"result": 3}, {"result": 0})
    assert entry["name"] == "a/b"
    assert [found["name"] for found in page["objects"]] == ["a/b"]


def test_an_object_can_be_evicted_and_deleted(daemon: Daemon) -> None:
    with daemon.http() as http:
        http.post("/v1/objects/Counter/gone/increment")
        evicted = http.delete("/v1/activations/Counter/gone").json()
        kept = http.post("/v1/objects/Counter/gone/value").json()
        deleted = http.delete("/v1/objects/Counter/gone").json()
        again = http.delete("/v1/objects/Counter/gone").json()
        fresh = http.post("/v1/objects/Counter/gone/value").json()

    assert (evicted, kept) == ({"evicted": True}, {"result": 1})
    assert (deleted, again) == ({"deleted": True}, {"deleted": False})
    assert fresh == {"result": 0}


def test_runs_are_listed_by_status_and_workflow(daemon: Daemon) -> None:
    with daemon.http() as http:
        for name in ("x", "y"):
            http.post(
                "/v1/workflows/simple/runs?", json={"id": name, "input": {"value": 1}}
            )
        page = http.get("/v1/runs?workflow=simple&status=Completed&limit=1").json()
        rest = http.get(
            "/v1/runs",
            params={
                "workflow": "simple",
                "status": "Completed",
                "cursor": page["cursor"],
            },
        ).json()
        one = http.get("/v1/runs/simple/x").json()
        missing = http.get("/v1/runs/simple/zzz")

    assert len(page["runs"]) == 1
    assert {run["workflow"] for run in page["runs"] + rest["runs"]} == {"simple"}
    assert one["status"]["_tag"] == "Completed"
    assert (missing.status_code, missing.json()["code"]) == (404, "run_not_found")


def test_s2_every_route_of_a_process_wants_the_token(daemon: Daemon) -> None:
    with daemon.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
        del http.headers["Authorization"]
        bodies = set()
        for path, operations in paths.items():
            for method in operations:
                if path in ("/livez", "/readyz"):
                    continue
                for credentials in ({}, {"Authorization": "Bearer wrong"}):
                    answer = http.request(
                        method,
                        path.replace("{", "").replace("}", ""),
                        headers=credentials,
                    )
                    assert answer.status_code == 401, (method, path)
                    bodies.add(answer.content)

    assert len(paths) >= 15
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "127.0.0.1:PORT"}, 200),
        ({"Host": "[::1]:PORT"}, 200),
        ({"Host": "LOCALHOST:PORT"}, 200),
        ({"Host": "localhost"}, 403),
        ({"Host": "localhost:1"}, 403),
        ({"Host": "0.0.0.0:PORT"}, 403),
        ({"Host": "127.0.0.1.:PORT"}, 403),
        ({"Host": "evil.example:PORT"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:PORT"}, 403),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/livez"), ("GET", "/metrics"), ("POST", "/v1/objects/Counter/h/value")],
)
def test_s4_a_foreign_host_or_origin_is_refused(
    daemon: Daemon, headers: dict[str, str], status: int, method: str, path: str
) -> None:
    port = daemon.url.rpartition(":")[2]
    with daemon.http() as http:
        answer = http.request(
            method,
            path,
            headers={k: v.replace("PORT", port) for k, v in headers.items()},
        )

    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "/workflow/nope", {"json": {}}, 404, "unknown_workflow"),
        ("POST", "/workflow/simple", {"json": {"value": "x"}}, 400, "invalid_input"),
        ("POST", "/workflow/simple", {"json": {}}, 400, "invalid_input"),
        ("POST", "/workflow/simple?id=" + "x" * 300, {"json": {"value": 1}}, 400, None),
        ("POST", "/workflow/simple", {"content": b"{}"}, 415, None),
        ("POST", "/v1/objects/Nope/a/value", {}, 404, "unknown_class"),
        ("POST", "/v1/objects/Counter/a/nope", {}, 404, "method_not_found"),
        ("POST", "/v1/objects/Counter/a/increment", {"json": {"args": ["x"]}}, 400,
         "bad_arguments"),
        ("POST", "/v1/objects/Counter/" + "x" * 1_025 + "/value", {}, 400, None),
        ("POST", "/v1/objects/Counter/a/increment", {"json": {"args": [10**400]}}, 200,
         None),
        ("PUT", "/v1/objects", {}, 405, "method_not_allowed"),
        ("GET", "/v1/objects?cursor=nonsense", {}, 400, None),
        ("GET", "/nope", {}, 404, "not_found"),
        ("POST", "/v1/objects/Counter/a/increment", {"content": b"x" * 1_100_000}, 413,
         "body_too_large"),
    ],
)  # fmt: skip
def test_bad_input_has_a_status_and_a_remedy(  # noqa: PLR0917  # the parameters
    daemon: Daemon, method: str, path: str, options: Any, status: int, code: str | None
) -> None:
    with daemon.http() as http:
        answer = http.request(method, path, **options)

    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert code in (None, answer.json()["code"])
        assert answer.json()["detail"]


def test_the_same_run_id_with_another_input_is_a_conflict(daemon: Daemon) -> None:
    with daemon.http() as http:
        http.post("/workflow/simple?id=taken", json={"value": 1})
        same = http.post("/workflow/simple?id=taken", json={"value": 1})
        other = http.post("/workflow/simple?id=taken", json={"value": 2})

    assert same.json()["output"] == 2
    assert (other.status_code, other.json()["code"]) == (409, "run_exists")


def test_health_and_metrics_are_served(daemon: Daemon) -> None:
    with daemon.http() as http:
        metrics = http.get("/metrics").text
        del http.headers["Authorization"]
        alive, ready = http.get("/livez"), http.get("/readyz")

    assert alive.json() == {"status": "alive"}
    assert ready.json() == {"status": "ready", "reasons": []}
    assert 'durable_storage_state{state="ok"} 1.0' in metrics
    assert "durable_calls_total" in metrics


def test_a_counter_survives_a_kill(start_daemon: Start) -> None:
    first = start_daemon().wait_ready()
    with first.http() as http:
        for _ in range(3):
            http.post("/v1/objects/Counter/a/increment")
    first.kill()
    second = start_daemon().wait_ready()

    with second.http() as http:
        assert http.post("/v1/objects/Counter/a/value").json() == {"result": 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_status_is_zero(
    start_daemon: Start, number: int
) -> None:
    daemon = start_daemon().wait_ready()
    daemon.signal(number)
    status, errors = daemon.wait()

    assert status == 0
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events.index("daemon.stop") < events.index("daemon.drained")
    assert "exit" not in events


def test_a_signal_ends_the_watches_instead_of_waiting_for_them(
    start_daemon: Start,
) -> None:
    daemon = start_daemon().wait_ready()
    with (
        daemon.http() as http,
        http.stream("GET", "/v1/watches/Counter/a") as stream,
    ):
        pieces = stream.iter_raw()
        assert next(pieces).startswith(b":")
        http.post("/v1/objects/Counter/a/increment")
        assert b"event: change" in next(pieces)
        daemon.signal()
        rest = b"".join(pieces)

    assert b"event: closed" in rest
    assert b'"draining"' in rest
    assert daemon.wait()[0] == 0


def test_a_terminal_s_interrupt_reaches_all_processes_and_still_drains(
    start_daemon: Start,
) -> None:
    daemon = start_daemon().wait_ready()
    with daemon.http() as http:
        http.post("/v1/objects/Counter/a/increment")
        os.killpg(daemon.process.pid, signal.SIGINT)
        status, errors = daemon.wait()

    assert status == 0
    assert "Traceback" not in errors
    with start_daemon().wait_ready().http() as http:
        assert http.post("/v1/objects/Counter/a/value").json() == {"result": 1}


SLOW_APP = """
import asyncio
from durable_actor import DurableObject

class Slow(DurableObject):
    async def work(self, seconds: float) -> str:
        self.ctx.storage.put("began", True)
        await asyncio.sleep(seconds)
        return "done"
"""


@pytest.fixture
def slow_config(tmp_path: Path) -> Path:
    (tmp_path / "slow_app.py").write_text(SLOW_APP)
    config = tmp_path / "config.toml"
    config.write_text('main = "slow_app.py"\n')
    return config


@contextmanager
def work_in_flight(
    daemon: Daemon, seconds: float = 3_600
) -> Iterator[list[httpx2.Response]]:
    """Have a call to the slow object under way; its answer is there in the end."""
    answers: list[httpx2.Response] = []

    def work() -> None:
        with daemon.http() as http:
            body = {"args": [seconds]}
            answers.append(http.post("/v1/objects/Slow/a/work", json=body))

    caller = threading.Thread(target=work)
    caller.start()
    with daemon.http() as http:
        while "durable_http_in_flight 2.0" not in http.get("/metrics").text:
            pass
    yield answers
    caller.join()


def test_accepted_work_is_answered_while_new_work_is_refused(
    start_daemon: Start, slow_config: Path
) -> None:
    daemon = start_daemon(config=slow_config).wait_ready()
    with work_in_flight(daemon, seconds=1.5) as answers, daemon.http() as http:
        daemon.signal()
        while http.get("/readyz").status_code == 200:
            pass
        refused = http.post("/v1/objects/Slow/b/work", json={"args": [0]})
    status, _ = daemon.wait()

    assert answers[0].json() == {"result": "done"}
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) >= 1
    assert status == 0


def test_a_second_signal_does_not_wait(start_daemon: Start, slow_config: Path) -> None:
    daemon = start_daemon(config=slow_config).wait_ready()
    with work_in_flight(daemon) as answers:
        daemon.signal()
        with daemon.http() as http:
            while http.get("/readyz").status_code == 200:
                pass
        daemon.signal()
        status, _ = daemon.wait()

    assert status == 0
    assert answers[0].status_code == 503
    assert answers[0].json()["code"] == "object_reset"
    assert answers[0].json()["outcome"] == "unknown"


def test_the_grace_has_an_end(start_daemon: Start, slow_config: Path) -> None:
    slow_config.write_text('main = "slow_app.py"\nshutdown_grace_ms = 200\n')
    daemon = start_daemon(config=slow_config).wait_ready()
    with work_in_flight(daemon) as answers:
        status, errors = daemon.stop()

    assert status == 0
    assert "daemon.not_drained" in errors
    assert answers[0].json()["outcome"] == "unknown"


def test_a_second_daemon_on_the_same_data_ends_with_75(start_daemon: Start) -> None:
    first = start_daemon().wait_ready()
    status, errors = start_daemon().wait()

    assert status == 75
    told = exit_line(errors)
    assert told["code"] == "data_directory_in_use"
    assert str(first.process.pid) in told["detail"]
    assert first.stop()[0] == 0


WRONG_BINDING = "durable_objects.bindings = [{ name = 'A', class_name = 'Slwo' }]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("main = ", "TOML"),
        ("mian = 'app'", "main"),
        ("", "main"),
        ("main = 'nope.py'", "nope.py"),
        ("main = 'nope_nowhere'", "nope_nowhere"),
        ("main = 'slow_app.py'\nhttp.port = 'x'", "http.port"),
        ("main = 'slow_app.py'\nhttp.token_file = 'slow_app.py'", "slow_app.py"),
        (f"main = 'slow_app.py'\n{WRONG_BINDING}", "Slow"),
    ],
)
def test_a_configuration_that_is_refused_ends_with_78(
    start_daemon: Start, slow_config: Path, text: str, says: str
) -> None:
    slow_config.with_name("slow_app.py").chmod(0o644)
    slow_config.write_text(text)
    status, errors = start_daemon(config=slow_config).wait()

    assert status == 78
    assert says in exit_line(errors)["detail"]


def test_a_module_that_fails_ends_with_78(
    start_daemon: Start, slow_config: Path
) -> None:
    slow_config.with_name("slow_app.py").write_text("1 / 0")
    status, errors = start_daemon(config=slow_config).wait()

    assert status == 78
    assert "ZeroDivisionError" in exit_line(errors)["detail"]


def test_an_address_that_is_taken_ends_with_78(start_daemon: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, errors = start_daemon(listen=address).wait()

    assert status == 78
    assert address in exit_line(errors)["detail"]


def test_s3_an_address_for_everyone_is_refused_without_tls(start_daemon: Start) -> None:
    for address in ("0.0.0.0:0", "[::]:0", "example.com:0"):
        status, errors = start_daemon(listen=address).wait()
        assert status == 78
        assert "http.tls_certificate_file" in exit_line(errors)["detail"]


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["extra"], ["--listen", "127.0.0.1:1"], ["--config"]]
)
def test_wrong_usage_ends_with_64(start_daemon: Start, arguments: list[str]) -> None:
    status, errors = start_daemon(*arguments).wait()

    assert status == 64
    assert exit_line(errors)["code"] == "usage"


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:99999", "unix:", "::1:80"])
def test_what_is_no_address_ends_with_64(start_daemon: Start, listen: str) -> None:
    status, errors = start_daemon(listen=listen).wait()

    assert status == 64
    assert listen in exit_line(errors)["detail"]


def test_s16_a_token_file_that_others_may_read_is_refused(start_daemon: Start) -> None:
    first = start_daemon().wait_ready()
    path = Path(first.ready["token_file"])
    first.stop()
    path.chmod(0o644)
    status, errors = start_daemon().wait()

    assert status == 78
    assert "chmod 600" in exit_line(errors)["detail"]


def test_s1_a_unix_socket_is_for_its_owner_only(
    start_daemon: Start, tmp_path: Path
) -> None:
    path = tmp_path / "daemon.sock"
    path.touch()
    status, _ = start_daemon(listen=f"unix:{path}").wait()
    assert status == 78  # something that is not a socket is never removed
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # as a daemon that was killed leaves it

    daemon = start_daemon(listen=f"unix:{path}").wait_ready()
    with daemon.http() as http:
        answer = http.post("/v1/objects/Counter/a/increment")
        foreign = http.get("/livez", headers={"Host": "evil.example"})

    assert daemon.ready["listen"] == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answer.json() == {"result": 1}
    assert foreign.status_code == 403
    assert daemon.stop()[0] == 0
    assert not path.exists()


def test_s21_a_daemon_that_crashes_leaves_no_memory_behind(
    start_daemon: Start,
) -> None:
    daemon = start_daemon().wait_ready()
    limits = Path(f"/proc/{daemon.ready['pid']}/limits").read_text()
    core = next(line for line in limits.splitlines() if "core file" in line)

    assert core.split()[4] == "0"


def test_s16_nothing_is_written_outside_the_data_directory(
    start_daemon: Start, tmp_path: Path
) -> None:
    before = set(FIXTURE_CONFIG.parent.iterdir())
    daemon = start_daemon().wait_ready()
    with daemon.http() as http:
        http.post("/v1/objects/Counter/a/increment")
    daemon.stop()

    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    assert set(FIXTURE_CONFIG.parent.iterdir()) - before <= {
        FIXTURE_CONFIG.parent / "__pycache__"
    }
    for folder, _, files in os.walk(tmp_path / "data"):
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        for name in files:
            assert stat.S_IMODE((Path(folder) / name).stat().st_mode) == 0o600, name
