"""Every operation takes effect once and is answered once, wherever in it the daemon is killed (I8).

The daemon kills itself at an armed point (`sharedfs/storage/fault_injection.py`) in the middle of the operation. The
caller waits, sees no error and the first answer. Afterwards all that was made can be removed without a trace: no
look-up is counted too often (the file would stay in removed/) or too seldom (the daemon would say so).
"""

import os

import pytest

from sharedfs.storage.fault_injection import Point
from tests.support.faults import Armed
from tests.support.operations import OPERATIONS, Place
from tests.support.tenants import wait_until


@pytest.mark.parametrize(
    ("name", "point"), [(name, point) for name, operation in OPERATIONS.items() for point in operation.points]
)
def test_killed_in_an_operation(armed: Armed, name: str, point: Point) -> None:
    operation = OPERATIONS[name]
    pool = armed.pool
    restarts = pool.status().restarts
    (pool.path / "d").mkdir()
    place = Place(armed, pool.path / "d", os.open(pool.path / "d", os.O_RDONLY))
    place.held.callback(os.close, place.fd)
    with place.held:
        operation.prepare(place)
        armed.arm(operation.opcode, point)
        result = operation.act(place)
        wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
        operation.check(place, result)
        inodes = [entry.inode() for entry in os.scandir(place.path)]
    wait_until(lambda: not any(map(armed.opens_of, inodes)), "no open is counted any more")
    armed.remove_all()
    pool.check_conservation()
