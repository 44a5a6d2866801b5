"""Random operations, as fsx and fsstress do them: on a file against a model in memory, on names against tmpfs.

Neither program is packaged for Debian. Seeds are fixed, so that a failure can be had again.
"""

import mmap
import os
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from errno import EBADF
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.posix import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, Child, fallocate, opened, rename2

PAGE = 4096
LONGEST = 40 * PAGE
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


class RandomFile:
    """A file, what it has to contain, and random things to do to both."""

    def __init__(self, path: Path, seed: int, mapped: bool = True) -> None:
        self.path = path
        self.mapped = mapped
        self.random = random.Random(seed)
        self.model = bytearray()
        self.fd = os.open(path, NEW)
        self.held: mmap.mmap | None = None  # a mapping that lives through whatever happens to the file
        self.log: list[str] = []

    def close(self) -> None:
        os.close(self.fd)
        if self.held is not None:
            self.held.close()

    def step(self) -> None:
        data = [self.read, self.write, self.write, self.append]
        if self.mapped:
            data += [self.mapped_read, self.mapped_write, self.hold]
        space = [self.truncate, self.allocate, self.punch, self.copy_within, self.copy_from_another, self.reopen]
        action = self.random.choice([*data, *space])
        self.log.append(action.__name__)
        action()

    def check(self) -> None:
        assert os.fstat(self.fd).st_size == len(self.model), self.log[-10:]
        content = os.pread(self.fd, LONGEST + 1, 0)
        if content != self.model:
            first = next(
                at for at, (found, right) in enumerate(zip(content, self.model, strict=True)) if found != right
            )
            raise AssertionError(f"byte {first} is {content[first]}, not {self.model[first]}: {self.log[-10:]}")
        if self.held is not None:
            common = min(len(self.held), len(self.model))
            assert self.held[:common] == self.model[:common], self.log[-10:]

    def part(self, longest: int = LONGEST) -> tuple[int, int]:
        start = self.random.randrange(longest)
        return start, self.random.randrange(start, min(longest, start + 12 * PAGE)) + 1

    def existing_part(self) -> tuple[int, int]:
        return self.part(len(self.model)) if self.model else (0, 0)

    def put(self, start: int, data: bytes) -> None:
        if data:
            self.model.extend(bytes(max(0, start - len(self.model))))
            self.model[start : start + len(data)] = data

    def read(self) -> None:
        start, end = self.part()
        assert os.pread(self.fd, end - start, start) == self.model[start:end]

    def write(self) -> None:
        start, end = self.part()
        data = self.random.randbytes(end - start)
        assert os.pwrite(self.fd, data, start) == len(data)
        self.put(start, data)

    def append(self) -> None:
        data = self.random.randbytes(self.random.randrange(1, 2 * PAGE))
        if len(self.model) + len(data) <= LONGEST:
            with opened(self.path, os.O_WRONLY | os.O_APPEND) as fd:
                os.write(fd, data)
            self.put(len(self.model), data)

    def truncate(self) -> None:
        size = self.random.randrange(LONGEST)
        os.ftruncate(self.fd, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def mapped_read(self) -> None:
        start, end = self.existing_part()
        if end > start:
            with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as mapping:
                assert mapping[start:end] == self.model[start:end]

    def mapped_write(self) -> None:
        start, end = self.existing_part()
        if end > start:
            with mmap.mmap(self.fd, len(self.model)) as mapping:
                mapping[start:end] = data = self.random.randbytes(end - start)
                self.put(start, data)
                if self.random.random() < 0.3:
                    mapping.flush()

    def hold(self) -> None:
        if self.held is not None:
            self.held.close()
            self.held = None
        if self.model:
            self.held = mmap.mmap(self.fd, len(self.model))

    def allocate(self) -> None:
        start, end = self.part()
        keep = self.random.random() < 0.5
        fallocate(self.fd, FALLOC_KEEP_SIZE if keep else 0, start, end - start)
        if not keep:
            self.model.extend(bytes(max(0, end - len(self.model))))

    def punch(self) -> None:
        start, end = self.part()
        fallocate(self.fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, start, end - start)
        end = min(end, len(self.model))
        if end > start:
            self.put(start, bytes(end - start))

    def copy_within(self) -> None:
        start, end = self.existing_part()
        target = self.random.randrange(LONGEST)
        length = min(end - start, LONGEST - target)
        if length > 0 and (target >= start + length or start >= target + length):
            copied = os.copy_file_range(self.fd, self.fd, length, start, target)
            self.put(target, bytes(self.model[start : start + copied]))

    def copy_from_another(self) -> None:
        start, end = self.part()
        data = self.random.randbytes(end - start)
        with opened(self.path.with_name("another"), os.O_RDWR | os.O_CREAT | os.O_TRUNC) as other:
            os.write(other, data)
            copied = os.copy_file_range(other, self.fd, len(data), 0, start)
        self.put(start, data[:copied])

    def reopen(self) -> None:
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)


@pytest.mark.parametrize("seed", range(4))
def test_a_file_is_what_was_done_to_it(place: Path, seed: int) -> None:
    file = RandomFile(place / "file", seed)
    try:
        for _ in range(500):
            file.step()
            file.check()
    finally:
        file.close()


