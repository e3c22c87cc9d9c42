"""`python -m benchmarks`: answer the questions of this folder.

    python -m benchmarks [--quick] [--json] [--only NAME]

Each file asks one question, in the first line of its docstring. What counts is the
ratio of a figure to its baseline, measured in the same run: absolute figures belong to
the machine, and the hour. `--only` takes the name of a file or of a figure, and may be
given more than once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import structlog

from benchmarks.measuring import FULL, QUICK, Answer, Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a ratio should be."""

    ratio: float
    at_least: bool

    def is_met_by(self, ratio: float) -> bool:
        """Whether a ratio is as good as the aim."""
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.ratio:g}"


# The files, and the figures that each one answers with.
FIGURES = {
    "durable_calls": ("durable_calls_1000_vs_commit_per_call",),
    "single_caller": ("single_caller_latency_vs_bare_commit",),
    "workflow_steps": ("workflow_steps_256_vs_commit_per_call",),
    "busy_loop": (
        "busy_loop_vs_quiet_thread",
        "busy_loop_vs_quiet_process",
        "busy_loop_vs_quiet",
    ),
    "idle_object": ("idle_object_bytes",),
    "large_object": (
        "large_object_get_vs_1000_keys",
        "large_object_page_vs_1000_keys",
        "large_object_put_vs_1000_keys",
        "large_object_fold_vs_1000_keys",
    ),
    "ready_seconds": ("ready_seconds_100k", "ready_seconds_100k_daemon"),
}
AIMS = {
    "durable_calls_1000_vs_commit_per_call": Aim(ratio=20, at_least=True),
    "single_caller_latency_vs_bare_commit": Aim(ratio=1.5, at_least=False),
    "workflow_steps_256_vs_commit_per_call": Aim(ratio=8, at_least=True),
    "busy_loop_vs_quiet_process": Aim(ratio=0.5, at_least=True),
    "busy_loop_vs_quiet": Aim(ratio=0.5, at_least=True),
    "idle_object_bytes": Aim(ratio=1, at_least=False),
    "large_object_get_vs_1000_keys": Aim(ratio=2, at_least=False),
    "large_object_page_vs_1000_keys": Aim(ratio=2, at_least=False),
    "large_object_put_vs_1000_keys": Aim(ratio=2, at_least=False),
    "ready_seconds_100k": Aim(ratio=1, at_least=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks and print their answers; return the exit status."""
    options = _parse(arguments)
    # A host says when it opens and closes; here that would be noise among the answers.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    answers: dict[str, Answer] = {}
    for module in _modules(options.only):
        if not options.json:
            print(f"{module} ...", file=sys.stderr)
        answers |= measure(module, QUICK if options.quick else FULL)
    answers = {
        name: answer
        for name, answer in answers.items()
        if not options.only or _is_wanted(name, options.only)
    }
    print(_json(answers) if options.json else _table(answers))
    return 0


def measure(module: str, scale: Scale) -> dict[str, Answer]:
    """Run one benchmark, in an event loop of its own."""
    answers: dict[str, Answer] = asyncio.run(
        import_module(f"benchmarks.{module}").measure(scale)
    )
    return answers


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ratios to a baseline, side by side."
    )
    parser.add_argument("--quick", action="store_true", help="under 40 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    names = sorted({*FIGURES, *(name for found in FIGURES.values() for name in found)})
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", default=[]
    )
    return parser.parse_args(arguments)


def _modules(only: Sequence[str]) -> list[str]:
    return [
        module
        for module, figures in FIGURES.items()
        if not only or any(_is_wanted(name, only) for name in figures)
    ]


def _is_wanted(name: str, only: Sequence[str]) -> bool:
    return any(name == one or name in FIGURES.get(one, ()) for one in only)


def _json(answers: dict[str, Answer]) -> str:
    found: dict[str, dict[str, Any]] = {
        name: {**asdict(answer), "ratio": answer.ratio}
        for name, answer in answers.items()
    }
    return json.dumps(found)


def _table(answers: dict[str, Answer]) -> str:
    lines = [f"{'':40}{'value':>12}{'baseline':>12}{'ratio':>9}  aim"]
    for name, answer in answers.items():
        aim = AIMS.get(name)
        verdict = ""
        if aim is not None:
            verdict = f"{aim} {'met' if aim.is_met_by(answer.ratio) else 'missed'}"
        lines.append(
            f"{name:40}{answer.value:12.4g}{answer.baseline:12.4g}{answer.ratio:9.3g}"
            f"  {verdict:16} {answer.unit}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
