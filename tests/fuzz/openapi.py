"""The daemon against its own description: requests made from `/openapi.json`.

    python -m tests.fuzz.openapi [--examples N] [--seed N]

Starts a real daemon and sends each operation that many requests that fit its schema,
and as many that do not. Every answer has a status, a media type and a body that the
description names; none is a failure of ours; and without the token there is none but
401. Prints one JSON object; exits with 1 if something else was found.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.durable_actor.daemon.process import Daemon

PATIENCE_SECONDS = 10.0
OPEN = frozenset({"/livez", "/readyz"})  # without a token
ENDLESS = "/v1/watches/"  # its answers have no end
_CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# Names the fixture has, put in for made ones, or requests would not get far.
_KNOWN = {"class": "Counter", "name": "a", "method": "increment", "workflow": "steps"}
_KNOWN_SHARE = 0.7
# What an object's own method raised, and what the caller itself asked for.
_CODES_ALLOWED = frozenset({"handler_error", "timeout"})
_OURS = frozenset({"authorization", "host"})
_FINDINGS_MAX = 20


@dataclass(slots=True)
class Report:
    """What was sent, and what was wrong."""

    operations: int = 0
    requests: int = 0
    by_status: dict[int, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


class Attack:
    """Requests to one daemon, and what was found."""

    def __init__(self, url: str, token: str, *, examples: int, seed: int) -> None:
        self.report = Report()
        self._url = url
        self._owner = {"Authorization": f"Bearer {token}"}
        self._examples = examples
        self._seed = seed
        self._session = requests.Session()
        self._session.trust_env = False

    def run(self) -> Report:
        """Send each operation so many requests of each kind."""
        described = self._session.get(
            f"{self._url}/openapi.json", headers=self._owner, timeout=PATIENCE_SECONDS
        )
        schema = schemathesis.openapi.from_dict(described.json())
        schema.config.update(base_url=self._url)
        operations: Any = schema.get_all_operations()
        for found in operations:
            operation = found.ok()
            if ENDLESS in operation.path:
                continue
            self.report.operations += 1
            for mode in GenerationMode:
                with suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong
                    self._send_many(operation, mode)
        self._session.close()
        return self.report

    def _send_many(self, operation: Any, mode: GenerationMode) -> None:
        def check(case: Any) -> None:
            source = random.Random(repr(case.path_parameters))
            for name, known in _KNOWN.items():
                is_there = name in (case.path_parameters or {})
                if is_there and source.random() < _KNOWN_SHARE:
                    case.path_parameters[name] = known
            self._judge(case, self._send(case, self._owner))
            if operation.path not in OPEN:
                status = self._send(case, {}).status_code
                if status != HTTPStatus.UNAUTHORIZED:
                    self._tell(case, f"{status} without a token")

        settings = hypothesis.settings(
            max_examples=self._examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        strategy = operation.as_strategy(generation_mode=mode)
        given: Any = hypothesis.given(strategy)
        seed: Any = hypothesis.seed(self._seed)
        seed(settings(given(check)))()

    def _send(self, case: Any, headers: dict[str, str]) -> requests.Response:
        request = case.as_transport_kwargs()
        made = request.pop("headers", None) or {}
        kept = {name: made[name] for name in made if name.lower() not in _OURS}
        answer = self._session.request(
            **request, headers={**kept, **headers}, timeout=PATIENCE_SECONDS
        )
        self.report.requests += 1
        counts = self.report.by_status
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        return answer

    def _judge(self, case: Any, answer: requests.Response) -> None:
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            code = json.loads(answer.content).get("code")
            if code not in _CODES_ALLOWED:
                self._tell(case, f"{answer.status_code}: {answer.content[:300]!r}")
        try:
            case.validate_response(answer, checks=_CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._tell(case, f"{type(failure).__name__}: {failure}"[:400])

    def _tell(self, case: Any, text: str) -> None:
        if len(self.report.findings) < _FINDINGS_MAX:
            self.report.findings.append(f"{case.operation.label}: {text}")


def run(folder: Path, *, examples: int, seed: int) -> Report:
    """Start a daemon and attack it."""
    daemon = Daemon("--data-dir", str(folder / "data"))
    try:
        ready = daemon.wait_ready().ready
        token = Path(ready["token_file"]).read_text().strip()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the makers of requests
            attack = Attack(ready["listen"], token, examples=examples, seed=seed)
            report = attack.run()
        if daemon.process.poll() is not None:
            report.findings.append("the daemon is gone")
    finally:
        daemon.kill()
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack a daemon of our own; 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.openapi")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="openapi-") as folder:
        report = run(Path(folder), examples=options.examples, seed=options.seed)
    sys.stdout.write(json.dumps({**asdict(report), "seed": options.seed}) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
