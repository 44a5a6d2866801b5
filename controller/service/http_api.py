"""The controller's HTTP API: translate, call, translate. OpenAPI is at /openapi.json."""

import logging
from functools import partial
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from controller.api.errors import NotOursToSet, UnknownName
from controller.api.types import (
    Bills,
    BudgetState,
    CapStates,
    ExitForecast,
    Explanation,
    FileUsers,
    Handover,
    Health,
    Policies,
    PolicyState,
    Unclaimed,
    UsageHistory,
    WritePlan,
)
from controller.limits.types import Budget
from controller.service.controller import Controller
from controller.service.feed_client import FilePath
from controller.service.long_answers import LongAnswer
from sharedfs.common.errors import BrokenInvariant, CallerMistake, HostFault
from sharedfs.common.units import UNLIMITED_BYTES
from sharedfs.common.version import VERSION

log = logging.getLogger(__name__)

Tenant = Annotated[str, Query(min_length=1, description="the cgroup's path, or its directory")]


OptionalPool = Annotated[str | None, Query(min_length=1, description="the pool's name; else every pool")]
OptionalTenant = Annotated[str | None, Query(min_length=1)]
PoolPath = Annotated[str, Query(pattern="^/", description="absolute, on a pool's mount")]


class _Body(BaseModel):
    """What comes with a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BudgetOrder(_Body):
    """`report_only`: bills tell what is over the budget, and no limit is written."""

    budget_bytes: Annotated[int, Field(ge=4096, lt=UNLIMITED_BYTES)]
    report_only: bool = False


class CapOrder(_Body):
    """`cap` is a size such as 512M, or percents of the pool's size such as 50%."""

    cap: Annotated[str, Field(min_length=1, max_length=32)]


class PolicyOrder(_Body):
    """`name` None: the policy of the configuration. `payer` is the tenant that `designated` names."""

    name: str | None
    payer: str | None = None


def make_api(controller: Controller) -> FastAPI:
    api = FastAPI(title="sharedfs controller", version=VERSION, docs_url=None, redoc_url=None)

    _add_questions(api, controller)
    _add_orders(api, controller)
    _add_errors(api, controller)
    return api


def _add_questions(api: FastAPI, controller: Controller) -> None:
    def on_fault(fault: Exception) -> bytes:
        return bytes(_told(controller, fault).body)

    @api.get("/v1/health")
    async def health() -> Health:
        return controller.health()

    @api.get("/v1/bills")
    async def bills() -> Bills:
        """Every tenant's bill and limit, as they are now."""
        return await controller.bills()

    @api.get("/v1/explain", response_model=Explanation)
    async def explain(tenant: Tenant, files: Annotated[int, Query(ge=0, le=100_000)] = 1000) -> Response:
        """A tenant's share by file, those with the largest shares, and by sharing class.

        An answer that takes long begins with blanks. A fault after them is a `detail` in place of the answer.
        """
        return LongAnswer(Explanation, partial(controller.explain, tenant, files), on_fault)

    @api.get("/v1/users")
    async def users(path: PoolPath, escaped: bool = False) -> FileUsers:
        """Who shares a file; `escaped`: its path is as answers show it."""
        return await controller.users(FilePath(path, escaped))

    @api.get("/v1/history")
    async def history(
        tenant: OptionalTenant = None,
        since_seconds: Annotated[int | None, Query(ge=1, lt=1 << 32)] = None,
    ) -> UsageHistory:
        """Byte-seconds by tenant and pool, of the last `since_seconds` or of all that is kept."""
        return await controller.history(tenant, since_seconds)

    @api.get("/v1/unclaimed", response_model=Unclaimed)
    async def unclaimed() -> Response:
        """The files with pages that no live tenant uses; blanks first, as `/v1/explain`."""
        return LongAnswer(Unclaimed, controller.unclaimed, on_fault)

    @api.get("/v1/what-if/exit")
    async def what_if_exit(tenant: Tenant) -> ExitForecast:
        """Who would pay what if a tenant exited."""
        return await controller.what_if_exit(tenant)

    @api.get("/v1/plan")
    async def plan() -> WritePlan:
        """The writes of the last settlement: done, put off, or in a dry run what would be."""
        return controller.plan()

    @api.get("/v1/policies")
    async def policies(payer: Annotated[str | None, Query(description="whom `designated` names")] = None) -> Policies:
        """The bill of every tenant under every policy that live books are enough for."""
        return await controller.policies(payer)


def _add_orders(api: FastAPI, controller: Controller) -> None:
    @api.put("/v1/owner")
    async def hand_over(
        path: PoolPath, tenant: OptionalTenant = None, recursive: bool = False, escaped: bool = False
    ) -> Handover:
        """Hand a file, or all files in a directory, over to a tenant; without one, to nobody."""
        return await controller.hand_over(FilePath(path, escaped), tenant, recursive=recursive)

    @api.put("/v1/policy")
    async def set_policy(order: PolicyOrder) -> PolicyState:
        """Bill and settle by another policy from now on."""
        return await controller.set_policy(order.name, order.payer)

    @api.put("/v1/budget")
    async def set_budget(tenant: Tenant, order: BudgetOrder) -> BudgetState:
        """Give a tenant a budget: where its manager set no limit, or for reports only."""
        return await controller.set_budget(tenant, Budget(order.budget_bytes, order.report_only))

    @api.delete("/v1/budget")
    async def clear_budget(tenant: Tenant) -> BudgetState:
        """Take the operator's budget back."""
        return await controller.clear_budget(tenant)

    @api.get("/v1/caps")
    async def caps() -> CapStates:
        """The operator's caps."""
        return controller.caps()

    @api.put("/v1/cap")
    async def set_cap(tenant: Tenant, order: CapOrder, pool: OptionalPool = None) -> CapStates:
        """Bound how far the share of a tenant, with all below it, may grow in a pool, or in each."""
        return await controller.set_cap(tenant, pool, order.cap)

    @api.delete("/v1/cap")
    async def clear_cap(tenant: Tenant, pool: OptionalPool = None) -> CapStates:
        """Take a cap back."""
        return await controller.set_cap(tenant, pool, None)


def _add_errors(api: FastAPI, controller: Controller) -> None:
    @api.exception_handler(CallerMistake)
    @api.exception_handler(HostFault)
    @api.exception_handler(BrokenInvariant)
    async def on_fault(_: Request, fault: Exception) -> JSONResponse:
        return _told(controller, fault)

    @api.exception_handler(RequestValidationError)
    async def on_bad_input(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)


def _told(controller: Controller, fault: Exception) -> JSONResponse:
    """What the API says of a fault. Raises one of another kind."""
    match fault:
        case CallerMistake():
            status = 404 if isinstance(fault, UnknownName) else 409 if isinstance(fault, NotOursToSet) else 422
            return JSONResponse({"detail": str(fault)}, status)
        case HostFault():
            return JSONResponse({"detail": str(fault)}, 503)
        case BrokenInvariant():
            controller.settling.stop_broken(fault)
            return JSONResponse({"detail": f"the controller stops: {fault}"}, 500)
    raise fault
