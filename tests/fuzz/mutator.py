"""Inputs made of other inputs, from a seed: without atheris, and in the suite."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_PIECES = (
    b"\0", b"\xff", b"\r\n", b"\n\n", b"'", b'"', b";", b"--", b"/*", b"*/", b"[", b"{",
    b"%2F", b"%00", b"%ff", b"..", b"\xed\xa0\x80", b"9" * 40, b"-1", b"1e999", b"NaN",
    b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"END", b"COMMIT",
)  # fmt: skip


def mutations(
    corpus: Sequence[bytes], count: int, source: random.Random
) -> Iterator[bytes]:
    """Yield the corpus, then `count` inputs that are some steps away from it."""
    yield from corpus
    for _ in range(count):
        data = bytearray(source.choice(corpus))
        for _ in range(1 + source.randrange(4)):
            _change(data, corpus, source)
        yield bytes(data)


def _change(data: bytearray, corpus: Sequence[bytes], source: random.Random) -> None:
    at = source.randrange(len(data) + 1)
    match source.randrange(6):
        case 0 if at < len(data):
            data[at] ^= 1 << source.randrange(8)
        case 1:
            data[at:at] = source.choice(_PIECES)
        case 2:
            del data[at : at + 1 + source.randrange(8)]
        case 3:
            end = at + source.randrange(16)
            data[at:at] = data[at:end] * source.randrange(1, 8)
        case 4:
            other = source.choice(corpus)
            start = source.randrange(len(other) + 1)
            data[at:] = other[start:]
        case _ if at < len(data):
            data[at] = source.randrange(256)
