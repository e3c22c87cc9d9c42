"""G18 for a few seconds: the corpus, and some steps away from it.

`python -m tests.fuzz --all` goes on for as long as it is told, and with atheris further
into the code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from durable_actor import codec
from durable_actor.daemon import bodies
from durable_actor.errors import DecodeError
from durable_actor.storage.sql import statements
from tests.fuzz import web
from tests.fuzz.mutator import mutations
from tests.fuzz.targets import CORPUS, TARGETS, corpus_of

MUTATIONS = 150
SEED = 1


@pytest.fixture(scope="module", autouse=True)
def one_loop() -> Iterator[None]:
    yield
    web.close()


def run(target: str, count: int = MUTATIONS) -> None:
    for data in mutations(corpus_of(target), count, random.Random(SEED)):
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"the input was {data!r}")
            raise


@pytest.mark.parametrize("target", TARGETS)
def test_g18_no_input_is_more_than_refused(target: str) -> None:
    assert len(corpus_of(target)) >= 2
    run(target)


def test_every_folder_of_the_corpus_has_its_target() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(TARGETS)


# The controls: with the defence taken out, the same inputs are more than refused.


def test_an_exception_nobody_named_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = codec.decode

    def decode(data: bytes) -> object:
        try:
            return original(data)
        except DecodeError as error:
            raise KeyError(data) from error

    monkeypatch.setattr(codec, "decode", decode)
    with pytest.raises(KeyError):
        run("codec")


def test_a_body_that_is_not_checked_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class UncheckedError(Exception): ...

    monkeypatch.setattr(bodies, "msgspec", _With(msgspec, UncheckedError))
    with pytest.raises(AssertionError, match="internal"):
        run("envelope")


def test_a_splitter_that_misses_a_semicolon_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def whole(query: str) -> tuple[statements.Statement, ...]:
        tokens = list(statements._TOKEN.finditer(query))
        return (statements._statement(query, tokens),) if tokens else ()

    monkeypatch.setattr(statements, "_split", whole)
    with pytest.raises(AssertionError, match=r"hides|parameters|Statement"):
        run("sql")


class _With:
    """A module whose errors are another's, so that they are not caught."""

    def __init__(self, module: object, error: type[Exception]) -> None:
        self._module = module
        self._error = error

    def __getattr__(self, name: str) -> object:
        if name in ("MsgspecError", "DecodeError", "ValidationError"):
            return self._error
        return getattr(self._module, name)
