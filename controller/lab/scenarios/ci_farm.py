"""A CI farm: thousands of short jobs, a few dozen at a time, over one cache of build inputs, each with scratch files.

What hurts: whichever job comes first to a file of the cache is charged for it, and when it is gone its cgroup is a
zombie for as long as the file stays. Some jobs leave a small file behind on tmpfs, which does the same: one byte is
enough.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet
from controller.policies.page_state import Kind

AT_A_TIME, JOB_SECONDS = 32, 60.0
CACHE_FILES, CACHE_FILE_PAGES = 400, 4 * MIB_PAGES
READS = 40
LEFTOVER_SHARE = 0.2
LIMIT_BYTES = 256 << 20


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """Each job reads forty files, some of which nearly all jobs read."""
    jobs = max(AT_A_TIME, events // (READS + 8))
    sheet = Sheet()
    cache = [sheet.file(0, f"cache/{number}", Kind.CACHE) for number in range(CACHE_FILES)]
    for wave in range(-(-jobs // AT_A_TIME)):
        for place in range(min(AT_A_TIME, jobs - wave * AT_A_TIME)):
            begin = (wave + place / AT_A_TIME) * JOB_SECONDS
            _job(sheet, random, cache, begin)
        yield sheet.turn((wave + 1) * JOB_SECONDS)
    yield sheet.turn()


def _job(sheet: Sheet, random: np.random.Generator, cache: list[int], begin: float) -> None:
    end = begin + JOB_SECONDS * 0.9
    job = sheet.start(begin, f"/ci/job-{sheet.tenants}", LIMIT_BYTES)
    wanted = (random.zipf(1.3, READS) - 1) % CACHE_FILES
    at = np.sort(random.uniform(begin + 0.5, end - 0.5, READS))
    sheet.add(Event.ALLOCATE, at, job, np.array(cache)[wanted], 0, CACHE_FILE_PAGES - 1, 1)
    scratch = sheet.file(begin + 0.1, f"scratch/{job}")
    sheet.add(Event.ALLOCATE, begin + 0.2, job, scratch, 0, 8 * MIB_PAGES - 1, 1)
    sheet.add(Event.FREE, end - 0.2, job, scratch, 0, 8 * MIB_PAGES - 1)
    if random.random() < LEFTOVER_SHARE:
        left = sheet.file(end - 0.2, f"leftover/{job}")
        sheet.add(Event.ALLOCATE, end - 0.1, job, left, 0, 0, 1)
    sheet.exit(end, job)
