"""What outlives a daemon is laid out as it was: word by word, so that nobody changes it without knowing.

Where one of these fails, another version would read something else than was meant: `pool/schema.py` says what a change
takes.
"""

import importlib
import json
from struct import pack, unpack_from

import pytest

from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import MemoryLog, Record
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.pool import schema
from sharedfs.pool.handoff import Start
from sharedfs.pool.schema import Held, StateFile, Word
from sharedfs.storage import in_hand
from sharedfs.storage.journal import Aftermath, Commit, Intent, Journal, Kind
from sharedfs.storage.node import Node
from sharedfs.storage.node_words import node_of, words_of
from sharedfs.storage.state_files import StateFiles

SLOT_BYTES = 112 << 10
UNIQUE, INODE, DIRECTORY, NEW_DIRECTORY, OTHER = 0x22, 0x101, 0x102, 0x103, 0x104


@pytest.fixture
def slot() -> tuple[Journal, memoryview]:
    """The third slot of a journal, and its memory."""
    journal = Journal(StateFiles())
    slot = journal.slots[2]
    slot.take(UNIQUE, 1)
    memory = slot._memory
    assert len(memory) == SLOT_BYTES
    return journal, memory


def words(memory: memoryview, first: int, behind: int) -> list[int]:
    return list(unpack_from(f"<{behind - first}Q", memory, 8 * first))


def test_an_intent(slot: tuple[Journal, memoryview]) -> None:
    journal, memory = slot
    journal.slots[2].intend(Kind.RENAME, INODE, DIRECTORY, b"old", NEW_DIRECTORY, b"newer", OTHER)
    assert words(memory, 0, 2) == [UNIQUE, 0]
    assert words(memory, 2, 9) == [5, INODE, DIRECTORY, NEW_DIRECTORY, OTHER, 3, 5]
    assert bytes(memory[512:516]) == b"old\0"
    assert bytes(memory[768:774]) == b"newer\0"
    intent = Intent(Kind.RENAME, UNIQUE, INODE, DIRECTORY, b"old", NEW_DIRECTORY, b"newer", OTHER)
    assert journal.slots[2].intent() == intent


def test_a_commit(slot: tuple[Journal, memoryview]) -> None:
    journal, memory = slot
    aftermath = Aftermath(1, 2, 3, 4, -1)
    journal.slots[2].commit(13, b"answer", [(INODE, 7, 8)], aftermath)
    assert words(memory, 0, 2) == [0, UNIQUE]
    assert words(memory, 9, 17) == [6, 13, 1, 1, 2, 3, 4, (1 << 64) - 1]
    assert list(unpack_from("<3Q", memory, 1024)) == [INODE, 7, 8]
    assert bytes(memory[32 << 10 : (32 << 10) + 7]) == b"answer\0"
    assert journal.slots[2].committed() == Commit(UNIQUE, 13, b"answer", [(INODE, 7, 8)], aftermath)


def test_forgets(slot: tuple[Journal, memoryview]) -> None:
    journal, memory = slot
    own = journal.slots[2]
    own.last_backing = 99
    assert own.begin_forgets(UNIQUE) == 0
    own.begin_forget(0, INODE, 4)
    assert words(memory, 17, 24) == [UNIQUE, INODE, 4, 1, 0, 0, 99]
    own.end_forget(0)
    own.end_forgets()
    assert words(memory, 17, 24) == [UNIQUE, INODE, 4, 1, 1, UNIQUE, 99]


def test_kinds_of_intents() -> None:
    numbers = {
        "MAKE": 1,
        "LINK": 2,
        "LINK_NAMELESS": 3,
        "REMOVE": 4,
        "RENAME": 5,
        "MAKE_XATTR": 6,
        "REMOVE_XATTR": 7,
        "EXTEND": 8,
        "CUT": 9,
    }
    assert {kind.name: kind.value for kind in Kind} == numbers


