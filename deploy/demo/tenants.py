"""Tenants: real cgroups, each with the limit its manager set and a process that joined it before exec.

Before exec, so that not a byte of what the process uses is charged to anybody else.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deploy.demo.host import statistic, wait_until
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy

WORKER = Path(__file__).with_name("worker.py")
_JOIN_THEN_EXEC = 'echo $$ > "$0" && exec "$@"'
INTERPRETER = [sys.executable, "-I", "-S", "-B", str(WORKER)]
_END_SECONDS = 20.0


class Tenant:
    """A cgroup, its limit, and one process in it. Made by `Tenants.make`, ended by `exit`."""

    def __init__(self, hierarchy: MemoryHierarchy, path: str, budget_bytes: int) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.budget_bytes = budget_bytes
        self._worker: subprocess.Popen[str] | None = None

    @property
    def directory(self) -> Path:
        return self.hierarchy.directory(self.path)

    @property
    def _limit_file(self) -> Path:
        v1 = self.hierarchy.version is CgroupVersion.V1
        return self.directory / ("memory.limit_in_bytes" if v1 else "memory.max")

    def start(self) -> None:
        self.directory.mkdir()
        self._limit_file.write_text(str(self.budget_bytes))
        self._start(["/bin/sh", "-c", _JOIN_THEN_EXEC, str(self.directory / "cgroup.procs"), *INTERPRETER])

    def _start(self, command: list[str]) -> None:
        # A session of its own: Ctrl-C is for the demonstration, which then ends us in order.
        self._worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", start_new_session=True
        )

    @property
    def limit_bytes(self) -> int | None:
        """What the kernel enforces now, None for no limit."""
        text = self._limit_file.read_text().strip()
        return None if text == "max" else int(text)

    @property
    def shmem_bytes(self) -> int:
        """What the kernel charges this cgroup for shared memory."""
        return statistic(self.directory, _shmem_line(self.hierarchy))

    def do(self, action: str, *arguments: object) -> None:
        """Have the process do one of `worker`'s actions. Raises HostFault when it cannot."""
        worker = self._worker
        if worker is None or worker.stdin is None or worker.stdout is None:
            raise HostFault(f"{self.path} has no process")
        with suppress(BrokenPipeError):
            worker.stdin.write("\t".join([action, *map(str, arguments)]) + "\n")
            worker.stdin.flush()
        answer = worker.stdout.readline().strip()
        if answer != "done":
            raise HostFault(f"the process of {self.path} could not do its part: {answer or 'it ended'}")

    def exit(self) -> None:
        """End the process and remove the cgroup, as a container's manager does. Doing it twice is harmless."""
        self.end_worker()
        wait_until(self._remove, f"{self.directory} can be removed")

    def _ended(self) -> bool:
        return self._worker is None or self._worker.poll() is not None

    def end_worker(self) -> None:
        if self._worker is not None:
            with self._worker as worker:
                if worker.stdin is not None:
                    with suppress(BrokenPipeError):
                        worker.stdin.close()
                try:
                    worker.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    worker.kill()
            self._worker = None

    def _remove(self) -> bool:
        try:
            self.directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # EBUSY, for the moment that the process takes to be gone
            return False
        return True


class Tenants:
    """Makes tenants below one directory of our own; all are gone when `tenants_below` ends."""

    def __init__(self, hierarchy: MemoryHierarchy, path: str, resources: ExitStack) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.directory = hierarchy.directory(path)
        self._resources = resources

    @property
    def shmem_bytes(self) -> int:
        """What the kernel charges the tenants and this directory for shared memory, the dying included."""
        return statistic(self.directory, _shmem_line(self.hierarchy))

    def new_tenant(self, path: str, budget_bytes: int) -> Tenant:
        return Tenant(self.hierarchy, path, budget_bytes)

    def make(self, name: str, budget_bytes: int) -> Tenant:
        tenant = self.new_tenant(f"{self.path}/{name}", budget_bytes)
        self._resources.callback(tenant.exit)
        tenant.start()
        return tenant


MakeTenants = Callable[[MemoryHierarchy, str, ExitStack], Tenants]


def _shmem_line(hierarchy: MemoryHierarchy) -> str:
    """The line of memory.stat that counts a cgroup and all below it."""
    return "total_shmem" if hierarchy.version is CgroupVersion.V1 else "shmem"


@contextmanager
def tenants_below(hierarchy: MemoryHierarchy, path: str, kind: "MakeTenants" = Tenants) -> Iterator[Tenants]:
    """A place for tenants of this `kind` at `path`. Raises CallerMistake where nobody may make cgroups."""
    directory = hierarchy.directory(path)
    with ExitStack() as resources:
        try:
            directory.mkdir()
        except OSError as error:
            raise CallerMistake(f"{directory}: {error.strerror}: this host lets nobody make cgroups there") from None
        resources.callback(_remove_if_there, directory)
        if hierarchy.version is CgroupVersion.V2:
            _enable_memory(hierarchy.mount, resources)
            (directory / "cgroup.subtree_control").write_text("+memory")
        _warm_up()
        yield kind(hierarchy, path, resources)


def _remove_if_there(directory: Path) -> None:
    with suppress(FileNotFoundError):
        directory.rmdir()


def _enable_memory(root: Path, resources: ExitStack) -> None:
    """v2 hands the memory controller down only where it is told to; take it back at the end if it was not."""
    control = root / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")

        def take_back() -> None:
            with suppress(OSError):  # somebody needs it by now
                control.write_text("-memory")

        resources.callback(take_back)


def _warm_up() -> None:
    """Run the worker outside any tenant, so that the page cache of its program is charged to none of them.

    Otherwise the interpreter's files themselves would be what keeps a removed cgroup: right, but another story.
    """
    subprocess.run(INTERPRETER, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", check=True)
