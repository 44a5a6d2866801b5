"""Mappings, and the calls that go around read(2): on the mount as on tmpfs, one file has one content."""

import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.posix import Child, in_child, opened, refused
from tests.support.tenants import wait_until

PAGE = 4096
MIB = 1 << 20
NEW = os.O_RDWR | os.O_CREAT


def test_mappings_of_two_processes_and_read_and_write_agree(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        os.ftruncate(fd, 16 * PAGE)
        with mmap.mmap(fd, 16 * PAGE) as shared:
            os.pwrite(fd, b"by write", 100)
            assert shared[100:108] == b"by write"
            shared[PAGE : PAGE + 3] = b"map"
            assert os.pread(fd, 3, PAGE) == b"map"

            def other() -> bytes:
                with opened(place / "f") as mine, mmap.mmap(mine, 16 * PAGE) as theirs:
                    theirs[2 * PAGE] = 77
                    os.pwrite(mine, b"child", 3 * PAGE)
                    return bytes(theirs[PAGE : PAGE + 3])

            assert in_child(other) == b"map"
            assert (shared[2 * PAGE], shared[3 * PAGE : 3 * PAGE + 5]) == (77, b"child")
            shared.flush()


def test_private_mappings_keep_their_writes(place: Path) -> None:
    (place / "f").write_bytes(b"x" * (2 * PAGE))
    with opened(place / "f") as fd:
        private = mmap.mmap(fd, 2 * PAGE, mmap.MAP_PRIVATE)
        with private:
            private[0] = ord("p")
            os.pwrite(fd, b"w", PAGE)
            assert (private[0], private[PAGE]) == (ord("p"), ord("w"))
            assert os.pread(fd, 1, 0) == b"x"


def test_a_mapping_outlives_descriptor_and_name(place: Path) -> None:
    fd = os.open(place / "f", NEW)
    os.write(fd, b"kept" + bytes(PAGE - 4))
    mapping = mmap.mmap(fd, PAGE)
    os.close(fd)
    os.unlink(place / "f")
    with mapping:
        assert mapping[:4] == b"kept"
        mapping[0] = 75
        assert mapping[:4] == b"Kept"


def test_a_mapping_stays_coherent_when_the_file_is_opened_anew(place: Path) -> None:
    """The kernel lets go of its backing file at the last close; a mapping and a later open must mean the same pages."""
    (place / "f").write_bytes(bytes(4 * PAGE))
    with opened(place / "f") as fd:
        mapping = mmap.mmap(fd, 4 * PAGE)
    with mapping:
        for number in range(1, 20):
            with opened(place / "f") as fd, mmap.mmap(fd, 4 * PAGE) as second:
                os.pwrite(fd, bytes([number]), 0)
                second[PAGE] = number
                assert (mapping[0], mapping[PAGE], second[0]) == (number, number, number)


def send(writer: int, fd: int, offset: int, length: int) -> int:
    return os.sendfile(writer, fd, offset, length)


def splice(writer: int, fd: int, offset: int, length: int) -> int:
    return os.splice(fd, writer, length, offset_src=offset)


Send = Callable[[int, int, int, int], int]
"""(writer of a pipe, file, offset, length) -> the bytes that were sent."""
each_way_to_send = pytest.mark.parametrize("call", [send, splice])


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its reader and its writer."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@each_way_to_send
def test_a_file_that_nobody_can_write_to_is_sent_as_it_is(place: Path, pipe: tuple[int, int], call: Send) -> None:
    """What the kernel keeps of it for that is gone when somebody has written since."""
    reader, writer = pipe
    for content in (b"first", b"another"):
        (place / "f").write_bytes(content * PAGE)
        with opened(place / "f", os.O_RDONLY) as fd:
            for offset in (0, 3, 2 * PAGE + 1):
                assert call(writer, fd, offset, PAGE) == PAGE
                assert os.read(reader, PAGE) == (content * (PAGE + 9))[offset : offset + PAGE]
            assert call(writer, fd, len(content) * PAGE, 8) == 0
        with opened(place / "f") as fd, mmap.mmap(fd, PAGE) as mapping:
            mapping[4] = 7
        with opened(place / "f", os.O_RDONLY) as fd:
            assert call(writer, fd, 0, 8) == 8
            assert os.read(reader, 8)[4] == 7
        with opened(place / "f", os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"end")
        os.truncate(place / "f", (place / "f").stat().st_size - 1)
        with opened(place / "f", os.O_RDONLY) as fd:
            assert call(writer, fd, len(content) * PAGE, 8) == 2
            assert os.read(reader, 8) == b"en"


@each_way_to_send
def test_sending_is_refused_rather_than_sending_what_is_not_there_any_more(
    shared_pool: MountedPool, pipe: tuple[int, int], call: Send
) -> None:
    """A difference to tmpfs: these calls fill a page cache of FUSE's own, which does not see mapped writes.

    So they work until somebody can make one, and do again when all have closed the file.
    """
    path = shared_pool.path / f"send-{call.__name__}"
    path.write_bytes(b"old!" * (4 * PAGE))
    reader, writer = pipe
    with opened(path, os.O_RDONLY) as fd:
        assert call(writer, fd, 0, 8) == 8
        assert os.read(reader, 8) == b"old!old!"
        with opened(path) as other:
            mapping = mmap.mmap(other, 16 * PAGE)
            for number in range(2):
                mapping[0] = number
                with refused():
                    call(writer, fd, 0, 8)
                assert os.pread(fd, 1, 0) == bytes([number])
        with refused():
            call(writer, fd, 0, 8)  # the mapping is left
        assert call(writer, fd, 16 * PAGE, 8) == 0, "at the end there is nothing to read"
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)  # advice may be ignored
        assert os.pread(fd, 8, 8) == b"old!old!"
    with opened(path, os.O_RDONLY) as fd:
        mapping[1] = 2
        with refused():
            call(writer, fd, 0, 8)  # it outlives all descriptors
    mapping.close()

    def sent() -> bool:
        with suppress(OSError), opened(path, os.O_RDONLY) as fd:
            return call(writer, fd, 0, 8) == 8
        return False

    wait_until(sent, "it can be sent again")  # the kernel lets go of a handle that was read for that a moment later
    assert os.read(reader, 8) == b"\1\2d!old!"


