"""The policy to start with: the operator's last order, from the database, or else the configuration's."""

from pathlib import Path

from controller.policies.policy import Policy
from controller.policies.registry import policy_to_settle
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import MemoryHierarchy


def ordered_policy(
    order: tuple[str, str | None] | None, configured: str, hierarchy: MemoryHierarchy, database: Path
) -> Policy:
    """`order` is a policy's name and the path of its payer, who may be gone meanwhile; then nobody pays.

    Raises CallerMistake for an order that no command gives, and says where it is.
    """
    if order is None:
        return policy_to_settle(configured)
    name, payer = order
    try:
        return policy_to_settle(name, None if payer is None else hierarchy.find(payer))
    except CallerMistake as mistake:
        raise CallerMistake(
            f"{database} has an order of `sharedctl set-policy` that cannot be: {mistake}. "
            f"`sqlite3 {database} 'DELETE FROM policy'` goes back to the configuration's"
        ) from None
