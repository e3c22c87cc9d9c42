"""Tags: the numbers in the bytes, and the bounds of what may be written.

Stored bytes outlive every release: a number is never given a second meaning, nor
reused.
"""

from __future__ import annotations

from typing import Final

from msgspec import msgpack

FORMAT_VERSION = 1
VERSION: Final = bytes([FORMAT_VERSION])
DEPTH_MAX = 64  # deeper than any honest value; also what ends a value inside itself
INT_MIN, INT_MAX = -(2**63), 2**64 - 1  # what MessagePack can hold

TUPLE: Final = 1
SET: Final = 2
FROZENSET: Final = 3
DICT: Final = 4  # with a key that is not a str: key, value, key, value...
INT: Final = 5  # beyond 64 bits: two's complement, big end first
BYTEARRAY: Final = 6
DATETIME: Final = 7  # ISO text if naive or UTC, else [naive ISO text, fold, zone]
DATE: Final = 8
TIME: Final = 9  # as DATETIME
TIMEDELTA: Final = 10  # [days, seconds, microseconds]
DECIMAL: Final = 11
UUID: Final = 12
UNSET: Final = 13  # msgspec.UNSET, a common default of a Struct's field
ENUM: Final = 16  # [class key, name], or [class key, number] for combined flags
DATACLASS: Final = 17  # [class key, {field: value}]
STRUCT: Final = 18  # [class key, {field: value}]
EXCEPTION: Final = 19  # [class key, {args, state, fields, notes, and for errors more}]

to_bytes = msgpack.Encoder().encode
