"""The targets by name, and the small corpus each begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import parsers, web

CORPUS = Path(__file__).parents[1] / "data" / "fuzz"

TARGETS: dict[str, Callable[[bytes], None]] = {
    "batch": parsers.read_batches,
    "codec": parsers.decode_values,
    "config": parsers.read_config,
    "connection": web.connections,
    "envelope": web.envelopes,
    "failure": parsers.decode_failures,
    "ids": parsers.read_ids,
    "keys": parsers.list_keys,
    "request": web.requests,
    "sql": parsers.split_sql,
}


def corpus_of(target: str) -> list[bytes]:
    """Return the inputs a target begins with."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
