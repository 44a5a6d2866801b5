"""The version of what outlives a daemon, so that a package that cannot read it is refused before it takes over.

It covers the files of the state (INIT, options in force, the mount, journal and deaths, requests in hand, inodes and
their makers, moved pages, books), the messages between keeper and daemon, and the names of modules that these start. A
file of the state tells it:

    {"version": 3, "leaves": [1, 2, 3]}     what is there, and what the running daemon can make of it as it hands over

Version 1 had no such file, and its packages cannot say what they read. Version 2 has records in the log of classes that
version 1 does not know (`ledger/class_table.py`); a log without these is one of version 1, too. Version 3 knows the
heirs of tenants that are gone; what is left for version 1 or 2 has none.

Whoever changes anything of it so that the version before cannot read it raises VERSION, and either has the daemon leave
what the version before reads (`Pool._leave`), or takes that version out of LEAVES.
"""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from sharedfs.common.errors import HostFault

VERSION = 3
"""What a daemon of this package writes."""
READS = (1, 2, 3)
"""The versions that it can continue."""
LEAVES = (1, 2, 3)
"""Those that it can leave behind when it hands over."""
SPARE_MODULE = "sharedfs.spare"
"""What a keeper starts, of whichever version is installed by then: this name stays."""
LOOKER_MODULES = ("sharedfs.linux.looker", "sharedfs.looker")
"""What a daemon starts to look at processes, of whichever version is installed by then; first the name of this version,
then that of daemons before the folders. What the two say: `pages/look_messages.py`."""

_FILE = "version"
_FIRST = 1


class StateFile(StrEnum):
    """What is in the directory of the state. Requests in hand have files besides (`storage/in_hand.py`)."""

    INIT = "init"
    """The kernel's INIT request."""
    OPTIONS = "options"
    """Those in force, as mount(8) words them."""
    DEVICE = "device"
    """The numbers of the mount's device, as text."""
    JOURNAL = "journal"
    REQUEST = "request"
    """What the pump reads into."""
    DEATHS = "deaths"
    GENERATIONS = "generations"
    NODES = "nodes"
    """The words of inodes: `storage/node_words.py`."""
    MAKERS = "makers"
    PUNCHED = "punched"
    FILLED = "filled"
    BOOKS = "books"
    """A directory: `accounting/persistence.py`."""
    FAULTS = "faults"
    """Of tests: where a daemon is to die."""


class Held(StrEnum):
    """The descriptors that keepers hold for daemons, and service managers for keepers, by name."""

    LOCK = "lock"
    """Of the pool's name on this host."""
    DEVICE = "device"
    """Of /dev/fuse: the connection."""
    STORE = "store"
    """The directory of the tmpfs that has files and names."""
    STATE = "state"
    """The directory of the tmpfs that has all that this module's version is about."""
    FEED = "feed"
    """The socket that answers the controller."""
    SPILL = "spill"
    """The directory for copies on disk, where there is one."""
    KEEPER = "keeper"
    """A spare's end of its link to the keeper, which nobody else gets."""


class Word(StrEnum):
    """What a message between keeper, spare and daemon begins with. Who does not know one leaves it unheard."""

    WARM = "warm"
    """A spare can fork daemons; numbers follow, of the versions that it reads."""
    PID = "pid"
    """A daemon's process id follows."""
    SERVING = "serving"
    """A daemon answers the kernel."""
    FAILED = "failed"
    """A daemon could not start; its exit code and a line follow."""
    HAND_OVER = "hand over"
    """The daemon is to end and leave the mount; the number of a version may follow, in which it leaves the state."""
    END = "end"
    """The daemon is to end, and the mount with it."""

    def message(self, rest: str = "") -> bytes:
        return f"{self} {rest}".encode() if rest else self.encode()


@dataclass(frozen=True)
class Kept:
    """What a state is, and what its daemon can make of it."""

    version: int
    leaves: tuple[int, ...]

    def for_reader(self, reads: Collection[int]) -> int | None:
        """The version in which a package that reads these can get it; None: in none."""
        if self.version in reads:
            return self.version
        return max(set(self.leaves).intersection(reads), default=None)

    def refusal(self, reads: Collection[int]) -> str:
        """Why such a package does not take over, in one line."""
        there = f"version {self.version}, which the daemon can leave as {_words(self.leaves)}"
        return f"the state of this pool is of {there}; the installed package reads {_words(reads)}: install another one"


UNMARKED = Kept(_FIRST, (_FIRST,))
"""What a daemon of version 1 keeps."""
_THIS = Kept(VERSION, LEAVES)


def kept_in(state_fd: int) -> Kept:
    """What the state in this directory is. An empty one becomes what this package makes of it."""
    marked = _marked(state_fd)
    if marked is not None:
        return marked
    return UNMARKED if os.listdir(state_fd) else _THIS


def _marked(state_fd: int) -> Kept | None:
    try:
        fd = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=state_fd)
    except FileNotFoundError:
        return None
    with open(fd, encoding="ascii") as file:
        found = json.load(file)
    return Kept(found["version"], tuple(found["leaves"]))


def check(state_fd: int) -> None:
    """Raise HostFault, with one line, unless a daemon of this package can follow the one that runs."""
    kept = kept_in(state_fd)
    if kept.for_reader(READS) is None:
        raise HostFault(kept.refusal(READS))


def check_left(state_fd: int) -> None:
    """As `check`, of a state that no daemon has any more: it stays as it is."""
    kept = kept_in(state_fd)
    if kept.version not in READS:
        raise HostFault(kept.refusal(READS))


def take_over(state_fd: int) -> None:
    """A daemon of this package writes here from now on. Raises HostFault when it cannot read what is there."""
    check_left(state_fd)
    if _marked(state_fd) != _THIS:  # else no memory is needed, of which there may be none when a daemon has died
        mark(state_fd, VERSION)


def mark(state_fd: int, version: int) -> None:
    """What is in the state is of this version. A reader sees the mark before or this one."""
    draft = f"{_FILE}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=state_fd)
    with open(fd, "w", encoding="ascii") as file:
        json.dump({"version": version, "leaves": LEAVES if version == VERSION else [version]}, file)
    os.rename(draft, _FILE, src_dir_fd=state_fd, dst_dir_fd=state_fd)


# -- What keeper, spare and daemon say ---------------------------------------------------------------------------------


def warm() -> bytes:
    """What a spare of this package says when it can fork daemons. Version 1 says it without numbers."""
    return Word.WARM.message(_words(READS))


def read_by(words: str) -> tuple[int, ...]:
    """What a package reads whose spare said these words after "warm"."""
    return tuple(int(word) for word in words.split()) or (_FIRST,)


def hand_over(kept: Kept | None = None, version: int = VERSION) -> bytes:
    """What a keeper says for a daemon to end and leave the state in `version`.

    Without `kept` the successor is not known: the daemon leaves what every version reads. One of version 1 knows no
    number.
    """
    return Word.HAND_OVER.message("" if kept is None or kept.version == _FIRST else str(version))


def is_hand_over(message: bytes) -> bool:
    return message.startswith(Word.HAND_OVER.message())


def asked_version(message: bytes) -> int | None:
    """In which version the state is to be left; None: the successor is not known."""
    number = message.removeprefix(Word.HAND_OVER.message())
    return int(number) if number else None


def _words(versions: Collection[int]) -> str:
    return " ".join(map(str, versions))
