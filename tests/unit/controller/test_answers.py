"""The API's answers as types: read back from JSON as they were told, by commands that have no pydantic."""

import json
import subprocess
import sys
from dataclasses import asdict
from typing import cast, get_args

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from controller.api.client import read
from controller.api.types import Bills, PoolAnswers, TenantBill
from controller.cli.tables import VIEWS
from controller.service.controller import Controller
from controller.service.http_api import make_api
from sharedfs.api.types import (
    AuditPage,
    FileHoldings,
    FilesOfTenant,
    HandedOver,
    Holdings,
    TapeRows,
    UnclaimedPage,
    UsersOfFile,
)
from sharedfs.common.errors import HostFault

LINE = TenantBill(
    tenant="/a",
    state="live",
    budget_bytes=None,
    limit_bytes=1 << 62,
    bound_by="/a",
    report_only=False,
    debt_age_seconds=0.5,
    swap_budget_bytes=None,
    swap_limit_bytes=None,
    **dict.fromkeys(
        ("share_bytes", "swapped_bytes", "used_bytes", "kernel_usage_bytes", "over_bytes", "debt_bytes"), 7
    ),
    **dict.fromkeys(("borne_bytes", "inherited_bytes", "swap_debt_bytes"), 9),
)
BILLS = Bills(
    pools=(PoolAnswers(pool="p", age_seconds=None, errors=0, last_error=""),),
    pool_resident_bytes=1,
    unclaimed_bytes=2,
    foreign_bytes=3,
    debt_bytes=4,
    borne_bytes=5,
    swapped_bytes=6,
    tenants=(LINE,),
    groups=(),
)


def test_an_answer_is_read_as_it_was_told() -> None:
    assert read(Bills, json.loads(json.dumps(asdict(BILLS)))) == BILLS


def test_a_later_controller_may_say_more_and_an_earlier_one_is_told_by_a_line() -> None:
    told = json.loads(json.dumps(asdict(BILLS)))
    told["tenants"][0]["since_then"] = 1
    assert read(Bills, told) == BILLS
    del told["tenants"][0]["share_bytes"]
    with pytest.raises(HostFault, match=r"of another version, restart it: .*share_bytes"):
        read(Bills, told)


def test_every_view_is_of_the_type_that_the_api_tells() -> None:
    api = make_api(cast(Controller, None))  # no route is called
    told = {route.path: route.response_model for route in api.routes if isinstance(route, APIRoute)}
    assert {url: view.kind for url, view in VIEWS.items()} == {url: told[url] for url in VIEWS}


def test_a_command_that_asks_a_question_does_not_load_pydantic() -> None:
    """It takes longer to import than the rest of the command does."""
    modules = "controller.cli.main, controller.api.client, controller.cli.tables"
    code = f"import sys, {modules}; print('pydantic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.parametrize(
    "answer", [Holdings, FileHoldings, FilesOfTenant, AuditPage, UnclaimedPage, HandedOver, UsersOfFile, TapeRows]
)
def test_what_a_later_daemon_adds_to_an_answer_is_left_out(answer: type[BaseModel]) -> None:
    """A controller goes on while the pools' daemons are replaced by those of a later package."""
    assert answer.model_config["extra"] == "ignore"
    parts = [part for field in answer.model_fields.values() for part in _models_in(field.annotation)]
    assert all(part.model_config["extra"] == "ignore" for part in parts)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    found = [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    return found + [model for part in get_args(annotation) for model in _models_in(part)]
