"""Real programs, unchanged, on plain tmpfs and on a pool: what the one passes, the other passes."""

import shutil
from collections.abc import Iterator

import pytest

from tests.support.mount import MountedPool


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a program did: when its files are gone, the books have what the tmpfs holds (I1).

    Not before: a page fault in a hole through a mapping that is gone before the next scan is seen by nobody.
    """
    callspec = getattr(request.node, "callspec", None)
    where = None if callspec is None else callspec.params.get("place")
    if where is None:
        yield
        return
    directory = request.getfixturevalue("place")
    yield
    shutil.rmtree(directory)
    if where == "sharedfs":
        pool: MountedPool = request.getfixturevalue("shared_pool")
        pool.check_conservation()
