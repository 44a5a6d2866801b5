"""I9: a touch is attributed to the cgroup of the thread that made it, whoever opened the file."""

import os
import signal
import socket

from tests.support.holes import sparse
from tests.support.mount import MountedPool
from tests.support.tenants import Tenants, wait_until

PAGE = 4096


def write_file(name: str, pages: int) -> str:
    return f"fd = os.open({name!r}, os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x' * {pages * PAGE}, 0)"


def test_a_writer_uses_what_it_wrote(pool: MountedPool, tenants: Tenants) -> None:
    writer = tenants.make("writer")
    writer.do(write_file(f"{pool.path}/f", 10))
    assert pool.used(writer) == 10 * PAGE
    holdings = pool.check_conservation()
    assert holdings.resident_bytes == 10 * PAGE
    (held,) = holdings.classes
    assert held.payers == (held.owner,)


def test_a_reader_uses_just_the_pages_it_read(pool: MountedPool, tenants: Tenants) -> None:
    writer, reader = tenants.make("writer"), tenants.make("reader")
    writer.do(write_file(f"{pool.path}/f", 10))
    reader.do(f"fd = os.open('{pool.path}/f', os.O_RDONLY); result = len(os.pread(fd, {PAGE}, {3 * PAGE}))")
    assert pool.used(reader) == PAGE
    reader.do(f"os.pread(fd, 2, {6 * PAGE - 1})")  # one byte of page 5 and one of page 6
    assert pool.used(reader) == 3 * PAGE
    assert pool.used(writer) == 10 * PAGE
    pool.check_conservation()


def test_reading_a_hole_or_beyond_the_end_uses_nothing(pool: MountedPool, tenants: Tenants) -> None:
    reader = tenants.make("reader")
    reader.do(sparse(f"{pool.path}/f", 9 * PAGE + 1))
    assert reader.do(f"result = os.pread(fd, {PAGE}, 0) == bytes({PAGE})")
    assert reader.do(f"result = os.pread(fd, {PAGE}, {50 * PAGE}) == b''")
    assert pool.used(reader) == PAGE
    pool.check_conservation()


def test_shared_mappings_are_found(pool: MountedPool, tenants: Tenants) -> None:
    writer, mapper = tenants.make("writer"), tenants.make("mapper")
    writer.do(write_file(f"{pool.path}/f", 100))
    mapper.do(f"fd = os.open('{pool.path}/f', os.O_RDWR); m = mmap.mmap(fd, {100 * PAGE}); os.close(fd)")
    mapper.do(f"m[{40 * PAGE}] = 1; m[{41 * PAGE}] = 1")
    wait_until(lambda: pool.mapped(mapper) == 2 * PAGE, "two written pages are mapped")
    assert writer.do(f"result = os.pread(fd, 1, {40 * PAGE})[0]") == 1, "mapped writes and read(2) are coherent"
    mapper.do(f"result = sum(m[page * {PAGE}] for page in range(100))")
    wait_until(lambda: pool.mapped(mapper) == 100 * PAGE, "every read page is mapped")
    mapper.do("m.close()")
    wait_until(lambda: pool.mapped(mapper) == 0, "unmapping is seen")
    assert pool.used(mapper) == 100 * PAGE, "it used them just now"
    pool.check_conservation()


def test_pages_of_a_private_mapping_that_were_written_are_not_billed(pool: MountedPool, tenants: Tenants) -> None:
    writer, mapper = tenants.make("writer"), tenants.make("mapper")
    writer.do(write_file(f"{pool.path}/f", 64))
    mapper.do(
        f"fd = os.open('{pool.path}/f', os.O_RDONLY); m = mmap.mmap(fd, {64 * PAGE}, mmap.MAP_PRIVATE, "
        f"mmap.PROT_READ | mmap.PROT_WRITE)\nfor page in range(64): m[page * {PAGE}] = 7"
    )
    pool.wait_for_scan()
    assert pool.mapped(mapper) == 0
    assert writer.do("result = os.pread(fd, 1, 0)[0]") == ord("x")


