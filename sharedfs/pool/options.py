"""Mount options as mount(8) and fstab(5) write them: words with commas between, some with a value. Pure.

`sharedfs mount -o`, the helper that mount(8) calls and a remount all read them here, and the daemon that serves the
pool is given them by `written`: what one of them understands, all do.

A flag says which MS_ bits (mount(2)) it clears and sets, so that words can be put on top of any flags; the last
one wins.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sharedfs.common.errors import CallerMistake
from sharedfs.common.units import Part, parse_part, parse_size
from sharedfs.ledger.tenant_rules import DEFAULT_TENANT_RULES, TenantRules
from sharedfs.linux.huge_pages import HUGE, NEVER
from sharedfs.linux.mount_flags import (
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
)
from sharedfs.linux.mountinfo import Mount
from sharedfs.pool.cgroup import DEFAULT_PARENT

FILESYSTEM_TYPE = "fuse.sharedfs"

DEFAULT_FLAGS = MS_NOSUID | MS_NODEV
"""Tenants share a pool and need not trust each other: set-id programs and devices are the administrator's to allow."""

_ATIME = MS_NOATIME | MS_RELATIME | MS_STRICTATIME

# word: (bits to clear, bits to set)
_FLAGS = {
    "rw": (MS_RDONLY, 0),
    "ro": (0, MS_RDONLY),
    "suid": (MS_NOSUID, 0),
    "nosuid": (0, MS_NOSUID),
    "dev": (MS_NODEV, 0),
    "nodev": (0, MS_NODEV),
    "exec": (MS_NOEXEC, 0),
    "noexec": (0, MS_NOEXEC),
    "async": (MS_SYNCHRONOUS, 0),
    "sync": (0, MS_SYNCHRONOUS),
    "dirsync": (0, MS_DIRSYNC),
    "atime": (MS_NOATIME, 0),
    "noatime": (_ATIME, MS_NOATIME),
    "relatime": (_ATIME, MS_RELATIME),
    "norelatime": (MS_RELATIME, 0),
    "strictatime": (_ATIME, MS_STRICTATIME),
    "nostrictatime": (MS_STRICTATIME, 0),
    "diratime": (MS_NODIRATIME, 0),
    "nodiratime": (0, MS_NODIRATIME),
    "lazytime": (0, MS_LAZYTIME),
    "nolazytime": (MS_LAZYTIME, 0),
}

# fmt: off
_FOR_OTHERS = frozenset((
    # mount(8)'s own words that it hands on, or that an fstab has for its readers
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "nousers", "owner", "noowner",
    "group", "nogroup", "silent", "loud",
    # of no meaning for memory or on today's kernels
    "mand", "nomand", "iversion", "noiversion",
    # what every FUSE filesystem is asked with, and a pool always is
    "allow_other", "default_permissions",
))
# fmt: on
_FOR_OTHERS_WITH_VALUE = frozenset(("user", "comment", "helper"))
# mount(8) repeats what the kernel shows of a mount when it is remounted.
_OF_A_LIVE_MOUNT = frozenset(("fd", "rootmode", "user_id", "group_id", "max_read", "blksize"))


class Reads(StrEnum):
    """How read(2) of a file opened for reading only is attributed: page by page, or by the open handle."""

    EXACT = "exact"
    FAST = "fast"


class UnclaimedRule(StrEnum):
    """What becomes of files that nobody uses any more."""

    KEEP = "keep"
    DELETE = "delete"
    SPILL = "spill"
    YIELD = "yield"


