"""Rules from a process's cgroup to its tenant, on the paths that managers of containers and jobs make.

The paths are from the public documentation and issue threads of each, with ids of our own.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.ledger.tenant_rules import DEFAULT_TENANT_RULES, TenantRules

ID, OTHER = "a1" * 32, "b2" * 32
UID = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
SLICED = UID.replace("-", "_")
STATIC = "c704ef4c297ab11032b83ce52cbfc87b"
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICED}.slice"
KIND = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"

# (what, the tenant by container and by pod, what may follow within it)
CONTAINERS = [
    ("docker, systemd", f"/system.slice/docker-{ID}.scope", None),
    ("docker, cgroupfs", f"/docker/{ID}", None),
    ("docker --cgroup-parent", f"/batch/tonight/{ID}", None),
    ("docker --cgroup-parent with systemd", f"/batch.slice/docker-{ID}.scope", None),
    ("docker, rootless", f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope", None),
    ("podman, systemd", f"/machine.slice/libpod-{ID}.scope", None),
    ("podman, cgroupfs", f"/libpod_parent/libpod-{ID}", None),
    ("podman, rootless", f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", None),
    ("podman --cgroups=split", f"/srv.slice/container-web.service/libpod-payload-{ID}", None),
    (
        "podman in a pod, systemd",
        f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope",
        f"/machine.slice/machine-libpod_pod_{OTHER}.slice",
    ),
    ("podman in a pod, cgroupfs", f"/libpod_parent/{OTHER}/libpod-{ID}", f"/libpod_parent/{OTHER}"),
    ("containerd, ctr", f"/default/{ID}", None),
    ("nerdctl", f"/system.slice/nerdctl-{ID}.scope", None),
    ("containerd, systemd", f"{BURSTABLE}/cri-containerd-{ID}.scope", BURSTABLE),
    (
        "containerd, systemd, guaranteed",
        f"/kubepods.slice/kubepods-pod{SLICED}.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-pod{SLICED}.slice",
    ),
    (
        "a static pod",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice",
    ),
    ("containerd, cgroupfs", f"/kubepods/burstable/pod{UID}/{ID}", f"/kubepods/burstable/pod{UID}"),
    ("containerd, cgroupfs, guaranteed", f"/kubepods/pod{UID}/{ID}", f"/kubepods/pod{UID}"),
    ("docker below Kubernetes", f"{BURSTABLE}/docker-{ID}.scope", BURSTABLE),
    ("cri-o, systemd", f"{BURSTABLE}/crio-{ID}.scope", BURSTABLE),
    ("cri-o, cgroupfs", f"/kubepods/besteffort/pod{UID}/crio-{ID}", f"/kubepods/besteffort/pod{UID}"),
    ("drivers that disagree", f"/kubepods-besteffort-pod{SLICED}.slice:cri-containerd:{ID}", None),
    (
        "drivers that disagree, below the service",
        f"/system.slice/containerd.service/kubepods-burstable-pod{SLICED}.slice:cri-containerd:{ID}",
        None,
    ),
    (
        "a node of kind, seen from inside",
        f"{KIND}/kubelet-kubepods-besteffort-pod{SLICED}.slice/cri-containerd-{ID}.scope",
        f"{KIND}/kubelet-kubepods-besteffort-pod{SLICED}.slice",
    ),
    ("LXC, v2", "/lxc.payload.web", None),
    ("LXC, v1", "/lxc/101", None),
    ("systemd-nspawn", "/machine.slice/machine-web.scope", None),
]
JOBS = [
    ("Slurm, v1", "/slurm/uid_1000/job_123", ["/step_0/task_0", "/step_batch", "/step_extern/task_4294967295"]),
    ("Slurm, v1, several daemons", "/slurm_node1/uid_1000/job_123", ["/step_0/task_0"]),
    ("Slurm, v2", "/system.slice/slurmstepd.scope/job_123", ["/step_0/user/task_0", "/step_batch/slurm"]),
    ("Slurm, v2, several daemons", "/system.slice/node1_slurmstepd.scope/job_7", ["/step_0/user/task_special"]),
]
LEAVES = [
    "/",
    "/user.slice/user-1000.slice/session-3.scope",
    "/system.slice/web.service",
    "/system.slice/web.service/worker",
    "/system.slice/slurmstepd.scope/system",
    "/slurm/uid_1000",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    "/docker/buildx/short",
    "/sharedfs-demo-1/pool-a",
    BURSTABLE,
]
INSIDE = [
    "",
    "/container",
    "/init.scope",
    "/system.slice/ssh.service",
    f"/docker/{OTHER}",
    f"/system.slice/docker-{OTHER}.scope",
]


@pytest.mark.parametrize(("what", "container", "pod"), CONTAINERS)
@pytest.mark.parametrize("inside", INSIDE)
def test_a_container_is_one_tenant_with_all_that_is_inside(
    what: str, container: str, pod: str | None, inside: str
) -> None:
    assert TenantRules().tenant_path(container + inside) == container
    assert TenantRules("pod:container").tenant_path(container + inside) == (pod or container)
    assert TenantRules("leaf:container").tenant_path(container + inside) == container + inside


@pytest.mark.parametrize(("what", "job", "inside"), JOBS)
def test_a_job_is_one_tenant_with_all_its_steps(what: str, job: str, inside: list[str]) -> None:
    for path in (job, *(job + below for below in inside)):
        assert TenantRules().tenant_path(path) == job
        assert TenantRules("container").tenant_path(path) == path


@pytest.mark.parametrize("path", LEAVES)
def test_anything_else_is_its_own_tenant(path: str) -> None:
    assert TenantRules().tenant_path(path) == path


def test_the_default_is_what_it_says() -> None:
    assert TenantRules().text == DEFAULT_TENANT_RULES == "container:job"


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/web.service/worker/1", "/system.slice/web.service"),
        ("/init.scope", "/init.scope"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
            "/user.slice/user-1000.slice/user@1000.service",
        ),
        ("/system.slice/system-getty.slice/getty@tty1.service", "/system.slice/system-getty.slice/getty@tty1.service"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"/machine.slice/libpod-{ID}.scope"),
        ("/batch/web.service/x", "/batch/web.service/x"),
        ("/system.slice", "/system.slice"),
    ],
)
def test_a_unit_of_systemd(path: str, unit: str) -> None:
    assert TenantRules("unit").tenant_path(path) == unit


@pytest.mark.parametrize(
    ("pattern", "path", "tenant"),
    [
        ("/batch/*", "/batch/7/step/1", "/batch/7"),
        ("/batch/*", "/batch", "/batch"),
        ("/batch/*", "/other/batch/7/1", "/other/batch/7/1"),
        ("/*/job-?", "/x/job-1/y", "/x/job-1"),
        ("/*/job-?", "/x/job-12/y", "/x/job-12/y"),
        ("/a.b", "/axb/c", "/axb/c"),
        ("/a*z/b", "/a/z/b/c", "/a/z/b/c"),
        ("/[x]/y", "/[x]/y/z", "/[x]/y"),
        # a pod's container in a node of kind, which is a container of Docker
        (
            "/system.slice/docker-*/kubelet.slice/*/*/*/*",
            f"/system.slice/docker-{OTHER}.scope{KIND}/kubelet-kubepods-besteffort-pod{SLICED}.slice"
            f"/cri-containerd-{ID}.scope/init.scope",
            f"/system.slice/docker-{OTHER}.scope{KIND}/kubelet-kubepods-besteffort-pod{SLICED}.slice"
            f"/cri-containerd-{ID}.scope",
        ),
    ],
)
def test_a_pattern(pattern: str, path: str, tenant: str) -> None:
    assert TenantRules(pattern).tenant_path(path) == tenant


def test_the_first_rule_that_knows_a_path_decides() -> None:
    path = f"/batch/{ID}/x"
    assert TenantRules("/batch:container").tenant_path(path) == "/batch"
    assert TenantRules("container:/batch").tenant_path(path) == f"/batch/{ID}"


@pytest.mark.parametrize("text", ["", "containers", "container:", "batch/*", "/", "/a//b", "/a/", "container,job"])
def test_what_is_no_rule_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no tenant rule: write container, job, pod, unit, leaf, or a pattern"):
        TenantRules(text)


names = st.sampled_from(
    [ID, f"docker-{ID}.scope", f"libpod-{ID}", f"pod{UID}", "kubepods", "a.slice", "b.service", "job_1", "x"]
)
rules = st.lists(st.sampled_from(["container", "job", "pod", "unit", "leaf", "/*", "/a.slice/*"]), min_size=1).map(
    ":".join
)


@given(rules, st.lists(names, min_size=1, max_size=6))
def test_a_tenant_is_above_its_processes_and_is_its_own_tenant(text: str, path_names: list[str]) -> None:
    path = "/" + "/".join(path_names)
    tenant = TenantRules(text).tenant_path(path)
    assert path == tenant or path.startswith(tenant + "/")
    assert tenant.startswith("/")
    assert len(tenant) > 1
