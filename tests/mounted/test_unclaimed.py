"""Files that no live tenant uses: listed, kept, deleted or spilled to disk and back."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sharedfs.api.types import FILES_OF_A_PAGE, UnclaimedPage
from sharedfs.common import paths
from sharedfs.linux import huge_pages
from sharedfs.storage import fault_injection
from tests.support.controller import bills, run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.pins import Pin, move_agent, stores_in
from tests.support.tenants import AgentError, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
PATIENCE = 30.0
GRACE = "0.4"

Mount = Callable[..., AbstractContextManager[MountedPool]]


@pytest.fixture
def mount(run_dir: Path, unique_name: str, tenants: Tenants) -> Mount:
    @contextmanager
    def mounted(*options: str) -> Iterator[MountedPool]:
        common = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools", "--grace", GRACE)
        with mounted_pool(run_dir / "mnt", unique_name, *common, *options) as pool:
            try:
                yield pool
            finally:  # who has a file open keeps the daemon from ending
                for tenant in tenants.made:
                    tenant.end_processes()

    return mounted


@pytest.fixture
def disk(run_dir: Path) -> Path:
    """A directory for spilled files."""
    place = run_dir / "disk, with a comma"
    place.mkdir()
    return place


def unclaimed(pool: MountedPool) -> UnclaimedPage:
    return UnclaimedPage.model_validate_json(pool.get("/v1/unclaimed").raise_for_status().content)


def pattern(pages: int) -> bytes:
    return b"".join(bytes([1 + page % 251]) * PAGE for page in range(pages))


def leave_files(tenants: Tenants, paths: list[Path], pages: int = 8, name: str = "leaver") -> None:
    """A tenant writes files and exits."""
    leaver = tenants.make(name)
    leaver.do(
        f"content = b''.join(bytes([1 + page % 251]) * {PAGE} for page in range({pages}))\n"
        f"for path in {[str(path) for path in paths]}:\n"
        "    with open(path, 'wb') as file: file.write(content)"
    )
    leaver.exit()


def test_by_default_they_are_kept_and_listed_with_their_last_owner(pool: MountedPool, tenants: Tenants) -> None:
    pool.path.joinpath("dir").mkdir()
    leave_files(tenants, [pool.path / "dir/f"])
    user = tenants.make("user")
    user.do(f"fd = os.open('{pool.path}/used', os.O_RDWR | os.O_CREAT); os.write(fd, b'x')")
    (listed,) = wait_until(lambda: unclaimed(pool).files, "the file is nobody's", PATIENCE)
    assert (listed.path, listed.unclaimed_bytes, listed.used_bytes) == ("dir/f", 8 * PAGE, 0)
    assert listed.last_owner == f"{tenants.path}/leaver"
    user.do(f"with open('{pool.path}/dir/f', 'rb') as file: file.read({PAGE})")
    (listed,) = unclaimed(pool).files
    assert (listed.unclaimed_bytes, listed.used_bytes) == (7 * PAGE, PAGE)
    with running_controller():
        table = run_sharedctl("unclaimed").stdout
        assert "dir/f" in table
        assert "partly in use" in table
        assert sharedctl("unclaimed")["unclaimed_bytes"] == bills()["unclaimed_bytes"] == 7 * PAGE


def test_unclaimed_files_are_deleted_after_the_grace_and_no_others(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        user = tenants.make("user")
        directory = pool.path / "dir"
        directory.mkdir()
        user.do(f"open('{pool.path}/used', 'wb').write(b'x')")
        leave_files(tenants, [directory / name for name in ("open", "mapped", "linked", "guarded", "gone")])
        subprocess.run(["chattr", "+i", directory / "guarded"], check=True)
        os.link(directory / "linked", directory / "second")
        with (directory / "open").open("rb"):
            user.do(
                f"fd = os.open('{directory}/mapped', os.O_RDONLY); m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n"
                "os.close(fd)"
            )
            pool.wait_for_scan()  # else its range counts as touched
            sharedfs("mount", str(pool.path), "-o", "remount,unclaimed=delete")
            wait_until(lambda: not os.path.lexists(directory / "gone"), "the file is deleted", PATIENCE)
            assert sorted(os.listdir(directory)) == ["guarded", "linked", "mapped", "open", "second"]
            wait_until(lambda: pool.status().deleted_bytes == 8 * PAGE, "it is counted", PATIENCE)
        wait_until(lambda: not os.path.lexists(directory / "open"), "the closed file is deleted", PATIENCE)
        assert sorted(os.listdir(directory)) == ["guarded", "linked", "mapped", "second"]
        user.do("m.close()")
        wait_until(lambda: not os.path.lexists(directory / "mapped"), "so is the one that was mapped", PATIENCE)
        assert sorted(os.listdir(pool.path)) == ["dir", "used"]
        assert pool.status().deleted_files == 3
        assert "deleted 3 files" in sharedfs("status").stdout
        wait_until(lambda: len(unclaimed(pool).files) == 2, "two are left", PATIENCE)
        left = {file.path for file in unclaimed(pool).files}
        assert left in ({"dir/guarded", "dir/linked"}, {"dir/guarded", "dir/second"}), "a file with two names stays"
        pool.check_conservation()


with_huge_pages = pytest.mark.skipif(
    not huge_pages.can_collapse(), reason="this kernel does not tell whether pages are held: docs/pages.md"
)


def leave_pinned(pool: MountedPool, tenants: Tenants) -> Pin:
    """A tenant writes a file and exits; a process that pinned its pages goes on in another cgroup."""
    leaver, stayer, path = tenants.make("leaver"), tenants.make("stayer"), pool.path / "f"
    leaver.do(f"with open('{path}', 'wb') as file: file.write(b'x' * {PAGES * PAGE})")
    agent = leaver.agent()
    pin = Pin(agent, path, PAGES * PAGE)
    move_agent(agent, leaver, stayer)
    leaver.exit()
    return pin


@with_huge_pages
def test_a_file_is_not_spilled_while_its_pages_are_pinned(
    mount: Mount, disk: Path, tenants: Tenants, tmp_path: Path
) -> None:
    with mount("--unclaimed", "spill", "--spill-dir", str(disk)) as pool:
        pin, log = leave_pinned(pool, tenants), paths.daemon_log(pool.name)
        wait_until(lambda: "held by the kernel or a device" in log.read_text(), "it is not spilled", PATIENCE)
        assert (pool.status().spilled_files, copies(disk)) == (0, [])
        pin.store(tmp_path / "source")
        assert stores_in(pool.path / "f", PAGES * PAGE) == PAGES
        pool.check_conservation()


def test_the_control_where_the_kernel_does_not_tell_stores_of_a_pin_are_lost(
    mount: Mount, disk: Path, tenants: Tenants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fault_injection.HIDDEN_COLLAPSE_VARIABLE, "1")
    with mount("--unclaimed", "spill", "--spill-dir", str(disk)) as pool:
        pin = leave_pinned(pool, tenants)
        wait_until(lambda: pool.status().spilled_files, "it is spilled", PATIENCE)
        pin.store(tmp_path / "source")
        assert stores_in(pool.path / "f", PAGES * PAGE) == 0


def test_small_files_are_spilled_from_a_full_pool(mount: Mount, disk: Path, tenants: Tenants) -> None:
    """To find out whether their pages are held takes 2 MiB for a moment, which a full pool does not have."""
    with mount("--unclaimed", "spill", "--spill-dir", str(disk), "--grace", "3600") as pool:
        leave_files(tenants, [pool.path / f"small-{number}" for number in range(5)])
        with (pool.path / "large").open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(MIB))
        size = os.statvfs(pool.path).f_blocks
        assert os.statvfs(pool.path).f_bavail == 0
        sharedfs("mount", str(pool.path), "-o", f"remount,grace={GRACE}")
        wait_until(lambda: pool.status().spilled_files >= 5, "they are on disk", PATIENCE)
        assert os.statvfs(pool.path).f_blocks == size
        assert all((pool.path / f"small-{number}").read_bytes() == pattern(8) for number in range(5))
        pool.check_conservation()


def copies(disk: Path) -> list[Path]:
    return [found for found in disk.rglob("*") if found.is_file()]


WAYS = {
    "read": f"fd = os.open(path, os.O_RDONLY); head = os.pread(fd, {PAGE}, {7 * PAGE})",
    "map": "fd = os.open(path, os.O_RDWR); m = mmap.mmap(fd, 0); os.close(fd)",
    "append": "with open(path, 'ab') as file: file.write(b'more')",
    "truncate": f"os.truncate(path, {5 * PAGE + 10})",
    "create": "os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))",
}
PAGES = 300
CONTENT = pattern(PAGES)
CONTENT_AFTER = {"append": CONTENT + b"more", "truncate": CONTENT[: 5 * PAGE + 10], "create": b""}


def test_a_spilled_file_comes_back_whoever_touches_it_and_how(mount: Mount, disk: Path, tenants: Tenants) -> None:
    with mount("--unclaimed", "spill", "--spill-dir", str(disk)) as pool:
        user, paths = tenants.make("user"), {way: pool.path / way for way in WAYS}
        leave_files(tenants, list(paths.values()), PAGES)
        before = {way: os.stat(path) for way, path in paths.items()}
        wait_until(lambda: pool.holdings().resident_bytes == 0, "the files are on disk", PATIENCE)
        for listed in unclaimed(pool).files:
            assert (listed.spilled, listed.unclaimed_bytes) == (True, PAGES * PAGE)
            assert listed.last_owner == f"{tenants.path}/leaver"
        assert all(copy.stat().st_size > PAGES * PAGE for copy in copies(disk))
        assert "spilled to disk 5 files" in sharedfs("status").stdout
        for way, path in paths.items():
            wait_until(lambda path=path: os.stat(path).st_blocks == 0, "stat sees no memory of it", PATIENCE)
            after = os.stat(path)
            assert (after.st_size, after.st_mtime_ns) == (before[way].st_size, before[way].st_mtime_ns)
        for number, (way, path) in enumerate(paths.items(), 1):
            user.do(f"path = '{path}'\n{WAYS[way]}")
            if way == "read":
                assert user.do("result = head.decode('latin1')") == CONTENT[7 * PAGE : 8 * PAGE].decode("latin1")
                assert pool.used(user) == PAGE, "who read a page uses a page"
            if way == "map":
                assert user.do("result = m[:].decode('latin1')") == CONTENT.decode("latin1")
                assert user.statistic("shmem") == 0, "the pool pays the kernel"
            assert path.read_bytes() == CONTENT_AFTER.get(way, CONTENT)
            assert pool.status().brought_back_files >= number
        assert pool.check_conservation().foreign_bytes == 0
    assert not list(disk.iterdir()), "nothing is left on disk when the pool is unmounted"


def test_what_cannot_come_back_stays_on_disk(mount: Mount, disk: Path, tenants: Tenants) -> None:
    with mount("--unclaimed", "spill", "--spill-dir", str(disk)) as pool:
        path = pool.path / "f"
        leave_files(tenants, [path], 32 * MIB // PAGE)
        wait_until(lambda: pool.holdings().resident_bytes == 0, "the file is on disk", PATIENCE)
        user = tenants.make("user")
        user.do(f"with open('{pool.path}/full', 'wb') as file: file.write(bytes({48 * MIB}))")
        with pytest.raises(AgentError) as refused:
            user.do(f"os.open('{path}', os.O_RDONLY)")
        assert os.strerror(refused.value.errno or 0) == "No space left on device"
        assert pool.check_conservation().resident_bytes == 48 * MIB
        user.do(f"os.unlink('{pool.path}/full')")
        wait_until(lambda: pool.holdings().resident_bytes == 0, "there is room", PATIENCE)
        assert path.read_bytes() == pattern(32 * MIB // PAGE)
        leave_files(tenants, [pool.path / "g"], name="second")
        wait_until(lambda: pool.status().spilled_files >= 1, "the next one is on disk", PATIENCE)
        os.unlink(pool.path / "g")
        os.unlink(path)
        wait_until(
            lambda: not [found for found in disk.rglob("*") if found.is_file()], "copies go with files", PATIENCE
        )


def test_copies_on_a_tmpfs_are_no_pages_that_somebody_holds(mount: Mount, tenants: Tenants) -> None:
    """They take the memory that they were to free, charged to the pool's cgroup: no tenant pays for it or lacks it."""
    with TemporaryDirectory(dir="/dev/shm") as disk, mount("--unclaimed", "spill", "--spill-dir", disk) as pool:
        leave_files(tenants, [pool.path / "f"], 32 * MIB // PAGE)
        wait_until(lambda: pool.holdings().resident_bytes == 0, "the file is in the other tmpfs", PATIENCE)
        user = tenants.make("user")
        for _ in range(4):  # looks for pages that are held are half a second apart
            user.do(f"with open('{pool.path}/full', 'wb') as file: file.write(bytes({48 * MIB}))")
            user.do(f"import time; time.sleep(0.5); os.unlink('{pool.path}/full')")
            wait_until(lambda: pool.holdings().resident_bytes == 0, "there is room", PATIENCE)
            assert pool.holdings().detached_bytes == 0


def test_spilling_needs_a_place(mount: Mount, disk: Path, run_dir: Path) -> None:
    for options, said in (
        (("--unclaimed", "spill"), "spill_dir"),
        (("--unclaimed", "burn"), "keep, delete, spill or yield"),
        (("--unclaimed", "spill", "--spill-dir", str(disk / "nowhere")), "make it first"),
        (("--unclaimed", "spill", "--spill-dir", str(run_dir / "mnt")), "on the pool itself"),
    ):
        (run_dir / "mnt").mkdir(exist_ok=True)
        refused = sharedfs("mount", str(run_dir / "mnt"), *options, check=False)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
    with mount() as pool:
        refused = sharedfs("mount", str(pool.path), "-o", "remount,unclaimed=spill", check=False)
        assert (refused.returncode, "spill_dir" in refused.stderr) == (2, True)


def test_a_path_of_any_length_keeps_no_file_from_being_listed_and_deleted(mount: Mount, tenants: Tenants) -> None:
    """The kernel names no path beyond 4095 bytes in one piece; newlines in it are shown as something else."""
    with mount("--unclaimed", "keep") as pool:
        leaver = tenants.make("leaver")
        leaver.do(
            f"os.chdir('{pool.path}')\n"
            "for name in ['d' * 250] * 19 + ['e' * 100 + chr(10) + 'f' * 100]: os.mkdir(name); os.chdir(name)\n"
            f"for name in ['f', 'g' + chr(10)]:\n"
            f"    with open(name, 'wb') as file: file.write(b'x' * {PAGE})\n"
            f"with open('{pool.path}/short', 'wb') as file: file.write(b'x' * {PAGE})"
        )
        leaver.exit()
        listed = wait_until(lambda: len(files := unclaimed(pool).files) == 3 and files, "three are nobody's", PATIENCE)
        paths = [file.path for file in listed]
        assert "short" in paths
        assert sum("at a path of more than 4095 bytes" in path for path in paths) == 2
        with running_controller():
            assert "more than 4095 bytes" in run_sharedctl("unclaimed").stdout
        sharedfs("mount", str(pool.path), "-o", "remount,unclaimed=delete")
        wait_until(lambda: pool.status().deleted_files == 3, "all are deleted", PATIENCE)
        assert unclaimed(pool).files == ()
        assert not pool.path.joinpath("short").exists()


def test_a_file_that_cannot_be_deleted_keeps_no_other_waiting(mount: Mount, tenants: Tenants) -> None:
    with mount("--unclaimed", "delete") as pool:
        first = tenants.make("first")
        first.do(f"open('{pool.path}/a', 'wb').write(b'x' * {PAGE})")
        subprocess.run(["chattr", "+i", str(pool.path / "a")], check=True)
        first.exit()
        leave_files(tenants, [pool.path / "b"], name="second")
        wait_until(lambda: not pool.path.joinpath("b").exists(), "b is deleted", PATIENCE)
        assert pool.path.joinpath("a").exists()
        subprocess.run(["chattr", "-i", str(pool.path / "a")], check=True)


def test_the_list_of_a_tenants_files_comes_in_pages(pool: MountedPool, tenants: Tenants) -> None:
    many = tenants.make("many")
    many.do(
        f"for number in range({FILES_OF_A_PAGE + 5}):\n"
        f"    with open('{pool.path}/%d' % number, 'wb') as file: file.write(b'x')"
    )
    tenant = f"{tenants.path}/many"
    page = pool.get("/v1/tenants/files", path=tenant).raise_for_status().json()
    assert len(page["files"]) == FILES_OF_A_PAGE
    rest = pool.get("/v1/tenants/files", path=tenant, after=page["next_after"]).raise_for_status().json()
    assert (len(rest["files"]), rest["next_after"]) == (5, None)
    paths = {file["path"] for file in page["files"] + rest["files"]}
    assert paths == {str(number) for number in range(FILES_OF_A_PAGE + 5)}
    with running_controller():
        told = sharedctl("explain", tenant, "--files", "10")
        assert told["share_bytes"] == (FILES_OF_A_PAGE + 5) * PAGE
        assert (len(told["files"]), told["others"]) == (10, FILES_OF_A_PAGE - 5)
