"""Who made a page and those who use it pay for it in equal parts: the controller that Li outlined.

A controller of its own owns what is shared and tracks each use; no charge moves over time, and there are no zombies.
What it gives up: uses have to be seen, and forgetting them takes time, so a bill is late by as much (`--idle`); and
equal parts do not tell who uses a page a thousand times from who used it once.
"""

from controller.policies.families import ByUse
from controller.policies.policy import Held, Parts
from controller.policies.split import split


class Proportional(ByUse):
    name = "proportional"
    rules = "use"

    def charge(self, held: Held, held_bytes: int) -> Parts:
        return split(held_bytes, held.payers)
