"""Names of pools: made from mountpoints, and refused where they could not be a directory, a cgroup or a socket."""

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.common.errors import CallerMistake
from sharedfs.pool import lock as claims
from sharedfs.pool import registry


@pytest.mark.parametrize(
    ("mountpoint", "name"),
    [
        ("/mnt/shared", "mnt-shared"),
        ("/mnt/with space", "mnt-with-space"),
        ("/.hidden", "hidden"),
        ("/", "pool"),
        ("/ü", "pool"),
        ("/" + "x" * 100, "x" * 64),
    ],
)
def test_default_names(mountpoint: str, name: str) -> None:
    assert registry.name_for(mountpoint) == name


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=200))
def test_every_default_name_is_a_name(rest: str) -> None:
    registry.check_name(registry.name_for(f"/{rest}"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "a\n", "ü", "n" * 65])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(CallerMistake, match="cannot name a pool"):
        registry.check_name(name)


def test_a_socket_needs_a_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAREDFS_RUN_DIR", "/" + "d" * 90)
    with pytest.raises(CallerMistake, match="too long for a socket"):
        registry.check_name("name")


def test_a_lock_whose_directory_went_away_is_taken_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon that ends removes its directory before it lets go of the lock in it."""
    monkeypatch.setenv("SHAREDFS_RUN_DIR", str(tmp_path))
    set_lock, ended = fcntl.fcntl, []

    def another_ends_first(lock: int, operation: int, argument: bytes) -> object:
        if not ended:
            ended.append(lock)
            claims.forget("name")
        return set_lock(lock, operation, argument)

    monkeypatch.setattr(claims.fcntl, "fcntl", another_ends_first)
    lock = claims.claim("name")
    try:
        assert os.fstat(lock).st_ino == (tmp_path / "pools" / "name" / "lock").stat().st_ino
        with pytest.raises(CallerMistake, match="already mounted"):
            claims.claim("name")
    finally:
        os.close(lock)
