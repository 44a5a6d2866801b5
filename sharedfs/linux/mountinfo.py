"""The mounts of this process's namespace, from /proc/self/mountinfo: found without touching any of them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_GROUP = re.compile(rb"(?:shared|master|propagate_from):(\d+)")
_PEERS = re.compile(rb"shared:(\d+)")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5)). `device` is (major, minor), `options` the mount's alone.

    `root` is the directory of the filesystem that the mountpoint shows. `id` and `parent` are numbers of mounts,
    `groups` those of the peer groups that it shares events with, or takes them from, and `peers` the one that it shares
    events with (None: none), as mount_namespaces(7) has it.
    """

    device: tuple[int, int]
    mountpoint: str
    kind: str
    source: str
    super_options: frozenset[str]
    options: tuple[str, ...] = ()
    root: str = "/"
    id: int = 0
    parent: int = 0
    groups: frozenset[int] = frozenset()
    peers: int | None = None

    def goes_with(self, above: "Mount | None") -> bool:
        """Whether what is mounted on this mount goes when its like is unmounted from `above`, by propagation."""
        return above is not None and above.peers in self.groups


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts in the order they were made: where two share a mountpoint, the later one is on top."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        kind, source, super_options = right.split(b" ", 2)
        major, _, minor = fields[2].partition(b":")
        tags = b" ".join(fields[6:])
        peers = _PEERS.search(tags)
        mounts.append(
            Mount(
                (int(major), int(minor)),
                unescape(fields[4]),
                os.fsdecode(kind),
                unescape(source),
                frozenset(os.fsdecode(super_options).split(",")),
                tuple(os.fsdecode(fields[5]).split(",")),
                unescape(fields[3]),
                int(fields[0]),
                int(fields[1]),
                frozenset(int(number) for number in _GROUP.findall(tags)),
                None if peers is None else int(peers[1]),
            )
        )
    return mounts


def mounts(process: int | str = "self") -> list[Mount]:
    """The mounts that a process sees."""
    return parse_mountinfo(Path(f"/proc/{process}/mountinfo").read_bytes())


def mount_at(mountpoint: str) -> Mount | None:
    """What is mounted on top at exactly `mountpoint`, None for nothing."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def unescape(field: bytes) -> str:
    """A field of mountinfo or fstab(5), in which spaces and the like are octal."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
