"""A daemon in a process of its own, and a plain HTTP caller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[3]
FIXTURE_CONFIG = ROOT / "examples" / "fixture" / "config.toml"
PATIENCE_SECONDS = 20


class Daemon:
    """`python -m durable_actor serve ... --listen 127.0.0.1:0`."""

    def __init__(
        self,
        *arguments: str,
        config: Path | None = FIXTURE_CONFIG,
        listen: str = "127.0.0.1:0",
    ) -> None:
        command = [sys.executable, "-m", "durable_actor", "serve", "--listen", listen]
        if config is not None:
            command += ["--config", str(config)]
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("DURABLE_ACTOR_") and key != "PORT"
        }
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environ | {"PYTHONWARNINGS": "default"},
            start_new_session=True,
        )
        self.ready: dict[str, Any] = {}
        self._errors: list[bytes] = []
        # Somebody has to read, or a daemon that logs much would stop at a full pipe.
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def wait_ready(self) -> Daemon:
        """Return once the ready line is there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.wait()[1]
        self.ready = json.loads(line)
        return self

    @property
    def url(self) -> str:
        """The address of the ready line."""
        return str(self.ready["listen"])

    @property
    def token(self) -> str:
        """The content of the token file."""
        return Path(self.ready["token_file"]).read_text().strip()

    def http(self) -> httpx2.Client:
        """Return a caller that holds the token."""
        socket_path = self.url.removeprefix("unix:") if "unix:" in self.url else None
        return httpx2.Client(
            transport=httpx2.HTTPTransport(uds=socket_path, trust_env=False),
            base_url="http://localhost" if socket_path else self.url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=PATIENCE_SECONDS,
        )

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Return the exit status and all of stderr, once the process has ended."""
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return status, b"".join(self._errors).decode()

    def stop(self) -> tuple[int, str]:
        """Ask the process to drain; see `wait`."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """End the process and its storage process, however they are."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(iter(self.process.stderr.readline, b""))


def exit_line(errors: str) -> dict[str, Any]:
    """Return the line of JSON that says why a daemon ended."""
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    [found] = [line for line in lines if line.get("event") == "exit"]
    return dict(found)
