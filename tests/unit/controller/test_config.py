"""The example of the configuration says what is so without one."""

import os
import tomllib
from pathlib import Path

import pytest

from controller.service.config import Config, load
from sharedfs.common.errors import CallerMistake

EXAMPLE = Path(__file__).parents[3] / "deploy" / "controller.toml"


def test_the_example_lists_every_key_with_its_default() -> None:
    assert load(EXAMPLE) == Config()
    assert tomllib.loads(EXAMPLE.read_text()).keys() == Config.model_fields.keys()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", ["fifo", "directory", "device"])
def test_only_a_regular_file_is_read(tmp_path: Path, what: str) -> None:
    """A FIFO that nobody writes to would be waited for, for ever."""
    path = tmp_path / "controller.toml"
    {"fifo": lambda: os.mkfifo(path), "directory": path.mkdir, "device": lambda: path.symlink_to("/dev/zero")}[what]()
    with pytest.raises(CallerMistake, match=r"controller\.toml"):
        load(path)


def test_an_endless_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "controller.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CallerMistake, match="more than"):
        load(path)


@pytest.mark.parametrize("key", ["room_bytes", "descent_bytes_per_second", "step_bytes"])
def test_sizes_that_no_host_has_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "controller.toml"
    for value in (1 << 63, 10**23):
        path.write_text(f"{key} = {value}\n")
        with pytest.raises(CallerMistake, match=key):
            load(path)
    path.write_text(f"{key} = {1 << 40}\n")
    assert load(path).model_dump()[key] == 1 << 40