@pytest.mark.parametrize(
    ("name", "value", "second"),
    [
        ("opens", 5, 5),
        ("still", True, 1 << 30),
        ("may_be_mapped", True, 1 << 31),
        ("backing_id", 6, 6 << 32),
        ("mappable", True, 1 << 63),
    ],
)
def test_the_words_of_an_inode(name: str, value: int, second: int) -> None:
    node = Node(INODE, b"handle")
    node.lookups = 3
    setattr(node, name, value)
    assert words_of(node) == (INODE, 3, second)
    found = node_of(INODE, b"handle", 3, second)
    assert getattr(found, name) == value
    assert words_of(found) == words_of(node)


def test_records_of_classes() -> None:
    written: list[Record] = []

    class Kept(MemoryLog):
        def append(self, record: Record) -> None:
            written.append(record)

    table = SharingTable(log=Kept())
    first, second, third = (TenantId(number) for number in (1, 2, 3))

    def users(*tenants: TenantId) -> frozenset[TenantId]:
        return frozenset(tenants)

    table.intern(SharingClass(first, users(second), users(third), users(), foreign=True))
    inherited = SharingClass(NOBODY, users(), users(), users(second), foreign=False, heir=third)
    table.intern(inherited)
    table.exit(first, heir=second)
    table.age()
    assert [json.loads(json.dumps(record)) for record in written] == [
        ["class", 1, 1, 1, [2], [3], []],
        ["class", 2, -3, 0, [], [], [2]],
        ["exit", 1, 2],
        ["age"],
    ]


def test_the_message_that_starts_a_daemon() -> None:
    told = {
        "mountpoint": "/mnt",
        "name": "pool",
        "options": "size=1G",
        "resumes": True,
        "restarts": 2,
        "keeper_pid": 3,
        "outlives_keeper": False,
        "cgroup": "/a/b",
        "came_from": "/a",
        "removable": ["/a/b"],
        "died": False,
        "reloads": 4,
    }
    start = Start.read(json.dumps(told | {"from a later version": 1}).encode())
    assert json.loads(start.message()) == told
    del told["died"], told["reloads"]  # an earlier version tells none of them
    assert (Start.read(json.dumps(told).encode()).died, Start.read(json.dumps(told).encode()).reloads) == (True, None)


def test_words_and_names_that_cross_versions() -> None:
    assert {word.name: word.value for word in Word} == {
        "WARM": "warm",
        "PID": "pid",
        "SERVING": "serving",
        "FAILED": "failed",
        "HAND_OVER": "hand over",
        "END": "end",
    }
    assert {file.name.lower(): file.value for file in StateFile} == {
        file: file
        for file in ("init", "options", "device", "journal", "request", "deaths", "generations", "nodes", "makers")
    } | {file: file for file in ("punched", "filled", "books", "faults")}
    assert sorted(Held) == ["device", "feed", "keeper", "lock", "spill", "state", "store"]
    assert in_hand._name(17) == "in-hand-17"
    modules = (schema.SPARE_MODULE, *schema.LOOKER_MODULES)
    assert modules == ("sharedfs.spare", "sharedfs.linux.looker", "sharedfs.looker")
    assert all(importlib.util.find_spec(module) for module in modules)
    answer, look = "sharedfs.pages.look_messages:answer", "sharedfs.pages.page_tables:look"
    for module, _, name in (place.partition(":") for place in (answer, look)):
        assert callable(getattr(importlib.import_module(module), name))


def test_control_a_word_elsewhere_is_another_operation(slot: tuple[Journal, memoryview]) -> None:
    journal, memory = slot
    journal.slots[2].intend(Kind.RENAME, INODE, DIRECTORY, b"old", NEW_DIRECTORY, b"newer", OTHER)
    memory[16:24], memory[24:32] = pack("<Q", 1), pack("<Q", 5)
    found = journal.slots[2].intent()
    assert found is not None
    assert (found.kind, found.inode) == (Kind.MAKE, 5)
