"""The tokens file, as the commands write it and as a daemon reads it (S18)."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from durable_actor.daemon.cli import run_command
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.token_book import (
    TOKENS_FILE,
    TokenBook,
    create_token,
    read_tokens,
    revoke_token,
)
from durable_actor.errors import ConfigError
from tests.durable_actor.daemon.fakes import HOST, TOKEN, open_web


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / TOKENS_FILE


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def test_s18_a_token_has_256_bits_and_the_file_has_only_its_digest(path: Path) -> None:
    token = create_token(path, "shop", namespaces=["Cart"], verbs=["read"])

    assert len(token) >= 43
    assert token not in path.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [TOKENS_FILE]


def test_s18_a_grant_is_what_the_file_says(path: Path) -> None:
    names = ["Cart", "workflow:buy", "CARTS"]
    some = create_token(path, "some", namespaces=names, verbs=["read", "write"])
    everything = create_token(path, "all", namespaces=["*"], verbs=["admin"])

    grants = TokenBook(path).grants()

    grant = grants[digest(some)]
    assert grant.name == "some"
    assert grant.verbs == frozenset({"read", "write"})
    assert grant.covers_class("Cart")
    assert grant.covers_class("X", "CARTS")
    assert not grant.covers_class("buy", "workflow:buy")
    assert grant.covers_workflow("buy")
    assert not grant.covers_workflow("Cart")
    assert not grant.is_full
    assert grants[digest(everything)].is_full
    assert grants[digest(everything)].verbs == frozenset({"admin"})


def test_a_file_that_is_not_there_grants_nothing(path: Path) -> None:
    assert TokenBook(path).grants() == {}


@pytest.mark.parametrize(
    ("name", "namespaces", "verbs"),
    [
        ("", ["A"], ["read"]),
        ("a b", ["A"], ["read"]),
        ("a\n", ["A"], ["read"]),
        ("-x", ["A"], ["read"]),
        ("x" * 65, ["A"], ["read"]),
        ("x", [], ["read"]),
        ("x", [""], ["read"]),
        ("x", ["A"], []),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(
    path: Path, name: str, namespaces: list[str], verbs: list[Any]
) -> None:
    with pytest.raises(ConfigError):
        create_token(path, name, namespaces=namespaces, verbs=verbs)

    assert not path.exists()


def test_a_name_is_given_once(path: Path) -> None:
    create_token(path, "a", namespaces=["A"], verbs=["read"])

    with pytest.raises(ConfigError, match="revoke"):
        create_token(path, "a", namespaces=["B"], verbs=["read"])

    assert [entry.namespaces for entry in read_tokens(path)] == [["A"]]


ENTRY = {
    "name": "a",
    "sha256": "0" * 64,
    "namespaces": ["A"],
    "verbs": ["read"],
    "created_at_ms": 1,
}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{",
        json.dumps({"version": 2, "tokens": []}),
        json.dumps({"version": 1}),
        json.dumps({"version": 1, "tokens": [], "more": 1}),
        json.dumps({"version": 1, "tokens": [{**ENTRY, "token": "x"}]}),
        json.dumps({"version": 1, "tokens": [{**ENTRY, "verbs": ["own"]}]}),
        json.dumps({"version": 1, "tokens": [{**ENTRY, "sha256": "A" * 64}]}),
        json.dumps({"version": 1, "tokens": [ENTRY, ENTRY]}),
        json.dumps({"version": 1, "tokens": [ENTRY, {**ENTRY, "name": "b"}]}),
        '{"version": 1, "tokens": ' + "[" * 100_000,
    ],
)
def test_s18_a_file_that_is_none_is_refused_at_the_start(
    path: Path, content: str
) -> None:
    path.write_text(content)
    path.chmod(0o600)

    with pytest.raises(ConfigError, match=str(path)):
        TokenBook(path)


def test_s16_a_tokens_file_that_others_may_touch_is_refused(path: Path) -> None:
    create_token(path, "a", namespaces=["A"], verbs=["read"])
    for mode in (0o640, 0o620, 0o604, 0o602):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            TokenBook(path)
    path.chmod(0o600)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenBook(path)


def test_s18_a_change_that_cannot_be_read_grants_nothing_until_it_can(
    path: Path,
) -> None:
    token = create_token(path, "a", namespaces=["A"], verbs=["read"])
    book = TokenBook(path)
    good = path.read_bytes()

    with capture_logs() as logs:
        path.write_text("{")
        assert book.grants() == {}
        assert book.grants() == {}
        path.write_bytes(good)
        path.chmod(0o644)
        assert book.grants() == {}
        path.chmod(0o600)
        assert list(book.grants()) == [digest(token)]
        path.unlink()
        assert book.grants() == {}

    assert [line["event"] for line in logs] == ["tokens.refused"] * 2


def test_two_who_write_at_once_lose_nothing(path: Path) -> None:
    def make(number: int) -> None:
        create_token(path, f"t{number}", namespaces=["A"], verbs=["read"])

    makers = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()

    assert {entry.name for entry in read_tokens(path)} == {f"t{n}" for n in range(8)}


async def test_s18_a_token_that_is_revoked_is_refused_from_the_next_request_on(
    path: Path,
) -> None:
    book = TokenBook(path)
    policy = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}), grants=book.grants)
    async with open_web(policy=policy) as web:
        token = create_token(path, "a", namespaces=["Till"], verbs=["read"])
        headers = {"Authorization": f"Bearer {token}"}
        before = await web.http.get("/v1/classes", headers=headers)
        assert revoke_token(path, "a")
        after = await web.http.get("/v1/classes", headers=headers)
        owner = await web.http.get("/v1/classes")

    assert (before.status_code, after.status_code) == (200, 401)
    assert owner.status_code == 200
    assert not revoke_token(path, "a")


def test_the_commands_make_list_and_revoke(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data-dir", str(tmp_path)]
    made = ["--namespace", "Cart", "--namespace", "workflow:buy", "--verb", "read"]

    assert run_command(["tokens", "create", "shop", *made, *where]) == 0
    token = capsys.readouterr().out.strip()
    assert digest(token) in TokenBook(tmp_path / TOKENS_FILE).grants()
    assert run_command(["tokens", "list", *where]) == 0
    assert capsys.readouterr().out == "shop: read on Cart,workflow:buy\n"
    assert run_command(["tokens", "list", "--json", *where]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert told["name"] == "shop"
    assert token not in json.dumps(told)
    assert len(told["sha256"]) == 8
    assert run_command(["tokens", "create", "shop", *made, *where]) == 2
    assert run_command(["tokens", "revoke", "shop", *where]) == 0
    assert run_command(["tokens", "revoke", "shop", *where]) == 3
    assert run_command(["tokens", "create", "x", "--verb", "own", *where]) == 2
    assert run_command(["tokens", "list", "--data-dir", str(tmp_path / "no")]) == 0
    missing = ["--data-dir", str(tmp_path / "no")]
    assert run_command(["tokens", "create", "shop", *made, *missing]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [TOKENS_FILE]
