"""What runs inside a tenant's cgroup: does one thing with one file for each line on standard input, and says "done".

    write PATH BYTES    make the file, with something in every page
    map PATH            map it shared and look at every page; the mapping stays until the process ends
    read PATH           read it all with read(2)

It ends when its input does, so it never outlives the demonstration.
"""

import mmap
import os
import sys
from collections.abc import Callable

CHUNK_BYTES = 1 << 20
_kept: list[mmap.mmap] = []


def write(path: str, size: str) -> None:
    chunk = b"shared.." * (CHUNK_BYTES // 8)
    with open(path, "wb", buffering=0) as file:
        written = 0
        while written < int(size):
            written += file.write(chunk[: int(size) - written])


def map_shared(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(descriptor, 0, mmap.MAP_SHARED)
    os.close(descriptor)
    for first in range(0, len(mapped), mmap.PAGESIZE):
        mapped[first]
    _kept.append(mapped)


def read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(CHUNK_BYTES):
            pass


def main() -> None:
    actions: dict[str, Callable[..., None]] = {"write": write, "map": map_shared, "read": read}
    for line in sys.stdin:
        action, *arguments = line.rstrip("\n").split("\t")
        try:
            actions[action](*arguments)
            answer = "done"
        except OSError as error:
            answer = f"{action} {arguments[0]}: {error.strerror}"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
