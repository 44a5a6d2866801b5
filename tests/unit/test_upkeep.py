"""What the upkeep keeps short beside its own work."""

import gc

from sharedfs.maintenance.tasks import keep_collections_short


class Thing:
    """In a cycle, as the collector sees it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_stays_is_looked_at_by_the_collector_once() -> None:
    kept: list[Thing] = []
    largest = 0
    gc.collect()
    gc.freeze()
    try:
        for _ in range(100):
            kept += [Thing() for _ in range(2000)]
            [Thing() for _ in range(200)]  # garbage is still found
            largest = max(largest, len(gc.get_objects(generation=2)))
            keep_collections_short()
        gc.collect()
        assert largest < 60_000, "beside 200,000 that stay"
        assert sum(isinstance(thing, Thing) for thing in gc.get_objects()) < 60_000
    finally:
        gc.unfreeze()
    assert len(kept) == 200_000
