"""An exception arrives, whatever it holds and whoever knows its class."""

from __future__ import annotations

import asyncio
import builtins
import sys
from typing import Any

import pytest

from durable_actor import codec, errors
from durable_actor.codec.wording import ERROR_TEXT_CHARS_MAX
from durable_actor.errors import (
    DecodeError,
    DurableActorError,
    EncodeError,
    RemoteError,
)
from tests.durable_actor.codec.samples import (
    BUILTIN_ERRORS,
    Loose,
    Pair,
    ShopError,
    raised,
    same,
)


def made_errors() -> list[DurableActorError]:
    """One of each class in the tree, with every field set."""
    fields = {"object_class": "Cart", "object_name": "a", "object_id": "ab" * 32}
    made: list[DurableActorError] = []
    for cls in sorted(tree(DurableActorError), key=lambda cls: cls.__name__):
        if issubclass(cls, errors.ObjectResetError):
            made.append(cls("reset", outcome="not_executed", **fields))
        elif issubclass(cls, errors.ObjectError):
            made.append(cls("detail", **fields))
        elif issubclass(cls, errors.StorageError):
            made.append(cls("put", "too large", key="k"))
        elif issubclass(cls, EncodeError):
            made.append(cls("detail", path="value[0]"))
        elif issubclass(cls, errors.DataDirectoryInUseError):
            made.append(cls("data", "pid 1"))
        elif issubclass(cls, errors.TransportError):
            made.append(cls("gone", outcome="not_executed"))
        elif issubclass(cls, errors.WebSocketClosedError):
            made.append(cls(1001, "going away", was_clean=True))
        elif issubclass(cls, RemoteError):
            made.append(cls("a.B", "text", remote_notes=("n",), remote_traceback=""))
        else:
            made.append(cls("detail"))
    return made


def tree(cls: type[DurableActorError]) -> set[type[DurableActorError]]:
    found = {cls}
    for child in cls.__subclasses__():
        if child.__module__ == "durable_actor.errors":
            found |= tree(child)
    return found


@pytest.mark.parametrize("error", made_errors(), ids=lambda e: type(e).__name__)
def test_every_error_of_the_tree_crosses_with_all_its_fields(
    error: DurableActorError,
) -> None:
    found = codec.loads_error(codec.dumps_error(error))

    assert type(found) is type(error)
    assert isinstance(found, DurableActorError)
    assert found.remote
    assert same(
        {**vars(found), "remote": True, "str": str(found), "args": found.args},
        {**vars(error), "remote": True, "str": str(error), "args": error.args},
    )
    for name in ("code", "retryable", "overloaded", "outcome"):
        assert getattr(found, name) == getattr(error, name)


@pytest.mark.parametrize("error", BUILTIN_ERRORS, ids=lambda e: type(e).__name__)
def test_an_exception_arrives_with_its_type_and_marked_remote(
    error: BaseException,
) -> None:
    found = codec.loads_error(codec.dumps_error(error))

    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.remote is True  # type: ignore[attr-defined]  # set on arrival
    assert getattr(found, "__notes__", []) == getattr(error, "__notes__", [])


def every_builtin_exception() -> list[type[Exception]]:
    kinds = [kind for kind in vars(builtins).values() if isinstance(kind, type)]
    return sorted(
        {kind for kind in kinds if issubclass(kind, Exception)},
        key=lambda kind: kind.__name__,
    )


@pytest.mark.parametrize("kind", every_builtin_exception())
def test_every_exception_of_python_arrives(kind: type[Exception]) -> None:
    special: dict[type[Exception], tuple[Any, ...]] = {
        UnicodeDecodeError: ("utf-8", b"", 0, 1, "bad"),
        UnicodeEncodeError: ("utf-8", "", 0, 1, "bad"),
        UnicodeTranslateError: ("", 0, 1, "bad"),
        ExceptionGroup: ("many", [ValueError()]),
    }
    error = kind(*special.get(kind, ("text",)))
    found = codec.loads_error(codec.dumps_error(error))
    assert (type(found), str(found)) == (kind, str(error))


def test_a_traceback_travels_only_if_asked_for_and_never_twice() -> None:
    error = raised(ShopError("corner", code=7), cause=KeyError("secret place"))
    traced = codec.loads_error(codec.dumps_error(error, include_traceback=True))
    assert "samples.py" in "".join(traced.__notes__)

    # The next hop is the edge of the process, say.
    for data in (codec.dumps_error(error), codec.dumps_error(traced)):
        assert b"samples.py" not in data
        assert not hasattr(codec.loads_error(data), "__notes__")


