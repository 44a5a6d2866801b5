"""What is shared belongs to a parent for shared resources, which tracks all groups that use it: Hubbard's suggestion.

No tenant's exit pins anything, and the parent knows whom it serves. What it gives up: that is not a bill. Whoever
uses alone pays for itself; what several use is on the parent, and on nobody's own limit.
"""

from controller.policies.families import ByUse
from controller.policies.policy import Held, Parts


class SharedParent(ByUse):
    """What the parent holds is what nobody pays."""

    name = "shared_parent"
    rules = "use"

    def charge(self, held: Held, held_bytes: int) -> Parts:
        return dict.fromkeys(held.payers, held_bytes) if len(held.payers) == 1 else {}
