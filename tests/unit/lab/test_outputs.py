"""What the lab is told to write to and did not write itself is left alone."""

from pathlib import Path

import pytest

from controller.lab.outputs import REPORT_HEAD, check_replaceable, is_report
from controller.lab.trace_file import TraceWriter
from sharedfs.common.errors import CallerMistake


def test_a_trace_replaces_a_trace_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    TraceWriter(path).close()
    TraceWriter(path).close()
    link, precious = tmp_path / "link", tmp_path / "precious"
    precious.write_text("mine")
    link.symlink_to(path)
    for there in (precious, link, tmp_path):
        with pytest.raises(CallerMistake, match="is no trace: choose another name"):
            TraceWriter(there)
    assert precious.read_text() == "mine"


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    check_replaceable(path, "report", is_report)
    path.write_text(f"{REPORT_HEAD}x</title>")
    check_replaceable(path, "report", is_report)
    path.write_text("<!doctype html><title>mine</title>")
    with pytest.raises(CallerMistake, match="is no report"):
        check_replaceable(path, "report", is_report)
