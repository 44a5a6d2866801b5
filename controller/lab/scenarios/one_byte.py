"""Six workers with data of their own, and a scanner (a backup, say) that reads one byte of every page now and then.

What hurts: where a touch is a use, one byte costs as much as a page, and the scanner carries a good part of everybody's
bill for as long as its touch is remembered; where only the first touch counts, it gets away with anything but a new
file.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet

WORKERS = 6
DATA_PAGES = 128 * MIB_PAGES
CHUNK_PAGES = MIB_PAGES
SECONDS = 7200.0
SCAN_EVERY_SECONDS = 1800.0
LIMIT_BYTES = 256 << 20
SCANNER = WORKERS
ROLES = {"scanner": SCANNER}


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    sheet = Sheet()
    workers = [sheet.start(0, f"/jobs/worker-{number}", LIMIT_BYTES) for number in range(WORKERS)]
    scanner = sheet.start(0, "/jobs/scanner", LIMIT_BYTES)
    chunks = np.arange(0, DATA_PAGES, CHUNK_PAGES)
    reads = max(10, events // WORKERS)
    for worker in workers:
        file = sheet.file(0, f"data/{worker}")
        sheet.add(Event.ALLOCATE, 1 + np.arange(len(chunks)) * 0.1, worker, file, chunks, chunks + CHUNK_PAGES - 1, 1)
        first = random.choice(chunks, reads)
        at = np.sort(random.uniform(30, SECONDS - 1, reads))
        sheet.add(Event.TOUCH, at, worker, file, first, first + CHUNK_PAGES - 1, 4)
        for scan in np.arange(SCAN_EVERY_SECONDS / 2, SECONDS, SCAN_EVERY_SECONDS):
            sheet.add(Event.TOUCH, scan + chunks / DATA_PAGES, scanner, file, chunks, chunks + CHUNK_PAGES - 1, 1)
        sheet.exit(SECONDS, worker)
    sheet.exit(SECONDS, scanner)
    yield sheet.turn()
