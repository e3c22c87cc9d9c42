"""S9: each limit at one less, at it, and at one more; before anything is kept.

Header, target, body and connections are in `test_guard.py` and `test_protocol.py`;
keys, values and batches in `storage/test_facade.py`. S6 is here as well: names and ids,
as they come in a path.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from durable_actor import codec
from durable_actor.config import Config
from durable_actor.daemon import wire
from durable_actor.daemon.bodies import JSON_DEPTH_MAX, parse_json
from durable_actor.daemon.guard import GuardPolicy
from durable_actor.daemon.problems import ProblemError
from tests.durable_actor.daemon.fakes import HOST, TOKEN, Web, open_web
from tests.durable_actor.daemon.raw import open_raw, statuses_of


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as web:
        yield web


def test_s9_the_limits_are_those_that_were_promised() -> None:
    config = Config()

    assert config.http.header_bytes_max == 8_192
    assert config.http.headers_max == 64
    assert config.http.body_bytes_max == 1_048_576
    assert config.http.connections_max == 10_000
    assert config.http.in_flight_per_token_max == 1_000
    assert config.http.in_flight_max == 20_000
    assert config.http.bodies_bytes_max == 256 * 1_048_576
    assert config.storage.value_bytes_max == 2 * 1_048_576
    assert config.storage.key_bytes_max == 2_048
    assert config.storage.batch_entries_max == 128
    assert JSON_DEPTH_MAX == 64


@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")])
def test_s9_json_may_be_as_deep_as_the_limit(pair: tuple[str, str]) -> None:
    opened, closed = pair
    for depth in (JSON_DEPTH_MAX - 1, JSON_DEPTH_MAX):
        text = opened * depth + ("1" if opened != "[" else "") + closed * depth
        assert parse_json(text.encode()) == json.loads(text)
    for depth in (JSON_DEPTH_MAX + 1, 1_000, 100_000):
        text = opened * depth + ("1" if opened != "[" else "") + closed * depth
        with pytest.raises(ProblemError) as caught:
            parse_json(text.encode())
        assert caught.value.problem.code == "bad_json"


@pytest.mark.parametrize(
    "text",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"1" * 5_000,
        b'"\xff"',
        b'"\\ud800"',
        b'{"\\udc00": 1}',
        b"\xef\xbb\xbf1",
        b"'a'",
        b"[1,]",
        b"01",
        b"[" * 900_000,
        b"",
        b"1 2",
    ],
)
async def test_s9_json_that_readers_disagree_about_is_a_400(
    web: Web, text: bytes
) -> None:
    body = b'{"args":[%s]}' % text if text else b"{"

    answer = await web.http.post(
        "/v1/objects/Till/a/echo",
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert answer.status_code in (400, 200)
    if answer.status_code == 200:  # a long number is a number
        assert text == b"1" * 5_000
    else:
        assert answer.json()["code"] in ("bad_json", "bad_arguments")
        assert web.host.calls == []


@pytest.mark.parametrize("depth", [63, 1_000, 100_000])
async def test_s9_exact_values_are_no_deeper_than_those_of_json(
    web: Web, depth: int
) -> None:
    body = codec.encode([[1], {}])
    prefix = body[:1]
    deep = prefix + b"\x91" * depth + b"\x01"

    answer = await web.http.post(
        "/v1/objects/Till/a/add", content=deep, headers={"Content-Type": wire.EXACT}
    )

    assert answer.status_code == 400
    assert web.host.calls == []


async def test_s9_a_body_that_is_too_large_is_not_kept() -> None:
    policy = GuardPolicy(token=TOKEN, hosts=frozenset({HOST}), body_bytes_max=1_000)
    async with open_raw(policy=policy) as raw:
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        tracemalloc.start()
        for head, parts in (
            (raw.head("Content-Length: 50000000"), [b"x" * 65_536] * 200),
            (raw.head("Transfer-Encoding: chunked"), [chunk] * 200),
        ):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            answer = await raw.send(head, *parts)
            _, peak = tracemalloc.get_traced_memory()
            assert statuses_of(answer) in ([413], [])
            assert peak - before < 4_000_000
        tracemalloc.stop()
        assert raw.web.host.calls == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "x", "GZIP"])
async def test_s9_a_compressed_body_is_refused_unread(web: Web, encoding: str) -> None:
    for lines in ([encoding], ["identity", encoding], [f"identity, {encoding}"]):
        headers = [(b"Content-Type", b"application/json")]
        headers += [(b"Content-Encoding", line.encode()) for line in lines]
        answer = await web.http.post(
            "/v1/objects/Till/a/add", content=b"{}", headers=headers
        )
        assert answer.status_code == 415
    assert web.host.calls == []


NAMES = [
    "..",
    "../../etc/passwd",
    "%2e%2e",
    "a/b",
    "a\\b",
    "C:",
    ".",
    " ",
    "~root",
    "$(id)",
    "a;b",
    "%00".replace("%", "%25"),
    "x" * 1_024,
    "é",
    "e\u0301",
    "\u202e",
    "\U0010ffff",
]


@pytest.mark.parametrize("name", NAMES)
async def test_s6_a_name_is_a_name_and_never_a_path(
    web: Web, name: str, tmp_path: Path
) -> None:
    target = f"/v1/objects/Till/{wire.segment(name)}/add"

    answer = await web.http.post(target, json={"args": [1]})

    assert answer.status_code == 200, answer.text
    [(called, _, _)] = web.host.calls
    assert called.name == name
    assert len(str(called)) == 64
    assert all(character in "0123456789abcdef" for character in str(called))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("segment", ["%00", "a%00b", "%ff", "%ed%a0%80", "x" * 1_025])
async def test_s6_what_is_no_name_is_refused(web: Web, segment: str) -> None:
    answer = await web.http.post(f"/v1/objects/Till/{segment}/add")

    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_id"
    assert web.host.calls == []


@pytest.mark.parametrize(
    "text", ["0" * 63, "0" * 65, "g" * 64, "0x" + "0" * 62, "..", "0" * 64, "%30" * 64]
)
async def test_s6_what_is_no_id_is_refused(web: Web, text: str) -> None:
    segment = text if text.startswith("%30") else wire.segment(text)

    answer = await web.http.post(f"/v1/objects/Till/{segment}/add?by=id")

    assert answer.status_code == 400
    assert answer.json()["code"] in ("invalid_id", "foreign_id")
    assert web.host.calls == []


async def test_s6_names_that_look_alike_are_different_objects(web: Web) -> None:
    for name in ("é", "e\u0301"):
        await web.http.post(f"/v1/objects/Till/{wire.segment(name)}/add", json={})
        await web.http.post(
            f"/v1/objects/Till/{wire.segment(name)}/add", json={"args": [1]}
        )

    assert len({str(called) for called, _, _ in web.host.calls}) == 2
