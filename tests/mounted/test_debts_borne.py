"""Who bears a debt meanwhile: with `parent` those beside the debtor that have headroom, with `headroom` all that have.

What they bear is off their limits to the page, sums up to the debt, and is given back when the debtor needs less.
"""

from pathlib import Path

import pytest

from tests.support.controller import Answer, bill_of, bills, running_controller
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
BUDGET, ROOMY = 64 * MIB, 256 * MIB
SHARE, OWN, PRIVATE = 32 * MIB, 8 * MIB, 48 * MIB
PATIENCE = 30.0


def write(tenant: Tenant, path: Path, size: int) -> None:
    tenant.do(
        f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666)\n"
        f"for _ in range({size // MIB}): os.write(fd, b'x' * {MIB})"
    )


@pytest.mark.parametrize("rule", ["parent", "headroom"])
def test_a_debt_is_borne_by_those_the_rule_names_and_given_back(
    rule: str, pool: MountedPool, tenants: Tenants, tmp_path: Path
) -> None:
    configuration = tmp_path / "controller.toml"
    # Without admission, or the debtor's write would be refused before it gets into debt.
    configuration.write_text(f'debts_borne_by = "{rule}"\nadmission = false\n')
    pod = tenants.make("pod")
    tenants.hierarchy.enable_memory(f"{pod.path}/any")
    debtor, sibling = tenants.make("pod/debtor", BUDGET), tenants.make("pod/sibling", ROOMY)
    stranger = tenants.make("stranger", ROOMY)
    bearers = [sibling] if rule == "parent" else [sibling, stranger]
    with running_controller("--config", str(configuration)):
        for tenant in (sibling, stranger):
            write(tenant, pool.path / tenant.path.rpartition("/")[2], OWN)
        debtor.do(f"private = bytearray({PRIVATE})\nfor at in range(0, {PRIVATE}, {PAGE}): private[at] = 1")
        write(debtor, pool.path / "f", SHARE)

        def borne() -> Answer | None:
            told = bills()
            owed = bill_of(debtor.path, told)["debt_bytes"]
            lines = {tenant: bill_of(tenant.path, told) for tenant in (sibling, stranger)}
            settled = all(
                line["limit_bytes"] == (ROOMY - OWN - line["borne_bytes"]) // PAGE * PAGE for line in lines.values()
            )
            return told if 0 < owed == told["borne_bytes"] and settled else None

        told = wait_until(borne, "others bear all of the debt", PATIENCE)
        assert bill_of(debtor.path, told)["debt_bytes"] >= PRIVATE + SHARE - BUDGET
        parts = {tenant: bill_of(tenant.path, told)["borne_bytes"] for tenant in (sibling, stranger)}
        assert {tenant for tenant, part in parts.items() if part} == set(bearers)
        assert sum(parts.values()) == told["debt_bytes"]
        for tenant, part in parts.items():
            assert tenant.limit() == (ROOMY - OWN - part) // PAGE * PAGE
        debtor.do("private = None")
        wait_until(lambda: debtor.limit() == BUDGET - SHARE, "the debt is paid", PATIENCE)
        for tenant in (sibling, stranger):
            wait_until(lambda tenant=tenant: tenant.limit() == ROOMY - OWN, "all is given back", PATIENCE)  # type: ignore[misc]
        assert bills()["borne_bytes"] == 0
    assert [tenant.limit() for tenant in (debtor, sibling, stranger)] == [BUDGET, ROOMY, ROOMY]