def test_the_causes_arrive_as_text() -> None:
    inner = raised(ZeroDivisionError("by zero"))
    error = raised(ValueError("outer"), cause=raised(KeyError("middle"), cause=inner))

    found = codec.loads_error(codec.dumps_error(error))

    assert isinstance(found.__cause__, RemoteError)
    assert found.__cause__.type_name == "KeyError"
    assert isinstance(found.__cause__.__cause__, RemoteError)
    assert found.__cause__.__cause__.message == "by zero"


def test_what_cannot_travel_with_an_error_is_left_out_or_becomes_text() -> None:
    error = ValueError("x", lambda: 1, "\ud800", Pair(1, 2))
    error.request = object()  # type: ignore[attr-defined]  # as HTTP clients do
    error.status = 500  # type: ignore[attr-defined]  # as HTTP clients do
    error.add_note("\ud800")

    found = codec.loads_error(codec.dumps_error(error))

    assert found.args[0] == "x"
    assert all(type(arg) is str for arg in found.args)
    assert found.args[3] == "Pair(a=1, b=2)"
    assert "request" not in vars(found)
    assert vars(found)["status"] == 500


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_dumping_an_error_never_fails() -> None:
    alone: Any = ValueError()
    alone.args = (alone, alone)
    alone.again = [alone]
    for error in (MuteError(MuteError()), alone, ValueError("x" * 100_000)):
        for traced in (True, False):
            data = codec.dumps_error(error, include_traceback=traced)
            assert isinstance(codec.loads_error(data), type(error))


def test_a_long_message_is_cut() -> None:
    error = RemoteError("a.B", "x" * 1_000_000)
    error.args = ()
    vars(error).clear()
    data = codec.dumps_error(raised(ValueError(Loose()), cause=error))
    assert len(data) < 3 * ERROR_TEXT_CHARS_MAX


def test_an_error_of_a_class_inside_a_function_arrives_in_the_same_process() -> None:
    class LocalError(Exception):
        pass

    assert isinstance(codec.loads_error(codec.dumps_error(LocalError(1))), LocalError)


def test_an_error_of_an_unknown_class_arrives_as_text(shop: Any) -> None:
    shop.ClosedError = type("ClosedError", (Exception,), {"__module__": "codec_shop"})
    error = raised(shop.ClosedError("no", "bread"))
    error.add_note("at noon")
    data = codec.dumps_error(error, include_traceback=True)
    del sys.modules["codec_shop"]

    found = codec.loads_error(data)

    assert isinstance(found, RemoteError)
    assert found.type_name == "codec_shop.ClosedError"
    assert found.message == "('no', 'bread')"
    assert found.remote_notes == ("at noon",)
    assert "ClosedError" in found.remote_traceback


def test_an_error_with_an_unknown_class_inside_arrives_as_text(
    shop: Any,
) -> None:
    data = codec.dumps_error(ValueError("closed", shop.Cart("ann")))
    del sys.modules["codec_shop"]

    found = codec.loads_error(data)

    assert isinstance(found, RemoteError)
    assert found.type_name == "ValueError"
    assert "ann" in found.message


def test_a_value_with_an_unknown_exception_inside_is_a_decode_error(
    shop: Any,
) -> None:
    shop.ClosedError = type("ClosedError", (Exception,), {"__module__": "codec_shop"})
    data = codec.encode([shop.ClosedError("no")])
    del sys.modules["codec_shop"]
    with pytest.raises(DecodeError, match="codec_shop:ClosedError"):
        codec.decode(data)


@pytest.mark.parametrize(
    "signal", [asyncio.CancelledError("x"), KeyboardInterrupt(), SystemExit(1)]
)
def test_a_signal_arrives_as_an_error_and_not_as_a_signal(
    signal: BaseException,
) -> None:
    found = codec.loads_error(codec.dumps_error(signal))

    assert isinstance(found, RemoteError)
    assert found.type_name.endswith(type(signal).__name__)


def test_only_an_exception_is_loaded_as_one() -> None:
    for value in (1, [ValueError()], None, KeyboardInterrupt):
        data = codec.encode(value) if value is not KeyboardInterrupt else b"\x01\xc1"
        with pytest.raises(DecodeError):
            codec.loads_error(data)
