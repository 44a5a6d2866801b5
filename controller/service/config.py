"""The controller's configuration: a TOML file, every key with a default that is right for most hosts."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.settlement.debts import BearingRule
from controller.settlement.pacing import DEFAULT_PACE, Pace
from controller.settlement.planner import Rules
from sharedfs.common.errors import CallerMistake
from sharedfs.common.headroom import DEFAULT_ROOM, Room

DEFAULT_PATH = Path("/etc/sharedfs/controller.toml")
_MOST_BYTES = 1 << 50
"""A PiB: no host has more memory, and sums of it fit 64 bits."""
_LONGEST_FILE_BYTES = 1 << 20


class Config(BaseModel):
    """See deploy/controller.toml for what each key means."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    policy: Literal["proportional", "first_touch", "reparent", "recharge_mapped", "refuse_removal", "shared_parent"] = (
        "proportional"
    )
    settle: bool = True
    admission: bool = True
    interval_seconds: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    room_bytes: Annotated[int, Field(ge=64 << 10, le=_MOST_BYTES)] = DEFAULT_ROOM.least_bytes
    room_percent: Annotated[int, Field(ge=0, le=25)] = DEFAULT_ROOM.percent
    descent_bytes_per_second: Annotated[int, Field(ge=0, le=_MOST_BYTES)] = DEFAULT_PACE.descent_bytes_per_second
    writes_per_second: Annotated[float, Field(gt=0, le=1000)] = DEFAULT_PACE.writes_per_second
    step_bytes: Annotated[int, Field(ge=0, le=_MOST_BYTES)] = DEFAULT_PACE.step_bytes
    hold_seconds: Annotated[float, Field(ge=0, le=3600)] = DEFAULT_PACE.hold_seconds
    debts_borne_by: BearingRule = "pool"
    write_threads: Annotated[int, Field(ge=1, le=1024)] = 32
    pool_patience_seconds: Annotated[float, Field(ge=0, le=600)] = 5.0
    stop_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0

    @property
    def room(self) -> Room:
        return Room(self.room_bytes, self.room_percent)

    @property
    def rules(self) -> Rules:
        """What the planner goes by."""
        pace = Pace(
            descent_bytes_per_second=self.descent_bytes_per_second,
            writes_per_second=self.writes_per_second,
            step_bytes=self.step_bytes,
            hold_seconds=self.hold_seconds,
        )
        return Rules(self.room, pace, self.debts_borne_by, self.settle, self.admission)


def load(path: Path | None) -> Config:
    """The configuration in `path`, or in the default place if there is one. Raises CallerMistake with one line."""
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        return Config.model_validate(tomllib.loads(_text_of(path)))
    except OSError as error:
        raise CallerMistake(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CallerMistake(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Config.model_fields)
            raise CallerMistake(f"{path}: unknown key {key}: the keys are {known}") from None
        raise CallerMistake(f"{path}: {key}: {first['msg']}") from None


def _text_of(path: Path) -> str:
    """A FIFO would be waited for, and a device can be endless. Raises OSError, UnicodeDecodeError, CallerMistake."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CallerMistake(f"{path} is no regular file: name a TOML file")
        text = file.read(_LONGEST_FILE_BYTES + 1)
    if len(text) > _LONGEST_FILE_BYTES:
        raise CallerMistake(f"{path} has more than {_LONGEST_FILE_BYTES} bytes: name a TOML file")
    return text.decode()
