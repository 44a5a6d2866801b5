"""The neighbours of bench/neighbours.py: a quiet tenant that measures, and hostile ones that never pause.

Run by it as `hostile.py NAME PLACE MIB`, inside the tenant's cgroup. A hostile one says "ready" when all is prepared,
and goes on until it is killed.
"""

import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PAGE = 4096
MIB = 1 << 20
PIECE = 225 * MIB  # of an allocation
NEW = os.O_RDWR | os.O_CREAT
FLOODERS = 16
_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def quiet(place: Path, seconds: float) -> dict[str, list[float]]:
    """Seconds that each operation took, one of each a millisecond."""
    fd = os.open(place / "quiet", NEW)
    os.pwrite(fd, bytes(64 * PAGE), 0)
    mapped = mmap.mmap(fd, 64 * PAGE)
    directory = place / "quiet.d"
    directory.mkdir(exist_ok=True)

    def create() -> None:
        os.close(os.open(directory / "f", NEW))

    def store() -> None:
        mapped[7 * PAGE] = 1

    operations: dict[str, Callable[[], object]] = {
        "read": lambda: os.pread(fd, PAGE, 8 * PAGE),
        "create": create,
        "stat": lambda: os.stat(directory),  # what was made in it makes the kernel ask
        "store": store,
    }
    took: dict[str, list[float]] = {name: [] for name in operations}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, operation in operations.items():
            begun = time.perf_counter()
            operation()
            took[name].append(time.perf_counter() - begun)
        os.unlink(directory / "f")
        mapped.madvise(mmap.MADV_DONTNEED)  # the next store is a page fault
        time.sleep(0.001)
    return took


def _allocated(path: Path, mib: int) -> int:
    fd = os.open(path, NEW)
    for start in range(0, mib * MIB, PIECE):
        os.posix_fallocate(fd, start, min(PIECE, mib * MIB - start))
    return fd


def cut(place: Path, mib: int) -> Callable[[], None]:
    def act() -> None:
        fd = _allocated(place / "big", mib)
        os.ftruncate(fd, 0)
        os.close(fd)

    return act


def open_truncating(place: Path, mib: int) -> Callable[[], None]:
    def act() -> None:
        os.close(_allocated(place / "big", mib))
        os.close(os.open(place / "big", os.O_WRONLY | os.O_TRUNC))

    return act


def unlink(place: Path, mib: int) -> Callable[[], None]:
    def act() -> None:
        os.close(_allocated(place / "big", mib))
        os.unlink(place / "big")

    return act


def replace(place: Path, mib: int) -> Callable[[], None]:
    def act() -> None:
        os.close(_allocated(place / "big", mib))
        os.close(os.open(place / "small", NEW))
        os.rename(place / "small", place / "big")

    return act


def map_every_other_page(place: Path, mib: int) -> Callable[[], None]:
    mapped = mmap.mmap(_allocated(place / "big", mib), mib * MIB)
    for page in range(0, mib * MIB // PAGE, 2):
        mapped[page * PAGE] = 1
    odd = iter(range(1, mib * MIB // PAGE, 2))

    def act() -> None:  # each look at it finds something new
        mapped[next(odd) * PAGE] = 1
        time.sleep(0.05)

    return act


def close_mappings(place: Path, mib: int) -> Callable[[], None]:
    fd = _allocated(place / "big", mib)

    def act() -> None:
        with mmap.mmap(fd, mib * MIB) as mapped:
            for page in range(0, mib * MIB, PAGE):
                mapped[page] = 1
            time.sleep(0.6)  # seen by a look for mappings

    return act


def small_files(place: Path, _: int) -> Callable[[], None]:
    def act() -> None:
        for number in range(5000):
            (place / f"s{number}").write_bytes(b"x" * PAGE)
        for number in range(5000):
            (place / f"s{number}").unlink()

    return act


def deep_paths(place: Path, _: int) -> Callable[[], None]:
    def act() -> None:
        directory = place
        for _ in range(300):
            directory /= "dddddddddd"
            with suppress(OSError):
                directory.mkdir()
        with suppress(OSError):
            (directory / "f").write_bytes(b"x")
            (directory / "f").unlink()
        while directory != place:
            with suppress(OSError):
                directory.rmdir()
            directory = directory.parent

    return act


def _flood(act: Callable[[int], object]) -> Callable[[], None]:
    for number in range(FLOODERS - 1):
        if os.fork() == 0:
            while True:
                act(number)
    return lambda: void(act(FLOODERS))


def void(_: object) -> None:
    """Any outcome will do."""


def flood_of_reads(place: Path, _: int) -> Callable[[], None]:
    fd = _allocated(place / "big", 64)
    return _flood(lambda _: os.pread(fd, PAGE, 0))


def flood_of_writes(place: Path, _: int) -> Callable[[], None]:
    fd, content = _allocated(place / "big", FLOODERS + 1), bytes(MIB)
    return _flood(lambda number: os.pwrite(fd, content, number * MIB))


def allocate_and_punch(place: Path, mib: int) -> Callable[[], None]:
    import ctypes  # noqa: PLC0415

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

    def act() -> None:
        fd = _allocated(place / "big", mib)
        libc.fallocate(fd, _PUNCH, 0, mib * MIB)
        os.close(fd)

    return act


def copy_ranges(place: Path, mib: int) -> Callable[[], None]:
    source, target = _allocated(place / "big", mib // 2), os.open(place / "copy", NEW)

    def act() -> None:
        done = 0
        while done < mib // 2 * MIB:
            done += os.copy_file_range(source, target, mib // 2 * MIB - done, done, done)

    return act


def largest_owner_exits(place: Path, mib: int) -> Callable[[], None]:
    cgroup = Path(os.environ["SHAREDFS_BENCH_CGROUP"]) / "owner"

    def act() -> None:
        cgroup.mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            os.close(_allocated(place / "big", mib))
            with open(place / "big", "rb", buffering=0) as file:
                for start in range(0, mib * MIB, 8 * PAGE):
                    os.pread(file.fileno(), PAGE, start)
            os._exit(0)
        os.waitpid(child, 0)
        for _ in range(100):
            with suppress(OSError):
                cgroup.rmdir()
                break
            time.sleep(0.01)
        os.unlink(place / "big")

    return act


def list_all(place: Path, _: int) -> Callable[[], None]:
    for number in range(20_000):
        os.close(os.open(place / f"l{number}", NEW))
    for _ in range(3):
        if os.fork() == 0:
            break

    def act() -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)

    return act


HOSTILE: dict[str, Callable[[Path, int], Callable[[], None]]] = {
    "truncates": cut,
    "opens with O_TRUNC": open_truncating,
    "unlinks": unlink,
    "renames over": replace,
    "maps every other page": map_every_other_page,
    "closes mappings": close_mappings,
    "makes small files": small_files,
    "makes deep paths": deep_paths,
    "floods reads": flood_of_reads,
    "floods writes": flood_of_writes,
    "allocates and punches": allocate_and_punch,
    "copies ranges": copy_ranges,
    "exits as owner": largest_owner_exits,
    "lists": list_all,
}


def main() -> None:
    name, place, number = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    if name == "quiet":
        print(json.dumps(quiet(place, number)))
        return
    act = HOSTILE[name](place, int(number))
    print("ready", flush=True)
    while True:
        act()


if __name__ == "__main__":
    main()