@each_way_to_send
def test_a_file_opened_for_direct_io_can_be_sent(place: Path, pipe: tuple[int, int], call: Send) -> None:
    """The kernel then reads it as read(2) does, and leaves its page cache alone."""
    (place / "f").write_bytes(b"old!" * (4 * PAGE))
    reader, writer = pipe
    with (
        opened(place / "f") as fd,
        mmap.mmap(fd, 16 * PAGE) as mapping,
        opened(place / "f", os.O_RDONLY | os.O_DIRECT) as direct,
    ):
        for number in range(3):
            mapping[7] = number
            sent = call(writer, direct, 7, 2 * PAGE)  # by 7.2 in parts
            assert sent >= PAGE
            assert os.read(reader, 3 * PAGE) == (bytes([number]) + b"old!" * (2 * PAGE))[:sent]


def test_splicing_into_a_file(place: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from the pipe")
    with opened(place / "f", NEW) as fd:
        assert os.splice(reader, fd, 100, offset_dst=PAGE) == 13
        assert os.pread(fd, 20, PAGE) == b"from the pipe"
    os.close(reader)
    os.close(writer)


def test_programs_that_send_files_copy_them(place: Path) -> None:
    data = os.urandom(5 * MIB + 123)
    (place / "f").write_bytes(data)
    outside = place.parent.parent / f"{place.name}-copy"
    shutil.copyfile(place / "f", outside)  # sendfile(2), then read and write
    assert outside.read_bytes() == data
    outside.unlink()
    subprocess.run(["cp", place / "f", outside], check=True)  # copy_file_range(2), then read and write
    assert outside.read_bytes() == data
    subprocess.run(["cp", outside, place / "back"], check=True)
    assert (place / "back").read_bytes() == data
    outside.unlink()
    with open(place / "f", "rb") as file, socket.create_server(("127.0.0.1", 0)) as server:
        child = Child(lambda: fetch(server.getsockname()))
        connection, _ = server.accept()
        with connection:
            connection.sendfile(file)
        assert child.result() == data


def fetch(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address) as connection, connection.makefile("rb") as stream:
        return stream.read()


def test_programs_run_from_the_mount(place: Path) -> None:
    script = place / "script"
    script.write_text("#!/bin/sh\necho $1 from a script\n")
    script.chmod(0o755)
    assert subprocess.run([script, "hello"], capture_output=True, check=True).stdout == b"hello from a script\n"
    shutil.copy(shutil.which("env") or "/usr/bin/env", place / "program")
    done = subprocess.run([place / "program", "A=b"], capture_output=True, check=True, env={})
    assert done.stdout == b"A=b\n"
    os.chmod(script, 0o644)
    with pytest.raises(PermissionError):
        subprocess.run([script], check=True)


def test_a_running_program_is_not_written_to(place: Path) -> None:
    shutil.copy(shutil.which("sleep") or "/usr/bin/sleep", place / "program")
    running = subprocess.Popen([place / "program", "60"])
    try:
        with pytest.raises(OSError, match="Text file busy"):
            os.open(place / "program", os.O_WRONLY)
    finally:
        running.kill()
        running.wait()
    os.close(os.open(place / "program", os.O_WRONLY))


def test_modules_and_libraries_load_from_the_mount(place: Path) -> None:
    (place / "module.py").write_text("answer = 42\n")
    done = subprocess.run(
        [sys.executable, "-c", "import module; print(module.answer)"],
        cwd=place,
        env={"PYTHONPYCACHEPREFIX": str(place / "cache")},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"42\n"
    assert list((place / "cache").rglob("module.*.pyc"))


def test_many_threads_and_processes_read_and_write_one_file(place: Path) -> None:
    """Each writer owns a stripe and stamps whole pages; whoever reads a page finds one stamp in all of it."""
    workers, rounds, pages = 4, 60, 8
    with opened(place / "f", NEW) as fd:
        os.ftruncate(fd, workers * pages * PAGE)

        def work(worker: int) -> None:
            for number in range(rounds):
                stamp = (b"%d:%d;" % (worker, number)).ljust(16, b".") * (PAGE // 16)
                page = worker * pages + number % pages
                assert os.pwrite(fd, stamp, page * PAGE) == PAGE
                assert os.pread(fd, PAGE, page * PAGE) == stamp
                seen = os.pread(fd, PAGE, (number * 7 % (workers * pages)) * PAGE)
                assert seen == seen[:16] * (PAGE // 16)

        def process(first: int) -> None:
            failures: list[BaseException] = []

            def guarded(worker: int) -> None:
                try:
                    work(worker)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=guarded, args=(first + i,)) for i in range(workers // 2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures, failures

        children = [Child(lambda first=first: process(first)) for first in (0, workers // 2)]
        for child in children:
            child.result()
