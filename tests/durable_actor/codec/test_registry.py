"""A class is found by its key or by a name of its own, and never imported."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack

from durable_actor import codec
from durable_actor.errors import (
    ConfigError,
    DecodeError,
    EncodeError,
)
from tests.durable_actor.codec.samples import (
    Line,
    Loose,
    round_trip,
    same,
)


def test_reading_finds_an_imported_class_and_imports_none(
    shop: Any,
) -> None:
    data = codec.encode(shop.Cart("ann"))
    assert same(codec.decode(data), shop.Cart("ann"))

    del sys.modules["codec_shop"]
    with pytest.raises(DecodeError, match="codec_shop:Cart"):
        codec.decode(data)
    assert "codec_shop" not in sys.modules


def test_reading_uses_the_class_of_a_module_that_was_loaded_again(
    shop: Any,
) -> None:
    data = codec.encode(shop.Cart("ann"))
    before = shop.Cart
    importlib.reload(shop)

    found = codec.decode(data)

    assert type(found) is shop.Cart
    assert type(found) is not before


def test_a_class_inside_a_function_is_refused_until_it_is_registered() -> None:
    @dataclasses.dataclass
    class Local:
        value: int

    assert same(codec.clone([Local(1)]), [Local(1)])
    with pytest.raises(EncodeError) as caught:
        codec.encode([Local(1)])
    assert caught.value.path == "value[0]"

    codec.register(Local)
    assert same(round_trip([Local(1)]), [Local(1)])


def test_a_moved_class_reads_what_it_wrote_under_its_old_name() -> None:
    @codec.register(name="codec_gone:Cart")
    @dataclasses.dataclass
    class Cart:
        owner: str

    data = codec.encode(Cart("ann"))
    assert b"codec_gone:Cart" in data
    assert same(codec.decode(data), Cart("ann"))

    with pytest.raises(ConfigError, match="codec_gone:Cart"):
        codec.register(name="codec_gone:Cart")(Line)


def test_only_classes_that_can_be_kept_may_be_registered() -> None:
    with pytest.raises(EncodeError):
        codec.register(Loose)


def test_a_class_of_a_lazy_module_is_not_fetched() -> None:
    module = types.ModuleType("codec_lazy")
    module.__getattr__ = pytest.fail  # type: ignore[method-assign]  # the trap
    sys.modules["codec_lazy"] = module
    try:
        payload = msgpack.encode(["codec_lazy:Cart", {}])
        with pytest.raises(DecodeError, match="codec_lazy:Cart"):
            codec.decode(b"\x01" + msgpack.encode(msgpack.Ext(17, payload)))
    finally:
        del sys.modules["codec_lazy"]


SCRIPT = """
import sys
from dataclasses import dataclass
from durable_actor.codec import decode, encode

@dataclass
class Parcel:
    weight: int

if __name__ == "__main__":
    data = encode(Parcel(3))
    assert decode(data) == Parcel(3)
    sys.stdout.write(data.hex())
"""


def test_what_a_script_has_stored_is_read_where_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "parcels_of_a_script.py"
    script.write_text(SCRIPT)
    written = subprocess.run(
        [sys.executable, str(script)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    module = importlib.import_module("parcels_of_a_script")

    assert codec.decode(bytes.fromhex(written.stdout)) == module.Parcel(3)
