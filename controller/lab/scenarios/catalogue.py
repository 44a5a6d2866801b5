"""All scenarios by name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.lab.events import Events
from controller.lab.scenarios import (
    build_cache,
    cheater,
    ci_farm,
    database,
    free_rider,
    model_fleet,
    one_byte,
    pod_restart,
)
from sharedfs.common.errors import CallerMistake


@dataclass(frozen=True, slots=True)
class Scenario:
    """`events` is how large it is made when nobody says; `about` its first sentence."""

    about: str
    play: Callable[[np.random.Generator, int], Iterator[Events]]
    events: int
    roles: Mapping[str, int] = field(default_factory=dict)

    def generate(self, seed: int, events: int | None = None) -> Iterator[Events]:
        """About so many events. The same seed gives the same ones."""
        return self.play(np.random.default_rng(seed), self.events if events is None else events)


def _about(module: object) -> str:
    return (module.__doc__ or "").split("\n\n", maxsplit=1)[0].replace("\n", " ")


SCENARIOS: Mapping[str, Scenario] = {
    "ci-farm": Scenario(_about(ci_farm), ci_farm.generate, 100_000),
    "pod-restart": Scenario(_about(pod_restart), pod_restart.generate, 30_000),
    "model-fleet": Scenario(_about(model_fleet), model_fleet.generate, 10_000),
    "build-cache": Scenario(_about(build_cache), build_cache.generate, 50_000),
    "database": Scenario(_about(database), database.generate, 300_000),
    "free-rider": Scenario(_about(free_rider), free_rider.generate, 20_000, free_rider.ROLES),
    "one-byte": Scenario(_about(one_byte), one_byte.generate, 20_000, one_byte.ROLES),
    "cheater": Scenario(_about(cheater), cheater.generate, 20_000, cheater.ROLES),
}


def scenario_named(name: str) -> Scenario:
    """Raises CallerMistake for one that there is not."""
    if name not in SCENARIOS:
        raise CallerMistake(f"there is no scenario {name}: there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
