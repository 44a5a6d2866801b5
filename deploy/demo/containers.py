"""Real containers without an image: root is the host's own files, read-only; a limit, and directories bound into it.

runc and crun get a bundle (OCI runtime specification: config.json and a root of mount points), podman the same as
arguments. The container runs in the foreground with our standard input and output, and is gone when its command ends.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedfs.common.errors import CallerMistake
from sharedfs.linux.mountinfo import mount_at, mounts

RUNTIMES = ("runc", "crun", "podman")

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
_CAPABILITIES = [f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETUID", "SETGID")]
_FIRST_SUBORDINATE_ID, _SUBORDINATE_IDS = 100_000, 65_536
_UNIFIED = "/sys/fs/cgroup/unified"
# crun up to 1.8 refuses hosts that mount v2 beside v1: it starts where that mount is not seen.
_WITHOUT_UNIFIED = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", f'umount {_UNIFIED}; exec "$@"', "sh"]

Bind = tuple[str, str]  # a directory of the host, at the same place inside, and its options with commas between


@dataclass(frozen=True, slots=True)
class Container:
    """`cgroup` is a path below the hierarchies' roots; podman makes one of its own below it.

    `readable` and `writable` are directories of the host, at the same place inside; what is mounted below `slave` after
    the start appears inside as well. With `user_namespace` root inside is an ordinary user of the host.
    """

    name: str
    cgroup: str
    limit_bytes: int
    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    slave: Sequence[Path] = ()
    user: int = 0
    user_namespace: bool = False


def installed_runtime() -> str:
    """The first of RUNTIMES that is installed. Raises CallerMistake when there is none."""
    for runtime in RUNTIMES:
        if shutil.which(runtime) is not None:
            return runtime
    raise CallerMistake(f"no container runtime is installed: install one of {', '.join(RUNTIMES)}, then run it again")


def interpreter() -> tuple[str, list[Path]]:
    """A Python for inside, and the directories it needs there beside the system's."""
    prefix = Path(os.path.realpath(sys.base_prefix))
    return os.path.realpath(sys.executable), [] if prefix.is_relative_to("/usr") else [prefix]


def command(runtime: str, container: Container, directory: Path, pid_file: Path, argv: Sequence[str]) -> list[str]:
    """What to run so that `argv` runs in `container`. `directory` is for its root, and others must come through.

    `pid_file` then has the id of its first process, as the host sees it.
    """
    root = directory / "root"
    binds = _binds(container)
    _make_root(root, [place for place, _ in binds])
    if runtime == "podman":
        return _podman(container, root, binds, pid_file, argv)
    (directory / "config.json").write_text(json.dumps(_bundle(container, binds, argv), indent=1))
    run = ["run", "--pid-file", str(pid_file), "--bundle", str(directory), container.name]
    return [*(_WITHOUT_UNIFIED if _needs_v1_alone(runtime) else []), runtime, *run]


def remove(runtime: str, name: str) -> None:
    """Take a container away that its command's end did not, as after Ctrl-C. It need not be there."""
    arguments = ["rm", "--force", "--ignore", "--time=0"] if runtime == "podman" else ["delete", "--force"]
    beside_v1 = _WITHOUT_UNIFIED if _needs_v1_alone(runtime) else []
    subprocess.run([*beside_v1, runtime, *arguments, name], capture_output=True, timeout=60, check=False)


def remove_cgroups(path: str) -> None:
    """Take away what runtimes made at and below `path` in all hierarchies: they leave the parents of a container's."""
    for hierarchy in (mount.mountpoint for mount in mounts() if mount.kind in ("cgroup", "cgroup2")):
        for directory, _, _ in os.walk(hierarchy + path, topdown=False):
            with suppress(OSError):  # somebody is in it, and who made it will be told
                os.rmdir(directory)


def _needs_v1_alone(runtime: str) -> bool:
    return runtime == "crun" and mount_at(_UNIFIED) is not None


def _binds(container: Container) -> list[Bind]:
    _, needed = interpreter()
    system = [Path(place) for place in _SYSTEM if Path(place).is_dir() and not Path(place).is_symlink()]
    return [
        *((str(place), "rbind,ro") for place in (*system, *needed, *container.readable)),
        *((str(place), "rbind,rw") for place in container.writable),
        *((str(place), "rbind,rw,rslave") for place in container.slave),
    ]


def _make_root(root: Path, mount_points: Sequence[str]) -> None:
    """Mount points are there before the start: in a user namespace the runtime could not make them."""
    root.mkdir(parents=True, exist_ok=True)
    for place in ("/proc", "/dev", "/sys", "/run", "/tmp", "/var/tmp", *mount_points):
        (root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for place in _SYSTEM:
        if Path(place).is_symlink() and not (root / place.lstrip("/")).is_symlink():
            (root / place.lstrip("/")).symlink_to(Path(place).readlink())


def _bundle(container: Container, binds: Sequence[Bind], argv: Sequence[str]) -> dict[str, Any]:
    """config.json of the OCI runtime specification, version 1."""
    namespaces = ["pid", "mount", "ipc", "uts", "network", "cgroup"] + ["user"] * container.user_namespace
    ids = [{"containerID": 0, "hostID": _FIRST_SUBORDINATE_ID, "size": _SUBORDINATE_IDS}]
    linux = {
        "cgroupsPath": container.cgroup,
        "namespaces": [{"type": kind} for kind in namespaces],
        "resources": {"memory": {"limit": container.limit_bytes}},
        "rootfsPropagation": "rslave",
    }
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": container.user, "gid": container.user},
            "args": list(argv),
            "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": "root", "readonly": True},
        "hostname": container.name,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "dev", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": ["nosuid", "nodev", "mode=1777"]},
            *(
                {"destination": place, "type": "bind", "source": place, "options": options.split(",")}
                for place, options in sorted(binds)
            ),
        ],
        "linux": linux | ({"uidMappings": ids, "gidMappings": ids} if container.user_namespace else {}),
    }


def _podman(container: Container, root: Path, binds: Sequence[Bind], pid_file: Path, argv: Sequence[str]) -> list[str]:
    arguments = [
        "podman",
        "--cgroup-manager=cgroupfs",
        "run",
        "--rm",
        "--interactive",
        f"--name={container.name}",
        f"--pidfile={pid_file}",
        f"--cgroup-parent={container.cgroup}",
        f"--memory={container.limit_bytes}",
        f"--user={container.user}:{container.user}",
        "--network=none",
        "--pull=never",
        "--read-only",
        # podman asks for more than root may where CAP_SYS_RESOURCE is missing
        "--ulimit=nofile=4096:4096",
        "--ulimit=nproc=4096:4096",
    ]
    if mount_at(_UNIFIED) is not None:
        arguments.insert(1, "--runtime=runc")
    if container.user_namespace:
        arguments += [f"--{kind}=0:{_FIRST_SUBORDINATE_ID}:{_SUBORDINATE_IDS}" for kind in ("uidmap", "gidmap")]
    arguments += [f"--volume={place}:{place}:{options}" for place, options in binds]
    return [*arguments, "--rootfs", str(root), *argv]
