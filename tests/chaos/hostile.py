"""Hostile tenants of the chaos job: each does again and again what could stop, kill or cheat the others.

    hostile.py KIND DIRECTORY CGROUP SEED

Ends when its standard input does. A refusal for want of room is right; any other error ends it with a traceback.
"""

import ctypes
import mmap
import os
import random
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EAGAIN, EDQUOT, ELOOP, ENOENT, ENOSPC
from pathlib import Path

PAGE = 4096
MIB = 1 << 20
MOST_BYTES = 32 * MIB
_MADV_REMOVE = 9
_SPLICE_F_NONBLOCK = 2
_HUNG = Path(__file__).parents[1] / "support" / "hung.py"
_WAIT_SECONDS = 0.2

_libc = ctypes.CDLL(None, use_errno=True)


def is_over(seconds: float = 0.0) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


@contextmanager
def opened(name: str) -> Iterator[int]:
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mapped(fd: int, length: int) -> Iterator[mmap.mmap]:
    with mmap.mmap(fd, length) as memory:
        yield memory


def address(memory: mmap.mmap, offset: int = 0) -> int:
    view = ctypes.c_char.from_buffer(memory, offset)
    place = ctypes.addressof(view)
    del view
    return place


class Hostile:
    def __init__(self, cgroup: str, seed: int) -> None:
        self.cgroup = Path(cgroup)
        self.random = random.Random(seed)

    def maps_every_other_page(self) -> None:
        with opened("every_other") as fd:
            os.posix_fallocate(fd, 0, MOST_BYTES)
            with mapped(fd, MOST_BYTES) as memory:
                for page in range(self.random.randrange(2), MOST_BYTES // PAGE, 2):
                    memory[page * PAGE] = 1
                is_over(_WAIT_SECONDS)
            os.ftruncate(fd, 0)

    def removes_pages(self) -> None:
        """Punches the backing file past the daemon, and makes the pages anew by touching them."""
        length = 4 * MIB
        with opened("removed") as fd:
            os.pwrite(fd, b"x" * length, 0)
            with mapped(fd, length) as memory:
                for _ in range(4):
                    start = self.random.randrange(length // PAGE // 2) * PAGE
                    if _libc.madvise(ctypes.c_void_p(address(memory, start)), length // 2, _MADV_REMOVE):
                        raise OSError(ctypes.get_errno(), "madvise")
                    for offset in range(start, start + length // 2, PAGE):
                        memory[offset] = 2
                    is_over(_WAIT_SECONDS)

    def pins_pages(self) -> None:
        """Pages that pipes hold stay when their file is cut: charged to the pool, and in no file."""
        pipes, length = [], MIB
        try:
            with opened("pinned") as fd:
                for _ in range(4):
                    os.pwrite(fd, b"p" * length, 0)
                    with mapped(fd, length) as memory:
                        for start in range(0, length, 16 * PAGE):
                            pipes.append(os.pipe())
                            part = (ctypes.c_void_p * 2)(address(memory, start), 16 * PAGE)
                            if _libc.vmsplice(pipes[-1][1], part, 1, _SPLICE_F_NONBLOCK) < 0:
                                raise OSError(ctypes.get_errno(), "vmsplice")
                    os.ftruncate(fd, 0)
            is_over(_WAIT_SECONDS)
        finally:
            for ends in pipes:
                for end in ends:
                    os.close(end)

    def hangs(self) -> None:
        """Processes that hang in execve: a look at one never ends."""
        with tempfile.TemporaryDirectory(prefix="sf-hung-") as directory:
            hung = subprocess.Popen(
                [sys.executable, str(_HUNG), directory, "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert hung.stdin is not None
            assert hung.stdout is not None
            hung.stdout.readline()
            is_over(10 * _WAIT_SECONDS)
            hung.stdin.close()
            if hung.wait() != 0:
                raise AssertionError(f"hung.py ended with {hung.returncode}")
            hung.stdout.close()

    def moves(self) -> None:
        """Between cgroups below its own, and uses the file from each."""
        below = [self.cgroup / name for name in ("one", "other")]
        try:
            with opened("moved") as fd:
                for place in below:
                    place.mkdir()
                    (place / "cgroup.procs").write_text(str(os.getpid()))
                    os.pwrite(fd, b"m" * MIB, self.random.randrange(8) * MIB)
                    os.pread(fd, 8 * MIB, 0)
                is_over(_WAIT_SECONDS)
        finally:
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
            for place in below:
                with suppress(FileNotFoundError):
                    place.rmdir()

    def floods(self) -> None:
        failed: list[BaseException] = []
        with opened("flood") as fd:
            os.pwrite(fd, b"f" * 4 * MIB, 0)

            def work(seed: int) -> None:
                chance = random.Random(seed)
                try:
                    for _ in range(300):
                        offset = chance.randrange(1024) * PAGE
                        os.pread(fd, PAGE, offset) if chance.random() < 0.5 else os.pwrite(fd, b"g" * PAGE, offset)
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=work, args=(self.random.getrandbits(32),)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]

    def fills(self) -> None:
        with opened("fill") as fd:
            for start in range(0, MOST_BYTES, MIB):
                os.pwrite(fd, b"f" * MIB, start)
        os.unlink("fill")

    def owns_most(self) -> None:
        """A large file that stays until it exits, however that is: others read it (`reads_others`)."""
        with opened("../bait") as fd:
            for start in range(0, MOST_BYTES, MIB):
                os.pwrite(fd, b"b" * MIB, start)
        while not is_over(_WAIT_SECONDS):
            pass

    def reads_others(self) -> None:
        """Every file of everybody: it uses them from then on, and holds on to what is removed just now."""
        for place, _, names in os.walk(".."):
            for name in names:
                try:
                    fd = os.open(os.path.join(place, name), os.O_RDONLY | os.O_NOFOLLOW)
                except OSError as error:
                    if error.errno not in (ENOENT, ELOOP):
                        raise
                    continue
                while os.read(fd, MIB):
                    pass
                os.close(fd)
        is_over(_WAIT_SECONDS)


# A tenant that renames its cgroup (cgroup v1 can) is not among them: sharedfs takes it for one that has exited.
KINDS = tuple(name for name in vars(Hostile) if not name.startswith("_"))


def main(kind: str, directory: str, cgroup: str, seed: int) -> None:
    os.chdir(directory)
    act: Callable[[], None] = getattr(Hostile(cgroup, seed), kind)
    while not is_over():
        try:
            act()
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT, EAGAIN):
                raise
            is_over(_WAIT_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
