"""The token file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from durable_actor.daemon.tokens import read_token, token_of
from durable_actor.errors import ConfigError


def test_s2_a_token_of_256_bits_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "token"

    token = token_of(path)

    assert len(token) >= 43  # 256 bits in base 64
    assert token_of(path) == token == read_token(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_s2_the_file_is_for_its_owner_whatever_the_umask(
    tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        token_of(tmp_path / "token")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_a_token_that_someone_chose_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  a-token-that-someone-chose\n")
    path.chmod(0o400)

    assert token_of(path) == "a-token-that-someone-chose"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_s2_a_file_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    token_of(path)
    path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        token_of(path)


@pytest.mark.parametrize("text", ["", "\n", "short", "x" * 20 + "\x00", "ä" * 20])
def test_a_file_without_a_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(ConfigError, match="holds no token"):
        token_of(path)


def test_s16_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    token_of(tmp_path / "elsewhere")
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match="cannot be read"):
        token_of(tmp_path / "token")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()

    with pytest.raises(ConfigError):
        token_of(tmp_path / "token")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        token_of(tmp_path / "missing" / "token")
