"""Real tenants for tests: a cgroup of the memory hierarchy, and processes that joined it before exec.

Everything is below one directory of the test's own and is removed at the end, also when the test failed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy, find_memory_hierarchy

T = TypeVar("T")

AGENT = Path(__file__).with_name("agent.py")
_JOIN_AND_EXEC = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


PATIENCE = int(os.environ.get("SHAREDFS_GUEST_PATIENCE", "1"))  # the guests of tests/guest are slow


def wait_until(condition: Callable[[], T | None], what: str, seconds: float = 5.0) -> T:
    """Poll until `condition` is truthy, and return it. AssertionError after `seconds`, in the guest after more."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class AgentError(OSError):
    """The tenant's system call failed with this errno."""


class Agent:
    """A process of a tenant that does what it is told, one request after the other.

    `launch` makes of a command one that runs it where the tenant is, with our standard input and output.
    `main_thread_ends`: another thread does what it is told, and the main thread is gone.
    """

    def __init__(
        self,
        launch: Callable[[list[str]], list[str]],
        *,
        interpreter: str = sys.executable,
        pass_fds: Sequence[int] = (),
        user: int | None = None,
        main_thread_ends: bool = False,
    ) -> None:
        arguments = ["--main-thread-ends"] if main_thread_ends else []
        self.process = subprocess.Popen(
            launch([interpreter, "-S", "-E", str(AGENT), *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            cwd="/",
        )
        if user is not None:
            self.do(f"os.setgroups([]); os.setresgid({user}, {user}, {user}); os.setresuid({user}, {user}, {user})")

    @property
    def pid(self) -> int:
        return self.process.pid

    def do(self, statements: str) -> object:
        """Run `statements` in the tenant; what they left in `result`. Names live on to the next request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(statements) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the agent ended: {statements}"
        answer = json.loads(line)
        if "error" in answer:
            raise AgentError(answer["error"], os.strerror(answer["error"]))
        return answer["result"]

    def end(self, seconds: float = 5) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            with suppress(BrokenPipeError):  # it was killed
                self.process.stdin.close()
        try:
            self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Tenant:
    """A cgroup with agents in it."""

    def __init__(self, hierarchy: MemoryHierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.directory = hierarchy.directory(path)
        self.directory.mkdir()
        self.agents: list[Agent] = []
        self._first: Agent | None = None

    def agent(self, **options: object) -> Agent:
        agent = Agent(self.join, **options)  # type: ignore[arg-type]
        self.agents.append(agent)
        return agent

    def join(self, command: list[str]) -> list[str]:
        """A command that enters this cgroup, so that nothing of `command` is charged to anybody else, and runs it."""
        return ["/bin/sh", "-c", _JOIN_AND_EXEC, str(self.directory), *command]

    def do(self, statements: str) -> object:
        """Run statements in this tenant's first process."""
        if self._first is None:
            self._first = self.agent()
        return self._first.do(statements)

    @property
    def limit_file(self) -> Path:
        v1 = self.hierarchy.version is CgroupVersion.V1
        return self.directory / ("memory.limit_in_bytes" if v1 else "memory.max")

    def set_limit(self, limit_bytes: int) -> None:
        self.limit_file.write_text(str(limit_bytes))

    def limit(self) -> int | None:
        text = self.limit_file.read_text().strip()
        return None if text == "max" or int(text) >= 1 << 62 else int(text)

    def forbid_swap(self) -> None:
        """Or the host's swap, where it has some, takes what a limit of memory has no room for, and nobody is killed."""
        if (bound := self.directory / "memory.swap.max").exists():
            bound.write_text("0")

    def statistic(self, name: str) -> int:
        """A line of memory.stat, in bytes."""
        lines = dict(line.split() for line in (self.directory / "memory.stat").read_text().splitlines())
        return int(lines[name])

    def end_processes(self) -> None:
        for agent in self.agents:
            agent.end()
        self.agents.clear()
        self._first = None

    def exit(self) -> None:
        """End the processes and remove the cgroup."""
        self.end_processes()
        wait_until(self._remove, f"{self.directory} is empty")

    def _remove(self) -> bool:
        try:
            self.directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class Tenants:
    """Makes tenants below one directory."""

    def __init__(self, hierarchy: MemoryHierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path
        self.made: list[Tenant] = []

    def make(self, name: str, limit_bytes: int | None = None) -> Tenant:
        tenant = Tenant(self.hierarchy, f"{self.path}/{name}")
        self.made.append(tenant)
        if limit_bytes is not None:
            tenant.set_limit(limit_bytes)
        return tenant

    def left(self) -> list[Tenant]:
        """Those whose cgroup is there."""
        return [tenant for tenant in self.made if tenant.directory.exists()]

    def remove_all(self) -> None:
        for tenant in self.made:  # all processes first: two tenants can have had one name
            tenant.end_processes()
        for tenant in reversed(self.made):  # those inside another were made after it
            tenant.exit()


@contextmanager
def tenants_below(name: str) -> Iterator[Tenants]:
    hierarchy = find_memory_hierarchy()
    directory = hierarchy.directory(name)
    directory.mkdir()
    hierarchy.enable_memory(f"{name}/tenant")
    made = Tenants(hierarchy, f"/{name}")
    try:
        yield made
    finally:
        made.remove_all()
        wait_until(lambda: _removed(directory), f"{directory} is empty")


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
