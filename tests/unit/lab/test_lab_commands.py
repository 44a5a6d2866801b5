"""Traces as files, and `sharedctl lab` as people call it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controller.lab.events import Event, Events, MemoryTrace
from controller.lab.scenarios.catalogue import scenario_named
from controller.lab.scenarios.trace_builder import Sheet
from controller.lab.trace_file import TraceWriter, open_trace
from controller.lab.trace_index import survey
from sharedfs.common.errors import CallerMistake


def sharedctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controller.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "small.parquet"
    scenario = scenario_named("cheater")
    with TraceWriter(path, scenario.roles) as writer:
        for part in scenario.generate(1, 1000):
            writer.write(part)
    return path


def test_a_trace_comes_back_as_it_was_written(trace: Path) -> None:
    scenario = scenario_named("cheater")
    written = list(scenario.generate(1, 1000))
    stored = open_trace(trace)
    (read,) = stored.batches()
    assert stored.rows == len(read) == sum(map(len, written))
    assert stored.roles == scenario.roles
    for field in ("time_us", "event", "tenant", "file", "first_page", "last_page", "value"):
        assert getattr(read, field).tolist() == np.concatenate([getattr(part, field) for part in written]).tolist()
    assert list(read.names.values()) == [name for part in written for name in part.names.values()]


def test_others_can_read_a_trace_without_us(trace: Path) -> None:
    """Everything is in the rows: who starts, under which path, and what a file is called."""
    table = pq.read_table(trace).to_pylist()
    assert {row["name"] for row in table if row["event"] == Event.START} >= {"/lab/twin", "/lab/cheater"}
    assert all(row["name"] for row in table if row["event"] in (Event.START, Event.FILE))


def test_what_is_no_trace_of_ours_is_refused(tmp_path: Path, trace: Path) -> None:
    with pytest.raises(CallerMistake, match="no such file"):
        open_trace(tmp_path / "nothing")
    cut = tmp_path / "cut"
    cut.write_bytes(trace.read_bytes()[:-100])
    with pytest.raises(CallerMistake, match="no complete Parquet file"):
        open_trace(cut)
    other = tmp_path / "other"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(CallerMistake, match="no trace of ours"):
        open_trace(other)
    newer = tmp_path / "newer"
    table = pq.read_table(trace)
    pq.write_table(table.replace_schema_metadata({"sharedfs.trace": '{"version": 2, "roles": {}}'}), newer)
    with pytest.raises(CallerMistake, match="version 2"):
        open_trace(newer)


def events_of(*rows: tuple[float, Event, int]) -> MemoryTrace:
    sheet = Sheet()
    sheet.start(0, "/a")
    for at, event, tenant in rows:
        sheet.add(event, at, tenant)
    return MemoryTrace((sheet.turn(),))


def test_a_trace_that_makes_no_sense_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.parquet"
    for rows, complaint in (
        (((1, Event.TOUCH, 1),), "tenant 1 of the trace uses pages before it starts"),
        (((1, Event.EXIT, 0), (2, Event.TOUCH, 0)), "tenant 0 of the trace uses pages before it starts or after"),
        (((1, Event.EXIT, 0), (2, Event.EXIT, 0)), "exits before it starts, or twice"),
    ):
        (part,) = events_of(*rows).parts
        with TraceWriter(path) as writer:
            writer.write(part)
        done = sharedctl("lab", "replay", str(path), "--policy", "first_touch")
        assert (done.returncode, done.stdout) == (2, "")
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1


def test_rows_out_of_order_are_refused() -> None:
    (part,) = events_of((1, Event.TOUCH, 0)).parts
    backwards = Events(
        part.time_us[::-1],
        part.event,
        part.tenant,
        part.file,
        part.first_page,
        part.last_page,
        part.value,
        part.names,
    )
    with pytest.raises(CallerMistake, match="order of time"):
        survey(MemoryTrace((backwards,)), lambda rows: None)
    with pytest.raises(CallerMistake, match="no rows"):
        survey(MemoryTrace(()), lambda rows: None)


def test_generate_and_replay_as_people_do(tmp_path: Path) -> None:
    trace, page = tmp_path / "t.parquet", tmp_path / "t.html"
    made = sharedctl("lab", "generate", "free-rider", str(trace), "--events", "60", "--seed", "3")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"{trace}: ")
    done = sharedctl("lab", "replay", str(trace), "--report", str(page), "--bills", "8")
    assert done.returncode == 0, done.stderr
    assert "GAIN OF FREE RIDER" in done.stdout
    html = page.read_text()
    assert html.count("<svg") == 3
    assert "fairride" in html
    assert "<script" not in html
    assert "<link" not in html
    assert "src=" not in html

    told = sharedctl("lab", "replay", str(trace), "--json", "--policy", "proportional", "--payer", "/team/rider")
    (run,) = json.loads(told.stdout)["traces"]
    (policy,) = run["policies"]
    assert policy["policy"] == "proportional"
    assert {line["tenant"] for line in policy["tenants"]} >= {"/team/rider"}
    assert run["events"] == open_trace(trace).rows


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("lab", "generate", "mine", "x.parquet"), "there is no scenario mine"),
        (("lab", "replay", "nowhere.parquet"), "nowhere.parquet: no such file"),
        (("lab", "replay", "nowhere.parquet", "--policy", "mine"), "there is no policy mine"),
        (("lab", "replay"), "Missing argument"),
        (("lab", "sing"), "No such command"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: tuple[str, ...], complaint: str) -> None:
    done = sharedctl(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
