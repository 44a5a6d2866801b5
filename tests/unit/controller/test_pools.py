"""The controller's view of pools: what is late is not gone, and an answer that is no success is an error."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from controller.service import pool_clients as pools_module
from controller.service.pool_clients import Pools
from controller.settlement.admission import Marks
from sharedfs.api.types import BODY_BYTES
from sharedfs.linux.cgroups import CgroupRef
from tests.contract.fake_feed import FakePool

pytestmark = pytest.mark.trio

A = CgroupRef("/a", 1)


@pytest.fixture(autouse=True)
def _long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools_module, "SETTLEMENT_SECONDS", 30.0)


@asynccontextmanager
async def watched(directory: Path, patience_seconds: float = 600) -> AsyncIterator[Pools]:
    async with trio.open_nursery() as nursery:
        pools = Pools(directory / "pools", patience_seconds, nursery)
        yield pools
        nursery.cancel_scope.cancel()
    await pools.aclose()


async def test_late_books_stay_with_their_age_until_the_pool_answers_again(
    run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakePool(run_dir) as pool:
        pool.files = {"f": [(4096, (A,))]}
        async with watched(run_dir, patience_seconds=0.0) as pools:
            (first,) = await pools.fetch()
            monkeypatch.setattr(pools_module, "SETTLEMENT_SECONDS", 0.1)
            pool.delay_seconds = 1.0
            pool.files = {"f": [(8192, (A,))]}
            assert await pools.fetch() == [first]
            assert await pools.fetch() == [first]  # which did not wait: it is late
            assert pools.is_complete
            (state,) = pools.states()
            assert state.age_seconds is not None
            assert state.age_seconds > 0
            while await pools.fetch() == [first]:
                await trio.sleep(0.05)
    assert "pool demo: late" in caplog.text
    assert "pool demo: dropped" not in caplog.text


async def test_a_pool_is_gone_when_nobody_listens(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FakePool(run_dir) as pool:
        async with watched(run_dir) as pools:
            assert len(await pools.fetch()) == 1
            await trio.to_thread.run_sync(pool.die)
            assert await pools.fetch() == []
            assert pools.is_complete
    assert "pool demo: dropped" in caplog.text


async def test_a_pool_whose_queue_of_clients_is_full_is_not_gone(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_module, "SETTLEMENT_SECONDS", 0.1)
    directory = run_dir / "pools" / "demo"
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(directory / "feed.sock"))
        listener.listen(0)
        client.connect(str(directory / "feed.sock"))
        async with watched(run_dir) as pools:
            assert await pools.fetch() == []
            assert await pools.fetch() == []
            (state,) = pools.states()
            assert state.pool == "demo"
            assert state.age_seconds is None
            assert not pools.is_complete


async def test_allowances_of_many_tenants_go_in_orders_that_fit(run_dir: Path) -> None:
    """The control is one order with all of them, which the pool refuses to read."""
    marks: dict[CgroupRef, int | None] = {
        CgroupRef(f"/kubepods.slice/kubepods-pod{number:08d}.slice/cri-containerd-{number:064x}.scope", number): number
        for number in range(1000)
    }
    assert sum(len(cgroup.path) for cgroup in marks) > BODY_BYTES
    with FakePool(run_dir) as pool:
        async with watched(run_dir) as pools:
            await pools.fetch()
            await pools.allow({"demo": Marks(marks, {})}, 5)
            assert pool.allowed == {cgroup.path: mark for cgroup, mark in marks.items()}
            orders = pool.orders
            await pools.allow({"demo": Marks(marks, {})}, 5)
            assert pool.orders == orders  # nothing has changed
            assert pools.states()[0].errors == 0


async def test_what_tenants_may_together_is_told_after_what_each_may(run_dir: Path) -> None:
    with FakePool(run_dir) as pool:
        async with watched(run_dir) as pools:
            await pools.fetch()
            await pools.allow({"demo": Marks({A: 4096}, {"/pod": 8192, "/": 1})}, 5)
            assert (pool.allowed, pool.allowed_above) == ({"/a": 4096}, {"/pod": 8192, "/": 1})


async def test_a_pool_of_an_earlier_version_counts_each_tenant_alone(run_dir: Path) -> None:
    """It answers 422 to an order with a field that it does not know; what came before is in force."""
    with FakePool(run_dir, knows_above=False) as pool:
        async with watched(run_dir) as pools:
            await pools.fetch()
            await pools.allow({"demo": Marks({A: 4096}, {"/pod": 8192})}, 5)
            assert pool.allowed == {"/a": 4096}
            assert pools.states()[0].errors == 0


@pytest.mark.parametrize("status", [409, 413, 500])
async def test_a_refused_order_is_an_error_that_is_counted_and_said_once(
    run_dir: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with FakePool(run_dir, refuses_orders_with=status) as pool:
        async with watched(run_dir) as pools:
            await pools.fetch()
            for _ in range(2):
                await pools.allow({"demo": Marks({A: 4096}, {})}, 5)
            (state,) = pools.states()
            assert state.errors == 2
            assert f"it answers {status} to PUT /v1/allowances" in state.last_error
            pool.refuses_orders_with = None
            await pools.allow({"demo": Marks({A: 4096}, {})}, 5)  # what was refused is ordered again
            assert pool.allowed == {"/a": 4096}
    said = [record for record in caplog.records if record.levelno == logging.WARNING and "allowances" in record.message]
    assert len(said) == 1
