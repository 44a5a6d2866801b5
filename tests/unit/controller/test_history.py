"""The history: byte-seconds that add up, whatever the clock and the disk do."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from controller.billing.bill import Bill, TenantShare
from controller.billing.usage import LONGEST_MS, UNCLAIMED, Meter, Usage
from controller.persistence.history import HOUR, MINUTE, MINUTES_KEPT, History, HistoryLine
from sharedfs.linux.cgroups import CgroupRef
from tests.support.kills import killed_at_line, lines_of, run_in_child

A, B = CgroupRef("/a", 1), CgroupRef("/b", 2)
NOON = 1_800_000_000 // HOUR * HOUR


class Clock:
    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place() -> Iterator[Path]:
    """Where writing costs little."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def history(place: Path, clock: Clock) -> Iterator[History]:
    made = History(place, clock)
    yield made
    made.close()


def bill(**shares: int) -> Bill:
    """Shares by tenant, and 7 bytes that nobody pays for."""
    lines = {
        {"a": A, "b": B}[name]: TenantShare(share_bytes=share, used_bytes=2 * share) for name, share in shares.items()
    }
    return Bill(sum(shares.values()) + 7, unclaimed_bytes=7, foreign_bytes=0, swapped_bytes=0, tenants=lines)


def share(history: History, tenant: str | None) -> int:
    return sum(line.share_byte_seconds for line in history.read(None, None) if line.tenant == tenant)


def test_a_bill_holds_until_the_next_one() -> None:
    meter = Meter()
    meter.read(1000, {"pool": bill(a=100)})
    assert meter.take() == {}
    meter.read(1500, {"pool": bill(a=40, b=60)})
    meter.read(1750, {"pool": bill(b=100), "other": bill(a=1)})
    assert meter.take() == {
        ("/a", "pool"): Usage(750, 100 * 500 + 40 * 250, 200 * 500 + 80 * 250),
        ("/b", "pool"): Usage(250, 60 * 250, 120 * 250),
        (UNCLAIMED, "pool"): Usage(750, 7 * 750, 0),
    }
    assert meter.take() == {}


def test_time_that_nobody_looked_is_not_billed() -> None:
    meter = Meter()
    meter.read(0, {"pool": bill(a=100)})
    meter.read(10 * LONGEST_MS, {"pool": bill(a=100)})
    meter.read(9 * LONGEST_MS, {"pool": bill(a=100)})
    assert meter.take()["/a", "pool"].covered_ms == LONGEST_MS


def test_what_is_written_adds_up_to_the_byte_second(history: History, clock: Clock, place: Path) -> None:
    for _ in range(1000):
        assert history.write({("/a", "pool"): Usage(1, 1999, 4000), (UNCLAIMED, "pool"): Usage(1, 1, 0)})
        clock.now += 1
    assert history.read(None, None) == [
        HistoryLine("/a", "pool", NOON, 1.0, 1999, 4000),
        HistoryLine(None, "pool", NOON, 1.0, 1, 0),
    ]
    again = History(place, clock)
    assert again.read(None, "/a") == history.read(None, "/a")
    assert again.read(None, "/b") == []
    again.close()


def test_only_the_time_that_was_asked_for(history: History, clock: Clock) -> None:
    for _ in range(10):
        history.write({("/a", "pool"): Usage(1000, 5000, 5000)})
        clock.now += MINUTE
    clock.now -= MINUTE
    (line,) = history.read(3 * MINUTE, "/a")
    assert line == HistoryLine("/a", "pool", NOON + 6 * MINUTE, 4.0, 20, 20)


def test_minutes_become_hours_and_hours_end(history: History, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.persistence.history.HOURS_KEPT", hours := 50)
    minutes = MINUTES_KEPT + 3 * HOUR // MINUTE
    for _ in range(minutes):
        history.write({("/a", "pool"): Usage(1000, 3000, 0), ("/b", "pool"): Usage(1000, 1000, 0)})
        clock.now += MINUTE
    assert (share(history, "/a"), share(history, "/b")) == (3 * minutes, minutes)
    spans = dict(history._open().execute("SELECT span, count(*) FROM usage GROUP BY span"))
    assert spans[MINUTE] == 2 * MINUTES_KEPT
    assert spans[HOUR] == 2 * 3
    clock.now = NOON + 10 * HOUR
    for _ in range(hours + MINUTES_KEPT + 20):
        history.write({("/a", "pool"): Usage(1000, 3000, 0)})
        clock.now += HOUR
    assert share(history, "/a") == 3 * (hours + MINUTES_KEPT)
    assert share(history, "/b") == 0


def test_steps_of_the_clock_lose_nothing(history: History, clock: Clock) -> None:
    """A year ahead and back again, and decades back: stamps are wrong then, sums and earlier lines are not."""
    written = 0
    for step in (0, 365 * 24 * HOUR, -365 * 24 * HOUR, -50 * 365 * 24 * HOUR, 50 * 365 * 24 * HOUR):
        clock.now += step
        for _ in range(MINUTES_KEPT // 2):
            history.write({("/a", "pool"): Usage(1000, 1000, 1000)})
            written += 1
            clock.now += MINUTE
    assert share(history, "/a") == written


def test_a_full_disk_is_told_once_and_costs_nothing(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True)
    history = History(place, clock)
    try:
        assert history.write({("/a", "pool"): Usage(1000, 1000, 0)})
        filler = place / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1 << 20))
        meter = Meter()
        taken = {(f"/tenant/{number}", "pool"): Usage(1000, 1000, 0) for number in range(5000)}
        for _ in range(3):
            assert not history.write(taken)
        meter.give_back(taken)
        assert [record.message.split(": ")[1] for record in caplog.records] == ["database or disk is full"]
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", place], check=True)
        assert history.write(meter.take())
        assert share(history, "/a") == 1
        assert sum(line.share_byte_seconds for line in history.read(None, None)) == 5001
    finally:
        history.close()
        subprocess.run(["umount", place], check=True)


def test_a_damaged_database_is_told_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "history.db").write_text("no database, whatever it is, in at least sixteen bytes")
    history = History(tmp_path)
    assert not history.write({("/a", "pool"): Usage(1000, 1000, 0)})
    assert "file is not a database" in caplog.text
    history.close()


def test_killed_while_it_writes_all_or_nothing_is_kept(place: Path) -> None:
    """At every line of ours: SQLite's own promise does the rest."""
    usage = {("/a", "pool"): Usage(1000, 1000, 0), ("/b", "pool"): Usage(1000, 1000, 0)}

    def write(place: Path) -> None:
        history = History(place, lambda: NOON)
        history.write(usage)
        history.write(usage)

    (place / "dry").mkdir()
    where = str(Path(__file__).parents[3] / "controller")
    lines = lines_of(lambda: write(place / "dry"), where)
    for line in range(0, lines, 3):
        at = place / str(line)
        at.mkdir()
        assert run_in_child(lambda at=at, line=line: killed_at_line(lambda: write(at), where, line)) == -9
        history = History(at, lambda: NOON)
        assert (share(history, "/a"), share(history, "/b")) in ((0, 0), (1, 1), (2, 2))
        history.close()
