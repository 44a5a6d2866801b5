"""Requests that are cut, too long, wrong or unknown: an errno, never a hang, a crash, a wrong write or a path outside.

The store, the handlers, the shortcut in C and pyfuse3 are real; the kernel is the test.
"""

import os
import struct
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL, EIO, ENOSYS
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sharedfs.fuse.protocol import COPIES, ROOT_NODE, Opcode
from tests.hostile.wire import UNANSWERED, Kernel, served
from tests.support.parts import skip_without_shortcut

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the store's tmpfs needs root")

_SOURCE = Path(__file__).parents[2] / "sharedfs" / "ops" / "fastpath.c"
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")

# What follows the header: the format of the fields (linux/fuse.h, written down a second time), and how many texts.
SHAPES = {
    Opcode.LOOKUP: ("", 1),
    Opcode.FORGET: ("Q", 0),
    Opcode.GETATTR: ("IIQ", 0),
    Opcode.SETATTR: ("IIQQQqqqIIIIIIII", 0),
    Opcode.READLINK: ("", 0),
    Opcode.SYMLINK: ("", 2),
    Opcode.MKNOD: ("IIII", 1),
    Opcode.MKDIR: ("II", 1),
    Opcode.UNLINK: ("", 1),
    Opcode.RMDIR: ("", 1),
    Opcode.RENAME: ("Q", 2),
    Opcode.LINK: ("Q", 1),
    Opcode.OPEN: ("II", 0),
    Opcode.READ: ("QQIIQII", 0),
    Opcode.WRITE: ("QQIIQII", 0),
    Opcode.STATFS: ("", 0),
    Opcode.RELEASE: ("QIIQ", 0),
    Opcode.FSYNC: ("QII", 0),
    Opcode.SETXATTR: ("IIII", 1),
    Opcode.GETXATTR: ("II", 1),
    Opcode.LISTXATTR: ("II", 0),
    Opcode.REMOVEXATTR: ("", 1),
    Opcode.FLUSH: ("QIIQ", 0),
    Opcode.OPENDIR: ("II", 0),
    Opcode.READDIR: ("QQIIQII", 0),
    Opcode.RELEASEDIR: ("QIIQ", 0),
    Opcode.FSYNCDIR: ("QII", 0),
    Opcode.ACCESS: ("II", 0),
    Opcode.CREATE: ("IIII", 1),
    Opcode.INTERRUPT: ("Q", 0),
    Opcode.IOCTL: ("QIIQII", 0),
    Opcode.BATCH_FORGET: ("II", 0),
    Opcode.FALLOCATE: ("QQQII", 0),
    Opcode.READDIRPLUS: ("QQIIQII", 0),
    Opcode.RENAME2: ("QII", 2),
    Opcode.LSEEK: ("QQII", 0),
    Opcode.COPY_FILE_RANGE: ("QQQQQQQ", 0),
    Opcode.COPY_FILE_RANGE_64: ("QQQQQQQ", 0),
    Opcode.TMPFILE: ("IIII", 1),
    Opcode.STATX: ("IIQII", 0),
}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortcut in C, built so that it stops at an access that is out of bounds and at undefined behaviour."""
    built = tmp_path_factory.mktemp("built") / "fastpath.so"
    include = sysconfig.get_paths()["include"]
    subprocess.run(["gcc", "-shared", "-fPIC", *_SANITIZERS, f"-I{include}", "-o", built, _SOURCE], check=True)
    return built


@pytest.fixture(params=["C", "C, sanitized", "Python"], scope="module")
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with kernel_with(request, tmp_path_factory) as made:
        yield made


@pytest.fixture(params=["C", "C, sanitized", "Python"], scope="module")
def disturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """For requests at random, which may remove what the other tests look at."""
    with kernel_with(request, tmp_path_factory) as made:
        yield made


@contextmanager
def kernel_with(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    outside = tmp_path_factory.mktemp("outside")
    if request.param != "Python":
        skip_without_shortcut()
    if request.param != "C, sanitized":
        with served(outside, request.param) as made:
            yield made
        return
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout
    environment = {
        "LD_PRELOAD": library.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONMALLOC": "malloc",  # so that Python's objects have edges, too
    }
    with served(outside, "C", request.getfixturevalue("sanitized"), **environment) as made:
        yield made


def plain_body(kernel: Kernel, opcode: int) -> bytes:
    """A small body as the kernel would make it, of fields that are 0."""
    if opcode == Opcode.WRITE:
        return struct.pack("<QQIIQII", 0, 0, 5, 0, 0, 0, 0) + b"data!"
    if opcode == Opcode.SETXATTR:
        return struct.pack("<IIII", 5, 0, 0, 0) + b"user.x\0value"
    if opcode == Opcode.BATCH_FORGET:
        return struct.pack("<IIQQ", 1, 0, 4711, 1)
    if opcode == Opcode.IOCTL:
        return struct.pack("<QIIQII", 0, 0, 0x40086602, 0, 8, 0) + bytes(8)
    form, texts = SHAPES[opcode]
    fields = bytes(struct.calcsize(f"<{form}"))
    return fields + b"".join(b"text%d\0" % number for number in range(texts))


@pytest.mark.parametrize(
    "opcode", [opcode for opcode in SHAPES if SHAPES[opcode] != ("", 0)], ids=lambda code: code.name
)
def test_a_request_that_is_cut_or_lies_about_its_length_is_refused(kernel: Kernel, opcode: Opcode) -> None:
    """Cut at every byte of its body, with a header that says so and with one that does not."""
    body = plain_body(kernel, opcode)
    node = kernel.nodes["file"]
    answered = opcode not in UNANSWERED
    for cut in range(len(body)):
        error, answer = kernel.ask(opcode, node, body[:cut])
        assert (error, answer) == (EINVAL if answered else 0, b"")
        error, answer = kernel.ask(opcode, node, body[:cut], length=40 + len(body))
        assert (error, answer) == (EIO if answered else 0, b"")
    for length in (0, 39, 40 + len(body) + 1, (1 << 32) - 1):
        assert kernel.ask(opcode, node, body, length=length) == (EIO if answered else 0, b"")
    kernel.check()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"../removed", b"directory/..", b"a\0b"])
def test_what_is_no_name_is_refused(kernel: Kernel, name: bytes) -> None:
    """Nothing but one component ever reaches the store; only a look-up may ask for . and .., as NFS servers do."""
    for opcode, (form, texts) in SHAPES.items():
        if not texts or opcode in (Opcode.TMPFILE, Opcode.GETXATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR):
            continue
        if opcode == Opcode.LOOKUP and name in (b".", b".."):
            continue
        fields = bytes(struct.calcsize(f"<{form}"))
        others = b"other\0" * (texts - 1)
        assert kernel.ask(opcode, ROOT_NODE, fields + name + b"\0" + others) == (EINVAL, b""), opcode
        if opcode in (Opcode.RENAME, Opcode.RENAME2):
            assert kernel.ask(opcode, ROOT_NODE, fields + others + name + b"\0") == (EINVAL, b"")
    absolute = os.fsencode(kernel.outside / "secret") + b"\0"
    assert kernel.ask(Opcode.LOOKUP, ROOT_NODE, absolute) == (EINVAL, b"")
    kernel.check()


def test_what_is_above_the_root_is_the_root(kernel: Kernel) -> None:
    (above,) = struct.unpack_from("<Q", kernel.must(Opcode.LOOKUP, ROOT_NODE, b"..\0"))
    assert above == ROOT_NODE


@pytest.mark.parametrize("name", ["fifo", "directory", "link"])
def test_only_regular_files_are_opened(kernel: Kernel, name: str) -> None:
    """To open a FIFO for a look would be to wait for who writes to it, for ever."""
    node = kernel.nodes[name]
    assert kernel.ask(Opcode.OPEN, node, struct.pack("<II", os.O_RDONLY, 0))[0] == EINVAL
    kernel.ask(Opcode.RELEASE, node, bytes(24))
    kernel.must(Opcode.GETATTR, node, bytes(16))
    kernel.check()


@pytest.mark.parametrize("opcode", [0, 7, 31, 33, 37, 40, 48, 50, 54, 100, 4097, (1 << 32) - 1])
def test_an_unknown_request_is_told_so(kernel: Kernel, opcode: int) -> None:
    assert kernel.ask(opcode, ROOT_NODE, bytes(64)) == (ENOSYS, b"")


def test_counts_and_sizes_that_lie(kernel: Kernel) -> None:
    file = kernel.nodes["file"]
    for count in (0, 2, 1 << 20, (1 << 32) - 1):
        kernel.ask(Opcode.BATCH_FORGET, 0, struct.pack("<IIQQ", count, 0, kernel.nodes["kept"], 1))
    for size in (0, 4, 6, 1 << 20, (1 << 32) - 1):
        body = struct.pack("<QQIIQII", 0, 0, size, 0, 0, 0, 0) + b"data!"
        assert kernel.ask(Opcode.WRITE, file, body) == (EINVAL, b"")
        assert kernel.ask(Opcode.SETXATTR, file, struct.pack("<IIII", size, 0, 0, 0) + b"user.x\0value") == (
            EINVAL,
            b"",
        )
        body = struct.pack("<QIIQII", 0, 0, 0x40086602, 0, size, 1 << 31) + b"data!"
        assert kernel.ask(Opcode.IOCTL, file, body) == (EINVAL, b"")
    kernel.check()


@dataclass(frozen=True)
class Fuzzed:
    """A request with fields, nodes (by index) and texts at their limits, cut or lengthened, or neither."""

    opcode: int
    node: int
    fields: tuple[int, ...]
    texts: tuple[bytes, ...]
    tail: bytes
    cut: int | None


_LIMITS = sorted(
    {value + more for value in (0, 8, 4096, 1 << 20, 1 << 31, 1 << 32, 1 << 63, 1 << 64) for more in (-1, 0, 1)}
)
_NUMBERS = st.sampled_from([number for number in _LIMITS if 0 <= number < 1 << 64]) | st.integers(0, 9)
_NAMES = st.sampled_from([b"file", b"directory", b"link", b"fifo", b"new", b"x" * 255]) | st.sampled_from(
    [b"", b".", b"..", b"../removed", b"/etc/passwd", b"x" * 256, b"x" * 1100, b"\xff\n", b"user.x", b"kept/"]
)


@st.composite
def fuzzed(draw: st.DrawFn) -> Fuzzed:
    opcode = draw(st.sampled_from(list(SHAPES)))
    form, texts = SHAPES[opcode]
    return Fuzzed(
        opcode,
        draw(st.integers(0, 7)),
        tuple(draw(_NUMBERS) for _ in form),
        tuple(draw(_NAMES) for _ in range(texts)),
        draw(st.sampled_from([b"", b"", b"\0", b"tail", bytes(8), b"long" * 150])),
        draw(st.none() | st.none() | st.integers(40, 120)),
    )


def body_of(request: Fuzzed, nodes: list[int]) -> bytes:
    form, _ = SHAPES[Opcode(request.opcode)]
    bits = {"Q": 64, "q": 63, "I": 32}
    fields = [number & (1 << bits[kind]) - 1 for number, kind in zip(request.fields, form, strict=True)]
    if request.opcode in (Opcode.RENAME, Opcode.RENAME2, Opcode.LINK):
        fields[0] = nodes[fields[0] % len(nodes)]
    if request.opcode in COPIES:
        fields[2] = nodes[fields[2] % len(nodes)]
    if request.opcode == Opcode.WRITE:  # sizes that are true, so that it gets far; lies have tests of their own
        fields[2] = len(request.tail)
    if request.opcode == Opcode.SETXATTR:
        fields[0] = len(request.tail)
    if request.opcode == Opcode.IOCTL:
        fields[4] = len(request.tail)
    if request.opcode == Opcode.BATCH_FORGET:
        return struct.pack("<II", *fields) + b"".join(struct.pack("<QQ", node, 1) for node in nodes)
    return struct.pack(f"<{form}", *fields) + b"".join(text + b"\0" for text in request.texts) + request.tail


# A pool that broke stays broken, so nothing is shrunk: the first failure is the one to read.
@settings(max_examples=60, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(fuzzed(), min_size=5, max_size=40))
def test_any_requests_get_an_answer_and_do_no_harm(disturbed: Kernel, requests: list[Fuzzed]) -> None:
    """Of nodes that are and that are not, but for one file, which is the same afterwards."""
    known = [disturbed.nodes[name] for name in ("file", "directory", "link", "fifo")]
    nodes = [*known, ROOT_NODE, 0, 4711, (1 << 64) - 1]
    for request in requests:
        error, answer = disturbed.ask(request.opcode, nodes[request.node], body_of(request, nodes), cut=request.cut)
        assert not (error and answer), request
    disturbed.check()
    for name in (b"file", b"directory", b"link", b"fifo"):
        disturbed.ask(Opcode.LOOKUP, ROOT_NODE, name + b"\0")
