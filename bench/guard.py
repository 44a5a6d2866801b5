"""How fast a tenant must take memory to outrun the guard of limits: bursts against margins of different size.

For each margin: a cgroup with a limit of 64 MiB, a watch that raises it to 512 MiB, and a process that maps and
populates 192 MiB in one system call. Prints how many lived, how fast a burst without a limit is, and how long it takes
from the return of a burst of 2 MiB beyond the threshold until the limit is raised. Needs root.

    python bench/guard.py [TRIALS]
"""

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, also where nothing is installed

from controller.service import guard
from sharedfs.linux.cgroups import CgroupVersion, find_memory_hierarchy

MIB = 1 << 20
LIMIT, RAISED, BURST = 64 * MIB, 512 * MIB, 192 * MIB
MARGINS_MIB = (1, 2, 4, 8, 16)
POPULATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    hierarchy = find_memory_hierarchy()
    v1 = hierarchy.version is CgroupVersion.V1
    path = f"/sharedfs-bench-guard-{os.getpid()}"
    directory = hierarchy.directory(path)
    directory.mkdir()
    try:
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-I", "-S", guard.__file__, f"{place}/lock", "60"]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdout.readline()
                scheduling = os.sched_getscheduler(process.pid)
                resident = Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0]
                print(
                    f"guard: {int(resident) / 1024:.0f} MiB, {'real time' if scheduling == os.SCHED_RR else 'ordinary'}"
                )
                print(f"a burst without a limit: {free_speed() / 1e9:.1f} GB/s")
                took = sorted(reaction_seconds(directory, process, v1=v1) for _ in range(trials))
                print(f"reaction: median {took[len(took) // 2] * 1e3:.2f} ms, at most {took[-1] * 1e3:.2f} ms")
                for margin in MARGINS_MIB:
                    lived = sum(lives(directory, process, margin * MIB, v1=v1) for _ in range(trials))
                    print(f"margin {margin:3} MiB: {lived} of {trials} lived")
                process.stdin.close()
    finally:
        directory.rmdir()


def free_speed() -> float:
    begun = time.perf_counter()
    mmap.mmap(-1, BURST, flags=POPULATE).close()
    return BURST / (time.perf_counter() - begun)


def lives(directory: Path, process: "subprocess.Popen[str]", margin: int, *, v1: bool) -> bool:
    order_watch(directory, process, margin, v1=v1)
    return run_inside(directory, f"import mmap; mmap.mmap(-1, {BURST}, flags={POPULATE})").returncode == 0


def reaction_seconds(directory: Path, process: "subprocess.Popen[str]", *, v1: bool) -> float:
    margin = 16 * MIB
    order_watch(directory, process, margin, v1=v1)
    usage, limit = ("memory.usage_in_bytes", "memory.limit_in_bytes") if v1 else ("memory.current", "memory.max")
    done = run_inside(
        directory,
        "import mmap, time\n"
        f"size = {LIMIT - margin + 2 * MIB} - int(open({str(directory / usage)!r}).read())\n"
        f"taken = mmap.mmap(-1, size // 4096 * 4096, flags={POPULATE}); begun = time.perf_counter()\n"
        f"while open({str(directory / limit)!r}).read().strip() != '{RAISED}': pass\n"
        "print(time.perf_counter() - begun)",
    )
    return float(done.stdout)


def run_inside(directory: Path, code: str) -> "subprocess.CompletedProcess[str]":
    join = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    command = ["/bin/sh", "-c", join, str(directory), sys.executable, "-S", "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def order_watch(directory: Path, process: "subprocess.Popen[str]", margin: int, *, v1: bool) -> None:
    limit_file = "memory.limit_in_bytes" if v1 else "memory.max"
    files: list[tuple[str, list[int], int | None]] = [(limit_file, [LIMIT], RAISED)]
    (directory / limit_file).write_text(str(LIMIT))
    if not v1:
        (directory / "memory.high").write_text(str(LIMIT - margin))
        files.append(("memory.high", [LIMIT - margin], None))
    entry = {
        "key": "tenant",
        "directory": str(directory),
        "inode": directory.stat().st_ino,
        "v1": v1,
        "threshold": LIMIT - margin,
        "limit": LIMIT,
        "files": files,
    }
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"watch": [entry]}) + "\n")
    process.stdin.flush()
    process.stdout.readline()


if __name__ == "__main__":
    main()
