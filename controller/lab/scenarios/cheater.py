"""Two tenants need the same data at the same times. One reads it as it comes, the other does all it can to pay less.

The cheater never comes first: it starts each round after its twin. It maps instead of reading, so that no access is
counted. And it accesses a small file of its own all the time, so that the shared one is not what it wants most. What it
cannot do is to use the data and have no page mapped. A policy that cannot be cheated bills both alike.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet

DATA_PAGES = 256 * MIB_PAGES
CHUNK_PAGES = MIB_PAGES
OWN_PAGES = 96 * MIB_PAGES
ROUND_SECONDS = 600.0
ROUNDS = 12
LIMIT_BYTES = 192 << 20
ROLES = {"cheater": 2, "its twin": 1}


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """In each round a loader brings the data in and exits; the twin reads, and the cheater maps what is there then."""
    sheet = Sheet()
    loader = sheet.start(0, "/lab/loader-0", 1 << 30)
    twin = sheet.start(0, "/lab/twin", LIMIT_BYTES)
    cheater = sheet.start(0, "/lab/cheater", LIMIT_BYTES)
    chunks = np.arange(0, DATA_PAGES, CHUNK_PAGES)
    decoys = [sheet.file(0, f"own/{tenant}") for tenant in (twin, cheater)]
    for tenant, decoy in zip((twin, cheater), decoys, strict=True):
        sheet.add(Event.ALLOCATE, 1, tenant, decoy, 0, OWN_PAGES - 1, 1)
    reads = max(50, events // (2 * ROUNDS))
    for turn in range(ROUNDS):
        begin, end = turn * ROUND_SECONDS + 2, (turn + 1) * ROUND_SECONDS
        data = sheet.file(begin, f"data/{turn}")
        if turn:
            loader = sheet.start(begin, f"/lab/loader-{turn}", 1 << 30)
        sheet.add(Event.ALLOCATE, begin + 1, loader, data, chunks, chunks + CHUNK_PAGES - 1, 1)
        sheet.exit(begin + 60, loader)
        sheet.add(Event.TOUCH, begin + 2, twin, data, chunks, chunks + CHUNK_PAGES - 1, 1)
        sheet.add(Event.MAP, begin + 3, cheater, data, 0, DATA_PAGES - 1)
        # The twin looks at everything once in ten seconds, so it uses the data as continuously as a mapping does.
        for at in np.arange(begin + 10, end - 5, 10.0):
            sheet.add(Event.TOUCH, at, twin, data, 0, DATA_PAGES - 1, 1)
        at = np.sort(random.uniform(begin + 5, end - 5, reads))
        sheet.add(Event.TOUCH, at, cheater, decoys[1], 0, OWN_PAGES - 1, 1)
        at = np.sort(random.uniform(begin + 5, end - 5, max(1, reads // 50)))
        sheet.add(Event.TOUCH, at, twin, decoys[0], 0, OWN_PAGES - 1, 1)
        sheet.add(Event.UNMAP, end - 3, cheater, data, 0, DATA_PAGES - 1)
        sheet.add(Event.FREE, end - 2, 0, data, 0, DATA_PAGES - 1)
        yield sheet.turn(end)
    sheet.exit(ROUNDS * ROUND_SECONDS, twin)
    sheet.exit(ROUNDS * ROUND_SECONDS, cheater)
    yield sheet.turn()