_WORD = re.compile(r'(?:[^,"]|"[^"]*")+')
MOST_INODES = 1 << 32
"""Files of one pool: tmpfs takes more, and numbers them in 64 bits, but no host has memory for 6 TiB of inodes."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a pool is mounted with. Sizes are bytes, times seconds, `flags` MS_ bits.

    Files that nobody uses any more are deleted after `grace_seconds`, or spilled to `spill_directory`, if `unclaimed`
    says so; YIELD has them go when there is no space left.

    `tenant_rules` say which cgroup is a tenant (see `TenantRules`). `huge` is tmpfs's word for where huge
    pages are made. `root_mode`, `root_uid` and `root_gid` are those of the root directory at first, as with tmpfs.
    `inodes` is how many files there may be: 0 is no bound, None what tmpfs thinks right. `tenant_cap` and `remainder`
    are parts of the size: how far a tenant's share may grow, and what stays for those whose share is less than that.
    """

    mountpoint: str
    name: str
    size_bytes: int
    cgroup_parent: str = DEFAULT_PARENT
    reserve_bytes: int = 1 << 30
    idle_seconds: float = 600.0
    scan_seconds: float = 0.5
    passthrough: bool = True
    reads: Reads = Reads.EXACT
    tenant_rules: str = DEFAULT_TENANT_RULES
    unclaimed: UnclaimedRule = UnclaimedRule.KEEP
    grace_seconds: float = 3600.0
    spill_directory: str = ""
    huge: str = NEVER
    root_mode: int = 0o1777
    root_uid: int = 0
    root_gid: int = 0
    inodes: int | None = None
    flags: int = DEFAULT_FLAGS
    tenant_cap: Part | None = None
    remainder: Part | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One key=value: the field of PoolOptions it fills, and both ways between text and value."""

    field: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    changes: bool = False
    """Whether a remount may change it."""


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) == 0:
        raise ValueError(f"{text!r} is not a time: write seconds, more than 0, such as 600")
    return float(text)


def _reads(text: str) -> Reads:
    if text not in set(Reads):
        raise ValueError(f"{text!r} is no way to read: write {' or '.join(Reads)}")
    return Reads(text)


def _unclaimed(text: str) -> UnclaimedRule:
    if text not in set(UnclaimedRule):
        *others, last = UnclaimedRule
        raise ValueError(f"{text!r} is no rule for unclaimed files: write {', '.join(others)} or {last}")
    return UnclaimedRule(text)


def _directory(text: str) -> str:
    if not text.startswith("/") or '"' in text or ".." in text.split("/"):
        raise ValueError(f'{text!r} must be an absolute path without .. and ": give a directory on a disk')
    return text


def _quoted(text: str) -> str:
    return f'"{text}"' if "," in text else text


def _plain_seconds(seconds: float) -> str:
    return f"{seconds:f}".rstrip("0").rstrip(".")


def _huge(text: str) -> str:
    if text not in HUGE:
        raise ValueError(f"{text!r} is no way to make huge pages: write one of {', '.join(HUGE)}")
    return text


def _mode(text: str) -> int:
    if not re.fullmatch("[0-7]{1,5}", text) or int(text, 8) > 0o7777:
        raise ValueError(f"{text!r} is not a mode: write it in octal, such as 1777")
    return int(text, 8)


def _id(text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= 0xFFFFFFFF:
        raise ValueError(f"{text!r} is not an id: write a number")
    return int(text)


def _tenant_rules(text: str) -> str:
    if '"' in text:
        raise ValueError(f"{text!r} must not contain a double quote")
    return TenantRules(text).text


def _cgroup(text: str) -> str:
    if '"' in text or ".." in text.split("/") or not text.isprintable():
        raise ValueError(f'{text!r} must not contain .. or " or what cannot be printed: give a path of cgroups')
    return text


def _inodes(text: str) -> int:
    number = parse_size(text)
    if number > MOST_INODES:
        raise ValueError(f"{text} is more than the kernel can count: write at most {MOST_INODES}, or 0 for no bound")
    return number


SETTINGS: Mapping[str, Setting] = {
    "size": Setting("size_bytes", parse_size, str, changes=True),
    "reserve": Setting("reserve_bytes", parse_size, str),
    "idle": Setting("idle_seconds", _seconds, _plain_seconds, changes=True),
    "cgroup_parent": Setting("cgroup_parent", _cgroup, _quoted),
    "tenant": Setting("tenant_rules", _tenant_rules, _quoted),
    "reads": Setting("reads", _reads, str),
    "unclaimed": Setting("unclaimed", _unclaimed, str, changes=True),
    "grace": Setting("grace_seconds", _seconds, _plain_seconds, changes=True),
    "spill_dir": Setting("spill_directory", _directory, _quoted),
    "huge": Setting("huge", _huge, str),
    "mode": Setting("root_mode", _mode, lambda mode: f"{mode:o}"),
    "uid": Setting("root_uid", _id, str),
    "gid": Setting("root_gid", _id, str),
    "tenant_cap": Setting("tenant_cap", parse_part, str, changes=True),
    "remainder": Setting("remainder", parse_part, str, changes=True),
    "nr_inodes": Setting("inodes", _inodes, str, changes=True),
}
_SWITCHES = {"passthrough": True, "no_passthrough": False}
_SETTING_FIELDS = (*(setting.field for setting in SETTINGS.values()), "passthrough")


@dataclass(frozen=True, slots=True)
class Asked:
    """What words ask for: values by field of PoolOptions, and flags on top of others."""

    settings: dict[str, Any] = field(default_factory=dict)
    cleared: int = 0
    set: int = 0
    remount: bool = False

    def flags_on(self, flags: int) -> int:
        return flags & ~self.cleared | self.set

    def options(self, mountpoint: str, name: str, memory_bytes: int) -> PoolOptions:
        """What a new pool is mounted with: half of the memory where nothing else is said, as tmpfs."""
        settings = {"size_bytes": memory_bytes // 2, **self.settings}
        return PoolOptions(mountpoint=mountpoint, name=name, flags=self.flags_on(DEFAULT_FLAGS), **settings)


def parse(text: str, memory_bytes: int, *, sloppy: bool = False) -> Asked:
    """What `text` asks for. Percents are of `memory_bytes`; `sloppy` lets pass what we do not know.

    A comma in a value takes double quotes around it. Raises CallerMistake, which names the option at fault.

    >>> parse("ro,size=1m", 1 << 30).settings
    {'size_bytes': 1048576}
    """
    settings: dict[str, Any] = {}
    cleared = set_ = 0
    remount = False
    unknown = []
    for word in _words(text):
        name, has_value, value = word.partition("=")
        if name in SETTINGS:
            settings[SETTINGS[name].field] = read_setting(name, value, memory_bytes)
        elif word in _FLAGS:
            clear, bits = _FLAGS[word]
            cleared, set_ = cleared | clear, set_ & ~clear | bits
        elif word in _SWITCHES:
            settings["passthrough"] = _SWITCHES[word]
        elif word == "remount":
            remount = True
        elif not _is_for_others(word, name, bool(has_value)):
            unknown.append(name)
    unknown = [name for name in unknown if not (remount and name in _OF_A_LIVE_MOUNT)]
    if unknown and not sloppy:
        raise CallerMistake(f"{unknown[0]} is no mount option of a pool: known are {_known()}")
    return Asked(settings, cleared, set_, remount)


def read_setting(name: str, text: str, memory_bytes: int) -> Any:
    """The value of one setting. Raises CallerMistake."""
    value = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    try:
        if name == "size" and value.endswith("%"):
            return memory_bytes * parse_size(value[:-1]) // 100
        return SETTINGS[name].read(value)
    except ValueError as error:
        raise CallerMistake(f"{name}={text}: {error}") from None


def flags_of(mount: Mount) -> int:
    """The MS_ bits that a mount has now."""
    flags = 0
    for word in (*mount.options, *mount.super_options):
        flags |= _FLAGS.get(word, (0, 0))[1]
    return flags


def shown_flags(mount: Mount) -> str:
    """The flags of a mount in the kernel's words, those of its filesystem among them."""
    return ",".join([*mount.options, *sorted(mount.super_options & {"sync", "dirsync", "lazytime"})])


