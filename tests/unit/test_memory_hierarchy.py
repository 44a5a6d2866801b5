"""Where the memory controller is: mountinfo as kernels write it, on v1, v2 and hybrid hosts, found by looking."""

from pathlib import Path

import pytest

from sharedfs.common.errors import HostFault
from sharedfs.linux import mountinfo as mounts_module
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, MemoryHierarchy, find_memory_hierarchy
from sharedfs.linux.mountinfo import Mount, mount_at, parse_mountinfo

MOUNTINFO = rb"""22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
24 22 0:22 / /proc rw,nosuid - proc proc rw
30 22 0:26 / /sys/fs/cgroup ro,nosuid shared:9 master:3 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory
40 22 0:50 / /mnt/with\040space\134and\011more rw - fuse.sharedfs odd\040name rw,user_id=0
41 22 0:51 / /mnt/twice rw - tmpfs below rw
42 22 0:52 / /mnt/twice rw - tmpfs above rw
"""


def test_mountinfo() -> None:
    found = parse_mountinfo(MOUNTINFO)
    assert len(found) == 9
    options = frozenset({"rw", "discard"}), ("rw", "relatime")
    assert found[0] == Mount((259, 1), "/", "ext4", "/dev/root", *options, "/", 22, 1, frozenset({1}), 1)
    assert (found[2].id, found[2].parent, found[2].groups) == (30, 22, {9, 3})
    assert found[2].super_options == {"ro", "mode=755"}, "optional fields of any number stand before the dash"
    assert (found[6].mountpoint, found[6].source) == ("/mnt/with space\\and\tmore", "odd name")
    assert parse_mountinfo(b"") == []


def test_the_mount_on_top_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts_module, "mounts", lambda: parse_mountinfo(MOUNTINFO))
    above = mount_at("/mnt/twice")
    assert above is not None
    assert above.source == "above"
    assert mount_at("/mnt") is None


def v1(directory: Path, controllers: str = "memory") -> Mount:
    return Mount((0, 29), str(directory), "cgroup", "cgroup", frozenset({"rw", *controllers.split(",")}))


def v2(directory: Path, controllers: str = "cpu memory io") -> Mount:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers + "\n")
    return Mount((0, 27), str(directory), "cgroup2", "cgroup2", frozenset({"rw"}))


def test_a_host_with_v1(tmp_path: Path) -> None:
    found = find_memory_hierarchy([v1(tmp_path / "cpu", "cpu,cpuacct"), v1(tmp_path / "memory")])
    assert found == MemoryHierarchy(CgroupVersion.V1, tmp_path / "memory")
    together = find_memory_hierarchy([v1(tmp_path / "all", "cpu,memory,pids")])
    assert together == MemoryHierarchy(CgroupVersion.V1, tmp_path / "all")


def test_a_host_with_v2(tmp_path: Path) -> None:
    assert find_memory_hierarchy([v2(tmp_path)]) == MemoryHierarchy(CgroupVersion.V2, tmp_path)


def test_a_hybrid_host_keeps_memory_on_v1(tmp_path: Path) -> None:
    for order in (1, -1):
        hosts = [v2(tmp_path / "unified", ""), v1(tmp_path / "memory")][::order]
        assert find_memory_hierarchy(hosts) == MemoryHierarchy(CgroupVersion.V1, tmp_path / "memory", hybrid=True)


def test_a_hybrid_host_with_memory_on_v2(tmp_path: Path) -> None:
    found = find_memory_hierarchy([v1(tmp_path / "cpu", "cpu"), v2(tmp_path / "unified", "memory")])
    assert found == MemoryHierarchy(CgroupVersion.V2, tmp_path / "unified")


def test_a_host_without_memory_controller_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match="mount cgroup2"):
        find_memory_hierarchy([v1(tmp_path / "cpu", "cpu")])
    with pytest.raises(HostFault, match="cgroup_enable=memory"):
        find_memory_hierarchy([v2(tmp_path, "cpu io")])


PROC_CGROUP_HYBRID = b"""13:pids:/user.slice
12:cpu,cpuacct:/by-cpu
11:memory:/kubepods/pod:with:colons
1:name=systemd:/memory
0::/unified/path
"""


def test_the_path_of_a_process(tmp_path: Path) -> None:
    on_v1, on_v2 = MemoryHierarchy(CgroupVersion.V1, tmp_path), MemoryHierarchy(CgroupVersion.V2, tmp_path)
    assert on_v1.path_in(PROC_CGROUP_HYBRID) == "/kubepods/pod:with:colons"
    assert on_v2.path_in(PROC_CGROUP_HYBRID) == "/unified/path"
    assert on_v1.path_in(b"3:cpu,memory,io:/all\n") == "/all"
    assert on_v2.path_in(b"0::/gone (deleted)\n") == "/gone (deleted)", "that may be its name"
    assert on_v2.path_in(b"0::/\n") == "/"
    for text in (b"", b"0::/unified\n", b"4:memory2:/x\n"):
        assert on_v1.path_in(text) is None


def test_a_path_that_comes_back_is_another_cgroup(tmp_path: Path) -> None:
    hierarchy = MemoryHierarchy(CgroupVersion.V2, tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    first = hierarchy.find("/a/b")
    assert first is not None
    assert first.path == "/a/b"
    assert hierarchy.lives(first)
    (tmp_path / "a" / "b").rmdir()
    (tmp_path / "in between").mkdir()  # takes the inode number, should the filesystem give it again
    assert hierarchy.find("/a/b") is None
    assert not hierarchy.lives(first)
    (tmp_path / "a" / "b").mkdir()
    assert not hierarchy.lives(CgroupRef("/a/b", first.inode + 10_000))
    (tmp_path / "file").write_text("")
    assert hierarchy.find("/file/below") is None


def test_processes(tmp_path: Path) -> None:
    hierarchy = MemoryHierarchy(CgroupVersion.V1, tmp_path)
    (tmp_path / "cgroup.procs").write_text("12\n7\n")
    assert hierarchy.processes("/") == [12, 7]
    assert hierarchy.processes("/gone") == []
