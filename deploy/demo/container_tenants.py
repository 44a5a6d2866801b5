"""Tenants that are real containers: the runtime makes the cgroup, sets its limit, and removes it at the end."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from deploy.demo.containers import Container, command, interpreter, remove, remove_cgroups
from deploy.demo.host import wait_until
from deploy.demo.tenants import INTERPRETER, WORKER, Tenant, Tenants
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import MemoryHierarchy
from sharedfs.linux.procfs import process_cgroup


class ContainerTenant(Tenant):
    """`path` is that of the cgroup which the runtime made, once it has started."""

    def __init__(
        self, hierarchy: MemoryHierarchy, path: str, budget_bytes: int, runtime: str, directories: list[Path]
    ) -> None:
        super().__init__(hierarchy, path, budget_bytes)
        self._runtime = runtime
        self._directories = directories
        self._name = path.strip("/").replace("/", "-")
        self._files = tempfile.TemporaryDirectory(prefix="sharedfs-demo-")

    def start(self) -> None:
        place = Path(self._files.name)
        place.chmod(0o755)
        pid_file = place / "pid"
        # podman makes a cgroup of its own below the one that it is told.
        cgroup = self.path.rpartition("/")[0] if self._runtime == "podman" else self.path
        container = Container(
            self._name, cgroup, self.budget_bytes, readable=[WORKER.parent], writable=self._directories
        )
        self._start(command(self._runtime, container, place, pid_file, [interpreter()[0], *INTERPRETER[1:]]))
        wait_until(lambda: self._ended() or (pid_file.exists() and pid_file.read_text().strip() != ""), "it started")
        if self._ended():
            raise HostFault(f"{self._runtime} could not start {self._name}: its message is above")
        path = self.hierarchy.path_in(process_cgroup(int(pid_file.read_text())) or b"")
        if path is None:
            raise HostFault(f"{self._name} ended as soon as it had started")
        self.path = path

    def exit(self) -> None:
        self.end_worker()
        remove(self._runtime, self._name)  # the runtime did it, unless we had to kill it
        super().exit()
        self._files.cleanup()


class ContainerTenants(Tenants):
    """Makes containers with one runtime; `directories` are writable in all of them."""

    def __init__(
        self, hierarchy: MemoryHierarchy, path: str, resources: ExitStack, *, runtime: str, directories: list[Path]
    ) -> None:
        super().__init__(hierarchy, path, resources)
        self._runtime = runtime
        self._directories = directories
        resources.callback(remove_cgroups, path)

    def new_tenant(self, path: str, budget_bytes: int) -> Tenant:
        return ContainerTenant(self.hierarchy, path, budget_bytes, self._runtime, self._directories)
