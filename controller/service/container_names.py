"""Names for people: what a container is called by its runtime, as far as the runtime's files tell.

Nothing depends on it: a tenant is known by its cgroup's path, and has no name where no file tells one. Runtimes that
name a container's cgroup after its id (64 hexadecimal digits) keep a file under that id; runc and crun, started by
hand, keep one for each container that tells its cgroup. LXC and systemd-nspawn have the name in the cgroup's.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy
from sharedfs.linux.procfs import process_ids

_AGAIN_SECONDS = 5.0
"""A cgroup may be there before the file that names it."""

_ID = re.compile(r"[0-9a-f]{64}")
_NAMED = re.compile(r"/(?:lxc\.payload\.|machine-)([^/]+?)(?:\.scope)?$|^/lxc/([^/]+)$")
_STORAGE = "var/lib/containers/storage/overlay-containers"
_KUBERNETES = (  # annotations of a bundle: containerd's, CRI-O's
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.container-name"),
    ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name"),
)


class Names:
    """Looks names up once and remembers them. `root` is where the runtimes' files are; tests have their own."""

    def __init__(self, hierarchy: MemoryHierarchy, root: Path = Path("/")) -> None:
        self._hierarchy = hierarchy
        self._root = root
        self._known: dict[CgroupRef, str] = {}
        self._next_look = 0.0

    def of(self, cgroups: Iterable[CgroupRef]) -> Mapping[CgroupRef, str]:
        """The names of these cgroups, without those that have none. Reads files, of new cgroups only."""
        wanted = frozenset(cgroups)
        self._known = {cgroup: name for cgroup, name in self._known.items() if cgroup in wanted}
        missing = wanted - self._known.keys()
        if missing and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _AGAIN_SECONDS
            by_path = dict(self._by_path())
            for cgroup in missing:
                name = self._name(cgroup.path) or by_path.get(cgroup.path)
                if name is not None and name.isprintable():
                    self._known[cgroup] = name
        return self._known

    def _name(self, path: str) -> str | None:
        """The name that follows from a cgroup's own."""
        last = path.rpartition("/")[2]
        found = _ID.search(last)
        if found is None:
            named = _NAMED.search(path)
            return None if named is None else named[1] or named[2]
        container_id = found[0]
        told = self._docker(container_id) or self._bundle(container_id) or self._storage(container_id)
        return told or _conmon(container_id)

    def _docker(self, container_id: str) -> str | None:
        told = self._read(f"var/lib/docker/containers/{container_id}/config.v2.json")
        return _text(told, "Name").removeprefix("/") or None

    def _bundle(self, container_id: str) -> str | None:
        """What containerd and CRI-O note in the bundle that they give their runtime."""
        bundles = [f"run/containers/storage/overlay-containers/{container_id}/userdata/config.json"]
        with suppress(OSError):
            tasks = self._root / "run/containerd/io.containerd.runtime.v2.task"
            bundles += [f"{tasks}/{space.name}/{container_id}/config.json" for space in tasks.iterdir()]
        for bundle in bundles:
            told = self._read(bundle)
            annotations = told.get("annotations") if isinstance(told, dict) else None
            for keys in _KUBERNETES:
                parts = [_text(annotations, key) for key in keys]
                if parts[1]:
                    return "/".join(part for part in parts if part)
            if nerdctl := _text(annotations, "nerdctl/name"):
                return nerdctl
        return None

    def _storage(self, container_id: str) -> str | None:
        """The list that podman and CRI-O keep, of containers with an image."""
        for name in ("containers.json", "volatile-containers.json"):
            listed = self._read(f"{_STORAGE}/{name}")
            for container in listed if isinstance(listed, list) else ():
                if _text(container, "id") == container_id and container.get("names"):
                    return str(container["names"][0])
        return None

    def _by_path(self) -> Iterator[tuple[str, str]]:
        """The cgroups of containers that runc and crun were told to start by hand, and their names."""
        mount = str(self._hierarchy.mount)
        for file in self._list("run/runc", "state.json"):
            told = self._read(str(file))
            paths = told.get("cgroup_paths") if isinstance(told, dict) else None
            path = _text(paths, "memory") or _text(paths, "")
            if path.startswith(mount) and not _ID.fullmatch(file.parent.name):
                yield path.removeprefix(mount), file.parent.name
        for file in self._list("run/crun", "status"):
            path = _text(self._read(str(file)), "cgroup-path")
            if path and not _ID.fullmatch(file.parent.name):
                yield path, file.parent.name

    def _list(self, directory: str, name: str) -> list[Path]:
        return sorted((self._root / directory).glob(f"*/{name}"))

    def _read(self, file: str) -> Any:
        """The JSON in `file` (absolute, or below the root); None when there is none that makes sense."""
        try:
            return json.loads((self._root / file).read_bytes())
        except (OSError, ValueError):
            return None


def _text(value: Any, key: str) -> str:
    """The text at `key` of what should be an object; empty when it is anything else."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _conmon(container_id: str) -> str | None:
    """podman's monitor of a container has its name on the command line, also of those without an image."""
    for process_id in process_ids():
        with suppress(OSError):  # it ended
            if Path(f"/proc/{process_id}/comm").read_bytes() == b"conmon\n":
                arguments = os.fsdecode(Path(f"/proc/{process_id}/cmdline").read_bytes()).split("\0")
                if container_id in arguments and "-n" in arguments[:-1]:
                    return arguments[arguments.index("-n") + 1]
    return None
