"""Which cgroup is the tenant: rules from the path of a process's cgroup to the path of its tenant. Pure.

Processes sit in leaves, but the one who pays is often above: a container that runs systemd has cgroups of its own
inside, a Slurm job has one for each step and task. A rule says which part of a path is a tenant's; the first rule that
knows the path decides, and a path that none knows is its own tenant.

    container  a container of podman, Docker, containerd, CRI-O, LXC or systemd-nspawn, by its cgroup's name
    job        a Slurm job
    pod        a pod of Kubernetes or podman
    unit       a unit of systemd: what is below the slices
    leaf       the cgroup itself
    /a/*/b     what this pattern matches; * and ? stand for what they mean in a shell, within one name

Where containers run in containers the outermost is the tenant: what is inside could call itself anything.
"""

import re
from dataclasses import dataclass, field

DEFAULT_TENANT_RULES = "container:job"

_ID = "[0-9a-f]{64}"
_UID = "(?:[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"  # without dashes: of a static pod
_END = "(?=/|$)"


def _outermost(*names: str) -> str:
    """From a path's start to the end of the first name that is one of these."""
    return f"(?:/[^/]+)*?/(?:{'|'.join(names)}){_END}"


_WORDS = {
    "container": _outermost(
        rf"[^/]+-{_ID}\.scope",  # systemd drivers: docker-, libpod-, cri-containerd-, crio-, ...
        f"(?:libpod|libpod-payload|crio)-{_ID}",
        f"{_ID}(?!/libpod-)",  # cgroupfs drivers; with libpod- below it is podman's pod
        rf"[^/]+\.slice:[^/:]+:{_ID}",  # a systemd driver's words taken by one that is none
        r"machine-[^/]+\.scope",
        r"lxc\.payload\.[^/]+",
        "lxc/[^/]+",
    ),
    "job": _outermost(
        r"(?:[^/]+_)?slurmstepd\.scope/job_\d+",
        r"slurm[^/]*/uid_\d+/job_\d+",
    ),
    "pod": _outermost(
        rf"[^/]+-pod{_UID}\.slice",
        f"kubepods(?:/burstable|/besteffort)?/pod{_UID}",
        rf"machine-libpod_pod_{_ID}\.slice",
        f"{_ID}(?=/libpod-)",
    ),
    "unit": rf"(?:/[^/]+\.slice)*/[^/]+\.(?:service|scope|socket|mount|swap){_END}",
    "leaf": ".*",
}


@dataclass(frozen=True, slots=True)
class TenantRules:
    """Rules with colons between, as `tenant=` has them. Raises ValueError for what is none.

    >>> TenantRules("job").tenant_path("/slurm/uid_1000/job_7/step_0/task_0")
    '/slurm/uid_1000/job_7'
    """

    text: str = DEFAULT_TENANT_RULES
    _patterns: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_patterns", tuple(_pattern_of(rule) for rule in self.text.split(":")))

    def tenant_path(self, path: str) -> str:
        """The path of the tenant to which a process in the cgroup at `path` belongs: `path`, or what is above it."""
        for pattern in self._patterns:
            found = pattern.match(path)
            if found is not None:
                return found[0]
        return path


def _pattern_of(rule: str) -> re.Pattern[str]:
    """Matches a path from its start to the end of the tenant's name."""
    if rule in _WORDS:
        return re.compile(_WORDS[rule])
    names = rule.split("/")
    if len(names) < 2 or names[0] or not all(names[1:]):
        raise ValueError(
            f"{rule!r} is no tenant rule: write {', '.join(_WORDS)}, or a pattern such as /batch/*, with colons between"
        )
    return re.compile("".join("/" + _within_a_name(name) for name in names[1:]) + _END)


def _within_a_name(glob: str) -> str:
    """A pattern with * and ? as a regular expression in which neither goes beyond a slash."""
    return re.escape(glob).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
