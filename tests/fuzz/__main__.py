"""Fuzzing: inputs that nobody thought of, for the parsers of the project.

    python -m tests.fuzz TARGET [--seconds N] [--seed N] [--plain] [--keep DIR]
    python -m tests.fuzz --all [--seconds N]

With atheris, inputs are grown by what they reach; without it (it has a wheel for few
platforms), or with `--plain`, they are mutations of the corpus. Prints one line of JSON
for each target; exits with 1, and leaves the input in a file, if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.mutator import mutations
from tests.fuzz.targets import CORPUS, TARGETS, corpus_of

INPUT_BYTES_MAX = 4_096


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz one target, or all; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--keep", type=Path, help="keep the inputs that were grown")
    options = parser.parse_args(arguments)
    names = list(TARGETS) if options.all else [options.target]
    if not set(names) <= set(TARGETS):
        parser.error(f"the targets are {', '.join(TARGETS)}")
    is_plain = options.plain or find_spec("atheris") is None
    run = _mutate if is_plain else _fuzz
    found = [run(name, options) for name in names]
    return 1 if any(found) else 0


def _fuzz(name: str, options: argparse.Namespace) -> bool:
    """Fuzz in a process of its own, as libFuzzer ends the one it is in."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        grown = options.keep / name if options.keep else Path(folder)
        grown.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "tests.fuzz.grow", name),
            *(str(grown), str(CORPUS / name)),
            f"-max_total_time={options.seconds}",
            f"-seed={options.seed}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-artifact_prefix=fuzz-{name}-",
            "-timeout=20",
            "-rss_limit_mb=2000",
            "-print_final_stats=1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    _tell(
        name,
        executions=int(counts[-1]) if counts else 0,
        branches=int(covered[-1]) if covered else 0,
        broken=done.returncode != 0,
        seed=options.seed,
    )
    if done.returncode:
        sys.stderr.write(f"{done.stderr[-6_000:]}\n{done.stdout[-6_000:]}\n")
    return done.returncode != 0


def _mutate(name: str, options: argparse.Namespace) -> bool:
    ends_at = time.monotonic() + options.seconds
    executions, is_broken = 0, False
    inputs = mutations(corpus_of(name), sys.maxsize, random.Random(options.seed))
    for data in inputs:
        try:
            TARGETS[name](data)
        except Exception:  # noqa: BLE001  # this is what is looked for
            traceback.print_exc()
            Path(f"fuzz-{name}-crash").write_bytes(data)
            is_broken = True
            break
        executions += 1
        if time.monotonic() > ends_at:
            break
    _tell(name, executions=executions, broken=is_broken, seed=options.seed)
    return is_broken


def _tell(name: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"target": name, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