@pytest.mark.parametrize("seed", range(20, 22))
def test_the_books_follow(shared_pool: MountedPool, seed: int) -> None:
    """Page by page, whatever is written, cut, allocated, punched out and copied (I1)."""
    path = shared_pool.path / f"books-{seed}"
    path.mkdir()
    file = RandomFile(path / "file", seed, mapped=False)
    try:
        for _ in range(60):
            for _ in range(5):
                file.step()
            file.check()
            shared_pool.check_conservation()
    finally:
        file.close()
    shutil.rmtree(path)
    shared_pool.check_conservation()


def test_files_of_several_processes_do_not_mix(place: Path) -> None:
    def work(seed: int) -> None:
        directory = place / f"{seed}"
        directory.mkdir()
        test_a_file_is_what_was_done_to_it(directory, seed)

    children = [Child(lambda seed=seed: work(seed)) for seed in range(10, 13)]
    for child in children:
        child.result()


NAMES = ("a", "b", "c", "d/a", "d/b", "d/e/a", "d/e/b", "d", "d/e", "f")


class RandomNames:
    """Random calls on a few names, and what came of each: nothing but a seed and the filesystem decide it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.open_files = ExitStack()
        self.descriptors: list[int] = []

    def step(self) -> str:
        actions: list[Callable[[], object]] = [self.create, self.create, self.make_directory, self.link, self.symlink]
        actions += [self.rename, self.rename, self.unlink, self.remove_directory, self.names, self.look, self.fifo]
        actions += [self.open, self.write_to_open, self.change_mode, self.note, self.truncate]
        action = self.random.choice(actions)
        try:
            return f"{action.__name__}: {action()}"
        except OSError as error:
            return f"{action.__name__}: {error.strerror}"

    def path(self) -> Path:
        return self.root / self.random.choice(NAMES)

    def create(self) -> object:
        flags = self.random.choice([os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC])
        with opened(self.path(), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o640) as fd:
            return os.write(fd, self.random.randbytes(self.random.randrange(9000)))

    def make_directory(self) -> object:
        return self.path().mkdir(self.random.choice([0o700, 0o755, 0o2775]))

    def fifo(self) -> object:
        return os.mkfifo(self.path(), 0o600)

    def link(self) -> object:
        return os.link(self.path(), self.path(), follow_symlinks=False)

    def symlink(self) -> object:
        return self.path().symlink_to(self.random.choice(["a", "d/a", "../a", "nowhere", "x" * 300]))

    def rename(self) -> object:
        return rename2(self.path(), self.path(), self.random.choice([0, 0, 1, 2]))

    def unlink(self) -> object:
        return self.path().unlink()

    def remove_directory(self) -> object:
        return self.path().rmdir()

    def names(self) -> object:
        return sorted(os.listdir(self.path()))

    def look(self) -> object:
        status = self.path().lstat()
        size = status.st_size if not self.is_directory(status.st_mode) else 0
        return oct(status.st_mode), status.st_nlink, size, status.st_uid, status.st_gid

    @staticmethod
    def is_directory(mode: int) -> bool:
        return mode & 0o170000 == 0o040000

    def open(self) -> object:
        fd = os.open(self.path(), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        self.open_files.callback(os.close, fd)
        self.descriptors.append(fd)
        return os.fstat(fd).st_nlink

    def write_to_open(self) -> object:
        """Also to files that have no name any more."""
        if not self.descriptors:
            raise OSError(EBADF, os.strerror(EBADF))
        fd = self.random.choice(self.descriptors)
        written = os.pwrite(fd, self.random.randbytes(100), self.random.randrange(5000))
        return written, os.fstat(fd).st_nlink, os.fstat(fd).st_size, sum(os.pread(fd, 9000, 0))

    def change_mode(self) -> object:
        return self.path().chmod(self.random.choice([0o600, 0o644, 0o1777, 0o4755]))

    def note(self) -> object:
        path = self.path()
        os.setxattr(path, "user.note", self.random.randbytes(20), self.random.choice([0, os.XATTR_CREATE]))
        return sorted(os.listxattr(path))

    def truncate(self) -> object:
        path = self.path()
        if path.is_fifo():  # opening it to truncate it would wait for its other end
            return None
        return os.truncate(path, self.random.randrange(9000))


def tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            note = os.listxattr(path, follow_symlinks=False)
            found[str(path.relative_to(root))] = (oct(status.st_mode), status.st_nlink, content, note)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_names_behave_as_on_tmpfs(shared_pool: MountedPool, plain_tmpfs: Path, seed: int) -> None:
    """Each call has the same outcome on both, the same errno too, and both end with the same tree."""
    roots = [plain_tmpfs / f"names-{seed}", shared_pool.path / f"names-{seed}"]
    for root in roots:
        root.mkdir()
    twins = [RandomNames(root, seed) for root in roots]
    with twins[0].open_files, twins[1].open_files:
        for number in range(2500):
            on_tmpfs, on_the_pool = (twin.step() for twin in twins)
            assert on_the_pool == on_tmpfs, f"call {number} of seed {seed}"
        assert tree(roots[1]) == tree(roots[0])
    shared_pool.check_conservation()
    for root in roots:
        shutil.rmtree(root)
    shared_pool.check_conservation()
