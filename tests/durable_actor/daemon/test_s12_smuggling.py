"""S12: what two readers could cut into requests differently is no request at all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.durable_actor.daemon.raw import Raw, open_raw, statuses_of

TARGET = "/v1/objects/Till/smuggled/add"


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    async with open_raw(head_timeout_ms=500) as raw:
        yield raw


LENGTHS = [
    ["Content-Length: 2", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Content-Length: 2"],
    ["Content-Length: 2", "Content-Length: 2"],
    ["Content-Length: 2", "Content-Length: 3"],
    ["Content-Length: 2", "content-length: 3"],
    ["Content-Length: 2, 2"],
    ["Content-Length: 2,"],
    ["Content-Length: +2"],
    ["Content-Length: -2"],
    ["Content-Length: 0x2"],
    ["Content-Length: 2 3"],
    ["Content-Length: 2;"],
    ["Content-Length: 2.0"],
    ["Content-Length: 1_0"],
    ["Content-Length: "],
    ["Content-Length: \x0b2"],
    ["Content-Length: " + "9" * 40],
    ["Content-Length: 18446744073709551618"],
    ["Content-Length : 2"],
    ["Content-Length\t: 2"],
    [" Content-Length: 2"],
    ["Content-Length: 2", " continued"],
    ["X: a", "\tfolded: b", "Content-Length: 2"],
]
ENCODINGS = [
    ["Transfer-Encoding: chunked, identity"],
    ["Transfer-Encoding: identity, chunked"],
    ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding: chunked, chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    ["Transfer-Encoding: xchunked"],
    ["Transfer-Encoding: chunkedx"],
    ["Transfer-Encoding: \x0bchunked"],
    ["Transfer-Encoding: chunked;q=1"],
    ['Transfer-Encoding: "chunked"'],
    ["Transfer-Encoding : chunked"],
    [" Transfer-Encoding: chunked"],
    ["X: a\r\nTransfer-Encoding : chunked"],
    ["Transfer-Encoding:"],
    ["Transfer-Encoding: identity"],
]
CHARACTERS = [
    ["X: a\rb", "Content-Length: 2"],
    ["X: a\nContent-Length: 2"],
    ["X: a\0b", "Content-Length: 2"],
    ["X\0: a", "Content-Length: 2"],
    ["X Y: a", "Content-Length: 2"],
    [": a", "Content-Length: 2"],
    ["no colon", "Content-Length: 2"],
    ["X(: a", "Content-Length: 2"],
]
MEANINGS = [
    ["Content-Length: 2", "Host: evil.example"],
    ["Upgrade: h2c", "Connection: Upgrade", "Content-Length: 2"],
]


@pytest.mark.parametrize("corpus", [LENGTHS, ENCODINGS, CHARACTERS, MEANINGS])
async def test_s12_a_head_that_can_be_read_in_two_ways_is_refused_and_hung_up_on(
    raw: Raw, corpus: list[list[str]]
) -> None:
    hidden = b"{}" + raw.head("Content-Length: 2", start=f"POST {TARGET}") + b"{}"
    wrong = []

    for lines in corpus:
        answer = await raw.send(raw.head(*lines), hidden)
        is_refused = statuses_of(answer) in ([400], [413])
        if not is_refused or b"connection: close" not in answer.lower():
            wrong.append((lines, answer))

    assert wrong == []
    assert raw.web.host.calls == []


CHUNKS = [
    b"g\r\n",
    b"-1\r\n\r\n",
    b"+2\r\n{}\r\n0\r\n\r\n",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b" 2\r\n{}\r\n0\r\n\r\n",
    b"2 \r\n{}\r\n0\r\n\r\n",
    b"2\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\n0\r\n\r\n",
    b"2\r\n{}0\r\n\r\n",
    b"2\r\n{}X\r\n0\r\n\r\n",
    b"2\r{}\r\n0\r\n\r\n",
    b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    b"\r\n2\r\n{}\r\n0\r\n\r\n",
    b"0\r\n\n",
    b"0\n\r\n",
]


async def test_s12_a_chunk_that_is_none_ends_the_connection(raw: Raw) -> None:
    hidden = raw.head("Content-Length: 2", start=f"POST {TARGET}") + b"{}"
    wrong = []

    for chunks in CHUNKS:
        head = raw.head("Transfer-Encoding: chunked")
        answer = await raw.send(head, chunks, hidden)
        if statuses_of(answer) != [400]:
            wrong.append((chunks, answer))

    assert wrong == []
    assert not [call for call in raw.web.host.calls if call[0].name == "smuggled"]


async def test_s12_only_a_carriage_return_and_a_line_feed_end_a_line(raw: Raw) -> None:
    for end in (b"\n", b"\r", b"\r\n "):
        head = raw.head("Content-Length: 2").replace(b"\r\n", end)
        answer = await raw.send(head, b"{}", close=True)
        assert statuses_of(answer) == [400], end

    assert raw.web.host.calls == []


async def test_s12_a_length_that_is_right_does_not_let_the_rest_in_as_a_body(
    raw: Raw,
) -> None:
    """The control: two requests that are two requests are both answered."""
    one = raw.head("Content-Length: 12") + b'{"args":[1]}'
    two = raw.head("Content-Length: 12", "Connection: close") + b'{"args":[2]}'

    answer = await raw.send(one + two)

    assert statuses_of(answer) == [200, 200]
    assert b'{"result":2}' in answer
    assert answer.endswith(b'{"result":3}')


async def test_s12_nothing_is_read_behind_a_request_that_asked_for_the_end(
    raw: Raw,
) -> None:
    first = raw.head("Connection: close", start="GET /livez")
    hidden = raw.head("Content-Length: 2", start=f"POST {TARGET}") + b"{}"

    answer = await raw.send(first + hidden)

    assert statuses_of(answer) == [200]
    assert raw.web.host.calls == []


async def test_s12_trailers_are_no_headers(raw: Raw) -> None:
    head = raw.head("Transfer-Encoding: chunked", "Connection: close", token=None)
    body = b"2\r\n{}\r\n0\r\nAuthorization: Bearer correct-horse-battery-staple\r\n\r\n"

    answer = await raw.send(head, body)

    assert statuses_of(answer) == [401]


async def test_s12_trailers_and_chunk_extensions_have_a_bound(raw: Raw) -> None:
    head = raw.head("Transfer-Encoding: chunked")
    for endless in (b"0\r\nX: ", b"0\r\nX: a\r\n", b"2;a="):
        answer = await raw.send(head, endless, *[b"x" * 1_000] * 400)
        assert statuses_of(answer) in ([431], []), endless  # or the answer got lost
    assert raw.web.host.calls == []
