"""The example of the configuration says what is so without one."""

import tomllib
from pathlib import Path

from controller.service.config import Config, load

EXAMPLE = Path(__file__).parents[3] / "deploy" / "controller.toml"


def test_the_example_lists_every_key_with_its_default() -> None:
    assert load(EXAMPLE) == Config()
    assert tomllib.loads(EXAMPLE.read_text()).keys() == Config.model_fields.keys()
