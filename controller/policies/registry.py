"""All policies by name, in the order of docs/policies.md."""

from collections.abc import Callable, Iterable, Mapping

from controller.policies.access_weighted import AccessWeighted
from controller.policies.avoid_sharing import AvoidSharing
from controller.policies.designated import Designated
from controller.policies.evict import Evict
from controller.policies.fairride import FairRide
from controller.policies.first_touch import FirstTouch
from controller.policies.hybrid import Hybrid
from controller.policies.manual_reclaim import ManualReclaim
from controller.policies.policy import Policy
from controller.policies.proportional import Proportional
from controller.policies.recharge_deferred import RechargeDeferred
from controller.policies.recharge_mapped import RechargeMapped
from controller.policies.refuse_removal import RefuseRemoval
from controller.policies.reparent import Reparent
from controller.policies.shared_parent import SharedParent
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import CgroupRef

_ALL: tuple[Callable[[], Policy], ...] = (
    FirstTouch,
    ManualReclaim,
    Reparent,
    RechargeMapped,
    RechargeDeferred,
    Evict,
    Hybrid,
    RefuseRemoval,
    AvoidSharing,
    Designated,
    SharedParent,
    Proportional,
    AccessWeighted,
    FairRide,
)
POLICIES: Mapping[str, Callable[[], Policy]] = {make().name: make for make in _ALL}
DEFAULT = "proportional"
LIVE = tuple(name for name, make in POLICIES.items() if not make().history)
"""Those that live books are enough for."""
SETTLED = tuple(name for name in LIVE if POLICIES[name]().conserves)
"""Those that limits can follow: what is taken off them is not more than what there is."""


def policy_named(name: str, payer: CgroupRef | None = None) -> Policy:
    """A fresh policy. `payer` is for `designated`. Raises CallerMistake for an unknown name."""
    if name not in POLICIES:
        raise CallerMistake(f"there is no policy {name}: there are {', '.join(POLICIES)}")
    return Designated(payer) if name == Designated.name else POLICIES[name]()


def policy_to_settle(name: str, payer: CgroupRef | None = None) -> Policy:
    """A policy that limits can follow. Raises CallerMistake for any other."""
    policy = policy_named(name, payer)
    if name not in SETTLED:
        why = "needs the history of each page" if policy.history else "bills more bytes than there are"
        raise CallerMistake(f"{name} {why}, so limits cannot follow it: choose one of {', '.join(SETTLED)}")
    return policy


def policies_named(names: Iterable[str], payer: CgroupRef | None = None) -> list[Policy]:
    """One for each name; "all" stands for all of them. Raises CallerMistake for an unknown name."""
    wanted = [known for name in names for known in (POLICIES if name == "all" else (name,))]
    return [policy_named(name, payer) for name in dict.fromkeys(wanted)]
