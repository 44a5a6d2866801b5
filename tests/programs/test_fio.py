"""fio: several jobs write at random, then read back and compare checksums, through every way that fio knows."""

import re
from pathlib import Path

import pytest

from tests.support.programs import finish, needs, run

pytestmark = needs("fio")

ENGINES = ["sync", "psync", "vsync", "pvsync2", "mmap", "posixaio", "libaio", "io_uring"]


@pytest.mark.parametrize("engine", ENGINES)
def test_fio_verifies_what_it_wrote(place: Path, engine: str) -> None:
    if re.search(rf"^\s*{engine}\s*$", run("fio", "--enghelp"), re.MULTILINE) is None:
        pytest.skip(f"this fio has no {engine}")
    if engine == "io_uring" and Path("/proc/sys/kernel/io_uring_disabled").exists():
        disabled = Path("/proc/sys/kernel/io_uring_disabled").read_text().strip()
        if disabled != "0":
            pytest.skip("io_uring is disabled on this host")
    common = [
        "--rw=randrw",
        "--bsrange=4k-64k",
        "--size=4M",
        "--numjobs=3",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ]
    common += ["--iodepth=8", "--randseed=7", "--group_reporting", "--fallocate=none", "--fsync=50", "--blockalign=4k"]
    code, output = finish("fio", "--name=verify", f"--ioengine={engine}", f"--directory={place}", *common, seconds=90)
    assert code == 0, output[-3000:]
    assert "err= 0" in output
    sizes = [file.stat().st_size for file in place.iterdir()]
    assert sizes == [4 << 20] * 3


def test_fio_direct_and_trim(place: Path) -> None:
    """O_DIRECT, and blocks that are punched out between."""
    common = ["--rw=randwrite", "--bs=4k", "--size=4M", "--verify=crc32c", "--verify_fatal=1", "--randseed=7"]
    common.append("--verify_state_save=0")
    run("fio", "--name=direct", "--ioengine=psync", "--direct=1", f"--directory={place}", *common)
    run("fio", "--name=falloc", "--ioengine=falloc", "--rw=randtrim", "--bs=4k", "--size=4M", f"--directory={place}")
