"""What passes between the keeper and a daemon: the message with which a daemon starts, and how it says why it ended."""

import json
from dataclasses import asdict, dataclass, fields

from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.pool.cgroup import PoolCgroup

HANDED_OVER = 10
"""The exit code of a daemon that another one is to follow, as it was told to."""
MESSAGE_BYTES = 64 << 10
"""No message between them is longer."""


@dataclass(frozen=True, slots=True)
class Start:
    """`options` as mount(8) words them. `resumes`: another daemon served this pool before; `restarts`: so many died.

    `died`: the one before it ended by itself, rather than to be replaced. `reloads`: how often the installed version
    took over. These have defaults because a keeper of an earlier version does not tell them. What a keeper of a later
    version tells besides is left out.
    """

    mountpoint: str
    name: str
    options: str
    resumes: bool
    restarts: int
    keeper_pid: int
    outlives_keeper: bool
    cgroup: str
    came_from: str
    removable: tuple[str, ...]
    died: bool = True
    reloads: int | None = None

    @classmethod
    def read(cls, message: bytes) -> "Start":
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(message).items() if name in known})

    def message(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def pool_cgroup(self) -> PoolCgroup:
        return PoolCgroup(find_memory_hierarchy(), self.cgroup, self.came_from, tuple(self.removable))
