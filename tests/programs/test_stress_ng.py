"""stress-ng's filesystem stressors, several at a time, each verifying what it did: as many pass as on tmpfs."""

import re
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.programs import finish, needs

pytestmark = needs("stress-ng")

# Left out: what mounts other filesystems (bind-mount, binderfs), is about no file (eventfd, ioprio, procfs), fails on
# tmpfs as well (io-uring), or runs on for many times its time (mmapfork). Sizes keep each within a small filesystem.
BATCHES = {
    "attributes": "access chattr chmod chown file-ioctl fstat inode-flags touch utime xattr",
    "names": "chdir dentry dir dirdeep dirmany getdent handle mknod rename",
    "many names": "link symlink open",
    "locks and events": "dnotify dup fanotify fcntl flock inotify lease locka lockf lockofd",
    "data": "copy-file:128M fallocate:16M fiemap fpunch fsize hdd:16M io iomix:8M sync-file:8M verity",
    "data by other calls": "aio aiol readahead:8M revio seek splice tee",
    "long names": "filename",
    "sendfile": "sendfile",
    "mappings": "fault madvise mincore mmap:8M mmapfixed mmapmany msync:4M remap",
}
SECONDS = 2
# fanotify watches every mount of the host. Each event that its listener has not read yet keeps a deleted file, on a
# tmpfs as on a pool, so other tests' pools would fill up with what they have deleted.
DISTURBS_OTHERS = "locks and events"


def outcome(directory: Path, batch: str) -> dict[str, str]:
    """What became of each stressor: passed, failed, skipped (says that it has nothing to do here), or idle.

    Idle is one that did not get to do anything within its time, as happens on a busy machine.
    """
    directory.mkdir()
    names, arguments = [], [f"--temp-path={directory}", f"--timeout={SECONDS}", "--verify", "--seed=1", "--mmap-file"]
    for stressor in BATCHES[batch].split():
        name, _, size = stressor.partition(":")
        names.append(name)
        arguments += [f"--{name}=1", *([f"--{name}-bytes={size}"] if size else [])]
    _, output = finish("stress-ng", "--metrics-brief", *arguments, cwd=directory, seconds=90)
    print(output)  # shown when the test fails
    done = set(re.findall(r"\] ([a-z-]+) +\d+ +\d+\.\d+ ", output))
    skipped = set(re.findall(r"\] ([a-z-]+): [^\n]*skipping stress", output))
    failed = set(re.findall(r" fail: +\[\d+\] ([a-z-]+):", output))
    failed |= set(re.findall(r"process \[?\d+\]? \(([a-z-]+)\) (?:terminated|aborted)", output))
    states = {"failed": failed, "skipped": skipped, "passed": done}
    return {name: next((state for state, those in states.items() if name in those), "idle") for name in names}


@pytest.mark.parametrize(
    "batch", [pytest.param(batch, marks=pytest.mark.alone if batch == DISTURBS_OTHERS else ()) for batch in BATCHES]
)
def test_stressors_pass_as_on_tmpfs(plain_tmpfs: Path, shared_pool: MountedPool, batch: str) -> None:
    name = f"stress-{batch.replace(' ', '-')}"
    on_tmpfs, on_the_pool = outcome(plain_tmpfs / name, batch), outcome(shared_pool.path / name, batch)
    assert "passed" in on_tmpfs.values()
    worse = {("passed", "failed"), ("skipped", "failed"), ("idle", "failed"), ("passed", "skipped")}
    different = {name for name, state in on_tmpfs.items() if (state, on_the_pool[name]) in worse}
    assert different == set()
    shared_pool.check_conservation()