def test_a_passed_descriptor_is_its_users_touch(pool: MountedPool, tenants: Tenants) -> None:
    opener, receiver = tenants.make("opener"), tenants.make("receiver")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        giver = opener.agent(pass_fds=(ours.fileno(),))
        taker = receiver.agent(pass_fds=(theirs.fileno(),))
        giver.do(write_file(f"{pool.path}/f", 8))
        giver.do(f"socket.send_fds(socket.socket(fileno={ours.fileno()}), [b'x'], [fd])")
        taker.do(f"_, (fd, *_), _, _ = socket.recv_fds(socket.socket(fileno={theirs.fileno()}), 1, 1)")
    taker.do(f"os.pread(fd, {2 * PAGE}, 0)")
    assert pool.used(receiver) == 2 * PAGE
    taker.do(f"os.pwrite(fd, b'y' * {PAGE}, {8 * PAGE})")
    assert pool.used(receiver) == 3 * PAGE
    assert pool.used(opener) == 8 * PAGE
    taker.do(f"m = mmap.mmap(fd, {8 * PAGE}); m[{5 * PAGE}] = 1")
    wait_until(lambda: pool.mapped(receiver) == PAGE, "a mapping by who never opened anything is found")
    pool.check_conservation()


def test_a_process_that_moves_is_another_tenant_from_its_next_call(pool: MountedPool, tenants: Tenants) -> None:
    before, after = tenants.make("before"), tenants.make("after")
    agent = before.agent()
    agent.do(write_file(f"{pool.path}/f", 4))
    (after.directory / "cgroup.procs").write_text(str(agent.pid))
    after.agents.append(agent)
    agent.do(f"os.pread(fd, {PAGE}, 0)")
    assert pool.used(after) == PAGE
    agent.do(f"os.pwrite(fd, b'z' * {PAGE}, {4 * PAGE})")
    assert pool.used(after) == 2 * PAGE
    assert pool.used(before) == 4 * PAGE


def test_fallocate_truncate_and_punched_holes(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    tenant.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, {16 * PAGE})")
    assert pool.used(tenant) == 16 * PAGE
    tenant.do(f"os.ftruncate(fd, {10 * PAGE + 1})")
    assert pool.used(tenant) == 11 * PAGE
    pool.check_conservation()
    tenant.do(
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]\n"
        f"result = libc.fallocate(fd, 3, {2 * PAGE + 5}, {4 * PAGE})"
    )
    assert pool.used(tenant) == 8 * PAGE, "pages 3, 4 and 5 are gone, the torn ones stay"
    pool.check_conservation()
    tenant.do("os.ftruncate(fd, 0)")
    assert pool.used(tenant) == 0
    assert pool.check_conservation().resident_bytes == 0


def test_a_large_allocation_is_made_beside_the_data_path(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    size = 64 << 20
    tenant.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, {size})")
    assert pool.used(tenant) == size
    tenant.do(f"os.ftruncate(fd, 0); os.ftruncate(fd, {size})")
    assert pool.used(tenant) == size, "extended by ftruncate, its memory is reserved"
    pool.check_conservation()


def test_copy_file_range_touches_the_source_and_charges_the_target(pool: MountedPool, tenants: Tenants) -> None:
    writer, copier = tenants.make("writer"), tenants.make("copier")
    writer.do(write_file(f"{pool.path}/source", 6))
    copier.do(
        f"a = os.open('{pool.path}/source', os.O_RDONLY); b = os.open('{pool.path}/copy', os.O_RDWR | os.O_CREAT)\n"
        f"result = os.copy_file_range(a, b, {4 * PAGE}, 0, 0)"
    )
    assert pool.used(copier) == 8 * PAGE
    assert copier.do("result = os.pread(b, 1, 0) == b'x'")
    pool.check_conservation()


