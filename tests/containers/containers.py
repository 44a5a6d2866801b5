"""Containers for tests: what deploy/demo starts, with an agent as their command, gone when the test ends.

bubblewrap makes no cgroups, and what it starts has no limit of its own: its containers sit in a cgroup that we make.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.demo import containers as oci
from sharedfs.linux.cgroups import MemoryHierarchy, find_memory_hierarchy
from sharedfs.linux.procfs import process_cgroup
from tests.support.tenants import AGENT, Agent, AgentError, Tenant, Tenants, wait_until

__all__ = ["AgentError", "Host", "Running", "host_below"]

LIMIT = 256 << 20


class Running:
    """A container that runs: what it does, and its cgroup as the host sees it."""

    def __init__(self, agent: Agent, hierarchy: MemoryHierarchy, path: str, name: str | None = None) -> None:
        self.agent = agent
        self.name = name
        self.path = path
        self._hierarchy = hierarchy

    def do(self, statements: str) -> object:
        return self.agent.do(statements)

    def limit(self) -> int:
        name = "memory.limit_in_bytes" if self._hierarchy.version == 1 else "memory.max"
        return int((self._hierarchy.directory(self.path) / name).read_text())

    def do_without_swap(self) -> None:
        """Where the host has swap and cgroup v2, which would take what does not fit into the limit."""
        bound = self._hierarchy.directory(self.path) / "memory.swap.max"
        if bound.exists():
            bound.write_text("0")

    def statistic(self, name: str) -> int:
        text = (self._hierarchy.directory(self.path) / "memory.stat").read_text()
        return int(dict(line.split() for line in text.splitlines())[name])

    def oom_kills(self) -> int:
        name = "memory.oom_control" if self._hierarchy.version == 1 else "memory.events"
        text = (self._hierarchy.directory(self.path) / name).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def end(self) -> None:
        """End the command, and wait until the runtime has removed the container and its cgroup."""
        self.agent.end(seconds=30)
        wait_until(lambda: self._hierarchy.find(self.path) is None, f"{self.path} is removed", 30)


class Host:
    """Starts containers with one runtime, below one cgroup of the test's own."""

    def __init__(self, runtime: str, tenants: Tenants, directory: Path, resources: ExitStack) -> None:
        self.runtime = runtime
        self.tenants = tenants
        self._directory = directory
        self._resources = resources
        self._started = 0

    def start(self, name: str, binds: Sequence[Path], **options: object) -> Running:
        """A container with `binds` writable in it, and a limit of LIMIT; `options` are those of `oci.Container`."""
        self._started += 1
        if self.runtime == "bwrap":
            return self._start_bubblewrap(name, binds)
        pid_file = self._directory / f"{self._started}.pid"
        # A name of its own on the whole host; podman puts a cgroup of its own below the one it is given.
        container = oci.Container(
            name=f"{self.tenants.path.strip('/')}-{name}",
            cgroup=self.tenants.path if self.runtime == "podman" else f"{self.tenants.path}/{name}",
            limit_bytes=LIMIT,
            readable=[AGENT.parent],
            writable=binds,
        )
        container = replace(container, **options)  # type: ignore[arg-type]
        place = self._directory / f"{self._started}"
        interpreter, _ = oci.interpreter()
        agent = Agent(
            lambda command: oci.command(self.runtime, container, place, pid_file, command), interpreter=interpreter
        )
        self._resources.callback(oci.remove, self.runtime, container.name)
        self._resources.callback(agent.end, 30)
        agent.do("pass")
        process_id = wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the runtime has told the process")
        text = process_cgroup(int(process_id))
        assert text is not None
        hierarchy = self.tenants.hierarchy
        return Running(agent, hierarchy, hierarchy.path_in(text), container.name)

    def _start_bubblewrap(self, name: str, binds: Sequence[Path]) -> Running:
        tenant = self.tenants.make(name, LIMIT)
        sandbox = [
            "bwrap",
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "--proc",
            "/proc",
            "--unshare-all",
            "--die-with-parent",
        ]
        for place in binds:
            sandbox += ["--bind", str(place), str(place)]
        agent = Agent(lambda command: tenant.join([*sandbox, *command]))
        tenant.agents.append(agent)
        agent.do("pass")
        return _Sandboxed(agent, tenant)


class _Sandboxed(Running):
    def __init__(self, agent: Agent, tenant: Tenant) -> None:
        super().__init__(agent, tenant.hierarchy, tenant.path)
        self._tenant = tenant

    def end(self) -> None:
        self._tenant.exit()


@contextmanager
def host_below(runtime: str, tenants: Tenants) -> Iterator[Host]:
    assert tenants.hierarchy == find_memory_hierarchy()
    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp")))
        directory.chmod(0o755)
        resources.callback(oci.remove_cgroups, tenants.path)
        yield Host(runtime, tenants, directory, resources)
