"""The cache of an executor that has exited: others go on reading what it left on tmpfs, until somebody cleans up.

What hurts: the one that is charged is gone, the ones that use it pay nothing, and what nobody uses any more cannot be
told from what everybody uses. The out-of-memory killer looks for the memory in vain.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet

FILES, FILE_PAGES = 512, 8 * MIB_PAGES
BUILDERS = 10
HOURS = 3.0
EXECUTOR_SECONDS = 300.0
USED_SHARE = 0.4
LIMIT_BYTES = 2 << 30


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """4 GiB are left behind; the builders read two fifths of it, each for an hour or so; at the end it is deleted."""
    end = HOURS * 3600
    sheet = Sheet()
    executor = sheet.start(0, "/executors/first", 8 << 30)
    written = np.linspace(1, EXECUTOR_SECONDS - 10, FILES)
    files = np.array([sheet.file(0, f"cache/{number}") for number in range(FILES)])
    sheet.add(Event.ALLOCATE, written, executor, files, 0, FILE_PAGES - 1, 1)
    sheet.exit(EXECUTOR_SECONDS, executor)
    used = random.permutation(files)[: int(FILES * USED_SHARE)]
    reads = max(100, events // BUILDERS)
    for builder in range(BUILDERS):
        begin = EXECUTOR_SECONDS + builder * (end - 4600) / BUILDERS
        tenant = sheet.start(begin, f"/builders/{builder}", LIMIT_BYTES)
        at = np.sort(random.uniform(begin + 1, begin + 3600, reads))
        sheet.add(Event.TOUCH, at, tenant, random.choice(used, reads), 0, FILE_PAGES - 1, 1)
        sheet.exit(begin + 3601, tenant)
    sheet.add(Event.FREE, end - 10, 0, files, 0, FILE_PAGES - 1)
    # Somebody is still there when it is deleted, so that the trace does not end with it.
    sheet.exit(end, sheet.start(end - 20, "/builders/last", LIMIT_BYTES))
    yield sheet.turn()
