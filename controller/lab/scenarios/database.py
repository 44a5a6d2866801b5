"""A database whose backends run in cgroups of their own and share one pool of buffers, which the kernel may not move.

What hurts: the buffers are charged to whichever backend touched each of them first; backends come and go with their
clients, so a busy hour leaves hundreds of zombies; and the sizes that tools show add up to many times the machine.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import MIB_PAGES, Sheet
from controller.policies.page_state import Kind

BUFFER_PAGES = 256 * MIB_PAGES
BUFFER = 64  # pages: what a backend reads of a table in one go
HOT, OWN, HOT_SHARE = 32, 16, 0.7
BACKENDS = 48
SESSION_SECONDS = 240.0
SLICE_SECONDS = SESSION_SECONDS / BACKENDS
SECONDS = 3600.0
LIMIT_BYTES = 64 << 20


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """Sessions begin one after the other and last four minutes; all want the same buffers, and some of their own."""
    slices = int((SECONDS - SESSION_SECONDS) / SLICE_SECONDS)
    accesses = max(4, events // (slices * BACKENDS))
    sheet = Sheet()
    postmaster = sheet.start(0, "/db/postmaster", 1 << 30)
    buffers = sheet.file(0, "shared-buffers", Kind.PINNED)
    hot = random.choice(BUFFER_PAGES // BUFFER, HOT)
    sessions: list[tuple[float, int, NDArray[np.int64]]] = []
    for number in range(slices + BACKENDS - 1):
        begin = number * SLICE_SECONDS + 1
        if number < slices:
            backend = sheet.start(begin, f"/db/backend-{number}", LIMIT_BYTES)
            sheet.exit(begin + SESSION_SECONDS, backend)
            sessions.append((begin, backend, random.choice(BUFFER_PAGES // BUFFER, OWN)))
        sessions = [session for session in sessions if session[0] + SESSION_SECONDS > begin]
        asking = random.integers(0, len(sessions), accesses * len(sessions))
        at = np.sort(random.uniform(begin, begin + SLICE_SECONDS - 0.001, len(asking)))
        own = np.array([wanted for _, _, wanted in sessions])[asking, random.integers(0, OWN, len(asking))]
        wanted = np.where(random.random(len(asking)) < HOT_SHARE, random.choice(hot, len(asking)), own) * BUFFER
        backends = np.array([backend for _, backend, _ in sessions])[asking]
        sheet.add(Event.ALLOCATE, at, backends, buffers, wanted, wanted + BUFFER - 1, 1)
        yield sheet.turn(begin + SLICE_SECONDS)
    sheet.exit(SECONDS + SESSION_SECONDS, postmaster)
    yield sheet.turn()
