"""What a daemon and the process that looks at others for it tell each other (`linux/looker.py`).

The package may have been replaced since the daemon started, and a new child is of the new version then. So both are
plain data, each part by its name; who reads one that lacks a part takes its default, and leaves out what it does not
know. The module's name and `answer` stay.

    {"asks": "mapped", "device": (major, minor), "pages": bool, "opened": bool}    of each process
    {"asks": "parts", "of": {process id: (task, mappings)}}                       of each of these

    {"started": ticks, "task": str, "cgroup": bytes | None, "mappings": mappings, "opened": [inode], "present": pages}
    {"started": ticks, "faults": int, "present": pages}

`mappings` are `MappingTable.packed`; `pages` is {inode: pairs of first and last page, 8 bytes each}.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sharedfs.ledger.page_ranges import Runs
from sharedfs.linux import procfs
from sharedfs.linux.mapping_table import MappingTable
from sharedfs.pages.page_tables import Device, Parts, PartsSight, Sight, see, see_parts

Message = dict[str, Any]


def ask_mapped(device: Device, *, pages: bool, opened: bool) -> Message:
    return {"asks": "mapped", "device": device, "pages": pages, "opened": opened}


def ask_parts(question: Parts) -> Message:
    tables = {id: (task, MappingTable.of(parts).packed()) for id, (task, parts) in question.by_process.items()}
    return {"asks": "parts", "of": tables}


def answer(process_id: int, question: Message) -> Message | None:
    """In the child. None of a process that has nothing of what is asked, or that is gone."""
    if question["asks"] == "parts":
        task, parts = question["of"][process_id]
        told = see_parts(process_id, task, MappingTable.unpacked(parts))
        return None if told is None else _parts_message(told)
    sight = see(process_id, question["device"], pages=question["pages"], opened=question.get("opened", False))
    return None if sight is None else _sight_message(sight)


def sight_of(process_id: int, message: Message) -> Sight:
    return Sight(
        procfs.Process(process_id, message["started"]),
        message["cgroup"],
        message["task"],
        MappingTable.unpacked(message["mappings"]),
        _present_of(message),
        frozenset(message.get("opened", ())),
    )


def parts_of(process_id: int, message: Message) -> PartsSight:
    return PartsSight(procfs.Process(process_id, message["started"]), message["faults"], _present_of(message))


def _sight_message(sight: Sight) -> Message:
    return {
        "started": sight.process.started,
        "cgroup": sight.cgroup,
        "task": sight.task,
        "mappings": sight.mappings.packed(),
        "present": _pages(sight.present),
        "opened": list(sight.opened),
    }


def _parts_message(told: PartsSight) -> Message:
    return {"started": told.process.started, "faults": told.faults, "present": _pages(told.present)}


def _pages(present: Mapping[int, Runs]) -> dict[int, bytes]:
    return {inode: np.ascontiguousarray(runs, np.int64).tobytes() for inode, runs in present.items()}


def _present_of(message: Message) -> dict[int, Runs]:
    return {inode: np.frombuffer(runs, np.int64).reshape(-1, 2) for inode, runs in message["present"].items()}
