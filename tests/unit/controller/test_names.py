"""Names of containers from the files of their runtimes, which have the shapes that each writes."""

import json
from pathlib import Path

import pytest

from controller.service import container_names as module
from controller.service.container_names import Names
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, MemoryHierarchy

ID, OTHER = "d4" * 32, "e5" * 32


def write(root: Path, file: str, content: object) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def hierarchy() -> MemoryHierarchy:
    return MemoryHierarchy(CgroupVersion.V1, Path("/sys/fs/cgroup/memory"))


@pytest.mark.parametrize(
    ("path", "file", "content", "name"),
    [
        (f"/docker/{ID}", f"var/lib/docker/containers/{ID}/config.v2.json", {"ID": ID, "Name": "/web"}, "web"),
        (
            f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
            f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            {
                "annotations": {
                    "io.kubernetes.cri.sandbox-namespace": "shop",
                    "io.kubernetes.cri.sandbox-name": "web-7d9f",
                    "io.kubernetes.cri.container-name": "nginx",
                }
            },
            "shop/web-7d9f/nginx",
        ),
        (
            f"/kubepods/burstable/pod1/crio-{ID}",
            f"run/containers/storage/overlay-containers/{ID}/userdata/config.json",
            {
                "annotations": {
                    "io.kubernetes.pod.namespace": "shop",
                    "io.kubernetes.pod.name": "web-7d9f",
                    "io.kubernetes.container.name": "nginx",
                }
            },
            "shop/web-7d9f/nginx",
        ),
        (
            f"/system.slice/nerdctl-{ID}.scope",
            f"run/containerd/io.containerd.runtime.v2.task/default/{ID}/config.json",
            {"annotations": {"nerdctl/name": "web"}},
            "web",
        ),
        (
            f"/machine.slice/libpod-{ID}.scope",
            "var/lib/containers/storage/overlay-containers/containers.json",
            [{"id": OTHER, "names": ["db"]}, {"id": ID, "names": ["web"], "image": "1"}],
            "web",
        ),
        (
            f"/libpod_parent/libpod-{ID}",
            "var/lib/containers/storage/overlay-containers/volatile-containers.json",
            [{"id": ID, "names": ["web"]}],
            "web",
        ),
        ("/batch/7", "run/runc/web/state.json", {"cgroup_paths": {"memory": "/sys/fs/cgroup/memory/batch/7"}}, "web"),
        ("/batch/7", "run/runc/web/state.json", {"cgroup_paths": {"": "/sys/fs/cgroup/memory/batch/7"}}, "web"),
        ("/batch/7", "run/crun/web/status", {"pid": 1, "cgroup-path": "/batch/7"}, "web"),
        ("/lxc.payload.web", "run/nothing", "", "web"),
        ("/lxc/web", "run/nothing", "", "web"),
        ("/machine.slice/machine-web.scope", "run/nothing", "", "web"),
        # what makes no sense, or would be no name for a terminal
        (f"/docker/{ID}", f"var/lib/docker/containers/{ID}/config.v2.json", "{", None),
        (f"/docker/{ID}", f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": 7}, None),
        (f"/docker/{ID}", f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "\x1b[2J"}, None),
        ("/batch/7", "run/runc/web/state.json", [], None),
        ("/batch/7", "run/crun/web/status", {"cgroup-path": "/batch/8"}, None),
        ("/batch/7", f"run/crun/{ID}/status", {"cgroup-path": "/batch/7"}, None),
        ("/system.slice/web.service", "run/nothing", "", None),
    ],
)
def test_a_name(
    tmp_path: Path, hierarchy: MemoryHierarchy, path: str, file: str, content: object, name: str | None
) -> None:
    write(tmp_path, file, content)
    cgroup = CgroupRef(path, 1)
    assert Names(hierarchy, tmp_path).of([cgroup]).get(cgroup) == name


def test_names_are_looked_up_once_and_a_later_cgroup_has_none_of_the_first(
    tmp_path: Path, hierarchy: MemoryHierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    names = Names(hierarchy, tmp_path)
    first, later = CgroupRef("/batch/7", 1), CgroupRef("/batch/7", 2)
    assert names.of([first]) == {}
    write(tmp_path, "run/crun/web/status", {"cgroup-path": "/batch/7"})
    assert names.of([first]) == {}, "not looked for at each question"
    now += 10
    assert names.of([first]) == {first: "web"}
    (tmp_path / "run/crun/web/status").unlink()
    assert names.of([first]) == {first: "web"}
    now += 10
    assert names.of([later]) == {}
