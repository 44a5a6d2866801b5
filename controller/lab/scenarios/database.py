"""A database whose backends run in cgroups of their own and share one pool of buffers, which the kernel may not move.

What hurts: the buffers are charged to whichever backend touched each of them first; backends come and go with their
clients, so a busy hour leaves hundreds of zombies; and the sizes that tools show add up to many times the machine.
"""

from collections.abc import Iterator

import numpy as np

from controller.billing.page import Kind
from controller.lab.events import Event, Events
from controller.lab.scenarios.sheet import MIB_PAGES, Sheet

BUFFER_PAGES = 256 * MIB_PAGES
BUFFER = 2  # pages: 8 KiB
BACKENDS = 48
SESSION_SECONDS = 240.0
SLICE_SECONDS = SESSION_SECONDS / BACKENDS
SECONDS = 3600.0
LIMIT_BYTES = 64 << 20


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """Sessions begin one after the other and last four minutes; some buffers are far more wanted than others."""
    slices = int((SECONDS - SESSION_SECONDS) / SLICE_SECONDS)
    accesses = max(4, events // (slices * BACKENDS))
    sheet = Sheet()
    postmaster = sheet.start(0, "/db/postmaster", 1 << 30)
    buffers = sheet.file(0, "shared-buffers", Kind.PINNED)
    order = random.permutation(BUFFER_PAGES // BUFFER)
    sessions: list[tuple[float, int]] = []
    for number in range(slices + BACKENDS):
        begin = number * SLICE_SECONDS + 1
        if number < slices:
            backend = sheet.start(begin, f"/db/backend-{number}", LIMIT_BYTES)
            sheet.exit(begin + SESSION_SECONDS, backend)
            sessions.append((begin, backend))
        sessions = [session for session in sessions if session[0] + SESSION_SECONDS > begin]
        tenants = random.permutation(np.repeat([backend for _, backend in sessions], accesses))
        at = np.sort(random.uniform(begin, begin + SLICE_SECONDS - 0.001, len(tenants)))
        wanted = order[(random.zipf(1.2, len(tenants)) - 1) % len(order)] * BUFFER
        sheet.add(Event.ALLOCATE, at, tenants, buffers, wanted, wanted + BUFFER - 1, 1)
        yield sheet.turn(begin + SLICE_SECONDS)
    sheet.exit(SECONDS + SESSION_SECONDS, postmaster)
    yield sheet.turn()
