"""A pod that fills its tmpfs, dies of it, and is started again, over and over (an emptyDir with medium Memory).

What hurts: each container of the pod is charged for what it writes and for nothing that it finds. What earlier ones
left is on the books of cgroups that are gone, or of the pod: so a restart launders the charge, until the tmpfs is
full, and the container that starts then dies again at once.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet

LIFE_SECONDS = 120.0
LIMIT_BYTES = 128 << 20
WRITTEN_PAGES = 48 * MIB_PAGES
FULL_PAGES = 1024 * MIB_PAGES
CHUNK_PAGES = 16
READS = 200


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    restarts = max(4, events // (WRITTEN_PAGES // CHUNK_PAGES + READS))
    sheet = Sheet()
    state = sheet.file(0, "empty-dir/state")
    other = sheet.start(0, "/pods/other/main", LIMIT_BYTES)
    beside = sheet.file(0, "other/data")
    sheet.add(Event.ALLOCATE, 1, other, beside, 0, 32 * MIB_PAGES - 1, 1)
    filled = 0
    for restart in range(restarts):
        begin, end = restart * LIFE_SECONDS, (restart + 1) * LIFE_SECONDS - 1
        container = sheet.start(begin, f"/pods/hungry/main-{restart}", LIMIT_BYTES)
        if filled:
            first = random.integers(0, filled // CHUNK_PAGES, READS) * CHUNK_PAGES
            at = np.sort(random.uniform(begin + 1, end - 1, READS))
            sheet.add(Event.TOUCH, at, container, state, first, first + CHUNK_PAGES - 1, 1)
        first = np.arange(filled, min(filled + WRITTEN_PAGES, FULL_PAGES), CHUNK_PAGES)
        if len(first):
            at = np.linspace(begin + 1, end - 1, len(first))
            sheet.add(Event.ALLOCATE, at, container, state, first, first + CHUNK_PAGES - 1, 1)
            filled = int(first[-1]) + CHUNK_PAGES
        sheet.add(Event.TOUCH, np.arange(begin + 2, end, 10.0), other, beside, 0, 32 * MIB_PAGES - 1, 1)
        sheet.exit(end, container)
        yield sheet.turn((restart + 1) * LIFE_SECONDS)
    sheet.exit(restarts * LIFE_SECONDS, other)
    yield sheet.turn()
