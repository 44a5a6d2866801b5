"""Memory that processes share by a path: what multiprocessing, numpy and pyarrow make of it."""

import mmap
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.support.posix import Child, in_child, opened

MIB = 1 << 20


def test_a_segment_made_as_shm_open_does(place: Path) -> None:
    """As multiprocessing.shared_memory does: open, extend, map; others attach by name; unlink while it is mapped."""
    with opened(place / "segment", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) as fd:
        os.ftruncate(fd, MIB)
        segment = mmap.mmap(fd, MIB)

    def attach(number: int) -> None:
        with opened(place / "segment") as fd, mmap.mmap(fd, os.fstat(fd).st_size) as mine:
            assert mine[0] == 42
            for at in range(number, MIB, 4096):
                mine[at] = number

    with segment:
        segment[0] = 42
        children = [Child(lambda number=number: attach(number)) for number in range(1, 5)]
        for child in children:
            child.result()
        os.unlink(place / "segment")
        assert all(segment[at : at + 5] == bytes([0, 1, 2, 3, 4]) for at in range(4096, MIB, 4096))


def test_numpy_memmap_of_several_processes(place: Path) -> None:
    rows, columns = 64, 4096
    path = place / "array.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(rows, columns))

    def fill(worker: int) -> None:
        mine = np.load(path, mmap_mode="r+")
        for row in range(worker, rows, 4):
            mine[row] = row * np.arange(columns)
        mine.flush()

    children = [Child(lambda worker=worker: fill(worker)) for worker in range(4)]
    for child in children:
        child.result()
    assert np.array_equal(array, np.outer(np.arange(rows), np.arange(columns)))
    assert np.array_equal(np.load(path), array), "what was mapped is what is read"
    copy = np.load(path, mmap_mode="c")
    copy[:] = 7
    assert array[1, 1] == 1, "a private mapping is private"


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_pyarrow_reads_a_mapped_table(place: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415 - may be missing

    table = pa.table({"number": list(range(100_000)), "text": [f"row {number}" for number in range(100_000)]})
    with pa.OSFile(str(place / "table"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)

    def total() -> int:
        with pa.memory_map(str(place / "table"), "r") as source:
            mapped = pa.ipc.open_file(source).read_all()
            assert mapped.equals(table)
            return sum(mapped["number"].to_pylist())

    assert in_child(total) == total() == sum(range(100_000))
    with pa.create_memory_map(str(place / "made"), MIB) as made:
        made.write(b"x" * MIB)
        made.flush()
    assert (place / "made").read_bytes() == b"x" * MIB