def flag_words(flags: int) -> list[str]:
    """Words that set exactly these flags, whatever was there before, as far as one can be unset by a word.

    >>> flag_words(DEFAULT_FLAGS)
    ['rw', 'nosuid', 'nodev', 'exec', 'async', 'diratime', 'nolazytime']
    """
    pairs = (
        (MS_RDONLY, "ro", "rw"),
        (MS_NOSUID, "nosuid", "suid"),
        (MS_NODEV, "nodev", "dev"),
        (MS_NOEXEC, "noexec", "exec"),
        (MS_SYNCHRONOUS, "sync", "async"),
        (MS_NODIRATIME, "nodiratime", "diratime"),
        (MS_LAZYTIME, "lazytime", "nolazytime"),
    )
    words = [word if flags & bit else opposite for bit, word, opposite in pairs]
    alone = (
        (MS_DIRSYNC, "dirsync"),
        (MS_NOATIME, "noatime"),
        (MS_RELATIME, "relatime"),
        (MS_STRICTATIME, "strictatime"),
    )
    return words + [word for bit, word in alone if flags & bit]


def setting_words(values: Mapping[str, Any]) -> list[str]:
    """Words for settings by field of PoolOptions, so that reading them gives the same values; None has no word."""
    words = [
        f"{name}={setting.write(values[setting.field])}"
        for name, setting in SETTINGS.items()
        if values.get(setting.field) is not None
    ]
    words = [word for word in words if word != "spill_dir="]  # none
    return words + [word for word, value in _SWITCHES.items() if values.get("passthrough") is value]


def settings_of(options: PoolOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _SETTING_FIELDS}


def written(options: PoolOptions) -> str:
    """`options` as one text that `parse` reads."""
    return ",".join(flag_words(options.flags) + setting_words(settings_of(options)))


def check_changes(options: PoolOptions, asked: Asked) -> None:
    """Raises CallerMistake for a setting that a pool mounted with `options` cannot change while it is mounted.

    mount(8) repeats all that the fstab says: what stays as it is is no change.
    """
    now = settings_of(options)
    fixed = {"passthrough": "passthrough"} | {name: own.field for name, own in SETTINGS.items() if not own.changes}
    for name, own_field in fixed.items():
        if asked.settings.get(own_field, now[own_field]) != now[own_field]:
            raise CallerMistake(f"{name} cannot change while the pool is mounted: unmount it, and mount it anew")


def check_unclaimed(options: PoolOptions) -> None:
    """Raises CallerMistake where the rule for unclaimed files lacks a place to spill to."""
    if options.unclaimed is UnclaimedRule.SPILL and not options.spill_directory:
        raise CallerMistake("unclaimed=spill needs a directory on a disk: give spill_dir=DIR too, when mounting")


def _words(text: str) -> list[str]:
    if text.count('"') % 2:
        raise CallerMistake(f"{text}: a double quote has no second one")
    return _WORD.findall(text)


def _is_for_others(word: str, name: str, has_value: bool) -> bool:
    """Whether a word is not ours to act on, as fstab(5) and mount(8) have it."""
    if name.startswith(("x-", "X-")):
        return True
    return name in _FOR_OTHERS_WITH_VALUE if has_value else word in _FOR_OTHERS


def _known() -> str:
    return ", ".join([f"{name}=" for name in SETTINGS] + list(_SWITCHES) + list(_FLAGS))
