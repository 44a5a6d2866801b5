"""What a daemon and its child that looks at processes tell each other: plain data, whatever version each is of."""

import io
import os
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sharedfs.linux import procfs
from sharedfs.linux.looker import Looker
from sharedfs.linux.mapping_table import MappingTable
from sharedfs.pages import look_messages
from sharedfs.pages.look_messages import answer, ask_mapped, ask_parts, parts_of, sight_of
from sharedfs.pages.page_tables import Parts, PartsSight, Sight

PAGE = 4096
NUMBERS = st.integers(0, 1 << 40)
RUNS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5).map(lambda runs: np.array(runs, np.int64).reshape(-1, 2))
MAPPINGS = st.builds(procfs.Mapping, NUMBERS, NUMBERS, st.booleans(), NUMBERS, NUMBERS)
SIGHTS = st.builds(
    Sight,
    st.builds(procfs.Process, st.just(7), NUMBERS),
    st.none() | st.binary(),
    st.text(),
    st.lists(MAPPINGS, max_size=5).map(MappingTable.of),
    st.dictionaries(NUMBERS, RUNS, max_size=5),
    st.frozensets(NUMBERS, max_size=5),
)


class _PlainOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"a message names {module}.{name}, which another version may not have")


def crossed(message: object) -> Any:
    """What the other side reads."""
    return _PlainOnly(io.BytesIO(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))).load()


def plain(present: Any) -> dict[int, list[list[int]]]:
    return {inode: runs.tolist() for inode, runs in present.items()}


@given(SIGHTS)
def test_a_sight_comes_out_as_it_went_in(sight: Sight) -> None:
    told = sight_of(7, crossed(look_messages._sight_message(sight)))
    assert (told.process, told.cgroup, told.task, told.opened) == (
        sight.process,
        sight.cgroup,
        sight.task,
        sight.opened,
    )
    assert told.mappings.mappings() == sight.mappings.mappings()
    assert plain(told.present) == plain(sight.present)


@given(NUMBERS, NUMBERS, st.dictionaries(NUMBERS, RUNS, max_size=5))
def test_so_do_parts(started: int, faults: int, present: Any) -> None:
    sight = PartsSight(procfs.Process(7, started), faults, present)
    told = parts_of(7, crossed(look_messages._parts_message(sight)))
    assert (told.process, told.faults) == (sight.process, sight.faults)
    assert plain(told.present) == plain(sight.present)


def test_questions_are_plain_too() -> None:
    mapping = procfs.Mapping(PAGE, 3 * PAGE, True, 0, 5)
    assert crossed(ask_mapped((0, 41), pages=True, opened=False))["device"] == (0, 41)
    task, table = crossed(ask_parts(Parts({7: ("/proc/7/task/8", (mapping,))})))["of"][7]
    assert (task, MappingTable.unpacked(table).mappings()) == ("/proc/7/task/8", [mapping])


def test_the_child_of_a_later_version_may_say_more_and_one_of_an_earlier_less() -> None:
    message = look_messages._sight_message(
        Sight(procfs.Process(7, 1), None, "", MappingTable.of([]), {}, frozenset({3}))
    )
    assert sight_of(7, message | {"weather": "fine"}).opened == {3}
    del message["opened"]
    assert sight_of(7, message).opened == frozenset()


@pytest.mark.parametrize("more", [{}, {"weather": "fine"}], ids=["this", "later"])
def test_a_child_that_was_started_answers(more: dict[str, str]) -> None:
    """It maps its own interpreter, of which page tables have something."""
    status = os.stat("/proc/self/exe")
    looker = Looker(answer)
    try:
        question = ask_mapped((os.major(status.st_dev), os.minor(status.st_dev)), pages=True, opened=False) | more
        ((process_id, told),) = looker.looks([os.getpid()], question)
    finally:
        looker.close()
    sight = sight_of(process_id, told)
    assert sight.process == procfs.process_with(os.getpid())
    assert len(sight.present[status.st_ino])
