"""Three tenants make data and use it; a fourth comes after them, reads everything that they made, and made none of it.

What hurts: whoever pays on the first touch pays for the one that waits. The three have to stay, too: the rider goes on
reading what an exited one has left.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet

MAKERS = 3
DATA_PAGES = 256 * MIB_PAGES
CHUNK_PAGES = MIB_PAGES
SECONDS = 3600.0
LIMIT_BYTES = 512 << 20
RIDER = MAKERS
ROLES = {"free rider": RIDER}


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """The first maker exits after half an hour, and its data are still read."""
    sheet = Sheet()
    makers = [sheet.start(0, f"/team/maker-{number}", LIMIT_BYTES) for number in range(MAKERS)]
    rider = sheet.start(0, "/team/rider", LIMIT_BYTES)
    chunks = np.arange(0, DATA_PAGES, CHUNK_PAGES)
    files = [sheet.file(0, f"data/{number}") for number in range(MAKERS)]
    for maker, file in zip(makers, files, strict=True):
        sheet.add(Event.ALLOCATE, 1 + np.arange(len(chunks)) * 0.1, maker, file, chunks, chunks + CHUNK_PAGES - 1, 1)
    reads = max(10, events // (2 * MAKERS))
    for maker, file in zip(makers, files, strict=True):
        end = SECONDS / 2 if maker == 0 else SECONDS
        for tenant, until in ((maker, end), (rider, SECONDS)):
            first = random.choice(chunks, reads)
            at = np.sort(random.uniform(60, until - 1, reads))
            sheet.add(Event.TOUCH, at, tenant, file, first, first + CHUNK_PAGES - 1, 1)
        sheet.exit(end, maker)
    sheet.exit(SECONDS, rider)
    yield sheet.turn()
