"""libFuzzer on one target, in this process: `python -m tests.fuzz` starts it.

    python -m tests.fuzz.grow TARGET [libFuzzer's options and folders]

Needs atheris. What is fuzzed is imported after it, so that it sees which branches an
input reaches.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["durable_actor", "workflows", "uvicorn"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