def test_unlinked_files_cost_until_their_last_user_is_gone(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    tenant.do(write_file(f"{pool.path}/f", 5))
    tenant.do(f"m = mmap.mmap(fd, {5 * PAGE}); os.unlink('{pool.path}/f'); os.close(fd)")
    pool.wait_for_scan()
    assert pool.used(tenant) == 5 * PAGE, "a mapping holds the pages"
    assert pool.check_conservation().resident_bytes == 5 * PAGE
    tenant.do("m.close()")
    wait_until(lambda: pool.holdings().resident_bytes == 0, "the pages are gone")
    pool.check_conservation()


def test_long_symlinks_are_pages_too(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    tenant.do(f"os.symlink('x' * 500, '{pool.path}/link')")
    assert pool.used(tenant) == PAGE
    pool.check_conservation()
    tenant.do(f"os.unlink('{pool.path}/link')")
    wait_until(lambda: pool.holdings().resident_bytes == 0, "the target's page is gone")
    pool.check_conservation()


def test_a_mapped_hole_is_foreign_and_counted(pool: MountedPool, tenants: Tenants) -> None:
    """I2: what the kernel charges to a tenant in spite of us is shown, never hidden."""
    tenant = tenants.make("tenant")
    tenant.do(sparse(f"{pool.path}/f", 64 * PAGE))
    tenant.do(f"m = mmap.mmap(fd, {64 * PAGE}); m[{8 * PAGE}] = 1; m[{30 * PAGE}] = 1")
    wait_until(lambda: pool.holdings().foreign_bytes == 2 * PAGE, "two foreign pages")
    assert tenant.statistic("shmem") == 2 * PAGE
    assert pool.used(tenant) == 3 * PAGE
    pool.check_conservation()


def test_who_makes_a_file_longer_pays_for_what_is_new(pool: MountedPool, tenants: Tenants) -> None:
    writer, other = tenants.make("writer"), tenants.make("other")
    writer.do(write_file(f"{pool.path}/f", 64))
    other.do(f"fd = os.open('{pool.path}/f', os.O_RDWR); os.ftruncate(fd, {65 * PAGE})")
    assert pool.used(other) == PAGE
    other.do(f"os.posix_fallocate(fd, 0, {70 * PAGE})")
    assert pool.used(other) == 6 * PAGE
    assert pool.used(writer) == 64 * PAGE
    other.do(f"os.ftruncate(fd, {70 * PAGE + 1}); os.ftruncate(fd, {70 * PAGE + 2})")
    assert pool.used(other) == 7 * PAGE
    pool.check_conservation()


def test_holes_below_the_old_end_stay_holes(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("a")
    tenant.do(sparse(f"{pool.path}/f", 1000 * PAGE + 1))
    tenant.do(f"os.ftruncate(fd, {1002 * PAGE})")
    assert pool.used(tenant) == 2 * PAGE
    pool.check_conservation()


def test_a_mapped_hole_that_no_scan_saw_is_found_when_the_file_is_closed(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("a")
    tenant.do(
        f"{sparse(f'{pool.path}/f', 100 * PAGE + 1)}\n"
        f"mapped = mmap.mmap(fd, 0); mapped[{9 * PAGE}] = 1; mapped.close()\n"
        "os.close(fd)"
    )
    holdings = pool.check_conservation()
    assert holdings.resident_bytes == 2 * PAGE
    status = pool.status()
    assert status.foreign_bytes + status.recharged_bytes == PAGE, "one of nobody's is the pool's soon"
    # Whoever faulted is not known any more, unless a scan came between.
    assert all(held.owner == 0 or held.payers == (held.owner,) for held in holdings.classes if held.foreign)


_AIO = """
import ctypes, platform, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
setup, submit, events = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}[platform.machine()]
context = ctypes.c_ulong(0)
assert libc.syscall(setup, 8, ctypes.byref(context)) == 0
"""


def test_a_thread_that_ends_before_its_request_is_seen(pool: MountedPool, tenants: Tenants) -> None:
    """AIO: the kernel tells the id of a thread that is gone."""
    maker, writer = tenants.make("maker"), tenants.make("writer")
    maker.do(f"fd = os.open('{pool.path}/f', os.O_WRONLY | os.O_CREAT, 0o666); os.ftruncate(fd, {64 * PAGE})")
    agent = writer.agent()
    agent.do(f"{_AIO}\nfd = os.open('{pool.path}/f', os.O_RDWR | os.O_DIRECT); memory = mmap.mmap(-1, {16 * PAGE})")
    daemon = pool.status().daemon_pid
    os.kill(daemon, signal.SIGSTOP)
    try:
        agent.do(
            f"""
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
block = ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", 0, 0, 0, 1, 0, fd, address, {16 * PAGE}, 0, 0, 0, 0))
blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
def asks():
    global told
    told = libc.syscall(submit, context, ctypes.c_long(1), blocks)
thread = threading.Thread(target=asks)
thread.start(); thread.join(5)
result = told
"""
        )
    finally:
        os.kill(daemon, signal.SIGCONT)
    agent.do(
        "found = ctypes.create_string_buffer(32)\n"
        "assert libc.syscall(events, context, ctypes.c_long(1), ctypes.c_long(1), found, None) == 1"
    )
    wait_until(lambda: pool.used(writer) == 16 * PAGE, "who asked pays, although the thread has ended")
