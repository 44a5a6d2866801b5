"""A fleet of model servers that map one model of 50 GiB, and are replaced one by one by a new version.

What hurts: the first server to load the model is charged for all of it; the others have it for free, with room to
spare in their limits. When that one is replaced, 50 GiB have to become somebody's: they stay on a zombie, drift to
the parent, or fall on one of the others at once.
"""

from collections.abc import Iterator

import numpy as np

from controller.lab.events import Event, Events
from controller.lab.scenarios.trace_builder import GIB_PAGES, Sheet

SERVERS = 8
MODEL_PAGES = 50 * GIB_PAGES
LAYER_PAGES = GIB_PAGES // 4
OWN_PAGES = 8 * GIB_PAGES
UPDATE_SECONDS = 300.0
OVERLAP_SECONDS = 60.0
LIMIT_BYTES = 56 << 30


def generate(random: np.random.Generator, events: int) -> Iterator[Events]:
    """Servers start five minutes apart; a new one serves for a minute before the one that it replaces ends."""
    sheet = Sheet()
    model = sheet.file(0, "models/weights")
    layers = np.arange(0, MODEL_PAGES, LAYER_PAGES)
    # Between two updates each server reads single layers again, on top of what it has mapped.
    reads = 50
    updates = max(2 * SERVERS, events // (SERVERS * reads))
    for server in range(updates):
        begin = server * UPDATE_SECONDS
        end = begin + SERVERS * UPDATE_SECONDS + OVERLAP_SECONDS
        tenant = sheet.start(begin, f"/fleet/server-{server}", LIMIT_BYTES)
        if server == 0:
            load = begin + 1 + np.arange(len(layers)) * 0.1
            sheet.add(Event.ALLOCATE, load, tenant, model, layers, layers + LAYER_PAGES - 1, 1)
        sheet.add(Event.MAP, begin + 30, tenant, model, 0, MODEL_PAGES - 1)
        cache = sheet.file(begin + 30, f"kv/{server}")
        sheet.add(Event.ALLOCATE, begin + 31, tenant, cache, 0, OWN_PAGES - 1, 1)
        read = random.choice(layers, reads * SERVERS)
        at = np.sort(random.uniform(begin + 32, end - 2, reads * SERVERS))
        sheet.add(Event.TOUCH, at, tenant, model, read, read + LAYER_PAGES - 1, 1)
        sheet.add(Event.FREE, end - 1, tenant, cache, 0, OWN_PAGES - 1)
        sheet.exit(end, tenant)
        yield sheet.turn(begin + UPDATE_SECONDS)
    yield sheet.turn()
