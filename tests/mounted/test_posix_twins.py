"""The same calls on a pool and on tmpfs, made up by hypothesis: each result, errno and attribute has to agree."""

import ctypes
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.mount import MountedPool
from tests.support.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, fallocate, rename2

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)

Call = Callable[["Twin"], object]


class Twin:
    """One of the two: a directory, and the descriptors that the calls opened in it."""

    def __init__(self, root: Path, resources: ExitStack) -> None:
        self.root = root
        self.files: list[int] = []
        self._resources = resources

    def open(self, name: str, flags: int, mode: int) -> int:
        fd = os.open(self.root / name, flags | os.O_NONBLOCK, mode)
        self._resources.callback(os.close, fd)
        self.files.append(fd)
        return len(self.files)

    def file(self, number: int) -> int:
        return self.files[number % len(self.files)] if self.files else 1 << 20


def outcome(call: Call, twin: Twin) -> object:
    try:
        return call(twin)
    except OSError as error:
        return f"errno {error.errno}"


def attributes(path: Path) -> tuple[object, ...]:
    found = os.lstat(path)
    content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
    target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size, content, target, xattrs


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    found = {str(path.relative_to(root)): attributes(path) for path in sorted(root.rglob("*"))}
    for path, (mode, links, *rest) in found.items():
        size = 0 if stat.S_ISDIR(int(str(mode))) else rest[2]  # of directories it says nothing
        found[path] = (mode, links, *rest[:2], size, *rest[3:])
    return found


names = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "a/b", "s", "s/a", "n" * 256, "d/..", "."])
numbers = st.integers(0, 7)
sizes = st.sampled_from([0, 1, 100, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE])
modes = st.sampled_from([0o000, 0o600, 0o644, 0o755, 0o2755, 0o4755, 0o1777, 0o2644])
open_flags = st.sampled_from(
    [
        os.O_RDONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        os.O_RDWR | os.O_CREAT | os.O_APPEND,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDONLY | os.O_NOFOLLOW,
        os.O_PATH,
        os.O_TMPFILE | os.O_RDWR,
        os.O_CREAT | os.O_DIRECTORY,
    ]
)
xattr_names = st.sampled_from(["user.a", "user.b", "trusted.a", "security.a", "nonsense.a", "user."])


def _listed(twin: Twin, name: str) -> list[str]:
    return sorted(os.listdir(twin.root / name))


def _stated(twin: Twin, number: int) -> tuple[int, ...]:
    found = os.fstat(twin.file(number))
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_blocks


def _seek(fd: int, offset: int, whence: int) -> object:
    """The end of a directory is nothing that FUSE leaves to us; see docs/posix.md."""
    return None if stat.S_ISDIR(os.fstat(fd).st_mode) and whence == os.SEEK_END else os.lseek(fd, offset, whence)


def _pair(function: Callable[[Path, Path], object]) -> Callable[[str, str], Call]:
    return lambda a, b: lambda twin: function(twin.root / a, twin.root / b)


def _one(function: Callable[..., object], *extra: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
    return st.builds(lambda name, *rest: lambda twin: function(twin.root / name, *rest), names, *extra)


def _file(function: Callable[..., object], *extra: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
    return st.builds(lambda number, *rest: lambda twin: function(twin.file(number), *rest), numbers, *extra)


def _two(function: Callable[[Path, Path], object]) -> st.SearchStrategy[Call]:
    return st.builds(_pair(function), names, names)


calls: st.SearchStrategy[Call] = st.one_of(
    st.builds(lambda name, flags, mode: lambda twin: twin.open(name, flags, mode), names, open_flags, modes),
    _one(os.mkdir, modes),
    _one(os.rmdir),
    _one(os.unlink),
    _one(os.chmod, modes),
    _one(os.lchown, st.sampled_from([0, 1000]), st.sampled_from([-1, 0, 1000])),
    _one(os.truncate, sizes),
    _one(lambda path: os.mkfifo(path, 0o644)),
    _one(lambda path: os.symlink("a", path)),
    _one(lambda path: os.symlink("d", path)),
    _one(
        os.setxattr,
        xattr_names,
        st.binary(max_size=9),
        numbers,
    ),
    _one(os.getxattr, xattr_names),
    _one(os.removexattr, xattr_names),
    _two(lambda a, b: os.link(a, b, follow_symlinks=False)),
    _two(os.rename),
    _two(lambda a, b: rename2(a, b, RENAME_NOREPLACE)),
    _two(lambda a, b: rename2(a, b, RENAME_EXCHANGE)),
    st.builds(lambda name: lambda twin: _listed(twin, name), names),
    st.builds(lambda number: lambda twin: _stated(twin, number), numbers),
    _file(lambda fd, size, offset: os.pwrite(fd, b"x" * size, offset), sizes, sizes),
    _file(lambda fd, size: os.write(fd, b"y" * size), sizes),
    _file(os.pread, sizes, sizes),
    _file(os.ftruncate, sizes),
    _file(os.fchmod, modes),
    _file(os.fsync),
    _file(_seek, sizes, st.integers(0, 5)),
    _file(fallocate, st.integers(0, 3), sizes, sizes),
    _file(lambda fd: fcntl.ioctl(fd, 0x80086601, bytes(8))),
)


def _blocks_agree(results: list[object]) -> bool:
    """Extending a file reserves memory in a pool (see docs/posix.md): more blocks are no difference."""
    ours, theirs = results
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == 5:
        return ours[:4] == theirs[:4] and ours[4] >= theirs[4]
    return ours == theirs


@settings(
    max_examples=60,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=st.lists(calls, min_size=10, max_size=60))
def test_twins_agree(shared_pool: MountedPool, plain_tmpfs: Path, sequence: list[Call]) -> None:
    with ExitStack() as resources:
        twins = [
            Twin(Path(resources.enter_context(tempfile.TemporaryDirectory(dir=root))), resources)
            for root in (shared_pool.path, plain_tmpfs)
        ]
        for step, call in enumerate(sequence):
            results = [outcome(call, twin) for twin in twins]
            assert _blocks_agree(results), f"step {step} of {len(sequence)}: {results}"
        pictures = [picture(twin.root) for twin in twins]
        assert pictures[0] == pictures[1]
